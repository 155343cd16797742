"""layers.png: where a model changed, in one picture for a README, a pull request or a paper."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from editkit.diffing.measures import MEASURES, count, number, share
from editkit.diffing.rendering.charts import PALETTE
from editkit.diffing.rendering.heatmap import Heatmap, Scale, layer_maps, scales
from editkit.diffing.rendering.wording import plural
from editkit.errors import printable

_INK, _SOFT, _LINE = "#22252a", "#686d76", "#d8d4cb"
_STACKS, _ROWS, _TENSORS, _LABEL = 4, 40, 20, 32  # what fits: stacks, modules of each, tensors, characters of a label
_BAR, _CELL, _AXIS, _HEAD, _DPI = 0.6, 0.21, 0.5, 0.72, 160  # heights in inches; dots per inch


def to_png(report: Mapping[str, Any]) -> bytes:
    """The PNG: for each stack the share of changed elements per layer, above the relative change of modules x layers.

    Hollow cells are unchanged, hatched ones do not exist, dotted ones have no relative change (a base of zeros). A model
    without layers gets its tensors as bars. Same report, same bytes (with one version of matplotlib).
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    maps = layer_maps(report)
    shown = [map_._replace(rows=map_.rows[:_ROWS]) for map_ in maps[:_STACKS]]
    top = [] if maps else sorted(report["tensors"], key=lambda row: -(row["rel_l2"] or 0))[:_TENSORS]
    heights = [height for map_ in shown for height in (_BAR, _CELL * len(map_.rows))] or [_CELL * max(len(top), 1)]
    widest = max((len(map_.columns) for map_ in shown), default=20)
    width, height = 2.4 + min(8.4, max(4.4, 0.26 * widest)), _HEAD + sum(heights) + _AXIS * max(len(shown), 1)
    style: dict[Any, Any] = {
        "font.family": ["DejaVu Sans"], "font.size": 8, "text.color": _INK, "text.parse_math": False, "hatch.color": _LINE,
        "axes.labelcolor": _SOFT, "axes.edgecolor": _LINE, "xtick.color": _SOFT, "ytick.color": _SOFT, "hatch.linewidth": 0.7,
    }  # fmt: skip
    with rc_context(style):
        layout = ConstrainedLayoutEngine(h_pad=0.03, w_pad=0.08, hspace=0.02, rect=(0, 0, 1, 1 - _HEAD / height))
        figure = Figure(figsize=(width, height), dpi=_DPI, facecolor="white", layout=layout)
        FigureCanvasAgg(figure)
        axes = figure.subplots(len(heights), 1, gridspec_kw={"height_ratios": heights}, squeeze=False)[:, 0]
        _draw_title(figure, report, len(maps) - len(shown))
        scale = scales(maps)["rel_l2"]
        for map_, bars, cells in zip(shown, axes[::2], axes[1::2], strict=False):
            _draw_shares(bars, map_, map_.title if len(maps) > 1 else "")
            _draw_cells(cells, map_, scale)
        if maps and scale.high:
            _draw_scale(figure, scale)
        if not maps:
            _draw_tensors(axes[0], top)
        out = io.BytesIO()
        figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


def _draw_title(figure: Any, report: Mapping[str, Any], left_out: int) -> None:
    summary, height = report["summary"], figure.get_figheight()
    changed = share(summary["changed_fraction"]) if summary["changed"] else "none"
    tensors = f"{summary['tensors']:,} {plural('tensor', summary['tensors'])}"
    more = f"; {left_out} more {plural('stack', left_out)} of layers in report.html" if left_out else ""
    names = f"{_plain(report['base']['name'])} → {_plain(report['edited']['name'])}"
    figure.text(0.012, 1 - 0.22 / height, names, fontsize=11, va="center")
    text = f"{changed} of n = {count(summary['numel'])} elements in {tensors} changed{more}"
    figure.text(0.012, 1 - 0.46 / height, text, color=_SOFT, va="center")


