"""The diff report: sums of every tensor turned into one dictionary, schema `editkit.diff/1`.

Rows of tensors, layers, modules and the summary have the same measures (see `measures.py`); sums add up, so the rows of
layers and modules are exact, not means of means.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import isfinite, sqrt
from typing import Any

import numpy as np
from einops import reduce

from editkit.arithmetic.apply import Applied
from editkit.arithmetic.measure import (
    BASE_BASE,
    BASE_DELTA,
    BINS,
    CHANGED,
    DELTA,
    DELTA_DELTA,
    FIELDS,
    FLIPS,
    INF_BASE,
    INF_EDITED,
    INT4,
    INT8,
    LOG2_SMALLEST,
    NAN_BASE,
    NAN_EDITED,
    SAMPLING,
    Sums,
)
from editkit.checkpoint.header import TensorInfo
from editkit.diffing.audit import Audit
from editkit.names import grid, parse

SCHEMA = "editkit.diff/1"


@dataclass
class Compared:
    """One tensor that both checkpoints hold with one shape. Whole-number tensors have `sums` None and `changed` alone."""

    info: TensorInfo
    sums: Sums | None
    changed: int = 0
    applied: Applied | None = None
    spectral: dict[str, Any] | None = None


@dataclass
class Comparison:
    """Everything a report says. `base` and `edited`: {"name", "sha256": {file: hex} or None, "quantization"}.

    audit: of all blocks that changed, where the edit had a mask.
    """

    base: dict[str, Any]
    edited: dict[str, Any]
    config: Mapping[str, Any] | None = None
    tensors: list[Compared] = field(default_factory=list)
    added: list[dict[str, Any]] = field(default_factory=list)
    removed: list[dict[str, Any]] = field(default_factory=list)
    reshaped: list[dict[str, Any]] = field(default_factory=list)
    retyped: list[dict[str, Any]] = field(default_factory=list)
    settings: list[dict[str, Any]] = field(default_factory=list)
    audit: Audit | None = None


def build_report(comparison: Comparison) -> dict[str, Any]:
    """The report as a dictionary that is strict JSON: what is not known is None."""
    tensors = comparison.tensors
    layers: dict[tuple[str, int | None], list[Compared]] = {}
    modules: dict[str, list[Compared]] = {}
    for tensor in tensors:
        place = parse(tensor.info.name)
        layers.setdefault((place.stack, place.layer), []).append(tensor)
        modules.setdefault(place.module, []).append(tensor)
    summary = {
        "tensors": len(tensors),
        "tensors_changed": sum(_changed(tensor) > 0 for tensor in tensors),
        **_row(tensors),
    }
    structure = {key: getattr(comparison, key) for key in ("added", "removed", "reshaped", "retyped", "settings")}
    report = {
        "schema": SCHEMA,
        "base": comparison.base,
        "edited": comparison.edited,
        "summary": {**summary, **{key: len(found) for key, found in structure.items()}},
        "layers": [
            {"stack": stack, "layer": layer, "tensors": len(group), **_row(group)}
            for (stack, layer), group in sorted(
                layers.items(), key=lambda item: (item[0][1] is None, item[0][0], item[0][1])
            )
        ],
        "modules": [{"module": module, "tensors": len(group), **_row(group)} for module, group in modules.items()],
        "tensors": [_tensor(tensor, comparison.config) for tensor in tensors],
        "histogram": _histogram(tensors),
        **structure,
    }
    if comparison.audit is not None:
        report["mask"] = comparison.audit.row([tensor.info for tensor in tensors], structure)
    edit = report["summary"].pop("edit", None)
    return {**report, "edit": edit} if edit else report


def _tensor(tensor: Compared, config: Mapping[str, Any] | None) -> dict[str, Any]:
    info, place = tensor.info, parse(tensor.info.name)
    row = {
        "name": info.name,
        "dtype": info.dtype,
        "shape": list(info.shape),
        "layer": place.layer,
        "stack": place.stack,
        "module": place.module,
        "expert": place.expert,
        **_row([tensor]),
    }
    parts = grid(info.name, info.shape, config)
    if tensor.sums is not None and parts is not None and tensor.sums.parts > 1:
        size = info.numel // tensor.sums.parts
        row[f"{parts.unit}s"] = [
            {**label, **_measures(values, float(largest), size, size)}
            for label, values, largest in zip(parts.labels(), tensor.sums.values, tensor.sums.largest, strict=True)
        ]
    if tensor.spectral is not None:
        row["spectral"] = tensor.spectral
    return row


def _row(tensors: Iterable[Compared]) -> dict[str, Any]:
    """Several tensors as one row; their sums add up."""
    tensors = list(tensors)
    values, largest, floating, numel, whole = np.zeros(FIELDS), 0.0, 0, 0, 0
    for tensor in tensors:
        numel += tensor.info.numel
        whole += tensor.changed
        if tensor.sums is not None:
            floating += tensor.info.numel
            values += reduce(tensor.sums.values, "part field -> field", "sum")
            largest = max(largest, float(tensor.sums.largest.max()))
    values[CHANGED] += whole
    row = _measures(values, largest, numel, floating)
    applied = [tensor.applied for tensor in tensors if tensor.applied is not None]
    return {**row, "edit": Applied.total(applied).row()} if applied else row


def _measures(values: np.ndarray, largest: float, numel: int, floating: int) -> dict[str, Any]:
    """The measures of `numel` elements, of which `floating` are floating point and summed in `values` (FIELDS)."""
    changed = int(values[CHANGED])
    row: dict[str, Any] = {"numel": numel, "changed": changed, "changed_fraction": changed / numel if numel else None}
    base, delta = float(values[BASE_BASE]), float(values[DELTA_DELTA])
    edited = max(base + 2 * float(values[BASE_DELTA]) + delta, 0.0)
    norms = sqrt(base * edited) if isfinite(base * edited) else 0.0
    cosine = (base + float(values[BASE_DELTA])) / norms if norms else None
    numbers = {
        "l2": sqrt(delta),
        "rel_l2": sqrt(delta / base) if base else None,
        "max_abs": largest,
        "mean": float(values[DELTA]) / floating if floating else None,
        "cosine": None if cosine is None else max(-1.0, min(1.0, cosine)),
    }
    counts = {
        "sign_flips": FLIPS,
        "crossed_int8": INT8,
        "crossed_int4": INT4,
        "nan_before": NAN_BASE,
        "nan_after": NAN_EDITED,
        "inf_before": INF_BASE,
        "inf_after": INF_EDITED,
    }
    row.update(
        {key: value if floating and value is not None and isfinite(value) else None for key, value in numbers.items()}
    )
    row.update({key: int(values[index]) if floating else None for key, index in counts.items()})
    return row


def _changed(tensor: Compared) -> int:
    return tensor.changed + (int(tensor.sums.values[:, CHANGED].sum()) if tensor.sums is not None else 0)


def _histogram(tensors: list[Compared]) -> dict[str, Any]:
    counts = np.zeros(BINS + 1, np.int64)
    for tensor in tensors:
        if tensor.sums is not None:
            counts += tensor.sums.histogram
    return {
        "log2_edges": list(range(LOG2_SMALLEST, LOG2_SMALLEST + BINS + 1)),
        "counts": counts[:BINS].tolist(),
        "zeros": int(counts[BINS]),
        "n": int(counts.sum()),
        "sampling": f"1 row in {SAMPLING}",
    }
