"""Geometry of the page's charts: plain numbers and texts, in pixels, for the template to write as SVG."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from editkit.diffing.measures import MEASURES, UNDEFINED, count, crossed, number, share
from editkit.diffing.rendering.heatmap import MAXIMA, SHOWN, Heatmap, Row, Scale, measured, scales
from editkit.errors import printable

PALETTE = tuple(
    "#dbe9b7 #bbdba5 #98cd9b #6fbf9c #51ad9e #399a9f #34849d #376e98 #3b588f #3c4380 #3a2f6f #361a5c".split()
)
"""Little change to much, in even steps of lightness, so that it reads without colour vision and in grey."""
STEPS = len(PALETTE)
LETTERS = dict(zip(SHOWN, "abcd", strict=True))
LABELS = {
    "rel_l2": "relative change",
    "changed_fraction": "changed elements",
    "crossed_int4": "survive 4 bit",
    "max_abs": "largest change",
}
UNITS = {
    "rel_l2": "L2 of the change over L2 of the base",
    "changed_fraction": "share of the elements whose bits differ",
    "crossed_int4": "share of the changed elements on another 4-bit code",
    "max_abs": "|edited − base| of one element, in weight units",
}
_GUTTER, _WIDTH, _WIDEST, _ROW, _GAP = 216, 820, 52, 21, 12
_MANY_ROWS = 40  # from here on rows are half as high and every fourth has its label
_LONGEST_LABEL = 31
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def panel(maps: Sequence[Heatmap]) -> dict[str, Any]:
    """Heatmaps that share one colour scale per measure, and the legends of these scales."""
    shared = scales(maps)
    return {
        "maps": [drawing(map_, lambda row: _cell(row, shared)) for map_ in maps],
        "legends": [
            legend(LETTERS[measure], LABELS[measure], UNITS[measure], scale, partial(write, measure))
            for measure, scale in shared.items()
        ],
    }


def write(measure: str, value: float | None) -> str:
    """A value of a heatmap's measure, where crossed_int4 is a share of the changed elements."""
    if measure == "crossed_int4":
        return UNDEFINED if value is None else share(value)
    return MEASURES[measure].write(value)