def _draw_shares(axes: Any, map_: Heatmap, title: str) -> None:
    shares = [100 * (map_.totals.get(column, {}).get("changed_fraction") or 0) for column in map_.columns]
    axes.bar(range(len(shares)), shares, width=0.9, color=PALETTE[7])
    top = max(shares, default=0)
    axes.set(xlim=(-0.5, len(shares) - 0.5), ylim=(0, 1.15 * top or 1), xticks=[])
    axes.set_yticks([0, top] if top else [0], [f"{number(tick)}" for tick in ([0, top] if top else [0])])
    axes.set_ylabel("changed\n(% of elements)", rotation=0, ha="right", va="center")
    axes.spines[["top", "left", "right"]].set_visible(False)
    axes.tick_params(length=0)
    if title:
        axes.set_title(_plain(title), loc="left", fontsize=8, fontweight="bold", pad=4)


def _draw_cells(axes: Any, map_: Heatmap, scale: Scale) -> None:
    from matplotlib.patches import Rectangle

    values = np.full((len(map_.rows), len(map_.columns)), np.nan)
    for y, row in enumerate(map_.rows):
        for x, column in enumerate(map_.columns):
            cell = map_.cells.get((row, column))
            if cell is not None and cell["changed"] and cell["rel_l2"] is not None:
                values[y, x] = max(cell["rel_l2"], scale.low)
                continue
            hatch = "//////" if cell is None else "...." if cell["changed"] else None
            axes.add_patch(
                Rectangle((x - 0.44, y - 0.42), 0.88, 0.84, facecolor="white", edgecolor=_LINE, hatch=hatch, lw=0.6)
            )
    edges = [np.arange(size + 1) - 0.5 for size in reversed(values.shape)]
    axes.pcolormesh(
        *edges,
        np.ma.masked_invalid(values),
        edgecolors="white",
        linewidth=min(1.2, 40 / len(map_.columns)),
        **_colors(scale),
    )
    every = max(1, -(-len(map_.columns) // 32))
    axes.set_xticks(range(0, len(map_.columns), every), map_.columns[::every])
    axes.set_yticks(range(len(map_.rows)), [_plain(str(row)) for row in map_.rows])
    axes.set(xlim=(-0.5, len(map_.columns) - 0.5), ylim=(len(map_.rows) - 0.5, -0.5), xlabel="layer")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _draw_scale(figure: Any, scale: Scale) -> None:
    from matplotlib.cm import ScalarMappable

    width, height = figure.get_size_inches()
    place = figure.add_axes((1 - 2.5 / width, 1 - 0.5 / height, 2.1 / width, 0.1 / height))
    place.set_in_layout(False)
    bar = figure.colorbar(ScalarMappable(**_colors(scale)), cax=place, orientation="horizontal")
    ends = [scale.value(position) for position in ((0, 0.5, 1) if scale.high > scale.low else (1,))]
    bar.set_ticks(ends, labels=[share(value) for value in ends])
    bar.minorticks_off()
    place.set_title(
        f"relative change{', log scale' if scale.log else ''} (L2 of change / L2 of base)",
        fontsize=7,
        color=_SOFT,
        pad=4,
    )
    bar.outline.set_visible(False)
    place.tick_params(length=0, labelsize=7)


def _draw_tensors(axes: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    values = [100 * (row["rel_l2"] or 0) for row in rows]
    axes.barh(range(len(rows)), values, height=0.8, color=PALETTE[7])
    for y, row in enumerate(rows):
        changed = (
            f"  {MEASURES['changed_fraction'].write(row['changed_fraction'])} of {count(row['numel'])} elements changed"
        )
        axes.text(values[y], y, changed, va="center", color=_SOFT, fontsize=7)
    axes.set_yticks(range(len(rows)), [_plain(row["name"]) for row in rows])
    axes.set(ylim=(len(rows) - 0.5, -0.5) if rows else (0, 1), xlim=(0, 1.6 * max(values, default=0) or 1))
    axes.set_xlabel("relative change (L2 of change / L2 of base, %)")
    axes.tick_params(length=0)
    axes.spines[["top", "right", "bottom"]].set_visible(False)


def _colors(scale: Scale) -> dict[str, Any]:
    from matplotlib.colors import LinearSegmentedColormap, LogNorm, Normalize

    norm = (LogNorm if scale.log else Normalize)(scale.low if scale.low < scale.high else 0, scale.high or 1)
    return {"norm": norm, "cmap": LinearSegmentedColormap.from_list("change", PALETTE)}


def _plain(text: str) -> str:
    """ASCII, so that no font lacks it, and short."""
    text = printable(text).encode("ascii", "backslashreplace").decode()
    return text if len(text) <= _LABEL else f"...{text[3 - _LABEL :]}"
