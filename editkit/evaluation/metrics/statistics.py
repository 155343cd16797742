"""What is said of many values: mean, spread, tail, and a 95 % interval by the percentile bootstrap over examples.

>>> summary([0.0, 1.0, 1.0, 1.0, float("nan")], seed=0)
Summary(value=0.75, n=4, sd=0.5, median=1.0, p95=1.0, max=1.0, ci_low=0.25, ci_high=1.0)
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Interval = tuple[float | None, float | None]

CONFIDENCE = 0.95
BLOCK = 1 << 20  # values that are drawn at a time: what the statistic works on then stays small, however large a set is


class Summary(NamedTuple):
    """Of n known values: their mean, its interval, and how they spread. None is "not defined for so few"."""

    value: float | None
    n: int
    sd: float | None
    median: float | None
    p95: float | None
    max: float | None
    ci_low: float | None
    ci_high: float | None


def summary(values: ArrayLike, *, seed: int) -> Summary:
    """Mean, standard deviation (n - 1), median, 95th percentile (linear), maximum and the interval of the mean.

    >>> summary([], seed=0).value is None, summary([2.0], seed=0).ci_low is None
    (True, True)

    values: one number per example; NaN is unknown and left out. One value has neither a spread nor an interval.
    """
    found = known(values)
    if not found.size:
        return Summary(None, 0, None, None, None, None, None, None)
    low, high = bootstrap(lambda drawn: mean(drawn["values"]), {"values": found}, seed=seed)
    with np.errstate(invalid="ignore"):  # of infinite values, which have a mean and a median, but no spread
        sd, p95 = float(found.std(ddof=1)) if found.size > 1 else np.nan, float(np.percentile(found, 95))
    return Summary(
        value=float(found.mean()),
        n=found.size,
        sd=None if np.isnan(sd) else sd,
        median=float(np.median(found)),
        p95=None if np.isnan(p95) else p95,
        max=float(found.max()),
        ci_low=low,
        ci_high=high,
    )


def bootstrap(
    statistic: Callable[[dict[str, Array]], ArrayLike],
    samples: Mapping[str, ArrayLike],
    *,
    seed: int,
    resamples: int = 1000,
) -> Interval:
    """The 95 % percentile interval (Efron 1979) of a statistic of several sets, examples drawn with replacement in each.

    >>> sets = {"forget": [0.1, 0.3, 0.2, 0.4], "retain": [0.9, 0.8, 1.0]}
    >>> low, high = bootstrap(lambda drawn: mean(drawn["retain"]) - mean(drawn["forget"]), sets, seed=0)
    >>> 0.4 < low < 0.65 < high < 0.85
    True

    samples: a set's values [n], or its rows [n, k], which are drawn whole. The statistic gets the same names with the axis of
    resamples in front, [b, n] or [b, n, k], for some resamples at a time, and returns one number for each, [b].
    Sets are drawn independently, also where their examples are the same questions. (None, None) where a set has fewer than
    two examples, or where the statistic is not defined for some resample.
    """
    rows = {name: np.asarray(values, np.float64) for name, values in samples.items()}
    if min(len(values) for values in rows.values()) < 2:
        return None, None
    draws = dict(zip(rows, np.random.default_rng(seed).spawn(len(rows)), strict=True))
    block = max(1, BLOCK // sum(values.size for values in rows.values()))
    found = []
    for start in range(0, resamples, block):
        b = min(block, resamples - start)
        drawn = {name: values[draws[name].integers(0, len(values), (b, len(values)))] for name, values in rows.items()}
        found.append(np.asarray(statistic(drawn), np.float64))
    outside = 100 * (1 - CONFIDENCE) / 2
    with np.errstate(invalid="ignore"):
        low, high = np.percentile(np.concatenate(found), [outside, 100 - outside])
    return (None, None) if np.isnan(low) or np.isnan(high) else (float(low), float(high))


def known(values: ArrayLike) -> Array:
    """The values that are not NaN. None counts as NaN."""
    found = np.asarray(values, np.float64)
    return found[~np.isnan(found)]


def mean(values: ArrayLike, axis: int = -1) -> Array:
    """The mean of the known values along an axis, NaN where there is none.

    >>> mean([[1.0, float("nan")], [1.0, 2.0]]).tolist()
    [1.0, 1.5]
    """
    found = np.asarray(values, np.float64)
    unknown = np.isnan(found)
    with np.errstate(invalid="ignore", divide="ignore"):
        if not unknown.any():
            return found.sum(axis) / found.shape[axis]
        return np.where(unknown, 0, found).sum(axis) / (~unknown).sum(axis)


def roc(positives: ArrayLike, negatives: ArrayLike) -> tuple[Array, Array]:
    """How many of each are at or above a threshold that falls through all values: the curve behind KS, AUC and TPR at an FPR.

    >>> [counts.tolist() for counts in roc([3.0, 2.0], [2.0, 1.0])]
    [[0.0, 1.0, 1.0, 2.0, 2.0], [0.0, 0.0, 0.0, 1.0, 2.0]]

    positives, negatives: [..., n] and [..., m], without NaN. Returns two arrays [..., n + m + 1]. Among equal values both counts stay
    where they were until the last, so every entry is a point of the curve, and ties come out as its slanted pieces.
    """
    ups, downs = np.asarray(positives, np.float64), np.asarray(negatives, np.float64)
    pooled = -np.concatenate([ups, downs], axis=-1)
    order = pooled.argsort(axis=-1)
    pooled = np.take_along_axis(pooled, order, axis=-1)
    last = np.ones(pooled.shape, bool)  # of its ties
    last[..., :-1] = pooled[..., 1:] != pooled[..., :-1]
    positive = order < ups.shape[-1]

    def counted(which: NDArray[np.bool_]) -> Array:
        counts = np.zeros((*which.shape[:-1], which.shape[-1] + 1))
        np.cumsum(which, axis=-1, out=counts[..., 1:])
        counts[..., 1:] *= last
        return np.maximum.accumulate(counts, axis=-1)

    return counted(positive), counted(~positive)
