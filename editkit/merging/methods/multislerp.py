"""Multi-SLERP: a mean of directions with a mean length (https://goddard.blog/posts/multislerp-wow-what-a-cool-idea).

    u_j = w_j / |w_j|,    m = sum_j weight_j * u_j,    w = sum_j weight_j * |w_j| * m / |m|

on differences to the base where there is one, with weights that add up to 1 unless `normalize_weights: false`. mergekit also adds a
step in the tangent space at m. That step is zero, for sum_j weight_j (u_j - (u_j . m/|m|) m/|m|) = m - |m| m/|m|, so it
gives rounding noise there and is left out here. One model is taken as it is.
"""

import numpy as np

from editkit.errors import EditError
from editkit.merging.method import Method, Setting, Steps, Terms
from editkit.merging.methods.combination import combine, gram
from editkit.merging.rules import number, truth


def multislerp(terms: Terms) -> Steps:
    """One pass for lengths and angles."""
    weights, eps = terms.each("weight"), terms.settings["eps"]
    if terms.settings["normalize_weights"]:
        total = weights.sum()
        if total <= 1e-6 * np.abs(weights).sum() and not terms.precision:
            raise EditError(f"the weights add up to {total:g}: multislerp needs a sum above 0")
        weights = weights / total
    products = yield lambda stack: gram(stack.models)
    factors = _factors(terms, weights, products, eps)
    return lambda stack: combine(stack, factors)


def _factors(terms: Terms, weights: np.ndarray, products: np.ndarray, eps: float) -> np.ndarray:
    if len(weights) == 1:
        return np.ones(1)
    lengths = np.sqrt(np.diag(products))
    parts = weights / (lengths + eps)
    length = np.sqrt(max(parts @ products @ parts, 0.0))
    if length < eps and (len(weights) == 2 or not lengths.any()):
        return weights
    if length < eps:
        raise EditError(f"the directions of {terms.name} cancel out under these weights: give others")
    return parts / length * (weights @ lengths)


METHOD = Method(
    "Multi-SLERP",
    "https://goddard.blog/posts/multislerp-wow-what-a-cool-idea",
    multislerp,
    {"normalize_weights": Setting(truth, True), "eps": Setting(number(0), 1e-8)},
    {"weight": Setting(number())},
    base="optional",
)
