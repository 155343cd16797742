"""The page's charts of a run: those of an evaluation, with the lines that lie beside the curves."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from editkit.diffing.rendering.heatmap import Scale
from editkit.evaluation.rendering.charts import LEFT, WIDTH, Frame, Point, curves, scatter, short, span, styles
from editkit.localization.rendering.charts import ticks
from editkit.unlearning.rendering.marks import (
    LANDED,
    STYLES,
    Line,
    Report,
    beside,
    exposed,
    heights,
    losses,
    memorized,
    parts,
    seen,
    sequence,
    starts,
)

Titled = dict[str, Any]  # a chart with its title, its legend, and what its caption says
Levels = Mapping[str, tuple[str, Sequence[tuple[float, float]]]]  # what a level line says -> its style and points

_NAME = 12  # characters below an axis


def charts(report: Report) -> Iterator[Titled]:
    """All that there is to draw."""
    if lines := memorized(report):
        note = "MA of the edited model: share of the true tokens that are the most likely ones."
        yield _over_steps(report, lines, "Memorization", "memorization accuracy, MA", note, beside(report), zero=True)
    if sequence(report)[1]:
        yield _sequence(report)
    if lines := losses(report):
        note = "Each the mean over the steps since the point before; how a loss counts is in its formula."
        yield _over_steps(report, lines, "Losses", "loss", note, {})
    if lines := exposed(report):
        yield _trajectory(lines)


def _over_steps(
    report: Report, lines: Sequence[Line], title: str, name: str, note: str, levels: Levels, *, zero: bool = False
) -> Titled:
    series = {line.name: [Point(mark.x, mark.y, tip=mark.tip) for mark in line.marks] for line in lines}
    series |= _levels(levels)
    looks = {line.name: STYLES[line.kind] for line in lines} | _styles(levels)
    every = [point for points in series.values() for point in points]
    scale = Scale(0.0, starts(report)[-1], False)
    frame = Frame(scale, span([one.y for one in every] + [0.0] * zero))  # that of the curves
    chart = curves(series, looks, ("step", name), zero=zero, scale=scale) or {}
    chart["x"] = [{"at": frame.across(step), "text": f"{step:,.0f}"} for step in ticks(scale) if step == round(step)]
    kept = [(frame.across(mark.x), frame.down(mark.y)) for line in lines for mark in line.marks if mark.chosen]
    chart["points"] = _dots(chart["points"], levels, kept)
    placed = [(x, text) for step, text in parts(report) if (x := frame.across(step)) >= LEFT]
    chart["whiskers"] = [{"style": "part", "x1": x, "x2": x, "y1": 0, "y2": frame.height} for x, _ in placed]
    if zero:  # else curves may lie there
        chart["texts"] = [_label(x, short(text), frame.height) for x, text in placed]
    samples = {line.kind: STYLES[line.kind] for line in reversed(lines)} | _styles(levels)
    return {"title": title, "chart": chart, "samples": samples, "note": note + _ringed(lines)}


def _sequence(report: Report) -> Titled:
    """MA of every set after every task, in the bands of its intervals."""
    places, rows = sequence(report)
    end, one = float(len(places) - 1), heights(report)
    levels = (
        {f"never-seen text, {seen(report)}": ("reference", [(0.0, one[0]), (end, one[0])])} if len(one) == 1 else {}
    )
    series = {
        name: [
            Point(
                x, one["value"], one["ci_low"], one["ci_high"], tip=f"{places[x]}: {one['value']:.3f}, n = {one['n']:,}"
            )
            for x, one in found
        ]
        for name, found in rows.items()
    }
    series |= _levels(levels)
    looks = styles(dict.fromkeys(rows, "model")) | _styles(levels)
    names = ("after", "memorization accuracy, MA")
    chart = curves(series, looks, names, texts=[short(text, _NAME) for text in places], zero=True) or {}
    chart["points"] = _dots(chart["points"], levels)
    note = "MA of every forget set after each. Bands are 95 % bootstrap intervals over examples."
    return {"title": "Set after set", "chart": chart, "samples": looks, "note": note}


def _trajectory(lines: Sequence[Line]) -> Titled:
    """Retention over exposure: points in the order of their steps, a line through them."""
    looks = styles(dict.fromkeys((line.name for line in lines), "model"))
    points: dict[str, Point] = {}
    style: dict[str, str] = {}
    through: dict[str, list[str]] = {line.name: [] for line in lines}
    labelled, kept = set(), []
    for line in lines:
        for place, mark in enumerate(line.marks):
            label = f"{line.name}, " * (len(lines) > 1) + mark.name
            points[label], style[label] = Point(mark.x, mark.y, tip=mark.tip), looks[line.name]
            through[line.name].append(label)
            if mark.chosen or (len(lines) == 1 and place in (0, len(line.marks) - 1)):
                labelled.add(label)
            kept += [label] * mark.chosen
    chart = scatter(points, style, ("exposure, nats/token", "retention"), named=labelled) or {}
    placed = {label: (dot["x"], dot["y"]) for label, dot in zip(points, chart["points"], strict=True)}
    chart["lines"] = [
        {
            "style": looks[name],
            "tip": name,
            "path": "M" + "L".join(f"{x:g} {y:g}" for x, y in (placed[one] for one in labels)),
        }
        for name, labels in through.items()
    ]
    chart["points"] = _dots(chart["points"], {}, [placed[label] for label in kept])
    note = (
        "Exposure: log-likelihood per token of the forget set, less that of the reference; at 0 it is as likely as to a model that never saw it. "
        "Retention: MA of retain over that at the start." + _ringed(lines)
    )
    return {"title": "What forgetting costs, step by step", "chart": chart, "samples": looks, "note": note}


def _label(x: float, text: str, height: float) -> dict[str, Any]:
    """A text at the foot of an upright line, on the side where there is room."""
    left = x > 0.8 * WIDTH
    return {"style": "part", "x": round(x - 5 if left else x + 5, 1), "y": height - 4, "text": text, "left": left}


def _ringed(lines: Sequence[Line]) -> str:
    """What rings and landed points are, where there are any."""
    every = [mark for line in lines for mark in line.marks]
    said = " Landed: the weights of two points, mixed." * any(mark.name.endswith(LANDED) for mark in every)
    return said + " Ringed: what was kept." * any(mark.chosen for mark in every)


def _levels(levels: Levels) -> dict[str, list[Point]]:
    return {text: [Point(*place) for place in line] for text, (_, line) in levels.items()}


def _styles(levels: Levels) -> dict[str, str]:
    return {text: style for text, (style, _) in levels.items()}


def _dots(
    dots: Sequence[Mapping[str, Any]], levels: Levels, kept: Sequence[tuple[float, float]] = ()
) -> list[dict[str, Any]]:
    """The points of the curves: level lines have none, what was kept has a ring."""
    drawn = [dot for dot in dots if dot["style"] not in _styles(levels).values()]
    return [{**dot, "style": dot["style"] + " kept" * ((dot["x"], dot["y"]) in kept)} for dot in drawn]
