"""NuSLERP: SLERP of two models, or of their differences to a base, with weights (https://github.com/arcee-ai/mergekit).

    t = weight_2 / (weight_1 + weight_2),    w = w_base + slerp(t, w_1 - w_base, w_2 - w_base)

By default a tensor is one vector. With `nuslerp_flatten: false` each of its rows is, and with `nuslerp_row_wise: true` beside
it, in spite of the name, each of its columns, as in mergekit. mergekit takes t = 1/2 where the weights cancel out, and
turns an edit round where their sum is negative; both are refused here.
"""

import numpy as np

from editkit.errors import EditError
from editkit.merging.method import Method, Setting, Stack, Steps, Terms
from editkit.merging.methods.angles import spherical
from editkit.merging.methods.combination import combine, gram, row_grams
from editkit.merging.rules import number, truth

_SHORT = 1e-7  # vectors are never divided by less than this length


def nuslerp(terms: Terms) -> Steps:
    """One pass for the angle, or for the angles of all columns; rows tell theirs in the last pass."""
    t = _share(terms)
    if terms.settings["nuslerp_flatten"] or terms.rows == 1:
        one, other = _factors(t, (yield lambda stack: gram(stack.models)))
        return lambda stack: combine(stack, [one, other])
    if not terms.settings["nuslerp_row_wise"]:
        return lambda stack: _scaled(stack, *(part[:, None] for part in _factors(t, row_grams(stack.models))))
    columns = yield lambda stack: row_grams(stack.models.transpose(0, 2, 1))
    return lambda stack: _scaled(stack, *_factors(t, columns))


def _share(terms: Terms) -> float:
    weights = terms.each("weight")
    total = weights.sum()
    if terms.precision:
        return 0.5 if abs(total) < 1e-6 else weights[1] / total
    if total <= 1e-6 * np.abs(weights).sum():
        raise EditError(f"the weights add up to {total:g}: nuslerp needs a sum above 0")
    return weights[1] / total


def _factors(t: float, products: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of one pair with products [2, 2], or of many, [..., 2, 2]."""
    lengths = np.maximum(np.sqrt(np.diagonal(products, axis1=-2, axis2=-1)), _SHORT)
    cosine = np.clip(products[..., 0, 1] / lengths.prod(-1), -1, 1)
    straight = 1 - cosine**2 <= 1e-16
    one, other = spherical(t, np.where(straight, 0, cosine))
    return np.where(straight, 1 - t, one), np.where(straight, t, other)


def _scaled(stack: Stack, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """one * models[0] + other * models[1] with factors that broadcast, on top of the base."""
    merged = one * stack.models[0] + other * stack.models[1]
    if stack.base is None:
        return merged
    after = (stack.base + merged).astype(stack.base.dtype)
    return np.where(after == stack.base, stack.base, after)


METHOD = Method(
    "NuSLERP",
    "https://github.com/arcee-ai/mergekit",
    nuslerp,
    {"nuslerp_flatten": Setting(truth, True), "nuslerp_row_wise": Setting(truth, False)},
    {"weight": Setting(number())},
    base="optional",
    fewest=2,
    most=2,
)
