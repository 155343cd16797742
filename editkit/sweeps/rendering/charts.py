"""Geometry of the page's charts, in pixels: the Pareto plot, and the curves over alpha."""

from collections.abc import Mapping, Sequence
from typing import Any

from editkit.diffing.rendering.heatmap import Scale
from editkit.evaluation.rendering.charts import Chart, Point, curves, styles
from editkit.localization.rendering.charts import ticks
from editkit.sweeps.rendering.marks import AXES, Mark, Report, lines_beside, marks, reach, series, tip

WIDTH, HEIGHT, LEFT = 760, 430, 52
_LETTER, _LINE, MIDDLE = (
    7.2,
    15,
    4,
)  # pixels of a label: of a character, of the line, and from its middle down to where it is written
Box = tuple[float, float, float, float]


def looks(report: Report) -> dict[str, str]:
    """Choice -> the class that sets its colour and dashes."""
    return styles(dict.fromkeys(series(report), "model"))


def pareto(report: Report) -> dict[str, Any] | None:
    """Retention over forgetting; None where no point has both."""
    found = marks(report)
    if not found:
        return None
    beside = lines_beside(report)
    (x_low, x_high), (y_low, y_high) = reach(found, beside)
    x, y = Scale(x_low, x_high, False), Scale(y_low, y_high, False)

    def across(value: float) -> float:
        return round(LEFT + min(max(x.position(value), 0), 1) * (WIDTH - LEFT), 1)

    def down(value: float) -> float:
        return round(HEIGHT * (1 - min(max(y.position(value), 0), 1)), 1)

    names, look = series(report), looks(report)
    style: dict[int | None, str] = {None: "base"} | {place: look[name] for place, name in enumerate(names)}
    placed: list[Box] = [(across(one.x) - 6, down(one.y) - 6, across(one.x) + 6, down(one.y) + 6) for one in found]
    texts = []
    for one in sorted(found, key=lambda one: (not one.special, not one.front)):
        text = _label(across(one.x), down(one.y), one.said, placed, needed=one.special)
        if text:
            texts.append(text | {"kind": "strong" if one.special else "" if one.front else "faint"})
    return {
        "width": WIDTH, "height": HEIGHT, "left": LEFT,
        "x": [{"at": across(tick), "text": f"{tick:.3g}"} for tick in ticks(x)],
        "y": [{"at": down(tick), "text": f"{tick:.3g}"} for tick in ticks(y)],
        "paths": [{"style": style[place], "path": _path(_through(found, place), across, down)} for place in range(len(names))],
        "front": _path(sorted((one for one in found if one.front), key=lambda one: one.x), across, down),
        "upright": [{"at": across(number), "text": text, "left": across(number) > WIDTH / 2} for number, text in beside["x"]],
        "level": [{"at": down(number), "text": text} for number, text in beside["y"]],
        "whiskers": [ends | {"style": style[one.series], "kind": "" if one.front else "faint"} for one in found for ends in _whiskers(one, across, down)],
        "points": [
            {"x": across(one.x), "y": down(one.y), "style": style[one.series], "kind": "" if one.front else "faint", "ring": one.said.split()[0].strip(","), "tip": one.tip}
            for one in found
        ],
        "texts": texts,
    }  # fmt: skip


def _through(found: Sequence[Mark], choice: int) -> list[Mark]:
    """The points of a choice by rising alpha, the unedited one among them."""
    return sorted((one for one in found if one.series in (None, choice)), key=lambda one: one.alpha)


def _path(some: Sequence[Mark], across: Any, down: Any) -> str:
    return "M" + "L".join(f"{across(one.x):g} {down(one.y):g}" for one in some) if len(some) > 1 else ""


def _whiskers(one: Mark, across: Any, down: Any) -> list[dict[str, float]]:
    found = []
    if None not in one.across:
        found.append({"x1": across(one.across[0]), "x2": across(one.across[1]), "y1": down(one.y), "y2": down(one.y)})
    if None not in one.up:
        found.append({"x1": across(one.x), "x2": across(one.x), "y1": down(one.up[0]), "y2": down(one.up[1])})
    return found


def _label(x: float, y: float, text: str, placed: list[Box], *, needed: bool) -> dict[str, Any] | None:
    """A place near a point where a text is free of points and other texts; without one it is left out, unless it is needed."""
    long = _LETTER * len(text)
    around = [
        (x + 9, y - 9),
        (x + 9, y + 9),
        (x - 9 - long, y + 9),
        (x - 9 - long, y - 9),
        (x - long / 2, y - 16),
        (x - long / 2, y + 16),
    ]
    around += [(x + 12, y - 26), (x + 12, y + 26), (x - 12 - long, y + 26), (x - 12 - long, y - 26)] if needed else []

    def free(left: float, middle: float) -> bool:
        box = (left, middle - _LINE / 2, left + long, middle + _LINE / 2)
        inside = box[0] >= LEFT and box[2] <= WIDTH and box[1] >= 0 and box[3] <= HEIGHT
        return inside and all(box[2] < a or box[0] > c or box[3] < b or box[1] > d for a, b, c, d in placed)

    place = next((one for one in around if free(*one)), around[0] if needed else None)
    if place is None:
        return None
    left, middle = place
    placed.append((left, middle - _LINE / 2, left + long, middle + _LINE / 2))
    return {"x": round(left, 1), "y": round(middle + MIDDLE, 1), "text": text}


def over_alpha(report: Report) -> list[tuple[str, Chart]]:
    """(quantity, curve of every choice over alpha) of forgetting and retention, where known."""
    found = []
    for name in AXES:
        lines: dict[str, list[Point]] = {label: [] for label in series(report)}
        for place, point in enumerate(report["points"]):
            one: Mapping[str, Any] = point["values"].get(name) or {"value": None}
            if one["value"] is not None:
                chosen = list(lines) if point["choice"] is None else [list(lines)[point["choice"]]]
                for label in chosen:
                    lines[label].append(
                        Point(point["alpha"], one["value"], one["ci_low"], one["ci_high"], tip=tip(report, place))
                    )
        if chart := curves(
            {label: row for label, row in lines.items() if len(row) > 1}, looks(report), ("alpha", name)
        ):
            found.append((name, chart))
    return found
