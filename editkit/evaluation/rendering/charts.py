"""Geometry of charts over models: plain numbers and texts, in pixels, for the macros of charts.html.j2 to write as SVG.

A series is what one model gives. Its style, a class of charts.css.j2, sets colour and dashes, so that colour is never all that tells two
models apart. A chart without data is None.

>>> ecdf({"a": [1.0, 2.0], "b": []}, {"a": "m0", "b": "m1"}, "value")["lines"]
[{'style': 'm0', 'path': 'M52 220H62V115H470V10H480', 'tip': 'a\\nn = 2 examples'}]
"""

import math
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from editkit.diffing.measures import number, share
from editkit.diffing.rendering.heatmap import Scale
from editkit.diffing.rendering.wording import plural
from editkit.errors import printable
from editkit.localization.rendering.charts import ticks

Chart = dict[str, Any]
Styles = Mapping[str, str]
Box = tuple[float, float, float, float]

WIDTH, HEIGHT, LEFT = 480, 230, 52
POINTS, STEPS = 400, 400  # drawn of one series: single examples, and steps of a distribution function
LABEL, STYLES = 28, 12  # characters of a series' name; styles of models, see charts.css.j2
_PAD, _TEXT = 10, 7.4  # pixels: between frame and data, and of a character of a label
_HEAD, _STRIP, _BARS, _GAP = 20, 30, 54, 14  # pixels, from top to bottom of a row: its name, its data, what follows


class Point(NamedTuple):
    """A value at `x`, with the limits of both, where known, and what its tooltip says."""

    x: float
    y: float
    y_low: float | None = None
    y_high: float | None = None
    x_low: float | None = None
    x_high: float | None = None
    tip: str = ""


class Gap(NamedTuple):
    """A distance between two distribution functions at `x`."""

    x: float
    one: float
    other: float
    text: str


def styles(roles: Mapping[str, str]) -> dict[str, str]:
    """Label -> style: the models are numbered, the others have the name of their role.

    >>> styles({"full": "model", "edited": "model", "retain": "reference"})
    {'full': 'm0', 'edited': 'm1', 'retain': 'reference'}
    """
    plain = [label for label, role in roles.items() if role == "model"]
    return {label: f"m{plain.index(label) % STYLES}" if role == "model" else role for label, role in roles.items()}


def short(label: str, limit: int = LABEL) -> str:
    """A name that fits. Its end is kept, where names of checkpoints differ.

    >>> short("runs/2026/checkpoint-0.5", 12)
    '…kpoint-0.5'
    """
    text = printable(label)
    return text if len(text) <= limit else f"…{text[2 - limit :]}"


class Frame(NamedTuple):
    """Two scales and where they lie in pixels, y upwards."""

    x: Scale
    y: Scale
    height: float = HEIGHT

    def across(self, value: float) -> float:
        return round(LEFT + _PAD + _position(self.x, value) * (WIDTH - LEFT - 2 * _PAD), 1)

    def down(self, value: float) -> float:
        return round(self.height - _PAD - _position(self.y, value) * (self.height - 2 * _PAD), 1)

    def chart(self, names: tuple[str, str], **marks: Any) -> Chart:
        """What the macro needs: the frame, and lists of marks, each of which may be left out."""
        kinds = dict.fromkeys(("lines", "bands", "points", "whiskers", "gaps", "texts"), ())
        return {
            "width": WIDTH, "height": self.height, "left": LEFT, "names": names, "log": self.x.log,
            "x": [{"at": self.across(tick), "text": text} for tick, text in told(ticks(self.x))],
            "y": [{"at": self.down(tick), "text": text} for tick, text in told(ticks(self.y))],
        } | kinds | marks  # fmt: skip


