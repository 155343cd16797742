"""Sign election and disjoint mean: for every element only the models with the elected sign count. Yadav et al. 2023, TIES (https://arxiv.org/abs/2306.01708).

    sign = sgn(sum_j vote_j * d_j),    d = sum_agree weight_j * d_j / sum_agree share_j,    agree = {j: sgn(vote_j * d_j) = sign}

Differences of zero agree with nobody, and an election that ends even is positive.

>>> stack = Stack(np.zeros((1, 2)), np.array([[[1.0, 3.0]], [[2.0, -1.0]]]), 0, np.empty((1, 2)))
>>> one = np.ones(2)
>>> elect(stack, one, one, one)
array([[1.5, 3. ]])
"""

import numpy as np
from numba import njit

from editkit.merging import compatible
from editkit.merging.method import Combine, Stack, Terms
from editkit.merging.methods.combination import add_scaled, put

_STRIP = 1024  # elements whose sums stay in the nearest cache


def consensus(terms: Terms) -> Combine:
    """Weighted differences vote and are averaged: the end of `ties`, `dare_ties`, `della` and `breadcrumbs_ties`.

    With `normalize` the divisor is the sum of |weight|. mergekit's is the sum of the weights, which turns what has a negative weight
    round.
    """
    if terms.precision:
        return lambda stack: compatible.elected(stack, terms)
    weights = terms.each("weight")
    shares = np.abs(weights) if terms.settings["normalize"] else np.zeros(0)
    return lambda stack: elect(stack, weights, terms.settings["lambda"] * weights, shares)


def elect(stack: Stack, votes: np.ndarray, weights: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """base + d as above; with empty `shares` nothing is divided. Float64 throughout, rounded once."""
    assert stack.base is not None
    models = stack.models.reshape(len(stack.models), -1)
    _elect(stack.base.reshape(-1), models, votes, weights, shares, stack.out.reshape(-1))
    return stack.out


def remark(terms: Terms) -> str | None:
    """On the divisor."""
    if terms.settings["normalize"] and (terms.each("weight") < 0).any():
        return "normalize divides by the sum of |weight|, because mergekit's division by negative weights turns changes round"
    return None


@njit(cache=True, nogil=True)
def _elect(base, models, votes, weights, shares, out):
    tallies, totals, divisors = np.empty(_STRIP), np.empty(_STRIP), np.empty(_STRIP)
    for start in range(0, out.size, _STRIP):
        stop = min(start + _STRIP, out.size)
        tally, total, divisor = tallies[: stop - start], totals[: stop - start], divisors[: stop - start]
        tally[:] = 0.0
        total[:] = 0.0
        divisor[:] = 0.0
        for j in range(len(models)):
            add_scaled(votes[j], models[j, start:stop], tally)
        _take_sign(tally)
        for j in range(len(models)):
            if shares.size:
                _add_agreeing(votes[j], weights[j], shares[j], models[j, start:stop], tally, total, divisor)
            else:
                _add_agreeing(votes[j], weights[j], 0.0, models[j, start:stop], tally, total, divisor)
        if shares.size:
            _divide(total, divisor)
        _put_on(total, base[start:stop], out[start:stop])


@njit(cache=True, nogil=True)
def _take_sign(tally):
    for i in range(tally.size):
        tally[i] = 1.0 if tally[i] >= 0.0 else -1.0


@njit(cache=True, nogil=True)
def _add_agreeing(vote, weight, share, values, sign, total, divisor):
    for i in range(values.size):
        d = np.float64(values[i])
        agrees = vote * d * sign[i] > 0.0
        total[i] += weight * d if agrees else 0.0
        divisor[i] += share if agrees else 0.0


@njit(cache=True, nogil=True)
def _divide(total, divisor):
    for i in range(total.size):
        total[i] /= divisor[i] if divisor[i] != 0.0 else 1.0


@njit(cache=True, nogil=True)
def _put_on(total, base, out):
    for i in range(out.size):
        total[i] += base[i]
    put(total, base, out)
