"""Magnitude, a control that needs no gradients: |w - w_base| where a base is given, else |w|.

>>> score(Statistics(weights=np.array([[-2.0]])))
array([[2.]])
"""

import numpy as np

from editkit.localization.method import Method, Statistics


def score(known: Statistics) -> np.ndarray:
    """|tau|, or |w|."""
    return np.abs(known.weights if known.delta is None else known.delta)


METHOD = Method(score, accumulate=(), weights=True)
