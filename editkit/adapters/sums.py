"""Weighted sums of low-rank changes, worked on through their factors: no matrix of the size of the change is made.

>>> import numpy as np
>>> one = Term(np.array([[1.0, 0.0]]), np.array([[2.0], [0.0]]), scale=1.0, weight=0.5)  # 0.5 * [[2, 0], [0, 0]]
>>> other = Term(np.array([[0.0, 1.0]]), np.array([[0.0], [3.0]]), scale=2.0, weight=1.0)  # 2 * [[0, 0], [0, 3]]
>>> round(l2_of_sum([one, other]) ** 2, 9)
37.0
>>> b, a, tail = nearest(*stacked([one, other]), rank=1)
>>> (b @ a).round(9).tolist(), round(tail, 9)
([[0.0, 0.0], [0.0, 6.0]], 1.0)
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from editkit.adapters.factorize import SMALLEST

ZERO = 1e-7  # a sum whose L2 is below this share of that of its terms is nothing but their rounding


class Term(NamedTuple):
    """weight * scale * b @ a, a [rank, in] and b [out, rank] in float64: what one adapter gives to one module."""

    a: np.ndarray
    b: np.ndarray
    scale: float
    weight: float

    @property
    def factor(self) -> float:
        return self.weight * self.scale


def stacked(terms: Sequence[Term]) -> tuple[np.ndarray, np.ndarray]:
    """[out, sum of the ranks] and [sum of the ranks, in], whose product is the sum."""
    return np.hstack([one.factor * one.b for one in terms]), np.vstack([one.a for one in terms])


def nearest(left: np.ndarray, right: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Factors b, a of the matrix of at most this rank nearest to left @ right, and the L2 of what it lacks.

    With left = Q R and right' = P S that is Q (the nearest to R S') P': a singular value decomposition of a small matrix.
    """
    q, r = np.linalg.qr(left)
    p, s = np.linalg.qr(right.T)
    u, values, vt = np.linalg.svd(r @ s.T)
    count = min(rank, int((values > SMALLEST * values[0]).sum()))
    root = np.sqrt(values[:count])
    return (q @ u[:, :count]) * root, root[:, None] * (vt[:count] @ p.T), float(np.linalg.norm(values[count:]))


def l2(left: np.ndarray, right: np.ndarray) -> float:
    """The L2 (Frobenius norm) of left @ right from the Gram matrices of the factors, good to 1e-8 of that of its terms."""
    return math.sqrt(max(float(((left.T @ left) * (right @ right.T)).sum()), 0.0))


def l2_of_sum(terms: Sequence[Term]) -> float:
    """The L2 of the sum; 0 where the terms cancel but for rounding."""
    found = l2(*stacked(terms))
    return found if found > ZERO * math.hypot(*(abs(one.factor) * l2(one.b, one.a) for one in terms)) else 0.0
