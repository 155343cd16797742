"""report.png: what is left of the forget set and kept of the retain set, for a README, a pull request or a paper."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from editkit.diffing.measures import number
from editkit.diffing.rendering.picture import INK, LINE, SOFT, ascii_of, draw_title, painted
from editkit.diffing.rendering.wording import plural
from editkit.evaluation.metrics.memorization import MEMORIZED, OVER_FORGOTTEN
from editkit.evaluation.rendering.charts import POINTS, span, styles
from editkit.evaluation.rendering.rows import BINS, FORGET, SINGLE, Column, Report, Rows, outlying, roles, to_reference
from editkit.localization.rendering.charts import ticks

_COLORS = ("#2d718e", "#b4570b", "#7b3f98", "#3a7a2e", "#b02a4c", "#806400")
_DASHES = ("-", (0, (5, 2)), (0, (4, 1.5, 1, 1.5)), (0, (2, 1.5)), (0, (8, 2, 1.5, 2)), (0, (1, 1.5)))
_ROW, _CURVE = 0.36, 1.9  # inches: of a model in a chart of rows, and of the truth ratios
MODELS = 8  # of which there is room for

Columns = Mapping[str, Column]
Panel = tuple[float, Callable[[Any], None]]


def to_png(report: Report, rows: Rows) -> bytes | None:
    """The PNG: examples of the forget and the retain set as points, the truth ratios against the reference's, and the memorization.

    What no row has is left out; None where nothing is left. Same report and rows, same bytes (with one version of matplotlib).
    """
    panels = list(_panels(report, rows))
    if not panels:
        return None
    shown = list(roles(report))[:MODELS]
    sets = rows.main(report)
    sizes = [max(len(rows.of.get((model, name), ())) for model in shown) for name in sets]
    text = "; ".join(f"{ascii_of(name)}: n = {n:,} {plural('example', n)}" for name, n in zip(sets, sizes, strict=True))
    more = len(report["models"]) - len(shown)
    text += f"; {more} more {plural('model', more)} in report.html" if more else ""

    def draw(figure: Any, axes: Any) -> None:
        draw_title(
            figure, "Evaluation of " + ", ".join(map(ascii_of, shown[:4])) + (" ..." if len(shown) > 4 else ""), text
        )
        for place, (_, paint) in zip(axes, panels, strict=True):
            place.tick_params(length=0)
            place.spines[["top", "left", "right"]].set_visible(False)
            paint(place)

    return painted([height for height, _ in panels], len(panels), 24, draw)


def _panels(report: Report, rows: Rows) -> list[Panel]:
    found: list[Panel] = []

    def columns(name: str, key: str) -> dict[str, Column]:
        return dict(list(rows.columns(report, name, key).items())[:MODELS])

    key = next((key for key in SINGLE if any(columns(name, key) for name in rows.main(report))), None)
    for name in rows.main(report) if key else ():
        if key and (some := columns(name, key)):
            label = f"{SINGLE[key]}, {ascii_of(name)}: an example a point, with the quartiles and the median"
            found.append((_ROW * len(some), partial(_strips, columns=some, report=report, label=label)))
    if ratios := columns(FORGET, "truth_ratio"):
        found.append((_CURVE, partial(_curves, ratios=ratios, report=report)))
    if memorized := columns(FORGET, "ma"):
        found.append((_ROW * 1.2 * len(memorized), partial(_histograms, columns=memorized, report=report)))
    return found


def _look(report: Report, model: str) -> tuple[str, Any]:
    """Colour and dashes of a model, those of its style on the page."""
    style = styles(roles(report))[model]
    if style in ("reference", "base"):
        return (INK, (0, (5, 3))) if style == "reference" else (SOFT, (0, (1.5, 2)))
    number = int(style[1:])
    return _COLORS[number % len(_COLORS)], _DASHES[(number + number // len(_DASHES)) % len(_DASHES)]


def _names(axes: Any, report: Report, models: Sequence[str], notes: Sequence[str]) -> None:
    said = [
        ascii_of(model) + (f"\n({role})" if (role := roles(report)[model]) not in ("model", model) else "")
        for model in models
    ]
    axes.set_yticks(range(len(models)), said)
    axes.set(ylim=(len(models) - 0.5, -0.5))
    for y, note in enumerate(notes):
        axes.text(1.02, y, note, transform=axes.get_yaxis_transform(), va="center", color=SOFT, fontsize=7)


def _strips(axes: Any, columns: Columns, report: Report, label: str) -> None:
    for y, (model, column) in enumerate(columns.items()):
        color, _ = _look(report, model)
        ranked = sorted(column.items(), key=lambda item: (item[1], item[0]))
        drawn = [ranked[rank] for rank in np.linspace(0, len(ranked) - 1, min(len(ranked), POINTS)).round().astype(int)]
        heights = [y - 0.3 + 0.6 * (index * 0.618034 % 1) for index, _ in drawn]
        axes.scatter([value for _, value in drawn], heights, s=5, color=color, alpha=0.5, linewidths=0, clip_on=False)
        low, median, high = np.percentile(list(column.values()), [25, 50, 75])
        axes.fill_between([low, high], y - 0.36, y + 0.36, facecolor=color, alpha=0.15, linewidth=0)
        axes.plot([median, median], [y - 0.4, y + 0.4], color=color, linewidth=1.8, clip_on=False)
    _names(
        axes,
        report,
        list(columns),
        [f"median {number(np.median(list(column.values())))}" for column in columns.values()],
    )
    most = max(max(column.values()) for column in columns.values())
    axes.set(xlim=(0, 1 if label.startswith(SINGLE["token_accuracy"]) else 1.03 * most or 1), xlabel=label)


def _curves(axes: Any, ratios: Columns, report: Report) -> None:
    scale = span([value for column in ratios.values() for value in column.values()], log=True)
    gaps = to_reference(report, ratios)
    for model, column in ratios.items():
        color, dashes = _look(report, model)
        values = np.maximum(np.sort(list(column.values())), scale.low)
        steps = np.concatenate([[scale.low], values, [scale.high]])
        shares = np.concatenate([[0], np.arange(1, len(values) + 1) / len(values), [1]])
        label = ascii_of(model)
        if model in gaps:
            x, one, other = gaps[model]
            label += f", KS {abs(one - other):.3f}"
            axes.plot([x, x], [one, other], color=color, linewidth=1)
        axes.step(steps, shares, where="post", color=color, linestyle=dashes, linewidth=1.3, label=label)
    axes.set_xscale("log" if scale.log else "linear")
    axes.minorticks_off()
    axes.set_xticks(marks := ticks(scale), [f"{mark:.3g}" for mark in marks])
    axes.set(
        ylim=(-0.02, 1.02),
        ylabel="share of\nexamples",
        xlabel="truth ratio, forget" + ("; KS: largest distance from the reference" if gaps else ""),
    )
    axes.legend(frameon=False, fontsize=7, labelcolor=SOFT, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _histograms(axes: Any, columns: Columns, report: Report) -> None:
    for low, high in ((0.0, OVER_FORGOTTEN), (MEMORIZED, 1.0)):
        axes.axvspan(low, high, facecolor="none", edgecolor=LINE, hatch="////", linewidth=0)
    for y, (model, column) in enumerate(columns.items()):
        counts = np.histogram(list(column.values()), BINS)[0]
        heights = 0.8 * counts / (counts.max() or 1)
        axes.bar(
            BINS[:-1], heights, np.diff(BINS) * 0.94, y + 0.42 - heights, align="edge", color=_look(report, model)[0]
        )
    _names(axes, report, list(columns), [outlying(column.values()) for column in columns.values()])
    axes.set(
        xlim=(0, 1),
        xlabel=f"memorization accuracy, forget; hatched: outliers (low: at most {OVER_FORGOTTEN:.2f}, high: at least {MEMORIZED:.2f})",
    )
