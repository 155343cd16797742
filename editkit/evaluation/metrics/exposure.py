"""Exposure of a text against a reference, and in- or out-of-distribution forget sets (https://arxiv.org/abs/2411.04388).

The paper's constants are not public. Those below, the thirds and the rule of the verdict, are ours.

>>> gen_exposure(nll=[0.5, 3.0], reference_nll=[2.0, 2.0]).tolist()  # residual knowledge, over-forgotten
[1.5, -1.0]
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from editkit.evaluation.metrics.membership import auc
from editkit.evaluation.metrics.statistics import Array, bootstrap, known

ALIKE = (0.3, 0.7)  # AUC of difficulty within which a forget set is of the controls' distribution: ours

CONSEQUENCES = {
    "in-distribution": "expect few steps to forget it, and a fast loss of utility (arXiv 2411.04388): watch the retain set",
    "out-of-distribution": "expect more steps to forget it, and a better trade-off with utility (arXiv 2411.04388)",
    "unclear": "too few examples to say which, or on the border: what to expect of the edit is open",
}


def gen_exposure(nll: ArrayLike, reference_nll: ArrayLike) -> Array:
    """`(log p_edited(x) - log p_reference(x)) / T` in nats per token: target 0, above it residual, below it over-forgotten."""
    return np.asarray(reference_nll, np.float64) - np.asarray(nll, np.float64)


def rank_exposure(log_likelihood: ArrayLike, controls: ArrayLike) -> Array:
    """`log2 |R| - log2 rank` in bits, R the never-seen controls together with the text itself, for want of a reference model.

    >>> rank_exposure([-0.5, -1.5, -9.0], controls=[-1.0, -2.0, -3.0]).round(3).tolist()  # ranks 1, 2, 4 of 4
    [2.0, 1.0, 0.0]

    log_likelihood, controls: per text, per token where lengths differ (`-nll`). A rank is 1 plus the controls above, plus half of
    those equal. A text that is like the controls has an exposure of 1.44 bits in the mean (many controls), not 0. NaN without controls.
    """
    found, others = np.asarray(log_likelihood, np.float64), np.sort(known(controls))
    if not others.size:
        return np.full(found.shape, np.nan)
    above = others.size - np.searchsorted(others, found, "right")
    equal = np.searchsorted(others, found, "right") - np.searchsorted(others, found, "left")
    return np.where(np.isnan(found), np.nan, np.log2(others.size + 1) - np.log2(1 + above + equal / 2))


def memorization_proxy(original_nll: ArrayLike, reference_nll: ArrayLike, num_tokens: ArrayLike) -> Array:
    """`log p_original(x) - log p_reference(x)` in nats per text: how much training on it has added."""
    return gen_exposure(original_nll, reference_nll) * np.asarray(num_tokens)


def difficulty_proxy(reference_nll: ArrayLike) -> Array:
    """`-log p_reference(x) / T` in nats per token: how surprising the text is to a model that never saw it."""
    return np.asarray(reference_nll, np.float64)


def thirds(values: ArrayLike) -> NDArray[np.int64]:
    """0, 1 or 2 for the lower, middle and upper third of the known values, -1 for unknown ones.

    >>> thirds([5.0, 1.0, 3.0, float("nan")]).tolist()
    [2, 0, 1, -1]

    Equal values share a bucket, so that buckets need not be of one size; if all are equal, all are in the lowest.
    """
    found = np.asarray(values, np.float64)
    if np.isnan(found).all():
        return np.full(found.shape, -1)
    cuts = np.quantile(known(found), [1 / 3, 2 / 3])
    return np.where(np.isnan(found), -1, np.searchsorted(cuts, found, "left"))


class Verdict(NamedTuple):
    """Whether a forget set is of the distribution of its controls, with the evidence and what follows."""

    verdict: str
    auc: float
    ci_low: float | None
    ci_high: float | None
    n: int
    controls: int
    text: str


def distribution_verdict(forget: ArrayLike, controls: ArrayLike, *, seed: int) -> Verdict | None:
    """In- or out-of-distribution, before an edit, by how well difficulty alone tells the forget set from never-seen controls.

    >>> distribution_verdict([5.0, 6.0, 7.0, 8.0], [1.0, 2.0, 3.0, 4.0], seed=0).verdict
    'out-of-distribution'

    forget, controls: difficulty per text (`difficulty_proxy`), nats per token. The AUC is the chance that a forget text is the harder one.
    In-distribution where its 95 % interval lies within 0.3 to 0.7, out-of-distribution where it lies wholly below or above, else
    unclear. Only difficulty is compared: texts of another kind that are as hard count as in-distribution. None where one is empty.
    """
    ours, others = known(forget), known(controls)
    if not ours.size or not others.size:
        return None
    low, high = bootstrap(
        lambda drawn: auc(drawn["ours"], drawn["others"]), {"ours": ours, "others": others}, seed=seed
    )
    verdict = "unclear"
    if low is not None and high is not None:
        if ALIKE[0] <= low and high <= ALIKE[1]:
            verdict = "in-distribution"
        elif high < ALIKE[0] or low > ALIKE[1]:
            verdict = "out-of-distribution"
    return Verdict(verdict, float(auc(ours, others)), low, high, ours.size, others.size, CONSEQUENCES[verdict])
