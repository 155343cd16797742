"""TOFU: probability, truth ratio, forget quality and model utility (Maini et al. 2024, https://arxiv.org/abs/2401.06121).

NLL is the mean cross-entropy over the tokens of an answer, in nats, the closing end-of-text counted as one. ROUGE is in `rouge.py`.

>>> ratio = truth_ratio([1.0, 3.0], [[2.0, 4.0], [2.0, 2.0]])  # the right answer is e^2 times as likely, then 1/e times
>>> ratio.round(3).tolist(), forget_truth_ratio(ratio).round(3).tolist(), kept_truth_ratio(ratio).round(3).tolist()
([0.135, 2.718], [0.135, 0.368], [0.865, 0.0])
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from editkit.errors import EditError
from editkit.evaluation.metrics.statistics import Array, known, mean, roc

Ragged = Sequence[Sequence[float]]  # per example the NLLs of its wrong answers, as many as it has; none is unknown


def probability(nll: ArrayLike) -> Array:
    """`exp(-NLL)` per example: the geometric mean of the probabilities of the answer's tokens."""
    return np.exp(-np.asarray(nll, np.float64))


def choice_probability(nll: ArrayLike, wrong_nlls: Ragged) -> Array:
    """`p_true / (p_true + sum_j p_wrong_j)` per example, with each `p = exp(-NLL)`: for real authors and world facts.

    >>> choice_probability([0.0], [[0.0, 0.0, 0.0]]).tolist()
    [0.25]
    """
    with np.errstate(over="ignore"):
        pairs = zip(np.asarray(nll, np.float64), wrong_nlls, strict=True)
        odds = [np.exp(true - np.asarray(wrong)).sum() if len(wrong) else np.nan for true, wrong in pairs]
    return 1 / (1 + np.asarray(odds, np.float64))


def truth_ratio(paraphrased_nll: ArrayLike, perturbed_nlls: Ragged) -> Array:
    """`R = exp(NLL(paraphrased) - mean_j NLL(perturbed_j))` per example: geometric mean of p(wrong) over p(right). For forget quality."""
    wrong = np.asarray([np.mean(row) if len(row) else np.nan for row in perturbed_nlls], np.float64)
    with np.errstate(over="ignore"):
        return np.exp(np.asarray(paraphrased_nll, np.float64) - wrong)


def truth_ratio_arithmetic(paraphrased_nll: ArrayLike, perturbed_nlls: Ragged) -> Array:
    """`R = mean_j exp(-NLL(perturbed_j)) / exp(-NLL(paraphrased))` per example: what TOFU's script averages, also for model utility."""
    right = np.asarray(paraphrased_nll, np.float64)
    with np.errstate(over="ignore"):
        pairs = zip(right, perturbed_nlls, strict=True)
        return np.asarray(
            [np.exp(one - np.asarray(row)).mean() if len(row) else np.nan for one, row in pairs], np.float64
        )


def forget_truth_ratio(ratio: ArrayLike) -> Array:
    """`min(R, 1/R)` per example of a forget set, from 0 (right and wrong answers well apart) to 1 (they cannot be told apart)."""
    found = np.asarray(ratio, np.float64)
    with np.errstate(divide="ignore"):
        return np.minimum(found, 1 / found)


def kept_truth_ratio(ratio: ArrayLike) -> Array:
    """`max(0, 1 - R)` per example of any other set; higher is better."""
    return np.maximum(0, 1 - np.asarray(ratio, np.float64))


class ForgetQuality(NamedTuple):
    """The two-sample KS test: largest distance of the two distribution functions, and how often chance gives as much."""

    statistic: float
    p: float
    log10_p: float
    n: int
    m: int


def forget_quality(edited: ArrayLike, reference: ArrayLike) -> ForgetQuality | None:
    """The KS test between the truth ratios of an edited model and of a model that never saw the forget set.

    >>> forget_quality([0.1, 0.2, 0.3], [0.1, 0.2, 0.3]).p
    1.0
    >>> round(forget_quality([0.1, 0.2, 0.3], [0.7, 0.8, 0.9]).p, 6)  # of the 20 orders of 3 and 3 values, 2 are as extreme
    0.1

    edited, reference: R per example (`truth_ratio`), in any order; NaN is left out, None where nothing is left of one of them.
    Small p: the models differ. Large p: so many examples do not show a difference, which is not a proof that there is none.
    """
    ours, theirs = known(edited), known(reference)
    if not ours.size or not theirs.size:
        return None
    statistic = float(ks_statistic(ours, theirs))
    return ForgetQuality(statistic, *_p_value(ours, theirs, statistic), ours.size, theirs.size)


def ks_statistic(one: ArrayLike, other: ArrayLike) -> Array:
    """`max |F_one - F_other|` along the last axis: [..., n] and [..., m] to [...].

    In a bootstrap mind that resamples of equal samples differ: a statistic near 0 lies below its own interval.
    """
    ones, others = roc(one, other)
    n, m = ones[..., -1], others[..., -1]
    return np.abs(ones * m[..., None] - others * n[..., None]).max(-1) / (n * m)


def _p_value(ours: Array, theirs: Array, statistic: float) -> tuple[float, float]:
    """p and log10 p. Where a double cannot hold p, its logarithm is that of the first term of the Kolmogorov series."""
    from scipy.stats import ks_2samp

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scipy says when its exact p rounds to above 1, and takes the asymptotic one
        p = float(ks_2samp(ours, theirs).pvalue)
    exponent = 2 * statistic**2 * ours.size * theirs.size / (ours.size + theirs.size)
    return p, float(np.log10(p)) if p > 0 else float((np.log(2) - exponent) / np.log(10))


def harmonic_mean(values: ArrayLike, axis: int = -1) -> Array:
    """`k / sum_i 1/x_i`: 0 where one value is 0, NaN where one is unknown or there is none. Raises EditError for negative values.

    >>> harmonic_mean([0.5, 0.25, 0.25]).round(6).tolist(), harmonic_mean([0.0, 1.0]).tolist()
    (0.3, 0.0)
    """
    found = np.asarray(values, np.float64)
    if (found < 0).any():
        raise EditError(f"{found.min():g} has no harmonic mean: metrics that are joined by it lie between 0 and 1")
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(found.shape[axis] / (1 / found).sum(axis))


def model_utility(sets: Mapping[str, ArrayLike]) -> Array:
    """The harmonic mean of the means of all columns of all sets: [..., n, k] each to [...].

    >>> float(model_utility({"retain": [[1.0, 0.5], [1.0, 0.5]], "world_facts": [[0.2, 0.5], [0.4, 0.5]]}).round(6))
    0.48

    TOFU's has 9 terms: retain, real_authors and world_facts, each with ROUGE, Probability, Truth ratio (`kept_truth_ratio` of the
    arithmetic R). It is 0 where a mean is 0, and NaN where a column has no known value. Fit for `bootstrap` as it is.
    """
    return harmonic_mean(np.concatenate([mean(columns, axis=-2) for columns in sets.values()], axis=-1))
