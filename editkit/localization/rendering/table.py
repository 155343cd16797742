"""The localization for the terminal: the ten most selected modules, and how far to trust the selection."""

from collections.abc import Mapping
from typing import Any

from editkit.diffing.measures import UNDEFINED, count, number, share
from editkit.diffing.rendering.heatmap import Row
from editkit.diffing.rendering.table import BAR_CELLS, Sheet, bar, fitting
from editkit.errors import printable
from editkit.localization.rendering import wording
from editkit.localization.rendering.rows import MEASURES, modules

TOP, ROOM = 10, 12  # modules, where there are more than there is room for
_MEASURED = {"cosine": "cosine", "mean |G_F|": "mean_abs_forget", "attribution": "attribution_forget"}


def modules_table(report: Mapping[str, Any], *, color: bool) -> str:
    """Headline, data sets and modules. With `color`: ANSI styles and the width of the terminal."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    sheet, rows = Sheet(color), modules(report)
    top = rows if len(rows) <= ROOM else rows[:TOP]
    sheet.say(wording.names(report), "dim")
    sheet.say(wording.headline(report), "bold")
    for side in ("forget", "retain"):
        if text := wording.data(report, side):
            sheet.say(text)
    if rows:
        known = [label for label, key in _MEASURED.items() if any(row[key] is not None for row in rows)]
        names = [printable(row["module"]) for row in top]
        shown = fitting(("of selection", "selected", "of module", "layers", *known), sheet.width - max(map(len, names)))
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="dim")
        table.add_column("module", overflow="fold")
        table.add_column("of selection", justify="right", no_wrap=True)
        table.add_column("", no_wrap=True, style="cyan", width=BAR_CELLS)
        for label in shown[1:]:
            table.add_column(label, justify="right", no_wrap=True)
        for name, row in zip(names, top, strict=True):
            texts = _cells(row)
            length = bar(row["selected"] / rows[0]["selected"])
            table.add_row(Text(name), texts["of selection"], length, *(texts[label] for label in shown[1:]))
        sheet.console.print(table)
        if len(rows) > len(top):
            sheet.say(f"{len(rows) - TOP:,} more modules with a selection.", "dim")
    for text in filter(None, (wording.stability(report), wording.control(report), wording.path(report))):
        sheet.say(text)
    if rows:
        sheet.say(_legend(known, wording.gradient(report["settings"])), "dim")
    return sheet.text()


def _cells(row: Row) -> dict[str, str]:
    cosine = MEASURES["cosine"].write(row["cosine"])
    if row["cosine_n"]:
        cosine += f" ± {row['cosine_sd']:.3f}" if row["cosine_sd"] is not None else ""
        cosine += f" ({row['cosine_n']:,})"
    return {
        "of selection": share(row["selection_fraction"]),
        "selected": f"{count(row['selected'])} of {count(row['numel'])}",
        "of module": share(row["selected_fraction"]),
        "layers": f"{row['layers_touched']} of {row['layers']}" if row["layers"] else UNDEFINED,
        "cosine": cosine,
        "mean |G_F|": UNDEFINED if row["mean_abs_forget"] is None else number(row["mean_abs_forget"]),
        "attribution": MEASURES["attribution_forget"].write(row["attribution_forget"]),
    }


def _legend(known: list[str], gradient: str) -> str:
    meanings = {
        "cosine": "cosine: of the forget and the retain gradient of a tensor, mean ± sd (n tensors).",
        "mean |G_F|": f"mean |G_F|: {gradient}.",
        "attribution": "attribution: drop of the forget loss along the path, nats.",
    }
    first = "selected: parameters. layers: those with a selection, of all that have the module."
    return " ".join([first, *(meanings[label] for label in known), f"{UNDEFINED}: not defined."])
