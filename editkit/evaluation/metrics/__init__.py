"""The metrics of an edit, one file per paper: pure functions of arrays, so that they can be had of saved rows as well.

Unknown is NaN in arrays and None in single values; nothing unknown is ever counted as 0. A function that reduces does so along the last
axis (a set's examples), or the last two (examples and columns), and keeps axes before them: `statistics.bootstrap` puts resamples there.
"""
