"""What cells, modules and tensors of a localization show: its measures, and several tensors as one row.

>>> a = {"numel": 6, "selected": 3, "units": 1, "units_selected": 1, "cosine": 0.5, "mean_abs_forget": 2.0}
>>> b = {"numel": 2, "selected": 1, "units": 1, "units_selected": 1, "cosine": 0.1, "mean_abs_forget": 6.0}
>>> row = join([a, b])
>>> row["selected_fraction"], row["cosine"], row["cosine_n"], row["mean_abs_forget"], row["attribution_forget"]
(0.5, 0.3, 2, 3.0, None)
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean, stdev
from typing import Any, NamedTuple

from editkit.diffing.measures import UNDEFINED, number, share
from editkit.diffing.rendering.heatmap import Heatmap, Row, Scale, layer_maps, part_maps

Report = Mapping[str, Any]


class Measure(NamedTuple):
    """A measure of tensors. `kind` is "share", "cosine" or "number"; `signed` ones never have a logarithmic scale."""

    name: str
    label: str
    unit: str
    kind: str
    signed: bool

    def write(self, value: float | None) -> str:
        """`value` with as many digits as a reader can use."""
        return UNDEFINED if value is None else _WRITE[self.kind](value)


_WRITE: dict[str, Callable[[float], str]] = {"share": share, "cosine": "{:.3f}".format, "number": number}
MEASURES = {
    measure.name: measure
    for measure in (
        Measure("selected_fraction", "selected", "share of the parameters that are selected", "share", False),
        Measure(
            "mean_abs_forget", "forget gradient", "mean |gradient of the forget loss|, nats per weight unit", "number", False
        ),
        Measure("cosine", "cosine", "of the forget and the retain gradient of a tensor, -1 to 1", "cosine", True),
        Measure("attribution_forget", "attribution", "drop of the forget loss along the path, nats", "number", True),
    )
}  # fmt: skip
"""The measures that can colour a heatmap."""


def join(rows: Sequence[Row]) -> Row:
    """Several tensors as one row: counts and attributions add up, gradients are averaged over the parameters.

    The cosine is the mean of those of the tensors, with its standard deviation and n. (Root mean squares of gradients are
    averaged as well, which is a little less than the root of the mean over all.)
    """
    joined: dict[str, Any] = {"tensors": len(rows)}
    for key in ("numel", "selected", "units", "units_selected"):
        joined[key] = sum(row[key] for row in rows)
    joined["selected_fraction"] = joined["selected"] / joined["numel"] if joined["numel"] else 0.0
    known = [row for row in rows if row.get("mean_abs_forget") is not None]
    weight = sum(row["numel"] for row in known)
    total = sum(row["mean_abs_forget"] * row["numel"] for row in known)
    cosines = [row["cosine"] for row in rows if row.get("cosine") is not None]
    nats = [row["attribution_forget"] for row in rows if row.get("attribution_forget") is not None]
    return joined | {
        "mean_abs_forget": total / weight if weight else None,
        "cosine": fmean(cosines) if cosines else None,
        "cosine_sd": stdev(cosines) if len(cosines) > 1 else None,
        "cosine_n": len(cosines),
        "attribution_forget": sum(nats) if nats else None,
    }


def stack_maps(report: Report) -> list[Heatmap]:
    """A heatmap of modules x layers for every stack of layers."""
    layers = _grouped(report["tensors"], "stack", "layer")
    totals = [{"stack": stack, "layer": layer, **join(rows)} for (stack, layer), rows in layers.items()]
    return layer_maps({"tensors": report["tensors"], "layers": totals}, join)


def expert_maps(report: Report) -> list[Heatmap]:
    """A heatmap of experts x layers for every module that has them."""
    return part_maps(report, join)


def known_scales(maps: Iterable[Heatmap]) -> dict[str, Scale]:
    """One scale for each measure that some cell of `maps` knows; of shares selected, over the cells that have some."""
    rows = [row for map_ in maps for row in (*map_.cells.values(), *map_.totals.values())]
    found = {}
    for name, measure in MEASURES.items():
        values = [
            row[name] for row in rows if row[name] is not None and (row["selected"] or name != "selected_fraction")
        ]
        if values or name == "selected_fraction":
            found[name] = Scale(min(values), max(values), False) if measure.signed else Scale.of(values)
    return found


def modules(report: Report) -> list[Row]:
    """The modules with a selection, those with most selected parameters first, and in how many layers of theirs it is."""
    whole = report["summary"]["selected"]
    found = []
    for (module,), rows in _grouped(report["tensors"], "module").items():
        layers = {(row["stack"], row["layer"]) for row in rows if row["layer"] is not None}
        touched = {(row["stack"], row["layer"]) for row in rows if row["selected"]} & layers
        row = {"module": module, "layers": len(layers), "layers_touched": len(touched), **join(rows)}
        if row["selected"]:
            found.append(row | {"selection_fraction": row["selected"] / whole})
    return sorted(found, key=lambda row: (-row["selected"], row["module"]))


def _grouped(rows: Sequence[Row], *keys: str) -> dict[tuple[Any, ...], list[Row]]:
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return groups
