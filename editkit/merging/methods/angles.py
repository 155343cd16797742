"""Interpolation on a sphere, as far as it is about two numbers: the factors of the two ends.

>>> [round(float(factor), 4) for factor in spherical(0.5, 0.0)]  # halfway on a quarter of a circle
[0.7071, 0.7071]
"""

import numpy as np


def spherical(t: float | np.ndarray, cosine: float | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """sin((1 - t) theta) / sin(theta) and sin(t theta) / sin(theta), for the angle between the ends; arrays broadcast.

    The cosine must not be 1 or -1.
    """
    theta = np.arccos(cosine)
    return np.sin((1 - t) * theta) / np.sin(theta), np.sin(t * theta) / np.sin(theta)
