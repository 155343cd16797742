"""attack.png: the attacks beside each other, the curves of relearning, and the membership scores."""

from collections.abc import Mapping, Sequence
from typing import Any

from editkit.attacks.rendering import wording
from editkit.attacks.rendering.wording import SIDES, Report
from editkit.diffing.rendering.picture import INK, LINE, SOFT, ascii_of, draw_title, painted

COLORS = {"edited": "#2d718e", "original": SOFT, "control": INK}  # those of the page
MARKS = {"edited": "o", "original": "D", "control": "|"}
_LINE, _CURVE, _COLUMNS = 0.24, 1.7, 24  # inches of a line of a list and of a curve; width as of so many columns


def to_png(report: Report) -> bytes:
    """The PNG. Same report, same bytes (with one version of matplotlib)."""
    verdicts, curves, membership = report["verdicts"], report["curves"], report["membership"]
    heights = [_LINE * (len(verdicts) + 0.5)] if verdicts else []
    heights += [_CURVE] * len(curves) + ([_LINE * (len(membership) + 0.5)] if membership else [])
    names = ", ".join(ascii_of(name) for name in wording.names(report))

    def draw(figure: Any, axes: Sequence[Any]) -> None:
        draw_title(figure, names, wording.headline(report))
        left = iter(axes)
        if verdicts:
            _draw_verdicts(next(left), verdicts)
        for one in curves:
            _draw_curve(next(left), one)
        if membership:
            _draw_membership(next(left), membership)

    return painted(heights or [_LINE], max(len(heights), 1), _COLUMNS, draw)


def _draw_verdicts(axes: Any, verdicts: Sequence[Mapping[str, Any]]) -> None:
    for y, one in enumerate(verdicts):
        for side in ("original", "control", "edited"):
            before, after = one[f"{side}_before"], one[f"{side}_after"]
            if side == "edited":
                axes.plot([before["value"], after["value"]], [y, y], color=COLORS[side], linewidth=1)
            if wording.known(before):
                _mark(axes, before, y, side, hollow=True)
            if wording.known(after):
                _mark(axes, after, y, side)
    _list(
        axes,
        verdicts,
        f"token accuracy on the forget set, before (hollow) and after (filled), n = {_n(verdicts)} examples",
    )


def _draw_membership(axes: Any, membership: Sequence[Mapping[str, Any]]) -> None:
    axes.axvline(0.5, color=LINE, linewidth=1)
    for y, one in enumerate(membership):
        for side, role in SIDES.items():
            if role in one["roles"]:
                _mark(axes, one["roles"][role]["auc"], y, side)
    sizes = next((f", n = {one['members']} and {one['unseen']} texts" for one in membership if "members" in one), "")
    _list(axes, membership, f"AUC of the forget set above unseen text{sizes}")


def _mark(axes: Any, found: Mapping[str, Any], y: float, side: str, hollow: bool = False) -> None:
    color = COLORS[side]
    if found["ci_low"] is not None and side == "edited":
        axes.plot(
            [found["ci_low"], found["ci_high"]], [y, y], color=color, linewidth=2.6, alpha=0.35, solid_capstyle="butt"
        )
    face = "white" if hollow else color
    axes.plot(
        [found["value"]], [y], MARKS[side], color=color, markerfacecolor=face, markersize=8 if side == "control" else 5
    )


def _list(axes: Any, judged: Sequence[Mapping[str, Any]], text: str) -> None:
    axes.set_yticks(range(len(judged)), [ascii_of(one["label"]) for one in judged])
    for y, one in enumerate(judged):
        axes.text(1.04, y, wording.word(one["verdict"]), va="center", fontsize=8)
    key = "circle: edited, diamond: original, bar: control; lines behind circles: 95 % bootstrap intervals"
    axes.set(ylim=(len(judged) - 0.4, -0.6), xlim=(-0.02, 1.02), xlabel=f"{text}\n{key}")
    axes.grid(axis="x", color=LINE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _draw_curve(axes: Any, one: Mapping[str, Any]) -> None:
    places = range(len(one["points"]["edited"]))
    for side, points in one["points"].items():
        found = [point["token_accuracy"] for point in points]
        style = "-" if side == "edited" else (0, (7, 4))
        axes.plot(
            places,
            [each["value"] for each in found],
            "o",
            linestyle=style,
            color=COLORS[side],
            markersize=3,
            linewidth=1.4,
            label=side,
        )
        if all(each["ci_low"] is not None for each in found):
            axes.fill_between(
                places,
                [each["ci_low"] for each in found],
                [each["ci_high"] for each in found],
                color=COLORS[side],
                alpha=0.14,
                linewidth=0,
            )
    if isinstance(one["original"], Mapping):
        axes.axhline(
            one["original"]["value"],
            color=COLORS["original"],
            linestyle=(0, (2, 3)),
            linewidth=1.2,
            label="original, not trained",
        )
    axes.set_xticks(places, [f"{point['step']:,}" for point in one["points"]["edited"]])
    axes.set_title(one["label"], loc="left", fontsize=8, fontweight="bold", pad=4)
    axes.set(
        ylim=(-0.02, 1.04),
        xlabel=f"steps of fine-tuning ({one['held_out']:,} examples of the forget set that are not trained on, 95 % bootstrap intervals)",
        ylabel="token accuracy",
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _n(verdicts: Sequence[Mapping[str, Any]]) -> str:
    sizes = sorted({one["n"] for one in verdicts})
    return f"{sizes[0]:,}" if len(sizes) == 1 else f"{sizes[0]:,} to {sizes[-1]:,}"
