"""What the heatmaps show, apart from how they are drawn: cells of layers x modules, and the scale of their colours.

>>> rows = [{"name": "h.0.w", "stack": "h", "layer": 0, "module": "w", "numel": 8, "changed": 2, "rel_l2": 0.1, "max_abs": 1.0}]
>>> [stack] = layer_maps({"tensors": rows})
>>> stack.title, stack.columns, stack.rows, stack.cells["w", 0]["changed_fraction"]
('h', [0], ['w'], 0.25)
"""

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from editkit.diffing.measures import crossed

Row = Mapping[str, Any]
Join = Callable[[Sequence[Row]], Row]

SHOWN = ("rel_l2", "changed_fraction", "crossed_int4", "max_abs")
"""The measures that colour a heatmap; crossed_int4 as a share of the changed elements."""
_SUMS = ("numel", "changed", "crossed_int8", "crossed_int4", "sign_flips", "nan_after")
MAXIMA = ("rel_l2", "max_abs")
_LOG_FROM = 20.0  # largest over smallest value from which a colour scale is logarithmic


class Heatmap(NamedTuple):
    """`cells[row, column]` where there is such a tensor; `totals[column]` where the report has the sum of a column."""

    title: str
    rows: Sequence[Hashable]
    columns: Sequence[int]
    cells: dict[tuple[Hashable, int], Row]
    totals: dict[int, Row]


class Scale(NamedTuple):
    """From the smallest to the largest value shown, linear or logarithmic.

    >>> Scale.of([0.001, 0.1]).position(0.01), Scale.of([1.0, 3.0]).position(2.0), Scale.of([5.0]).position(5.0)
    (0.5, 0.5, 1.0)
    """

    low: float
    high: float
    log: bool

    @classmethod
    def of(cls, values: Iterable[float]) -> "Scale":
        values = list(values)
        positive = [value for value in values if value > 0]
        low, high = min(positive, default=0.0), max(positive, default=0.0)
        log = low > 0 and high / low >= _LOG_FROM
        return cls(low if log else min(values, default=0.0), high, log)

    def position(self, value: float) -> float:
        """0 at the low end to 1 at the high end; a zero lies at the low end of a logarithmic scale too."""
        if self.high <= self.low:
            return 1.0
        if not self.log:
            return (value - self.low) / (self.high - self.low)
        return math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)

    def value(self, position: float) -> float:
        """The inverse of `position`."""
        if self.log:
            return self.low * (self.high / self.low) ** position
        return self.low + (self.high - self.low) * position


def measured(row: Row, measure: str) -> float | None:
    """The value that colours a cell; None where it is unknown or undefined."""
    return crossed(row, 4) if measure == "crossed_int4" else row.get(measure)


def scales(maps: Iterable[Heatmap]) -> dict[str, Scale]:
    """One scale per measure over the changed cells of all `maps`, so that they can be compared."""
    rows = [row for map_ in maps for row in (*map_.cells.values(), *map_.totals.values()) if row["changed"]]
    known = {measure: [value for row in rows if (value := measured(row, measure)) is not None] for measure in SHOWN}
    return {measure: Scale.of(values) for measure, values in known.items()}


def join(rows: Sequence[Row]) -> Row:
    """Several tensors as one cell: counts add up, relative and largest changes are those of the largest tensor.

    (The relative change of all together would need the norms of the unchanged bases, which the report does not have.)
    """
    joined: dict[str, Any] = {"tensors": len(rows)}
    for key in (*_SUMS, *MAXIMA):
        known = [row[key] for row in rows if row.get(key) is not None]
        joined[key] = (max(known) if key in MAXIMA else sum(known)) if known else None
    joined["changed_fraction"] = joined["changed"] / joined["numel"] if joined["numel"] else None
    return joined


def layer_maps(report: Mapping[str, Any], join: Join = join) -> list[Heatmap]:
    """A heatmap of modules x layers for every stack of layers. A cell with several tensors (experts) joins them."""
    totals = {(row["stack"], row["layer"]): row for row in report.get("layers", ())}
    stacks: dict[str, dict[tuple[Hashable, int], list[Row]]] = {}
    for row in report["tensors"]:
        if row["layer"] is not None:
            stacks.setdefault(row["stack"], {}).setdefault((row["module"], row["layer"]), []).append(row)
    return [
        _heatmap(stack, groups, {layer: totals[stack, layer] for _, layer in groups if (stack, layer) in totals}, join)
        for stack, groups in stacks.items()
    ]


def part_maps(report: Mapping[str, Any], join: Join = join) -> list[Heatmap]:
    """Heatmaps of heads x layers and experts x layers, one for every module that has such parts."""
    groups: dict[str, dict[tuple[Hashable, int], list[Row]]] = {}
    for row in report["tensors"]:
        if row["layer"] is None:
            continue
        parts = [(kind, part[kind], part) for kind in ("head", "expert") for part in row.get(f"{kind}s") or ()]
        if row.get("expert") is not None:
            parts.append(("expert", row["expert"], row))
        for kind, index, part in parts:
            title = f"{row['stack']}: {row['module']} by {kind}"
            groups.setdefault(title, {}).setdefault((index, row["layer"]), []).append(part)
    return [_heatmap(title, dict(sorted(cells.items())), {}, join) for title, cells in groups.items()]


def outside(report: Mapping[str, Any]) -> list[Row]:
    """The tensors outside every stack of layers."""
    return [row for row in report["tensors"] if row["layer"] is None]


def _heatmap(title: str, groups: dict[tuple[Hashable, int], list[Row]], totals: dict[int, Row], join: Join) -> Heatmap:
    rows = list(dict.fromkeys(row for row, _ in groups))
    columns = sorted({column for _, column in groups})
    return Heatmap(title, rows, columns, {place: join(found) for place, found in groups.items()}, totals)
