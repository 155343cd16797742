"""conflicts.png: cosine and sign disagreement of every pair of vectors, in all and for every module."""

import io
from collections.abc import Mapping
from typing import Any

import numpy as np

from editkit.diffing.rendering.picture import INK, LINE, SOFT, ascii_of
from editkit.merging.rendering.table import letter

_ROWS, _PAIRS, _DPI = 40, 15, 160  # what fits: modules, pairs; dots per inch
_CELL, _HEAD = 0.28, 0.55  # inches
_SHOWN = (("cosine", "cosine", -1.0, 0.0, 1.0), ("sign_disagreement", "sign disagreement", 0.0, 0.5, 1.0))


def to_png(report: Mapping[str, Any]) -> bytes:
    """The PNG. Above, a matrix over the vectors; below, modules x pairs. Blue agrees, red disagrees, white is unrelated."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    vectors, modules = report["vectors"], report["modules"][:_ROWS]
    pairs = sorted(report["pairs"], key=lambda pair: -(pair["sign_disagreement"] or 0))[:_PAIRS]
    heights = [max(_CELL * 1.6 * len(vectors), 1.0), _CELL * len(modules) + 0.1]
    legend = 0.22 * len(vectors)
    size = (8.4, _HEAD + legend + sum(heights) + 1.9)
    style: dict[Any, Any] = {
        "font.family": ["DejaVu Sans"], "font.size": 8, "text.color": INK, "text.parse_math": False,
        "xtick.color": INK, "ytick.color": INK, "axes.edgecolor": LINE,
    }  # fmt: skip
    with rc_context(style):
        figure = Figure(figsize=size, dpi=_DPI, facecolor="white", layout="constrained")
        FigureCanvasAgg(figure)
        figure.get_layout_engine().set(rect=(0, 0, 1, 1 - (_HEAD + legend) / size[1]), h_pad=0.08)  # type: ignore[call-arg, union-attr]
        figure.text(
            0.015,
            1 - 0.25 / size[1],
            f"Changes of {ascii_of(report['base']['name'])}, two by two",
            fontsize=11,
            va="center",
        )
        for index, one in enumerate(vectors):
            place = 1 - (0.55 + 0.22 * index) / size[1]
            figure.text(
                0.015,
                place,
                f"{letter(index)}  {ascii_of(one['name'])}, L2 {one['l2']:.3g}, n = {one['changed']:,}",
                color=SOFT,
                va="center",
            )
        axes = figure.subplots(2, 2, gridspec_kw={"height_ratios": heights}, squeeze=False)
        for column, (key, title, low, middle, high) in enumerate(_SHOWN):
            square = np.full((len(vectors), len(vectors)), np.nan)
            for pair in report["pairs"]:
                value = np.nan if pair[key] is None else pair[key]
                square[pair["a"], pair["b"]] = square[pair["b"], pair["a"]] = value
            names = [letter(index) for index in range(len(vectors))]
            _cells(axes[0, column], square, names, names, (low, middle, high), key)
            axes[0, column].set_title(title, fontsize=9)
            grid = np.array([[_value(row["pairs"], pair, key) for pair in pairs] for row in modules])
            labels = [f"{letter(pair['a'])} {letter(pair['b'])}" for pair in pairs]
            _cells(
                axes[1, column],
                grid,
                [ascii_of(row["name"]) if not column else "" for row in modules],
                labels,
                (low, middle, high),
                key,
            )
        if hidden := len(report["modules"]) - len(modules):
            figure.text(0.015, 0.1 / size[1], f"{hidden} more modules in conflicts.json", color=SOFT)
        out = io.BytesIO()
        figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


def _value(pairs: list[dict[str, Any]], wanted: Mapping[str, Any], key: str) -> float:
    found = next(pair[key] for pair in pairs if (pair["a"], pair["b"]) == (wanted["a"], wanted["b"]))
    return np.nan if found is None else found


def _cells(
    axes: Any, values: np.ndarray, rows: list[str], columns: list[str], ends: tuple[float, float, float], key: str
) -> None:
    """Coloured cells with their numbers; those without a value stay white, hatched."""
    from matplotlib.colors import LinearSegmentedColormap, TwoSlopeNorm

    colors = ["#b3382c", "#ffffff", "#2b6a99"]  # disagrees, unrelated, agrees
    map_ = LinearSegmentedColormap.from_list(key, colors if key == "cosine" else colors[::-1])
    norm = TwoSlopeNorm(vmin=ends[0], vcenter=ends[1], vmax=ends[2])
    axes.set_facecolor("#f1efeb")
    axes.pcolormesh(np.ma.masked_invalid(values), cmap=map_, norm=norm, edgecolors="white", linewidth=1)
    for y, x in zip(*np.nonzero(np.isfinite(values)), strict=True):
        dark = abs(norm(values[y, x]) - 0.5) > 0.3
        axes.text(
            x + 0.5,
            y + 0.5,
            f"{values[y, x]:.2f}",
            ha="center",
            va="center",
            fontsize=7,
            color="white" if dark else INK,
        )
    axes.set_xticks(np.arange(len(columns)) + 0.5, columns)
    axes.set_yticks(np.arange(len(rows)) + 0.5, rows)
    axes.invert_yaxis()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
