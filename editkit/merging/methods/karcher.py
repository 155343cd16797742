"""Karcher mean: the point of the sphere with the least squared angles to all models (https://arxiv.org/abs/2603.04972).

    m <- cos(|v|) m + sin(|v|) v / |v|,    v = 1/n sum_j theta_j / sin(theta_j) (u_j - cos(theta_j) m)

from the mean of the directions u_j on, until |v| < `tol` or after `max_iter` steps, and then as long as the models on the average. m
always is a sum of the u_j with some factors, so the steps run on these factors and on the inner products of the models:
one pass over a tensor, whatever the number of steps. mergekit walks with whole tensors, in float32.
"""

import numpy as np

from editkit.merging.method import Method, Setting, Steps, Terms
from editkit.merging.methods.combination import combine, gram
from editkit.merging.rules import number


def karcher(terms: Terms) -> Steps:
    """One pass for the inner products; the mean of tensors of zeros is zero."""
    products = yield lambda stack: gram(stack.models)
    lengths = np.sqrt(np.diag(products))
    used = lengths > terms.settings["tol"]
    factors = np.zeros(len(lengths))
    if len(lengths) == 1:
        factors[:] = 1
    elif used.any():
        cosines = products[np.ix_(used, used)] / np.outer(lengths[used], lengths[used])
        factors[used] = _mean(cosines, int(terms.settings["max_iter"]), terms.settings["tol"])
        factors[used] *= lengths.mean() / lengths[used]
    return lambda stack: combine(stack, factors)


def _mean(cosines: np.ndarray, steps: int, tol: float) -> np.ndarray:
    """The Karcher mean of unit vectors, as factors of these."""
    count = len(cosines)

    def length(factors: np.ndarray) -> float:
        return float(np.sqrt(max(factors @ cosines @ factors, 0.0)))

    mean = np.full(count, 1 / count)
    mean = mean / length(mean) if length(mean) >= tol else np.eye(count)[0]
    for _ in range(steps):
        towards = np.clip(cosines @ mean, -1, 1)
        angles = np.arccos(towards)
        pulls = np.where(angles < tol, 0, angles / np.where(angles < tol, 1, np.sin(angles))) / count
        tangent = pulls - (pulls @ towards) * mean
        if (far := length(tangent)) < tol:
            break
        mean = np.cos(far) * mean + np.sin(far) * tangent / far
        mean = mean / length(mean) if length(mean) > tol else mean
    return mean


def _count(value: object) -> int:
    """A reader of whole numbers from 0 on."""
    found = number(0)(value)
    if found != int(found):
        raise ValueError(f"is {value!r}: give a whole number from 0 on")
    return int(found)


METHOD = Method(
    "Karcher mean",
    "https://arxiv.org/abs/2603.04972",
    karcher,
    {"max_iter": Setting(_count, 10), "tol": Setting(number(0), 1e-5)},
    base="unused",
    deltas=False,
)
