"""The report as a terminal table."""

import io
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from editkit.diffing.rendering.rows import HEADER, LEGEND, cells, changed_only, group, label
from editkit.diffing.rendering.wording import audit, headline, outside_mask, structure, survival_text, warnings
from editkit.errors import printable

_BAR = " ▏▎▍▌▋▊▉█"
BAR_CELLS = 8
STRAYS = 20  # tensors changed outside of a mask that are named
_UNBROKEN = 100_000  # columns: a pipe has no edge at which to break a line


def to_table(report: Mapping[str, Any], by: str, *, color: bool = False) -> str:
    """Headline, warnings and the changed rows. With `color`: ANSI styles and the width of the terminal."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    sheet = Sheet(color)
    say, width = sheet.say, sheet.width
    say(f"{printable(report['base']['name'])} → {printable(report['edited']['name'])}", "dim")
    say(headline(report), "bold")
    for text in warnings(report):
        say(f"Warning: {text}", "bold red")
    strays = outside_mask(report)
    if text := audit(report):
        say(text, "bold red" if strays else "bold green")
    for name, what in strays[:STRAYS]:
        say(f"  {name}: {what}")
    if len(strays) > STRAYS:
        say(f"  ... and {len(strays) - STRAYS:,} more, see --json", "dim")
    rows, unchanged = changed_only(group(report, by))
    if rows:
        largest = max((row.get("rel_l2") or 0 for row in rows), default=0)
        named = [label(row, by) for row in rows]
        shown = fitting(HEADER, width - max(map(len, named)))
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="dim")
        table.add_column(by, overflow="fold")
        for name in shown:
            table.add_column(name, justify="right", no_wrap=True)
            if name == "rel. change":
                table.add_column("", no_wrap=True, style="cyan", width=BAR_CELLS)
        for name, row in zip(named, rows, strict=True):
            texts = dict(zip(HEADER, cells(row), strict=True))
            line = [texts[column] for column in shown]
            if "rel. change" in shown:
                length = bar((row.get("rel_l2") or 0) / largest if largest else 0)
                line.insert(shown.index("rel. change") + 1, length)
            table.add_row(Text(name), *line)
        sheet.console.print(table)
    if rows and unchanged:
        say(f"{unchanged:,} more without any change.", "dim")
    for text in filter(None, (survival_text(report), *structure(report).values())):
        say(text)
    if rows:
        say(LEGEND, "dim")
    return sheet.text()


class Sheet:
    """Text as for a terminal: with `color`, ANSI styles and the width of this terminal; else plain and unbroken."""

    def __init__(self, color: bool) -> None:
        from rich.console import Console

        self.width = shutil.get_terminal_size().columns if color else _UNBROKEN
        self._out, self._wrapped = io.StringIO(), color
        self.console = Console(
            file=self._out, force_terminal=color, no_color=not color, width=self.width, highlight=False, legacy_windows=False
        )  # fmt: skip

    def say(self, text: str, style: str = "") -> None:
        """Add a paragraph, where markup in `text` is just text."""
        from rich.text import Text

        self.console.print(Text(text, style=style), soft_wrap=not self._wrapped)

    def text(self) -> str:
        """Everything so far, without blanks at the ends of lines."""
        return "\n".join(line.rstrip() for line in self._out.getvalue().splitlines()) + "\n"


def fitting(header: Sequence[str], room: int) -> list[str]:
    """The columns for which there is room beside the names; the first ones say most."""
    shown = list(header)
    while len(shown) > 3 and sum(len(name) + 4 for name in shown) + BAR_CELLS > room:
        shown.pop()
    return shown


def bar(fraction: float) -> str:
    """A bar of up to eight cells."""
    eighths = max(round(fraction * BAR_CELLS * 8), 1 if fraction > 0 else 0)
    return "█" * (eighths // 8) + _BAR[eighths % 8].strip()
