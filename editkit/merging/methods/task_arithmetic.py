"""Task arithmetic: the base plus what models learned. Ilharco et al. 2022 (https://arxiv.org/abs/2212.04089).

    w = w_base + lambda * sum_j weight_j * (w_j - w_base)

With `normalize: true` the sum is divided by that of the weights. mergekit does so as well where it is negative, which turns
weight -1, an edit that takes something away, into +1; then the sum of |weight| divides here.
"""

import numpy as np

from editkit.merging import compatible
from editkit.merging.method import Combine, Method, Setting, Terms
from editkit.merging.methods.combination import combine
from editkit.merging.rules import number, truth

SETTINGS = {
    "normalize": Setting(truth, False),
    "lambda": Setting(number(), 1.0),
    "int8_mask": Setting(truth, False),  # of mergekit, where it saves memory
}
WEIGHT = {"weight": Setting(number())}


def task_arithmetic(terms: Terms) -> Combine:
    """One pass."""
    if terms.precision:
        return lambda stack: compatible.weighted(stack, terms)
    weights = terms.each("weight")
    factors = terms.settings["lambda"] * weights
    if terms.settings["normalize"] and weights.any():
        factors /= np.abs(weights).sum() if flips(terms) else weights.sum()
    return lambda stack: combine(stack, factors)


def flips(terms: Terms) -> bool:
    """Whether dividing by the sum of the weights would turn the change round, or blow it up."""
    weights = terms.each("weight")
    return bool(terms.settings["normalize"] and weights.sum() <= 1e-6 * np.abs(weights).sum() and weights.any())


def remark(terms: Terms) -> str | None:
    """On the divisor."""
    if flips(terms):
        return "normalize divides by the sum of |weight|, because mergekit's division by a negative or vanishing sum turns changes round"
    return None


METHOD = Method("task arithmetic", "https://arxiv.org/abs/2212.04089", task_arithmetic, SETTINGS, WEIGHT, remark=remark)
