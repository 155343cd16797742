"""localization.json: what was selected, from what evidence, per tensor, module and layer."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from editkit.checkpoint.header import TensorInfo
from editkit.localization.evidence import CARRIED, CARRIED_RETAIN, FORGET, RETAIN, cosine
from editkit.localization.selection import Written
from editkit.localization.settings import Settings
from editkit.masks.units import Units
from editkit.names import parse

SCHEMA = "editkit.localization/1"
_TOP = 20


def tensor_rows(
    infos: Sequence[TensorInfo],
    settings: Settings,
    units: Mapping[str, Units],
    sums: Mapping[str, np.ndarray] | None,
    scored: Mapping[str, np.ndarray],
    highest: Mapping[str, float],
    chosen: Mapping[str, np.ndarray],
    written: Written,
) -> list[dict[str, Any]]:
    """One row per tensor. sums: of `Evidence.measure`. chosen: bool per unit, for units."""
    rows = []
    for info in infos:
        place, name = parse(info.name), info.name
        count = info.numel if settings.element else units[name].count
        taken = written.selected[name] if settings.element else int(chosen[name].sum())
        rows.append(
            {
                "name": name,
                "shape": list(info.shape),
                "stack": place.stack,
                "layer": place.layer,
                "module": place.module,
                "expert": place.expert,
                "numel": info.numel,
                "units": count,
                "units_selected": taken,
                "selected": written.selected[name],
                "selected_fraction": written.selected[name] / info.numel,
                "score_mean": float(scored[name].mean())
                / (info.numel if settings.element and settings.kind.additive else 1),
                "score_max": highest[name] if settings.element else float(scored[name].max()),
                **_evidence(info, settings, sums),
            }
        )
    return rows


def _evidence(info: TensorInfo, settings: Settings, sums: Mapping[str, np.ndarray] | None) -> dict[str, Any]:
    """Cosine and mean sizes of the gradients; for a path, the attribution. Squares give the root of their mean."""
    total = sums[info.name].sum(0) if sums is not None else np.full(7, np.nan)
    sizes = total[[FORGET, RETAIN]] / info.numel
    if settings.accumulate == "squared":
        sizes = np.sqrt(sizes)
    found = {
        "cosine": cosine(total) if settings.accumulate == "signed" else np.nan,
        "mean_abs_forget": sizes[0],
        "mean_abs_retain": sizes[1],
    }
    if settings.kind.additive:
        found |= {"attribution_forget": total[CARRIED], "attribution_retain": total[CARRIED_RETAIN]}
    return {key: None if np.isnan(value) else float(value) for key, value in found.items()}


def joined(rows: Sequence[Mapping[str, Any]], *keys: str) -> list[dict[str, Any]]:
    """Rows with the same keys as one: parameters and selected parameters."""
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    found = []
    for place, members in groups.items():
        numel, selected = (sum(row[key] for row in members) for key in ("numel", "selected"))
        counted = {"numel": numel, "selected": selected, "selected_fraction": selected / numel}
        found.append({**dict(zip(keys, place, strict=True)), **counted})
    return found


def top_units(
    settings: Settings,
    infos: Sequence[TensorInfo],
    scored: Mapping[str, np.ndarray],
    chosen: Mapping[str, np.ndarray],
    written: Written,
) -> list[dict[str, Any]]:
    """The units with the highest scores; of a selection of elements, the rows with most of them."""
    values = (
        written.rows if settings.element else {name: np.where(chosen[name], scored[name], -np.inf) for name in scored}
    )
    names = [info.name for info in infos]
    sizes = {info.name: info.numel // len(values[info.name]) for info in infos}
    best = []
    for name in names:
        order = np.argsort(-values[name], kind="stable")[:_TOP]
        best += [(float(values[name][index]), name, int(index)) for index in order if values[name][index] > 0]
    best.sort(key=lambda unit: -unit[0])
    return [
        {
            "name": name,
            "unit": "row" if settings.element else settings.granularity,
            "index": index,
            "numel": sizes[name],
            "selected": int(value) if settings.element else sizes[name],
            "score": None if settings.element else value,
        }
        for value, name, index in best[:_TOP]
    ]


def histogram(counts: np.ndarray, selected: np.ndarray, total: int) -> dict[str, Any]:
    """How many scores lie in [2^k, 2^(k+1)), of all and of the selected; both arrays count by upper 16 bits of a float32."""
    exponents = np.arange(1 << 15) >> 7
    both = [
        np.bincount(exponents, weights=one[: 1 << 15], minlength=256).astype(np.int64) for one in (counts, selected)
    ]
    used = np.flatnonzero(both[0])
    low, high = (int(used[0]), int(used[-1])) if len(used) else (127, 126)
    return {
        "log2_edges": list(range(low - 127, high - 127 + 2)),
        "counts": both[0][low : high + 1].tolist(),
        "selected": both[1][low : high + 1].tolist(),
        "zero_or_below": total - int(counts.sum()),
    }
