"""The edit itself, on one block: `edited = base - alpha * tau`, and how much of it survived rounding.

Task arithmetic, Ilharco et al. 2022 (https://arxiv.org/abs/2212.04089), negation.

>>> import numpy as np
>>> base, tau = np.array([[1.0, -0.0, 3.0]]), np.array([[0.5, 0.0, -1.0]])
>>> edited = subtract(base, tau, 2.0, np.empty_like(base))
>>> edited
array([[ 0., -0.,  5.]])
>>> Applied(2.0, project(base, edited, tau)).row()
{'alpha': 2.0, 'requested_l2': 2.23606797749979, 'applied_l2': 2.23606797749979, 'projection': -2.0, 'expected_projection': -2.0, 'lost_to_rounding': 0.0}
"""

from collections.abc import Iterable
from math import sqrt
from typing import Any

import numpy as np
from numba import njit

from editkit.arithmetic.bits import int_of_bits

DELTA_TAU, TAU_TAU, DELTA_DELTA, WANTED, CHANGED, WHOLE = range(6)


class Applied:
    """What was asked of one tensor, or of several, and what came of it: sums of `project` under one or more alphas."""

    def __init__(self, alpha: float, sums: np.ndarray) -> None:
        self.alpha: float | None = alpha
        self.sums = sums.copy()
        self.requested = alpha**2 * float(sums[TAU_TAU])
        self.expected = -alpha * float(sums[TAU_TAU])

    @classmethod
    def total(cls, parts: Iterable["Applied"]) -> "Applied":
        """Several tensors as one; `alpha` is None where they differ in it."""
        whole = cls(0.0, np.zeros(6))
        alphas = set()
        for part in parts:
            alphas.add(part.alpha)
            whole.sums += part.sums
            whole.requested += part.requested
            whole.expected += part.expected
        whole.alpha = alphas.pop() if len(alphas) == 1 else None
        return whole

    @property
    def projection(self) -> float | None:
        """d.tau / tau.tau: -alpha where nothing was lost, None for a vector of zeros."""
        return float(self.sums[DELTA_TAU] / self.sums[TAU_TAU]) if self.sums[TAU_TAU] else None

    @property
    def expected_projection(self) -> float | None:
        """What `projection` is without rounding; -alpha, or the mean of the alphas weighted by tau.tau."""
        return self.expected / float(self.sums[TAU_TAU]) if self.sums[TAU_TAU] else None

    @property
    def lost(self) -> float | None:
        """Share of the elements with tau != 0 whose bits stayed as they were."""
        wanted = self.sums[WANTED]
        return float((wanted - self.sums[CHANGED]) / wanted) if wanted else None

    @property
    def through(self) -> float | None:
        """Share of the squared L2 of the whole vector that a mask let through; 1 without a mask."""
        return float(self.sums[TAU_TAU] / self.sums[WHOLE]) if self.sums[WHOLE] else None

    def row(self) -> dict[str, Any]:
        """As in the report: L2 of alpha * tau, L2 of what was applied, projection on tau, share lost to rounding."""
        return {
            "alpha": self.alpha,
            "requested_l2": sqrt(self.requested),
            "applied_l2": sqrt(self.sums[DELTA_DELTA]),
            "projection": self.projection,
            "expected_projection": self.expected_projection,
            "lost_to_rounding": self.lost,
        }


def subtract(base: np.ndarray, tau: np.ndarray, alpha: float, out: np.ndarray) -> np.ndarray:
    """base - alpha * tau, computed in float64, into `out`; arrays of one shape, float32 or float64."""
    kernel = _subtract32 if base.dtype == np.float32 else _subtract64
    kernel(base.reshape(-1), tau.reshape(-1), float(alpha), out.reshape(-1))
    return out


def project(base: np.ndarray, edited: np.ndarray, tau: np.ndarray, whole: float | None = None) -> np.ndarray:
    """Sums over a block, with d = edited - base: [d.tau, tau.tau, d.d, elements with tau != 0, elements that changed, whole].

    d.tau / tau.tau is the projection of the applied change on tau, which must be -alpha. whole: tau.tau before a mask.
    """
    sums = np.zeros(6)
    _project(base.reshape(-1), edited.reshape(-1), tau.reshape(-1), sums)
    sums[WHOLE] = sums[TAU_TAU] if whole is None else whole
    return sums


# No fastmath in these two: two roundings, as written, so that numpy in float64 gives the same bits. A value that equals
# the base keeps the base's bits: -0.0 stays -0.0 where nothing is subtracted.


@njit(cache=True, nogil=True)
def _subtract32(base, tau, alpha, out):
    for i in range(base.size):
        value = np.float32(np.float64(base[i]) - alpha * np.float64(tau[i]))
        out[i] = base[i] if value == base[i] else value


@njit(cache=True, nogil=True)
def _subtract64(base, tau, alpha, out):
    for i in range(base.size):
        value = base[i] - alpha * tau[i]
        out[i] = base[i] if value == base[i] else value


@njit(cache=True, nogil=True, fastmath={"reassoc", "contract", "nsz"})
def _project(base, edited, tau, sums):
    # float64 throughout: the squares of very small changes would vanish in float32.
    dt, tt, dd, wanted, changed = 0.0, 0.0, 0.0, 0.0, 0.0
    for i in range(base.size):
        d = np.float64(edited[i]) - np.float64(base[i])
        t = np.float64(tau[i])
        dt += d * t
        tt += t * t
        dd += d * d
        wanted += 1.0 if t != 0.0 else 0.0
        changed += 1.0 if int_of_bits(edited[i]) != int_of_bits(base[i]) else 0.0
    sums[DELTA_TAU] += dt
    sums[TAU_TAU] += tt
    sums[DELTA_DELTA] += dd
    sums[WANTED] += wanted
    sums[CHANGED] += changed
