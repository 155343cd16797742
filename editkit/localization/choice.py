"""The choice: which elements or units a budget or MemFlex's thresholds select, given all scores."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from editkit.arithmetic import ranking
from editkit.checkpoint.header import TensorInfo
from editkit.errors import EditError
from editkit.localization.evidence import FORGET, Evidence, cosine
from editkit.localization.selection import Entries, layer_of
from editkit.localization.settings import Settings
from editkit.masks.budget import best_units
from editkit.masks.threshold import Scores, chosen_bits, thresholds
from editkit.masks.units import Units

_ROUNDING = 1e-12
"""29 % of 100 is 29, which floating-point numbers miss by less than this."""


class NothingSelected(EditError):
    """No element and no unit is selected."""


class Choice(NamedTuple):
    """entries: the mask, tensor by tensor. threshold: the lowest selected score; None where layers have their own.

    counts, selected: how many scores, and selected ones, have which upper 16 bits [65536]. short: how many parameters or units
    of the budget are left because no score above zero is.
    """

    entries: Entries
    threshold: float | None
    counts: np.ndarray
    selected: np.ndarray
    short: int


def choose(
    settings: Settings,
    infos: Sequence[TensorInfo],
    evidence: Evidence,
    sums: Mapping[str, np.ndarray] | None,
    scored: Mapping[str, np.ndarray],
    scores: Scores,
    threads: int | None,
) -> Choice:
    """Select within the budget. sums: of `Evidence.measure`. scored: of every unit. scores: of elements, block by block.

    Raises NothingSelected where that would be nothing, EditError where the budget is everything or below one element.
    """
    groups = _groups(settings, infos)
    if settings.budget is None:
        return _by_thresholds(settings, infos, evidence, sums or {}, scored)
    limits = allowances(settings, infos, evidence.units)
    if settings.element:
        found, by_size = thresholds(infos, scores, limits, groups, threads)
        high = sum(by_size.values(), np.zeros(ranking.BINS, np.int64))
        short = sum(max(0, limit - int(by_size[group].sum())) for group, limit in limits.items())
        if not high.any():
            raise NothingSelected(f"no element has a {settings.method} score above zero: {_none_above_zero(settings)}")
        taken = np.zeros_like(high)
        for group, limit in found.items():
            bin = int(np.float32(limit.value).view(np.uint32)) >> 16
            above = by_size[group] * (np.arange(ranking.BINS) > bin)
            above[bin] = min(limits[group], int(by_size[group].sum())) - above.sum()
            taken += above
        entries = chosen_bits(infos, scores, found, groups, threads)
        return Choice(entries, next(iter(found.values())).value if len(found) == 1 else None, high, taken, short)
    costs = {info.name: 1 if settings.budget.count else info.numel // evidence.units[info.name].count for info in infos}
    chosen = best_units(scored, costs, limits, groups)
    if not any(one.any() for one in chosen.values()):
        _refuse_nothing(settings, scored, costs, limits)
    count = sum(int(one.sum()) for one in chosen.values())
    return _of_units(
        infos, scored, chosen, sum(limits.values()) - count if settings.budget.count else 0, len(limits) == 1
    )


def _groups(settings: Settings, infos: Sequence[TensorInfo]) -> dict[str, str]:
    """Tensor name -> what shares a budget: a layer, or everything."""
    return {info.name: layer_of(info.name) if settings.per_layer_budget else "" for info in infos}


def allowances(settings: Settings, infos: Sequence[TensorInfo], parts: Mapping[str, Units]) -> dict[str, int]:
    """What the budget allows each group: parameters, or units where the budget counts them.

    Raises EditError where that is everything, or less than one element.
    """
    budget, groups = settings.budget, _groups(settings, infos)
    assert budget is not None
    counts = {info.name: info.numel if settings.element else parts[info.name].count for info in infos}
    sizes, units = dict.fromkeys(groups.values(), 0), dict.fromkeys(groups.values(), 0)
    for info in infos:
        sizes[groups[info.name]] += info.numel
        units[groups[info.name]] += counts[info.name]
    if budget.count is not None:
        if budget.count >= max(units.values()):
            where = "in a layer at most" if settings.per_layer_budget else "in all"
            raise EditError(
                f"budget {budget} selects everything: there are {max(units.values()):,} {settings.granularity}s {where}"
            )
        return {group: min(budget.count, count) for group, count in units.items()}
    share = budget.share or 0.0
    found = {group: int(share * size * (1 + _ROUNDING)) for group, size in sizes.items()}
    if not any(found.values()):
        total = max(sizes.values())
        raise EditError(
            f"budget {budget} of {total:,} parameters is {share * total:.2g} of one element: "
            + (f"give at least {110 / total:.2g}%" if total > 1 else "there is nothing to choose from")
        )
    return found


def _of_units(
    infos: Sequence[TensorInfo],
    scored: Mapping[str, np.ndarray],
    chosen: Mapping[str, np.ndarray],
    short: int,
    one_threshold: bool,
) -> Choice:
    everything = np.concatenate([scored[info.name] for info in infos]).astype(np.float32)
    picked = np.concatenate([chosen[info.name] for info in infos])
    lowest = float(everything[picked].min()) if one_threshold else None
    entries = [(info, chosen[info.name]) for info in infos]
    return Choice(entries, lowest, ranking.upper(everything), ranking.upper(everything[picked]), short)


def _by_thresholds(
    settings: Settings,
    infos: Sequence[TensorInfo],
    evidence: Evidence,
    sums: Mapping[str, np.ndarray],
    scored: Mapping[str, np.ndarray],
) -> Choice:
    """MemFlex as in the paper: cos(G_F, G_R) < mu and mean |G_F| > sigma; the cosine with a gradient of zero is 0."""
    assert settings.mu is not None and settings.sigma is not None
    angles = {info.name: cosine(sums[info.name].T) for info in infos}
    sizes = {info.name: sums[info.name][:, FORGET] * evidence.units[info.name].count / info.numel for info in infos}
    chosen = {name: (np.nan_to_num(angles[name]) < settings.mu) & (sizes[name] > settings.sigma) for name in angles}
    if not any(one.any() for one in chosen.values()):
        angle, size = (np.concatenate([one[info.name] for info in infos]) for one in (angles, sizes))
        known = np.isfinite(angle)
        if not known.any():
            raise NothingSelected(
                f"no {settings.granularity} has a gradient in both sets: {_none_above_zero(settings)}"
            )
        angle, size = angle[known], size[known]
        best = np.argsort(-size * (1 - angle), kind="stable")[: max(1, len(angle) // 20)]
        spread = [
            f"{np.quantile(one, 0.05):.3g} to {np.quantile(one, 0.95):.3g} (median {np.median(one):.3g})"
            for one in (angle, size)
        ]
        raise NothingSelected(
            f"--mu {settings.mu:g} --sigma {settings.sigma:g} select none of {len(angle):,} {settings.granularity}s: their cosines "
            f"are {spread[0]} and their mean |G| {spread[1]}, 5 % to 95 %; --mu {_above(angle[best].max()):.3g} --sigma "
            f"{_below(size[best].min()):.3g} would select some, or give --budget"
        )
    return _of_units(infos, scored, chosen, 0, False)


def _refuse_nothing(
    settings: Settings, scored: Mapping[str, np.ndarray], costs: Mapping[str, int], limits: Mapping[str, int]
) -> None:
    best = max(scored, key=lambda name: scored[name].max())
    if scored[best].max() <= 0:
        raise NothingSelected(
            f"no {settings.granularity} has a {settings.method} score above zero: {_none_above_zero(settings)}"
        )
    raise NothingSelected(
        f"budget {settings.budget} is {max(limits.values()):,} parameters and selects nothing: a {settings.granularity} of {best}, which "
        f"comes first, has {costs[best]:,}: give a larger budget, a number such as --budget 4, or a finer --granularity"
    )


def _none_above_zero(settings: Settings) -> str:
    if settings.kind.additive:
        return "no parameter's way from the base lowered the loss of the forget set more than that of the retain set"
    if not settings.accumulate:
        return "the base has the same weights, or all weights are zero"
    return "all gradients of the forget set are zero: try --labels random:0.4"


def _above(value: float) -> float:
    """A little more, which three digits show."""
    return value + max(abs(value) * 0.01, 1e-6)


def _below(value: float) -> float:
    return value * 0.99
