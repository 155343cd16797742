"""layers.png: where a model changed, in one picture for a README, a pull request or a paper."""

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from editkit.diffing.measures import MEASURES, count, number, share
from editkit.diffing.rendering.charts import PALETTE
from editkit.diffing.rendering.heatmap import Heatmap, Scale, layer_maps, scales
from editkit.diffing.rendering.wording import plural
from editkit.errors import printable

INK, SOFT, LINE = "#22252a", "#686d76", "#d8d4cb"
_STACKS, _ROWS, TENSORS, _LABEL = 4, 40, 20, 32  # what fits: stacks, modules of each, tensors, characters of a label
_BAR, CELL, _AXIS, _HEAD, _DPI = 0.6, 0.21, 0.5, 0.72, 160  # heights in inches; dots per inch


def to_png(report: Mapping[str, Any]) -> bytes:
    """The PNG: for each stack the share of changed elements per layer, above the relative change of modules x layers.

    Hollow cells are unchanged, hatched ones do not exist, dotted ones have no relative change (a base of zeros). A model
    without layers gets its tensors as bars. Same report, same bytes (with one version of matplotlib).
    """
    maps = layer_maps(report)
    shown = fitting(maps)
    top = [] if maps else sorted(report["tensors"], key=lambda row: -(row["rel_l2"] or 0))[:TENSORS]
    heights = [height for map_ in shown for height in heights_of(map_)] or [CELL * max(len(top), 1)]
    summary = report["summary"]
    changed = share(summary["changed_fraction"]) if summary["changed"] else "none"
    tensors = f"{summary['tensors']:,} {plural('tensor', summary['tensors'])}"
    names = f"{ascii_of(report['base']['name'])} → {ascii_of(report['edited']['name'])}"
    text = f"{changed} of n = {count(summary['numel'])} elements in {tensors} changed"

    def draw(figure: Any, axes: Any) -> None:
        draw_title(figure, names, text + left_out(len(maps) - len(shown), "report.html"))
        scale = scales(maps)["rel_l2"]
        for map_, bars, cells in zip(shown, axes[::2], axes[1::2], strict=False):
            draw_shares(bars, map_, map_.title if len(maps) > 1 else "", "changed", "elements")
            draw_cells(cells, map_, scale, "rel_l2", "changed")
        if maps and scale.high:
            draw_scale(figure, scale, "relative change", "L2 of change / L2 of base")
        if not maps:
            values = [100 * (row["rel_l2"] or 0) for row in top]
            fractions = (MEASURES["changed_fraction"].write(row["changed_fraction"]) for row in top)
            notes = [
                f"{part} of {count(row['numel'])} elements changed" for part, row in zip(fractions, top, strict=True)
            ]
            draw_tensors(axes[0], top, values, notes, "relative change (L2 of change / L2 of base, %)")

    return painted(heights, max(len(shown), 1), max((len(map_.columns) for map_ in shown), default=20), draw)