def drawing(map_: Heatmap, paint: Callable[[Row], tuple[str, Sequence[str]]]) -> dict[str, Any]:
    """A heatmap in pixels. `paint` gives the classes of a cell and the lines of its tooltip."""

    def cell(row: Row | None, title: str, x: int, y: int) -> dict[str, Any]:
        kind, lines = ("missing", ["no such tensor"]) if row is None else paint(row)
        return {"x": x, "y": y, "kind": kind, "tip": "\n".join([printable(title), *lines])}

    step = min(_WIDEST, max(7, _WIDTH // len(map_.columns)))
    tall = _ROW if len(map_.rows) <= _MANY_ROWS else _ROW // 2
    named = 1 if tall == _ROW else 4
    head = tall + _GAP if map_.totals else 0
    cells = [
        cell(row, f"{map_.title}.{column}, all of the layer", x * step, 0)
        for x, column in enumerate(map_.columns)
        if (row := map_.totals.get(column))
    ]
    for y, part in enumerate(map_.rows):
        for x, column in enumerate(map_.columns):
            found = map_.cells.get((part, column))
            cells.append(cell(found, f"{map_.title}.{column}, {part}", x * step, head + y * tall))
    labels = [{"y": tall / 2 + 4, "text": "all of the layer", "full": ""}] if map_.totals else []
    for y, part in enumerate(map_.rows):
        if y % named:
            continue
        full = printable(str(part))
        text = full if len(full) <= _LONGEST_LABEL else f"…{full[-_LONGEST_LABEL + 1 :]}"
        labels.append({"y": head + y * tall + tall / 2 + 4, "text": text, "full": full})
    every = max(1, -(-28 // step))
    return {
        "title": printable(map_.title),
        "size": f"{len(map_.rows)} × {len(map_.columns)}",
        "cells": cells,
        "labels": labels,
        "ticks": [
            {"x": x * step + step / 2, "text": column} for x, column in enumerate(map_.columns) if x % every == 0
        ],
        "gutter": _GUTTER,
        "width": _GUTTER + step * len(map_.columns) + 8,
        "height": head + tall * len(map_.rows) + 22,
        "step": step - 2 if step > 8 else step - 1,
        "row": tall - 2 if tall == _ROW else tall - 1,
    }


def _cell(row: Row, shared: Mapping[str, Scale]) -> tuple[str, list[str]]:
    several = row.get("tensors", 1) > 1
    joined = f"{row['tensors']:,} tensors, " if several else ""
    if not row["changed"]:
        return "same", [f"{joined}{count(row['numel'])} elements, unchanged"]
    classes, lines = [], [f"{joined}{count(row['numel'])} elements, {count(row['changed'])} changed"]
    for measure, scale in shared.items():
        value = measured(row, measure)
        of_which = " (largest of them)" if several and "layer" not in row and measure in MAXIMA else ""
        lines.append(f"{LABELS[measure]}: {write(measure, value)}{of_which}")
        classes.append(shade(LETTERS[measure], scale, value))
    return " ".join(classes), [*lines, f"survive 8 bit: {write('crossed_int4', crossed(row, 8))}"]


def shade(letter: str, scale: Scale, value: float | None) -> str:
    """The class that colours a cell while the measure of `letter` is shown; of its own where the value is undefined."""
    return f"{letter}{'n' if value is None else round(scale.position(value) * (STEPS - 1))}"


def legend(letter: str, label: str, unit: str, scale: Scale, write: Callable[[float | None], str]) -> dict[str, Any]:
    """What a colour scale needs to be read: its measure and the values at its ends."""
    ends = [0.0, 0.5, 1.0] if scale.high > scale.low else [1.0]
    ticks = [write(scale.value(position)) for position in ends]
    return {"letter": letter, "label": label, "unit": unit, "ticks": ticks, "log": scale.log}


def histogram(data: Mapping[str, Any]) -> dict[str, Any] | None:
    """Bars of the share of changed sampled elements per power of two; None where the sample has no change."""
    counts, edges = data["counts"], data["log2_edges"]
    filled = [index for index, n in enumerate(counts) if n]
    if not filled:
        return None
    first, last, total = filled[0], filled[-1], sum(counts)
    width, height, left = 520, 170, 52
    step = (width - left) / max(last - first + 1, 8)
    ticks = nice(max(counts) / total)
    top = ticks[-1]
    bars = [
        {
            "x": round(left + (index - first) * step, 2),
            "y": round(height * (1 - counts[index] / total / top), 2),
            "height": round(height * counts[index] / total / top, 2),
            "tip": f"{power(edges[index])} to {power(edges[index + 1])} "
            f"({number(2.0 ** edges[index])} to {number(2.0 ** edges[index + 1])})\n"
            f"{count(counts[index])} elements, {share(counts[index] / total)} of the changed ones",
        }
        for index in range(first, last + 1)
    ]
    every = max(1, round(44 / step))
    return {
        "bars": bars,
        "step": round(step - 1.5, 2),
        "width": width,
        "height": height,
        "left": left,
        "x": [
            {"x": round(left + (index - first) * step, 2), "text": power(edges[index])}
            for index in range(first, last + 2)
            if edges[index] % every == 0
        ],
        "y": [{"y": round(height * (1 - tick / top), 2), "text": f"{100 * tick:g} %"} for tick in ticks],
        "n": count(data["n"]),
        "changed": count(total),
        "zeros": count(data["zeros"]),
        "sampling": data["sampling"],
    }


def edit_bars(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Requested and applied L2, a pair of bars per layer."""
    if not rows:
        return None
    norms = [{key: row["edit"].get(f"{key}_l2") for key in ("requested", "applied")} for row in rows]
    top = max(value or 0.0 for pair in norms for value in pair.values()) or 1.0
    step, height = min(_WIDEST, max(7, (_WIDTH + 60) // len(rows))), 90
    bars = []
    for x, (row, pair) in enumerate(zip(rows, norms, strict=True)):
        edit = row["edit"]
        requested, applied = (MEASURES["l2"].write(value) for value in pair.values())
        name = "outside layers" if row["layer"] is None else printable(f"{row['stack']}.{row['layer']}")
        lost = edit.get("lost_to_rounding")
        tip = [
            name,
            f"requested L2 {requested}, applied {applied} (weight units)",
            f"projection {UNDEFINED if edit['projection'] is None else format(edit['projection'], '.6f')}",
            f"lost to rounding: {UNDEFINED if lost is None else share(lost)} of the requested elements",
        ]
        bars.append(
            {"x": x * step, "label": "outside" if row["layer"] is None else row["layer"], "tip": "\n".join(tip)}
            | {key: round(height * (value or 0.0) / top, 2) for key, value in pair.items()}
        )
    every = max(1, -(-24 // step))
    return {
        "bars": bars, "step": step, "height": height, "width": step * len(rows) + 70, "top": number(top), "every": every,
    }  # fmt: skip


def power(exponent: int) -> str:
    """Two to the `exponent`, as text."""
    return f"2{str(exponent).translate(_SUPERSCRIPT)}"


def nice(highest: float) -> list[float]:
    """Round tick values from 0 to just above `highest`.

    >>> nice(0.17)
    [0.0, 0.05, 0.1, 0.15, 0.2]
    """
    magnitude = 10.0 ** math.floor(math.log10(highest / 4))
    step = next(size * magnitude for size in (1, 2, 5, 10) if size * magnitude >= highest / 4)
    return [round(index * step, 10) for index in range(math.ceil(highest / step - 1e-9) + 1)]
