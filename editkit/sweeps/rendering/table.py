"""The sweep for the terminal: a line per point, and what is special about some."""

from collections.abc import Mapping
from typing import Any

from editkit.diffing.rendering.table import Sheet
from editkit.errors import printable
from editkit.sweeps.rendering import wording
from editkit.sweeps.rendering.marks import AXES, around

PLAIN = 80  # columns, where the text does not go to a terminal
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
    listed = [
        place
        for place in range(len(report["points"]))
        if len(report["points"]) <= _MANY or not place or place in report["front"] or place == report["chosen"]
    ]
    alphas = [f"{report['points'][place]['alpha']:g}" for place in listed]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="dim")
    table.add_column("alpha", justify="right", no_wrap=True, min_width=max(map(len, [*alphas, "alpha"])))
    for name in ["tensors"] * several:
        table.add_column(name, overflow="fold")
    for name in AXES:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("")
    for place, alpha in zip(listed, alphas, strict=True):
        point = report["points"][place]
        roles = [
            *(["front"] if place in report["front"] else []),
            *(role for role in ("knee", "chosen") if report[role] == place),
        ]
        label = "unedited" if point["choice"] is None else printable(report["choices"][point["choice"]]["label"])
        table.add_row(
            alpha,
            *[Text(label)] * several,
            *(around(point["values"].get(name)) for name in AXES),
            ", ".join(roles) if point["status"] == "ok" else "broken",
            style="" if place in report["front"] or not report["front"] else "dim",
        )
    sheet.console.print(table, width=sheet.width if color else PLAIN)
    if more := len(report["points"]) - len(listed):
        sheet.say(f"{more:,} more points that are not on the front, see sweep.json.", "dim")
    if text := wording.level(report):
        sheet.say(text)
    sheet.say(f"{wording.DERIVED} {wording.LEGEND}", "dim")
    return sheet.text()
