"""MemFlex: where the forget gradient is large and points elsewhere than the retain gradient.

Tian et al. 2024, "To Forget or Not?" (https://arxiv.org/abs/2407.01920). The paper keeps a tensor where
cos(G_F, G_R) < mu and mean |G_F| > sigma (mu 0.92, sigma 6e-4 on LoRA factors). Those thresholds do not transfer from model to
model, so a budget ranks by both at once, without a scale:

    score = |G_F| * (1 - cos(G_F, G_R))

with the cosine over the unit (tensor, row or head; for single elements, over their tensor). The mean over a unit is
mean |G_F| * (1 - cos). This product is ours; `--mu` with `--sigma` selects as the paper does.

As in the paper, both gradients are by default of answers with 40 % of their tokens replaced at random, in three draws: a
model that has memorised an answer has hardly any gradient on it as it is. The loss in the report is of those answers.

>>> score(Statistics(forget=np.array([[2.0, -1.0]]), cosine=np.array([[0.5]])))
array([[1. , 0.5]])
"""

import numpy as np

from editkit.localization.method import Method, Statistics


def score(known: Statistics) -> np.ndarray:
    """|G_F| (1 - cos)."""
    return np.abs(known.forget) * (1 - known.cosine)


METHOD = Method(score, accumulate=("signed",), retain=True, labels="random:0.4", draws=3)
