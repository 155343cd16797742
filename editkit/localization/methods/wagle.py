"""WAGLE: weights whose removal changes forgetting, corrected for what it does to the retain set.

Jia et al. 2024 (https://arxiv.org/abs/2410.17509):

    score = |(w - G_R / mu) * G_F|

mu stands for the curvature of the retain loss, taken as one number for all weights: 1e-6 in the paper's experiments on TOFU.
With so small a mu the first term hardly counts and the score is |G_R * G_F| / mu: it then favours what both sets use.

>>> score(Statistics(weights=np.array([[1.0]]), forget=np.array([[3.0]]), retain=np.array([[0.25]]), mu=0.5))
array([[1.5]])
"""

import numpy as np

from editkit.localization.method import Method, Statistics


def score(known: Statistics) -> np.ndarray:
    """|(w - G_R / mu) G_F|."""
    return np.abs((known.weights - known.retain / known.mu) * known.forget)


METHOD = Method(score, accumulate=("signed",), retain=True, mu=1e-6, weights=True)
