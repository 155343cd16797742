"""Geometry of the page's charts: plain numbers and texts, in pixels, for the template to write as SVG."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from editkit.diffing.measures import count, number, share
from editkit.diffing.rendering.charts import drawing, legend, nice, power, shade
from editkit.diffing.rendering.heatmap import Heatmap, Row, Scale
from editkit.diffing.rendering.wording import plural
from editkit.errors import printable
from editkit.localization.rendering.rows import MEASURES, known_scales

LETTERS = dict(zip(MEASURES, "abcd", strict=True))
POINTS = 3000  # of a scatter plot, above which tensors without a selection are left out
_WIDTH, _HEIGHT, _LEFT = 480, 220, 62
_RARE = 20.0  # how many times more units than selected ones the fullest bar may have before the axis is logarithmic


def panel(maps: Sequence[Heatmap], unit: str, gradient: str) -> dict[str, Any]:
    """Heatmaps that share one colour scale per measure, and the legends. gradient: what |G_F| stands for."""
    shared = known_scales(maps)
    units = {"mean_abs_forget": gradient}
    return {
        "maps": [drawing(map_, lambda row: _cell(row, shared, unit)) for map_ in maps],
        "legends": [
            legend(LETTERS[name], measure.label, units.get(name, measure.unit), scale, measure.write)
            for name, scale in shared.items()
            for measure in [MEASURES[name]]
        ],
    }


def _cell(row: Row, shared: Mapping[str, Scale], unit: str) -> tuple[str, list[str]]:
    several = f"{row['tensors']:,} tensors, " if row["tensors"] > 1 else ""
    share_of = f", {share(row['selected_fraction'])}" if row["selected"] else ""
    lines = [f"{several}{count(row['numel'])} parameters", f"{count(row['selected'])} selected{share_of}"]
    if unit != "element":
        lines.append(f"{count(row['units_selected'])} of {count(row['units'])} {plural(unit, row['units'])}")
    classes = []
    for name, scale in shared.items():
        text = MEASURES[name].write(row[name])
        if name == "cosine" and row["cosine_n"] > 1:
            text = f"{text} ± {row['cosine_sd']:.3f} (mean ± sd, n = {row['cosine_n']} tensors)"
        if name != "selected_fraction":
            lines.append(f"{MEASURES[name].label}: {text}")
        blank = name == "selected_fraction" and not row["selected"]
        classes.append(f"{LETTERS[name]}z" if blank else shade(LETTERS[name], scale, row[name]))
    return " ".join(classes), lines


def bins(data: Mapping[str, Any]) -> tuple[range, Scale] | None:
    """The bins from the first to the last with a unit, and the scale of their heights; None where all are empty."""
    counts = data["counts"]
    filled = [index for index, n in enumerate(counts) if n]
    if not filled:
        return None
    highest, chosen = max(counts), max(data["selected"])
    log = bool(chosen) and highest >= _RARE * chosen
    top = 10.0 ** math.ceil(math.log10(highest)) if log else nice(max(highest, 4))[-1]
    return range(filled[0], filled[-1] + 1), Scale(0.5 if log else 0.0, top, log)


def histogram(data: Mapping[str, Any], threshold: float | None, unit: str) -> dict[str, Any] | None:
    """Bars of the units and the selected units per power of two of the score; None where no score is above zero."""
    found = bins(data)
    if found is None:
        return None
    shown, scale = found
    edges = data["log2_edges"]
    low, high = edges[shown[0]], edges[shown[-1] + 1]
    step = (_WIDTH - _LEFT) / max(len(shown), 8)
    bars = []
    for place, index in enumerate(shown):
        n, chosen = data["counts"][index], data["selected"][index]
        heights = {
            key: round(_HEIGHT * scale.position(value), 2) if value else 0
            for key, value in (("all", n), ("chosen", chosen))
        }
        tip = f"scores {number(2.0 ** edges[index])} to {number(2.0 ** edges[index + 1])}"
        tip += f"\n{count(n)} {plural(unit, n)}, {count(chosen)} selected"
        bars.append({"x": round(_LEFT + place * step, 2), "tip": tip, **heights})
    every = max(1, round(44 / step))
    line = None
    if threshold is not None and threshold > 0 and low <= math.log2(threshold) <= high:
        x = _LEFT + (math.log2(threshold) - low) / (high - low) * step * len(shown)
        line = {"x": round(x, 2), "left": x > _WIDTH / 2, "text": f"threshold {number(threshold)}"}
    return {
        "bars": bars, "step": round(max(step - 1.5, 1), 2), "width": _WIDTH, "height": _HEIGHT, "left": _LEFT, "line": line,
        "log": scale.log,
        "x": [
            {"x": round(_LEFT + place * step, 2), "text": power(int(edges[index]))}
            for place, index in enumerate((*shown, shown[-1] + 1))
            if edges[index] % every == 0
        ],
        "y": [{"y": round(_HEIGHT * (1 - scale.position(tick)), 2), "text": count(tick)} for tick in ticks(scale)],
        "n": count(sum(data["counts"])), "chosen": count(sum(data["selected"])), "zeros": count(data["zero_or_below"]),
    }  # fmt: skip


def scatter(tensors: Sequence[Row], settings: Mapping[str, Any], gradient: str) -> dict[str, Any] | None:
    """Tensors as points: cosine over mean |G_F|, or the attributions for both sets; None where neither is known."""

    def known(*names: str) -> list[Row]:
        return [row for row in tensors if all(row.get(name) is not None for name in names)]

    lines: dict[str, float | None] = {"x": None, "y": None}
    if rows := known("attribution_forget", "attribution_retain"):
        x, y = "attribution_forget", "attribution_retain"
        title, axes = "Forget and retain", ("forget, nats", "retain, nats")
        meanings = "Attribution along the path: drop of the forget loss (across) and of the retain loss (up)."
    elif rows := [row for row in known("mean_abs_forget", "cosine") if row["mean_abs_forget"] > 0]:
        x, y = "mean_abs_forget", "cosine"
        title, axes = "Size and direction", ("mean |G_F|", "cosine")
        meanings = f"mean |G_F|: {gradient}. cosine: of the forget and the retain gradient."
        lines = {"x": settings.get("sigma"), "y": settings.get("mu") if settings.get("sigma") is not None else None}
    else:
        return None
    shown = [row for row in rows if not row["selected"]] + [row for row in rows if row["selected"]]
    scales = {}
    for key, name in (("x", x), ("y", y)):
        values = [row[name] for row in rows] + [line for line in [lines[key]] if line is not None]
        scales[key] = Scale.of(values) if name == "mean_abs_forget" else Scale(min(values), max(values), False)

    def place(key: str, value: float) -> float:
        position = scales[key].position(value) if scales[key].high > scales[key].low else 0.5
        inner = 10 + position * ((_WIDTH - _LEFT if key == "x" else _HEIGHT) - 20)
        return round(_LEFT + inner if key == "x" else _HEIGHT - inner, 2)

    return {
        "title": title, "axes": axes, "meanings": meanings, "n": len(rows), "drawn": len(shown[-POINTS:]), "all": len(tensors),
        "width": _WIDTH, "height": _HEIGHT, "left": _LEFT, "log": scales["x"].log,
        "points": [
            {"x": place("x", row[x]), "y": place("y", row[y]), "kind": "chosen" if row["selected"] else "rest"}
            | {"tip": _tip(row, (x, y))}
            for row in shown[-POINTS:]
        ],
        "ticks": {key: [{"at": place(key, tick), "text": f"{tick:.3g}"} for tick in ticks(scale)] for key, scale in scales.items()},
        "lines": {key: None if value is None else {"at": place(key, value), "text": f"{value:g}"} for key, value in lines.items()},
    }  # fmt: skip


def _tip(row: Row, names: Sequence[str]) -> str:
    texts = {"mean_abs_forget": "|G_F|", "cosine": "cosine", "attribution_forget": "forget, nats"}
    lines = [f"{texts.get(name, 'retain, nats')}: {number(row[name])}" for name in names]
    part = f"{share(row['selected_fraction'])} of {count(row['numel'])} parameters selected"
    return "\n".join([printable(row["name"]), *lines, part])


def ticks(scale: Scale) -> list[float]:
    """Round values on a scale: powers of ten on a logarithmic one, else even steps.

    >>> ticks(Scale(0.004, 30.0, True)), ticks(Scale(-0.1, 0.7, False)), ticks(Scale(2.0, 2.0, False))
    ([0.01, 0.1, 1.0, 10.0], [0.0, 0.2, 0.4, 0.6], [2.0])
    """
    if scale.high <= scale.low:
        return [scale.high]
    if scale.log:
        exponents = range(math.ceil(math.log10(scale.low) - 1e-9), math.floor(math.log10(scale.high) + 1e-9) + 1)
        if len(exponents) > 1:
            return [10.0**exponent for exponent in exponents[:: max(1, round(len(exponents) / 5))]]
        return [scale.value(position) for position in (0.0, 0.5, 1.0)]
    span = scale.high - scale.low
    step = nice(span)[1] if span >= 3 * nice(span)[1] else nice(span / 2)[1]
    return [
        round(index * step, 10)
        for index in range(math.ceil(scale.low / step - 1e-9), math.floor(scale.high / step + 1e-9) + 1)
    ]
