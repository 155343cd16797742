"""Linear: the weighted mean of the models. Wortsman et al. 2022, "Model soups" (https://arxiv.org/abs/2203.05482).

    w = sum_j weight_j * w_j / sum_j weight_j

With `normalize: false` the sum is not divided. Negative weights are extrapolation; their sum may be negative, since scaling
all weights changes nothing. mergekit divides by a sum of zero as well, which makes every number Inf or NaN; that is refused.
"""

import numpy as np

from editkit.errors import EditError
from editkit.merging import compatible
from editkit.merging.method import Combine, Method, Setting, Terms
from editkit.merging.methods.combination import combine
from editkit.merging.rules import number, truth


def linear(terms: Terms) -> Combine:
    """Factors that add up to 1."""
    weights = terms.each("weight")
    if terms.settings["normalize"] and abs(weights.sum()) <= 1e-6 * np.abs(weights).sum():
        raise EditError("the weights add up to 0, which is no mean: give others, or normalize: false")
    if terms.precision:
        return lambda stack: compatible.mean(stack, weights, terms)
    factors = weights / weights.sum() if terms.settings["normalize"] else weights
    return lambda stack: combine(stack, factors)


METHOD = Method(
    "linear",
    "https://arxiv.org/abs/2203.05482",
    linear,
    {"normalize": Setting(truth, True)},
    {"weight": Setting(number())},
    base="unused",
    deltas=False,
)
