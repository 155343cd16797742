"""mergekit's own arithmetic, step by step in its dtype, for results that are equal to its results bit for bit.

mergekit rounds every step to the dtype of the merge, and takes sums in the order of the models; so does this, one block at a time.
It holds for methods that work on each element by itself: linear, task_arithmetic, ties, breadcrumbs and nearswap. Where
mergekit first adds up a whole tensor (norms, angles, rescaling), its sums depend on the machine, and no order is equal to them.

>>> rounded(np.array([1.0, 1.003], np.float32), "BF16")
array([1., 1.], dtype=float32)
"""

import numpy as np

from editkit.arithmetic.codec import decode, encode
from editkit.merging.method import Stack, Terms


def rounded(values: np.ndarray, dtype: str | None) -> np.ndarray:
    """The values that `dtype` has for these."""
    if dtype in (None, "F32", "F64"):
        return values
    return decode(encode(values, dtype), dtype, np.empty(values.shape, values.dtype))


def mean(stack: Stack, weights: np.ndarray, terms: Terms) -> np.ndarray:
    """`linear`: a sum in float32, where torch multiplies and adds in one step, divided by that of the weights."""
    factors = weights.astype(stack.models.dtype)
    total = np.zeros_like(stack.models[0])
    for factor, model in zip(factors, stack.models, strict=True):
        total = (total + model.astype(np.float64) * factor).astype(total.dtype)
    return total / factors.sum(dtype=factors.dtype) if terms.settings["normalize"] else total


def weighted(stack: Stack, terms: Terms) -> np.ndarray:
    """`task_arithmetic` and what is like it: sum, division by the sum of the weights whatever its sign, lambda."""
    weights, values = _weighted(stack, terms)
    divisor = rounded(_sum(weights), terms.precision)
    return _added(stack, _sum(values), np.where(np.abs(divisor) < 1e-8, np.float32(1), divisor), terms)


def elected(stack: Stack, terms: Terms) -> np.ndarray:
    """`ties` and what is like it: values of the elected sign only, divided by the sum of their weights."""
    weights, values = _weighted(stack, terms)
    sign = np.where(rounded(_sum(values), terms.precision) >= 0, 1, -1)
    agree = np.sign(values) == sign
    divisor = rounded(_sum(weights * agree), terms.precision)
    return _added(stack, _sum(values * agree), np.where(divisor == 0, np.float32(1), divisor), terms)


def _weighted(stack: Stack, terms: Terms) -> tuple[np.ndarray, np.ndarray]:
    """The weights, [models, 1, 1], and the differences times these."""
    weights = rounded(terms.each("weight").astype(stack.models.dtype), terms.precision)[:, None, None]
    return weights, rounded(stack.models * weights, terms.precision)


def _sum(values: np.ndarray) -> np.ndarray:
    total = np.zeros_like(values[0])
    for one in values:
        total += one
    return total


def _added(stack: Stack, mixed: np.ndarray, divisor: np.ndarray, terms: Terms) -> np.ndarray:
    assert stack.base is not None
    mixed = rounded(mixed, terms.precision)
    if terms.settings["normalize"]:
        mixed = rounded(mixed / divisor, terms.precision)
    if terms.settings["lambda"] != 1:
        mixed = rounded(mixed * mixed.dtype.type(terms.settings["lambda"]), terms.precision)
    return stack.base + mixed
