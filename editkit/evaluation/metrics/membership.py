"""Membership inference: was a text trained on? Scores per text, and how well a score tells members from never-seen text.

All scores are higher for texts that look like members. Loss: Yeom et al. 2018 (1709.01604); zlib and reference: Carlini et al. 2021
(2012.07805); Min-K%: Shi et al. 2024 (2310.16789); Min-K%++: Zhang et al. 2025 (2404.02936); PrivLeak: Shi et al. 2024 (2407.06460).

>>> members, others = loss_score([0.1, 0.2, 0.9]), loss_score([0.5, 0.6, 1.5])
>>> round(float(auc(members, others)), 3), round(float(tpr_at_fpr(members, others)), 3)
(0.778, 0.667)
"""

import numpy as np
from numpy.typing import ArrayLike

from editkit.evaluation.metrics.statistics import Array, roc


def loss_score(nll: ArrayLike) -> Array:
    """`-NLL` per text, in nats per token."""
    return -np.asarray(nll, np.float64)


def zlib_score(nll: ArrayLike, num_tokens: ArrayLike, zlib_bytes: ArrayLike) -> Array:
    """`-(summed NLL) / (bytes of the text under zlib)` per text: the loss, with what is easy for any compressor taken into account."""
    return -np.asarray(nll, np.float64) * np.asarray(num_tokens) / np.asarray(zlib_bytes)


def reference_score(nll: ArrayLike, reference_nll: ArrayLike) -> Array:
    """`NLL_reference - NLL` per text: how much likelier it is than under a model that never saw it, in nats per token."""
    return np.asarray(reference_nll, np.float64) - np.asarray(nll, np.float64)


def min_k(log_probs: ArrayLike, k: float = 0.4) -> float | None:
    """Min-K%: the mean of the lowest share k of one text's log-probabilities, at least one; None without a token.

    >>> min_k([-1.0, -9.0, -3.0, -2.0, -1.0])
    -6.0
    """
    found = np.sort(np.asarray(log_probs, np.float64))
    return float(found[: max(1, int(k * found.size))].mean()) if found.size else None


def min_k_plus_plus(log_probs: ArrayLike, mu: ArrayLike, sigma: ArrayLike, k: float = 0.4) -> float | None:
    """Min-K%++: Min-K% of `(log p(x_t) - mu_t) / sigma_t`.

    mu, sigma: per position, mean and standard deviation of `log p(z)` over the vocabulary, z drawn from p itself. Where the model is
    certain (sigma 0), a token that has exactly the expected log-probability scores 0, and any other minus infinity.
    """
    found, expected = np.asarray(log_probs, np.float64), np.asarray(mu, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        scores = (found - expected) / np.asarray(sigma, np.float64)
    return min_k(np.where(found == expected, 0.0, scores), k)


def auc(members: ArrayLike, non_members: ArrayLike) -> Array:
    """The chance that a member scores above a non-member, ties counted half: [..., n] and [..., m] to [...]. Fit for `bootstrap`.

    Neither may have unknown values (`statistics.known`). NaN where one of them is empty.
    """
    hits, alarms = roc(members, non_members)
    with np.errstate(invalid="ignore"):
        area = (np.diff(alarms, axis=-1) * (hits[..., 1:] + hits[..., :-1]) / 2).sum(-1)
        return np.asarray(area / (hits[..., -1] * alarms[..., -1]))


def two_sided(area: ArrayLike) -> Array:
    """`max(AUC, 1 - AUC)`: an edit that overshoots is as visible as one that falls short. At least 0.5, also by chance."""
    found = np.asarray(area, np.float64)
    return np.maximum(found, 1 - found)


def tpr_at_fpr(members: ArrayLike, non_members: ArrayLike, fpr: float = 0.01) -> Array:
    """The largest share of members above a threshold that at most a share `fpr` of the non-members reach: [..., n], [..., m] to [...].

    With fewer than 1 / fpr non-members none of them may reach it. NaN where one of the two is empty.
    """
    hits, alarms = roc(members, non_members)
    allowed = alarms <= fpr * alarms[..., -1:] + 1e-9
    with np.errstate(invalid="ignore"):
        found = np.where(allowed, hits, 0).max(-1) / hits[..., -1]
    return np.where(alarms[..., -1] > 0, found, np.nan)


def priv_leak(edited_auc: ArrayLike, reference_auc: ArrayLike) -> Array:
    """`(AUC_edited - AUC_reference) / AUC_reference`, 0 where the edit leaks what a model that never saw the text does; NaN for a
    reference AUC of 0. The reference is measured, not assumed to be 0.5."""
    edited, reference = np.asarray(edited_auc, np.float64), np.asarray(reference_auc, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(reference == 0, np.nan, (edited - reference) / reference)
