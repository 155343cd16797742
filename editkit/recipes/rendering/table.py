"""A run for the terminal: its table, or before it runs its plan."""

from collections.abc import Mapping, Sequence
from typing import Any

from editkit.diffing.rendering.table import Sheet
from editkit.errors import printable
from editkit.recipes.rendering import wording


def to_table(run: Mapping[str, Any], *, color: bool = False) -> str:
    """Heading, numbers and how it went. With `color`: ANSI styles and the width of the terminal. Of a dry run the calls instead.

    >>> print(to_table(editkit.run("negate.yaml", "out")), end="")  # doctest: +SKIP
    """
    sheet, table = Sheet(color), run["table"]
    sheet.say(printable(run["recipe"]["title"] or run["recipe"]["name"]), "bold")
    if run["dry_run"]:
        _plan(sheet, run)
    elif table:
        head = [*table["variables"], *table["columns"]]
        rows = [
            [
                *(wording.name(str(row["cell"][name])) for name in table["variables"]),
                *(wording.written(row["values"][name]) for name in table["columns"]),
            ]
            for row in table["rows"]
        ]
        _grid(sheet, head, rows, left=len(table["variables"]))
        for text in filter(None, (wording.spreads(table), *wording.unknown(table))):
            sheet.say(text, "dim")
    sheet.say(wording.headline(run))
    return sheet.text()


def _plan(sheet: Sheet, run: Mapping[str, Any]) -> None:
    """The calls in their order, with the beginning of their keys."""
    rows = [
        [one["label"], one["function"], one["state"], one["key"][:12], *filter(None, (one["why"],))]
        for one in run["calls"]
    ]
    wide = max(map(len, rows), default=4)
    _grid(sheet, ["call", "function", "state", "key", "why"][:wide], [[*row, ""][:wide] for row in rows], left=wide)


def _grid(sheet: Sheet, head: Sequence[str], rows: Sequence[Sequence[str]], *, left: int) -> None:
    """left: how many of the columns are text."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="dim")
    for place, name in enumerate(head):
        table.add_column(Text(printable(name)), justify="left" if place < left else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    sheet.console.print(table)
