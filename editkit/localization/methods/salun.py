"""SalUn: the size of the forget gradient. Fan et al. 2023 (https://arxiv.org/abs/2310.12508), equation 3.

    score = |G_F|

Signed gradients of different facts cancel in G_F, as in the paper; `accumulate` "absolute" and "squared" keep them.

>>> score(Statistics(forget=np.array([[2.0, -3.0]])))
array([[2., 3.]])
"""

import numpy as np

from editkit.localization.method import Method, Statistics


def score(known: Statistics) -> np.ndarray:
    """|G_F|."""
    return np.abs(known.forget)


METHOD = Method(score, accumulate=("signed", "absolute", "squared"))
