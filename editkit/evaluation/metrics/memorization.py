"""Memorization per example (Jang et al. 2022, https://arxiv.org/abs/2210.01504; Barbulescu & Triantafillou 2024, 2405.03097).

A text has T tokens, of which the L = T - 1 after the first are predicted; here the tokens of the answer, end-of-text left out.

>>> memorization_accuracy([True, True, False, True]), extraction_strength([7, 8, 9, 4], [7, 0, 9, 4])
(0.75, 0.5)
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from editkit.evaluation.metrics.statistics import Array, known, mean

OVER_FORGOTTEN, MEMORIZED = 0.15, 0.60  # MA at most, at least: the outliers of 2405.03097


def memorization_accuracy(hits: ArrayLike) -> float | None:
    """`MA = 1/(T-1) sum_t [argmax p(.|x_<t) = x_t]`: the share of teacher-forced hits, one pass; None without a token."""
    found = np.asarray(hits, bool)
    return float(found.mean()) if found.size else None


def extraction_likelihood(continuations: Sequence[Sequence[int]], tokens: Sequence[int], n: int = 10) -> float | None:
    """`EL_n = 1/(T-n) sum_t overlap_n(f(x_<t), x_>=t)`; None for fewer than n tokens.

    >>> extraction_likelihood([[1, 2, 3], [9, 9]], [1, 2, 3], n=2)  # both bigrams come back at first, then none of one
    0.5

    tokens: the L predicted ones. continuations: for i = 0 ... L-n (more are not looked at) the model's greedy continuation of the true
    text before token i, of which the first L - i tokens count; it may be shorter. The overlap is the share of the n-grams of the true
    suffix, counted as often as they come, that occur in the continuation. The published code counts the continuation's n-grams
    instead, which differs where text repeats itself.
    """
    length = len(tokens)
    if length < n:
        return None
    true = _ngrams(tokens, n)
    shares = []
    for i in range(length - n + 1):
        said = set(_ngrams(continuations[i][: length - i], n))
        shares.append(sum(gram in said for gram in true[i:]) / len(true[i:]))
    return float(np.mean(shares))


def _ngrams(tokens: Sequence[int], n: int) -> list[tuple[int, ...]]:
    return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]


def extraction_strength(greedy: Sequence[int], tokens: Sequence[int]) -> float | None:
    """`1 - k/L` with the smallest k so that `greedy[k:] == tokens[k:]`: the share at the end that follows from the rest.

    greedy: the teacher-forced argmax of each of the L predicted tokens. None without a token.
    """
    if not len(tokens):
        return None
    wrong = np.flatnonzero(np.asarray(greedy) != np.asarray(tokens))
    return 1 - (int(wrong[-1]) + 1 if wrong.size else 0) / len(tokens)


class Outliers(NamedTuple):
    """Examples on either side of the usual: forgotten so far that it shows, and still memorized. c(D_f) is their sum."""

    over_forgotten: int
    memorized: int


def outliers(ma: ArrayLike) -> Outliers:
    """The number of examples with MA <= 0.15, and with MA >= 0.60.

    >>> outliers([0.0, 0.15, 0.3, 0.6])
    Outliers(over_forgotten=2, memorized=1)
    """
    low, high = np.nansum(outlying(ma), axis=0)
    return Outliers(int(low), int(high))


def outlying(ma: ArrayLike) -> Array:
    """1.0 where an example is an outlier below, and above, else 0.0: [n] to [n, 2]; NaN where MA is unknown.

    >>> outlying([0.0, 0.3, 0.6]).tolist()
    [[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]]
    """
    found = np.asarray(ma, np.float64)[:, None]
    outside = np.concatenate([found <= OVER_FORGOTTEN, found >= MEMORIZED], axis=1)
    return np.where(np.isnan(found), np.nan, outside)


def forgotten(values: ArrayLike, unseen: ArrayLike) -> Array:
    """1.0 for each example whose MA (or EL_n) is at most the mean of text the model never saw, else 0.0; NaN where that is unknown.

    >>> forgotten([0.1, 0.3, 0.5], unseen=[0.2, 0.4]).tolist()
    [1.0, 1.0, 0.0]

    The threshold is a measured mean (2405.03097 fixes a constant): of never-seen text itself only about half lies under it.
    """
    found, threshold = np.asarray(values, np.float64), float(mean(known(unseen)))
    return np.where(np.isnan(found) | np.isnan(threshold), np.nan, found <= threshold + 1e-9)