def told(marks: Sequence[float]) -> list[tuple[float, str]]:
    """Ticks and what is written at them: three digits, or as many as tell each from the next.

    >>> [text for _, text in told([0.999, 0.9995, 1.0])], [text for _, text in told([0.0, 0.5, 1.0])], [text for _, text in told([1e4, 1e5])]
    (['0.9990', '0.9995', '1.0000'], ['0', '0.5', '1'], ['1e+04', '1e+05'])
    """
    texts = [f"{mark:.3g}" for mark in marks]
    step = min((high - low for low, high in pairwise(marks)), default=0.0)
    if step and any(abs(float(text) - mark) > step / 100 for text, mark in zip(texts, marks, strict=True)):
        decimals = next((n for n in range(12) if all(abs(round(mark, n) - mark) <= step / 100 for mark in marks)), 12)
        texts = [f"{mark:,.{decimals}f}" for mark in marks]
    return list(zip(marks, texts, strict=True))


def _position(scale: Scale, value: float) -> float:
    return scale.position(value) if scale.high > scale.low else 0.5


def span(values: Sequence[float], log: bool = False) -> Scale:
    """From the smallest to the largest value. Logarithmic if asked for, where the positive ones are a decade apart; others lie at its low end."""
    low, high = min(values), max(values)
    positive = min((value for value in values if value > 0), default=high)
    return Scale(positive, high, True) if log and 0 < 10 * positive <= high else Scale(low, high, False)


def ecdf(
    series: Mapping[str, Sequence[float]], styles: Styles, name: str, *, log: bool = False, gaps: Mapping[str, Gap] | None = None
) -> Chart | None:  # fmt: skip
    """Share of the examples at or below a value, a step function per series. gaps: of a series to another one, to be marked."""
    found = {label: np.sort(np.asarray(values, np.float64)) for label, values in series.items() if len(values)}
    if not found:
        return None
    frame = Frame(span(np.concatenate(list(found.values())).tolist(), log), Scale(0.0, 1.0, False))
    drawn = []
    for label, values in found.items():
        n = len(values)
        ranks = np.unique(np.linspace(1, n, min(n, STEPS)).round().astype(int))
        path = f"M{LEFT} {frame.down(0):g}"
        path += "".join(f"H{frame.across(values[rank - 1]):g}V{frame.down(rank / n):g}" for rank in ranks)
        tip = f"{printable(label)}\nn = {n:,} {plural('example', n)}"
        drawn.append({"style": styles[label], "path": f"{path}H{WIDTH}", "tip": tip})
    placed: list[Box] = []
    marks, texts = [], []
    for label, (x, one, other, text) in (gaps or {}).items():
        at, top, bottom = frame.across(x), *sorted((frame.down(one), frame.down(other)))
        marks.append({"style": styles[label], "x": at, "y1": top, "y2": bottom})
        texts.append(_beside(at, (top + bottom) / 2, text, placed, frame.height) | {"style": styles[label]})
    return frame.chart((name, "share of examples"), lines=drawn, gaps=marks, texts=texts)


def curves(
    series: Mapping[str, Sequence[Point]], styles: Styles, names: tuple[str, str], *, texts: Sequence[str] = (), log: bool = False,
    zero: bool = False, scale: Scale | None = None,
) -> Chart | None:  # fmt: skip
    """Lines through points, each in the band of its 95 % intervals; points at the same x in the order given.

    texts: what to write under x = 0, 1, ... in place of numbers. log: of the x axis, if x spans a decade. zero: whether 0 must be seen.
    scale: of the x axis, else as wide as needed.
    """
    found = {label: sorted(points, key=lambda point: point.x) for label, points in series.items() if points}
    if not found:
        return None
    every = [point for points in found.values() for point in points]
    heights = [value for point in every for value in (point.y, point.y_low, point.y_high) if value is not None]
    x = Scale(-0.3, len(texts) - 0.7, False) if texts else scale or span([point.x for point in every], log)
    frame = Frame(x, span([*heights, 0.0] if zero else heights))
    lines, bands, points = [], [], []
    for label, row in found.items():
        style = styles[label]
        path = "L".join(f"{frame.across(point.x):g} {frame.down(point.y):g}" for point in row)
        lines.append({"style": style, "path": f"M{path}", "tip": printable(label)})
        known = [point for point in row if point.y_low is not None and point.y_high is not None]
        edge = [(point.x, point.y_low) for point in known] + [(point.x, point.y_high) for point in reversed(known)]
        if len(known) > 1:
            corners = " ".join(f"{frame.across(x):g},{frame.down(y or 0.0):g}" for x, y in edge)
            bands.append({"style": style, "corners": corners})
        points += [_dot(frame, point, label, style) for point in row]
    chart = frame.chart(names, lines=lines, bands=bands, points=points)
    if texts:
        chart["x"] = [{"at": frame.across(place), "text": printable(text)} for place, text in enumerate(texts)]
    return chart


