"""The sweep for the terminal: a line per point, and what is special about some."""

from collections.abc import Mapping
from typing import Any

from editkit.diffing.rendering.table import Sheet
from editkit.errors import printable
from editkit.sweeps.rendering import wording
from editkit.sweeps.rendering.marks import AXES, plain, value

_MANY = 60  # points, of which only those on the front are listed


def points_table(report: Mapping[str, Any], *, color: bool) -> str:
    """Headline and points. With `color`: ANSI styles and the width of the terminal."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    sheet, several = Sheet(color), len(report["choices"]) > 1
    sheet.say(wording.names(report), "dim")
    sheet.say(wording.headline(report), "bold")
    sheet.say(wording.swept(report))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="dim")
    sets = [one["set"] for one in report["sets"]]
    table.add_column("alpha", justify="right", no_wrap=True)
    for name in ["tensors"] * several:
        table.add_column(name, overflow="fold")
    for name in (*AXES, *(f"{one}.token_accuracy" for one in sets)):
        table.add_column(name.replace("token_", ""), justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    listed = [
        place
        for place in range(len(report["points"]))
        if len(report["points"]) <= _MANY or not place or place in report["front"] or place == report["chosen"]
    ]
    for place in listed:
        point = report["points"][place]
        roles = [
            *(["front"] if place in report["front"] else []),
            *(role for role in ("knee", "chosen") if report[role] == place),
        ]
        label = "unedited" if point["choice"] is None else printable(report["choices"][point["choice"]]["label"])
        cells = [value(report, place, name) for name in AXES]
        cells += [_accuracy(point, one) for one in sets]
        said = ", ".join(roles) if point["status"] == "ok" else "broken"
        first = [Text(label)] * several
        table.add_row(
            f"{point['alpha']:g}",
            *first,
            *cells,
            said,
            style="" if place in report["front"] or not report["front"] else "dim",
        )
    sheet.console.print(table)
    if more := len(report["points"]) - len(listed):
        sheet.say(f"{more:,} more points that are not on the front, see sweep.json.", "dim")
    if text := wording.level(report):
        sheet.say(text)
    sheet.say(f"{wording.DERIVED} front: no point is better in both.", "dim")
    return sheet.text()


def _accuracy(point: Mapping[str, Any], name: str) -> str:
    one = point["values"].get(f"{name}.token_accuracy")
    return plain(one["value"]) if one and one["value"] is not None else "–"