def painted(heights: Sequence[float], scaled: int, columns: int, draw: Callable[[Any, Any], None]) -> bytes:
    """The PNG of a column of axes, `heights` inches each, that `draw(figure, axes)` fills.

    scaled: how many of the axes have labels below. columns: of the widest heatmap, for the width.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    width, height = 2.4 + min(8.4, max(4.4, 0.26 * columns)), _HEAD + sum(heights) + _AXIS * scaled
    style: dict[Any, Any] = {
        "font.family": ["DejaVu Sans"], "font.size": 8, "text.color": INK, "text.parse_math": False, "hatch.color": LINE,
        "axes.labelcolor": SOFT, "axes.edgecolor": LINE, "xtick.color": SOFT, "ytick.color": SOFT, "hatch.linewidth": 0.7,
    }  # fmt: skip
    with rc_context(style):
        layout = ConstrainedLayoutEngine(h_pad=0.03, w_pad=0.08, hspace=0.02, rect=(0, 0, 1, 1 - _HEAD / height))
        figure = Figure(figsize=(width, height), dpi=_DPI, facecolor="white", layout=layout)
        FigureCanvasAgg(figure)
        draw(figure, figure.subplots(len(heights), 1, gridspec_kw={"height_ratios": heights}, squeeze=False)[:, 0])
        out = io.BytesIO()
        figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


def fitting(maps: Sequence[Heatmap]) -> list[Heatmap]:
    """As many stacks, and rows of each, as a picture has room for."""
    return [map_._replace(rows=map_.rows[:_ROWS]) for map_ in maps[:_STACKS]]


def heights_of(map_: Heatmap) -> tuple[float, float]:
    """Inches of the bars of a stack and of its cells."""
    return _BAR, CELL * len(map_.rows)


def left_out(stacks: int, page: str) -> str:
    """What the picture does not show, and where it is."""
    return f"; {stacks} more {plural('stack', stacks)} of layers in {page}" if stacks else ""


def draw_title(figure: Any, names: str, text: str) -> None:
    """The two lines above everything."""
    height = figure.get_figheight()
    figure.text(0.012, 1 - 0.22 / height, names, fontsize=11, va="center")
    figure.text(0.012, 1 - 0.46 / height, text, color=SOFT, va="center")


def draw_shares(axes: Any, map_: Heatmap, title: str, what: str, parts: str) -> None:
    """Per layer, the share of the parts (elements) that are `what`: changed or selected."""
    shares = [100 * (map_.totals.get(column, {}).get(f"{what}_fraction") or 0) for column in map_.columns]
    axes.bar(range(len(shares)), shares, width=0.9, color=PALETTE[7])
    top = max(shares, default=0)
    axes.set(xlim=(-0.5, len(shares) - 0.5), ylim=(0, 1.15 * top or 1), xticks=[])
    axes.set_yticks([0, top] if top else [0], [f"{number(tick)}" for tick in ([0, top] if top else [0])])
    axes.set_ylabel(f"{what}\n(% of {parts})", rotation=0, ha="right", va="center")
    axes.spines[["top", "left", "right"]].set_visible(False)
    axes.tick_params(length=0)
    if title:
        axes.set_title(ascii_of(title), loc="left", fontsize=8, fontweight="bold", pad=4)


def draw_cells(axes: Any, map_: Heatmap, scale: Scale, measure: str, touched: str) -> None:
    """The cells in the colour of `measure`; hollow where the count `touched` is zero, dotted where the measure is unknown."""
    from matplotlib.patches import Rectangle

    values = np.full((len(map_.rows), len(map_.columns)), np.nan)
    for y, row in enumerate(map_.rows):
        for x, column in enumerate(map_.columns):
            cell = map_.cells.get((row, column))
            if cell is not None and cell[touched] and cell[measure] is not None:
                values[y, x] = max(cell[measure], scale.low)
                continue
            hatch = "//////" if cell is None else "...." if cell[touched] else None
            axes.add_patch(
                Rectangle((x - 0.44, y - 0.42), 0.88, 0.84, facecolor="white", edgecolor=LINE, hatch=hatch, lw=0.6)
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
    axes.set_yticks(range(len(map_.rows)), [ascii_of(str(row)) for row in map_.rows])
    axes.set(xlim=(-0.5, len(map_.columns) - 0.5), ylim=(len(map_.rows) - 0.5, -0.5), xlabel="layer")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def draw_scale(figure: Any, scale: Scale, label: str, unit: str) -> None:
    """The legend of the colours, at the top right."""
    from matplotlib.cm import ScalarMappable

    width, height = figure.get_size_inches()
    place = figure.add_axes((1 - 2.5 / width, 1 - 0.5 / height, 2.1 / width, 0.1 / height))
    place.set_in_layout(False)
    bar = figure.colorbar(ScalarMappable(**_colors(scale)), cax=place, orientation="horizontal")
    ends = [scale.value(position) for position in ((0, 0.5, 1) if scale.high > scale.low else (1,))]
    bar.set_ticks(ends, labels=[share(value) for value in ends])
    bar.minorticks_off()
    place.set_title(
        f"{label}{', log scale' if scale.log else ''} ({unit})",
        fontsize=7,
        color=SOFT,
        pad=4,
    )
    bar.outline.set_visible(False)
    place.tick_params(length=0, labelsize=7)


def draw_tensors(
    axes: Any, rows: Sequence[Mapping[str, Any]], values: Sequence[float], notes: Sequence[str], label: str
) -> None:
    """A bar with a note for every tensor, in place of the heatmaps of a model without layers."""
    axes.barh(range(len(rows)), values, height=0.8, color=PALETTE[7])
    for y, note in enumerate(notes):
        axes.text(values[y], y, f"  {note}", va="center", color=SOFT, fontsize=7)
    axes.set_yticks(range(len(rows)), [ascii_of(row["name"]) for row in rows])
    axes.set(ylim=(len(rows) - 0.5, -0.5) if rows else (0, 1), xlim=(0, 1.6 * max(values, default=0) or 1))
    axes.set_xlabel(label)
    axes.tick_params(length=0)
    axes.spines[["top", "right", "bottom"]].set_visible(False)


def _colors(scale: Scale) -> dict[str, Any]:
    from matplotlib.colors import LinearSegmentedColormap, LogNorm, Normalize

    norm = (LogNorm if scale.log else Normalize)(scale.low if scale.low < scale.high else 0, scale.high or 1)
    return {"norm": norm, "cmap": LinearSegmentedColormap.from_list("change", PALETTE)}


def ascii_of(text: str) -> str:
    """ASCII, so that no font lacks it, and short."""
    text = printable(text).encode("ascii", "backslashreplace").decode()
    return text if len(text) <= _LABEL else f"...{text[3 - _LABEL :]}"