def scatter(
    points: Mapping[str, Point],
    styles: Styles,
    names: tuple[str, str],
    *,
    scale: Scale | None = None,
    named: Collection[str] | None = None,
) -> Chart | None:
    """A point per series with its name beside it, and whiskers as long as its 95 % intervals. scale: of both axes, else as wide as needed. named: the
    series whose names are written, else all."""
    if not points:
        return None
    across = [value for point in points.values() for value in (point.x, point.x_low, point.x_high) if value is not None]
    up = [value for point in points.values() for value in (point.y, point.y_low, point.y_high) if value is not None]
    frame = Frame(scale or span(across), scale or span(up))
    dots = {label: _dot(frame, point, label, styles[label]) for label, point in points.items()}
    placed: list[Box] = [(dot["x"] - 6, dot["y"] - 6, dot["x"] + 6, dot["y"] + 6) for dot in dots.values()]
    texts, whiskers = [], []
    for label, dot in dots.items():
        point, style = points[label], styles[label]
        if named is None or label in named:
            texts.append(_beside(dot["x"], dot["y"], short(label), placed, frame.height) | {"style": style})
        if point.x_low is not None and point.x_high is not None:
            ends = {"x1": frame.across(point.x_low), "x2": frame.across(point.x_high), "y1": dot["y"], "y2": dot["y"]}
            whiskers.append({"style": style} | ends)
        if point.y_low is not None and point.y_high is not None:
            ends = {"x1": dot["x"], "x2": dot["x"], "y1": frame.down(point.y_low), "y2": frame.down(point.y_high)}
            whiskers.append({"style": style} | ends)
    return frame.chart(names, points=list(dots.values()), texts=texts, whiskers=whiskers)


def _dot(frame: Frame, point: Point, label: str, style: str) -> dict[str, Any]:
    tip = f"{printable(label)}\n{point.tip}".strip()
    return {"x": frame.across(point.x), "y": frame.down(point.y), "style": style, "tip": tip}


def _beside(x: float, y: float, text: str, placed: list[Box], height: float) -> dict[str, Any]:
    """Where a text next to a place is free of the others; if nowhere, right of it. The box is added to `placed`."""
    long = _TEXT * len(text)
    boxes = []
    for dy in (0, -16, 16, -32, 32, -48, 48):
        boxes += [(x + 9, y + dy, True), (x - 9 - long, y + dy, False)]

    def free(left: float, middle: float) -> bool:
        if left < LEFT or left + long > WIDTH or not 8 <= middle <= height - 8:
            return False
        return all(left + long < a or left > c or middle + 7 < b or middle - 7 > d for a, b, c, d in placed)

    left, middle, right = next((box for box in boxes if free(*box[:2])), boxes[0])
    placed.append((left, middle - 7, left + long, middle + 7))
    return {"x": round(left if right else left + long, 1), "y": round(middle + 4, 1), "text": text, "left": not right}


