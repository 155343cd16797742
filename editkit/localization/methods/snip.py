"""SNIP: how much the loss would change to first order if the weight were zero. Lee et al. 2018 (https://arxiv.org/abs/1810.02340).

    score = |G_F * w|

>>> score(Statistics(weights=np.array([[-2.0]]), forget=np.array([[3.0]])))
array([[6.]])
"""

import numpy as np

from editkit.localization.method import Method, Statistics


def score(known: Statistics) -> np.ndarray:
    """|G_F w|."""
    return np.abs(known.forget * known.weights)


METHOD = Method(score, accumulate=("signed", "absolute", "squared"), weights=True)
