"""localization.png: where a selection lies and which scores it has, for a README, a pull request or a paper."""

from collections.abc import Mapping
from typing import Any

from editkit.diffing.measures import count, number, share
from editkit.diffing.rendering.charts import PALETTE, power
from editkit.diffing.rendering.heatmap import outside
from editkit.diffing.rendering.picture import (
    CELL,
    INK,
    LINE,
    SOFT,
    TENSORS,
    ascii_of,
    draw_cells,
    draw_scale,
    draw_shares,
    draw_tensors,
    draw_title,
    fitting,
    heights_of,
    left_out,
    painted,
)
from editkit.diffing.rendering.wording import plural
from editkit.localization.rendering import wording
from editkit.localization.rendering.charts import bins, ticks
from editkit.localization.rendering.rows import known_scales, stack_maps

_SCORES, _OUTSIDE = 1.4, 6  # inches; tensors beside heatmaps


def to_png(report: Mapping[str, Any]) -> bytes:
    """The PNG: for each stack the selected share per layer and of modules x layers, then the scores and the threshold.

    Hollow cells have nothing selected, hatched ones do not exist. Tensors outside of layers are bars. Same
    report, same bytes (with one version of matplotlib).
    """
    maps, summary = stack_maps(report), report["summary"]
    shown = fitting(maps)
    alone = sorted(outside(report), key=lambda row: (-row["selected"], -row["numel"]))
    top = alone[: _OUTSIDE if maps else TENSORS]
    heights = [height for map_ in shown for height in heights_of(map_)]
    heights += [CELL * len(top)] if top else []
    touched = sum(row["selected"] > 0 for row in report["tensors"])
    of_tensors = f"{touched:,} of {len(report['tensors']):,} {plural('tensor', len(report['tensors']))}"
    text = (
        f"{share(summary['selected_fraction'])} of n = {count(summary['numel'])} parameters selected, in {of_tensors}"
    )

    def draw(figure: Any, axes: Any) -> None:
        names = f"{ascii_of(report['settings']['method'])} in {ascii_of(wording.names(report))}"
        draw_title(figure, names, text + left_out(len(maps) - len(shown), "localization.html"))
        scale = known_scales(maps)["selected_fraction"]
        for map_, bars, cells in zip(shown, axes[::2], axes[1::2], strict=False):
            draw_shares(bars, map_, map_.title if len(maps) > 1 else "", "selected", "parameters")
            draw_cells(cells, map_, scale, "selected_fraction", "selected")
        if maps and scale.high:
            draw_scale(figure, scale, "selected", "share of parameters")
        if top:
            notes = [f"{count(row['selected'])} of {count(row['numel'])} parameters" for row in top]
            values = [100 * row["selected_fraction"] for row in top]
            more = f"; the {len(top)} of {len(alone)} tensors with most" if len(top) < len(alone) else ""
            draw_tensors(axes[-2], top, values, notes, f"selected (% of parameters{more})")
            if maps:
                axes[-2].set_title("outside the layers", loc="left", fontsize=8, fontweight="bold", pad=4)
        _draw_scores(axes[-1], report)

    return painted(
        [*heights, _SCORES], len(shown) + bool(top) + 1, max((len(map_.columns) for map_ in shown), default=20), draw
    )


def _draw_scores(axes: Any, report: Mapping[str, Any]) -> None:
    data, unit, threshold = report["histogram"], report["settings"]["granularity"], report["summary"]["threshold"]
    axes.spines[["top", "left", "right"]].set_visible(False)
    axes.tick_params(length=0)
    axes.set_ylabel(f"{unit}s", rotation=0, ha="right", va="center")
    found = bins(data)
    if found is None:
        axes.set(xticks=[], yticks=[], xlabel="no score is above zero")
        return
    shown, scale = found
    edges = data["log2_edges"][shown[0] : shown[-1] + 2]
    for key, color in (("counts", LINE), ("selected", PALETTE[7])):
        axes.bar(edges[:-1], data[key][shown[0] : shown[-1] + 1], width=0.86, align="edge", color=color)
    axes.set_yscale("log" if scale.log else "linear")
    axes.minorticks_off()
    marks = ticks(scale)
    axes.set_yticks(marks, [count(mark) for mark in marks])
    every = max(1, -(-len(edges) // 16))
    axes.set_xticks(labelled := [edge for edge in edges if edge % every == 0], [power(int(edge)) for edge in labelled])
    axes.set(
        xlim=(edges[0] - 0.3, max(edges[-1], edges[0] + 8) + 0.3),
        ylim=(scale.low, scale.high * (2 if scale.log else 1.15)),
    )
    n, chosen = sum(data["counts"]), sum(data["selected"])
    axes.set_xlabel(f"score (n = {count(n)} {unit}s above zero, grey; {count(chosen)} selected, blue)")
    if threshold:
        from math import log2

        axes.axvline(log2(threshold), color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
        right = log2(threshold) > (edges[0] + edges[-1]) / 2
        axes.annotate(
            f"threshold {number(threshold)}", (log2(threshold), 1), (-4 if right else 4, -2), xycoords=("data", "axes fraction"),
            textcoords="offset points", ha="right" if right else "left", va="top", color=SOFT, fontsize=7,
        )  # fmt: skip
