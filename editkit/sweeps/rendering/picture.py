"""pareto.png: retention over forgetting, for a README, a pull request or a paper."""

from typing import Any

from editkit.diffing.rendering.picture import INK, LINE, SOFT, ascii_of, draw_title, painted
from editkit.sweeps.rendering import wording
from editkit.sweeps.rendering.charts import HEIGHT, LEFT, MIDDLE, WIDTH, pareto
from editkit.sweeps.rendering.marks import Mark, Report, lines_beside, marks, reach, series

_COLORS = ("#2d718e", "#b4570b", "#7b3f98", "#3a7a2e", "#b02a4c", "#806400")
_DASHES: tuple[Any, ...] = ("-", (0, (7, 2)), (0, (4, 1.5, 1, 1.5)), (0, (2, 2)), (0, (9, 2, 2, 2)), (0, (1, 2)))
_SHAPES = "osD^vP"
_TALL = 4.2  # inches


def to_png(report: Report) -> bytes:
    """The PNG. Hollow points are beaten by another one; the broad line is the front. Same report, same bytes (with one version of matplotlib)."""
    found = marks(report)

    def draw(figure: Any, axes: Any) -> None:
        draw_title(figure, wording.names(report), wording.swept(report))
        _draw(axes[0], report, found)

    return painted([_TALL], 1, 24, draw)


def _draw(axes: Any, report: Report, found: list[Mark]) -> None:
    beside = lines_beside(report)
    across, up = reach(found, beside)
    axes.set(xlim=across, ylim=up, xlabel="forgetting (95 % intervals)", ylabel="retention")
    axes.grid(color=LINE, linewidth=0.5)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    front = sorted((one for one in found if one.front), key=lambda one: one.x)
    axes.plot(
        [one.x for one in front],
        [one.y for one in front],
        color=INK,
        alpha=0.13,
        linewidth=7,
        solid_capstyle="round",
        solid_joinstyle="round",
        label="front",
    )
    for place, name in enumerate(series(report)):
        color, dash = _COLORS[place % len(_COLORS)], _DASHES[place % len(_DASHES)]
        some = sorted((one for one in found if one.series in (None, place)), key=lambda one: one.alpha)
        axes.plot(
            [one.x for one in some], [one.y for one in some], color=color, linewidth=0.9, linestyle=dash, alpha=0.7
        )
        axes.plot(
            [],
            [],
            color=color,
            linewidth=0.9,
            linestyle=dash,
            marker=_SHAPES[place % len(_SHAPES)],
            markersize=4.5,
            label=ascii_of(name),
        )
    for one in found:
        _draw_point(axes, one)
    for text in (pareto(report) or {"texts": []})["texts"]:  # where the page has them too
        x, y = (text["x"] - LEFT) / (WIDTH - LEFT), 1 - (text["y"] - MIDDLE) / HEIGHT
        strong = {"color": INK, "fontweight": "bold"} if text["kind"] == "strong" else {"color": SOFT}
        axes.text(x, y, text["text"], transform=axes.transAxes, fontsize=7, va="center", **strong)
    for key, number, text in [(key, *line) for key, lines in beside.items() for line in lines]:
        (axes.axvline if key == "x" else axes.axhline)(number, color=SOFT, linewidth=0.8, linestyle=(0, (4, 3)))
        # of an upright line below, of a level one at the right, where points are rare
        where: dict[str, Any] = {
            "xy": (number, 0),
            "xycoords": ("data", "axes fraction"),
            "xytext": (-4, 5),
            "ha": "right",
        }
        if key == "y":
            where |= {"xy": (1, number), "xycoords": ("axes fraction", "data")}
        axes.annotate(text, textcoords="offset points", color=SOFT, fontsize=7, **where)
    axes.legend(loc="best", frameon=False, fontsize=7, borderaxespad=1.5, labelcolor=SOFT)


def _draw_point(axes: Any, one: Mark) -> None:
    color = SOFT if one.series is None else _COLORS[one.series % len(_COLORS)]
    shape = "o" if one.series is None else _SHAPES[one.series % len(_SHAPES)]
    faint = 1.0 if one.front else 0.4
    for axis, (low, high) in enumerate((one.across, one.up)):
        if low is not None and high is not None:
            (axes.hlines, axes.vlines)[axis]((one.y, one.x)[axis], low, high, color=color, linewidth=0.9, alpha=faint)
    axes.plot(
        one.x,
        one.y,
        marker=shape,
        markersize=4.5,
        color=color,
        alpha=faint,
        markerfacecolor=color if one.front else "white",
        zorder=3,
    )
    if one.special and one.series is not None:
        axes.plot(
            one.x,
            one.y,
            marker="s" if one.said.startswith("chosen") else "o",
            markersize=10,
            markerfacecolor="none",
            color=INK,
            zorder=3,
        )
