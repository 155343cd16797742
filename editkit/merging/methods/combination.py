"""What most methods come down to: sums of models with one factor each, and the inner products that the factors are made of.

>>> stack = Stack(np.ones((1, 2)), np.array([[[4.0, 2.0]], [[1.0, 0.0]]]), 0, np.empty((1, 2)))
>>> combine(stack, [0.5, 2.0])
array([[5., 2.]])
>>> gram(stack.models)
array([[20.,  4.],
       [ 4.,  1.]])
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import njit

from editkit.merging.method import Stack

_STRIP = 1024  # elements whose sums stay in the nearest cache


def combine(stack: Stack, factors: Sequence[Any] | np.ndarray, of_base: Any = 1.0) -> np.ndarray:
    """of_base * base + sum_j factors[j] * models[j], without a base the sum alone; summed in float64, rounded once.

    A value that equals the base's keeps its bits, so that -0.0 stays -0.0.
    """
    models = stack.models.reshape(len(stack.models), -1)
    base = models[0] if stack.base is None else stack.base.reshape(-1)
    _combine(base, stack.base is not None, float(of_base), models, np.array(factors, np.float64), stack.out.reshape(-1))
    return stack.out


def gram(arrays: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
    """Inner products of arrays of one shape with each other and themselves: float64 [n, n]."""
    flat = [one.reshape(-1) for one in arrays]
    products = np.empty((len(flat), len(flat)))
    for i, one in enumerate(flat):
        for j in range(i + 1):
            products[i, j] = products[j, i] = _dot(one, flat[j])
    return products


def row_grams(arrays: np.ndarray) -> np.ndarray:
    """The same for every row: [n, rows, columns] -> float64 [rows, n, n]."""
    wide = arrays.astype(np.float64, copy=False)
    return np.einsum("irc,jrc->rij", wide, wide)


@njit(cache=True, nogil=True)
def _combine(base, based, of_base, models, factors, out):
    totals = np.empty(_STRIP)
    for start in range(0, out.size, _STRIP):
        stop = min(start + _STRIP, out.size)
        total = totals[: stop - start]
        _scale(of_base if based else factors[0], base[start:stop], total)
        for j in range(0 if based else 1, len(models)):
            add_scaled(factors[j], models[j, start:stop], total)
        if based:
            put(total, base[start:stop], out[start:stop])
        else:
            out[start:stop] = total


@njit(cache=True, nogil=True)
def _scale(factor, values, total):
    for i in range(total.size):
        total[i] = factor * values[i]


@njit(cache=True, nogil=True)
def add_scaled(factor, values, total):
    """total += factor * values, in float64."""
    for i in range(total.size):
        total[i] += factor * values[i]


@njit(cache=True, nogil=True)
def put(total, base, out):
    """Round `total` to `out`, but keep the bits of `base` where this gives the same number."""
    for i in range(out.size):
        out[i] = total[i]
        out[i] = base[i] if out[i] == base[i] else out[i]


@njit(cache=True, nogil=True)
def _dot(one, other):
    # Sums side by side, in a fixed order: vector instructions of any width give the same bits.
    sums = np.zeros(_STRIP)
    for start in range(0, one.size, _STRIP):
        stop = min(start + _STRIP, one.size)
        _add_products(one[start:stop], other[start:stop], sums[: stop - start])
    total = 0.0
    for i in range(_STRIP):
        total += sums[i]
    return total


@njit(cache=True, nogil=True)
def _add_products(one, other, sums):
    for i in range(sums.size):
        sums[i] += np.float64(one[i]) * np.float64(other[i])