def strips(
    series: Mapping[str, Mapping[int, float]], styles: Styles, name: str, *, scale: Scale | None = None
) -> Chart | None:
    """A row per series: its examples (index -> value) as points, over a box from the lower to the upper quartile with the median.

    Of more than POINTS examples those at even ranks are drawn, the smallest and the largest among them.
    """
    found = {label: column for label, column in series.items() if column}
    if not found:
        return None
    scale = scale or span([value for column in found.values() for value in column.values()])
    rows = []
    for label, column in found.items():
        ranked = sorted(column.items(), key=lambda item: (item[1], item[0]))
        drawn = [
            ranked[rank]
            for rank in np.unique(np.linspace(0, len(ranked) - 1, min(len(ranked), POINTS)).round().astype(int))
        ]
        low, median, high = (float(value) for value in np.percentile(list(column.values()), [25, 50, 75]))
        rows.append({
            "label": short(label), "style": styles[label], "bars": (), "text": f"median {number(median)}, n = {len(ranked):,}",
            "box": {"x": _along(scale, low), "width": round(_along(scale, high) - _along(scale, low), 1), "median": _along(scale, median)},
            "points": [
                # the golden ratio spreads neighbours over the height, the same way every time
                {"x": _along(scale, value), "y": round(3 + (_STRIP - 6) * (index * 0.618034 % 1), 1), "tip": f"example {index:,}: {number(value)}"}
                for index, value in drawn
            ],
        })  # fmt: skip
    most = max(len(column) for column in found.values())
    return _rows(rows, _STRIP, scale, name) | {"most": most, "drawn": min(most, POINTS)}


def histograms(
    series: Mapping[str, Sequence[float]], styles: Styles, name: str, edges: Sequence[float], *, zones: Sequence[tuple[float, float]] = (),
    notes: Mapping[str, str] | None = None,
) -> Chart | None:  # fmt: skip
    """A row per series: how its examples spread over the bins; the highest bar of every row is as high as there is room.

    zones: from where to where to shade. notes: label -> what to say of a series in place of n; "top" is the share in
    its highest bar.
    """
    found = {label: np.histogram(values, edges)[0] for label, values in series.items() if len(values)}
    if not found:
        return None
    scale = Scale(edges[0], edges[-1], False)
    rows = []
    for label, counts in found.items():
        n, most, bars = len(series[label]), int(counts.max()) or 1, []
        for low, high, hits in zip(edges, edges[1:], counts.tolist(), strict=False):
            if hits:
                tip = f"{low:.3g} to {high:.3g}\n{hits:,} of {n:,} examples, {share(hits / n)}"
                across = {"x": _along(scale, low), "width": round(_along(scale, high) - _along(scale, low) - 1, 1)}
                bars.append({**across, "height": round(hits / most * _BARS, 1), "tip": tip})
        text = f"{(notes or {}).get(label, f'n = {n:,}')}, top {share(most / n)}"
        rows.append({"label": short(label), "style": styles[label], "text": text, "bars": bars, "box": None})
    shaded = [
        {"x": _along(scale, low), "width": round(_along(scale, high) - _along(scale, low), 1)} for low, high in zones
    ]
    return _rows(rows, _BARS, scale, name) | {"zones": shaded}


def _along(scale: Scale, value: float) -> float:
    """Pixels of a value on the axis of a chart of rows, which has no gutter."""
    return round(_PAD + _position(scale, value) * (WIDTH - 2 * _PAD), 1)


def _rows(rows: Sequence[dict[str, Any]], tall: float, scale: Scale, name: str) -> Chart:
    """Rows from top to bottom over one axis, all as high as `tall` and their heads."""
    step = _HEAD + tall + _GAP
    placed = [row | {"y": index * step + _HEAD} for index, row in enumerate(rows)]
    return {
        "width": WIDTH, "height": math.ceil(len(rows) * step), "rows": placed, "tall": tall, "name": name, "zones": (),
        "x": [{"at": _along(scale, tick), "text": text} for tick, text in told(ticks(scale))],
    }  # fmt: skip
