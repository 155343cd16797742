"""The report as a terminal table."""

import io
import shutil
from collections.abc import Mapping
from typing import Any

from editkit.diffing.rendering.rows import HEADER, LEGEND, cells, changed_only, group, label
from editkit.diffing.rendering.wording import headline, structure, survival_text, warnings
from editkit.errors import printable

_BAR = " ▏▎▍▌▋▊▉█"
_BAR_CELLS = 8
_UNBROKEN = 100_000  # columns: a pipe has no edge at which to break a line


def to_table(report: Mapping[str, Any], by: str, *, color: bool = False) -> str:
    """Headline, warnings and the changed rows. With `color`: ANSI styles and the width of the terminal."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    width = shutil.get_terminal_size().columns if color else _UNBROKEN
    out = io.StringIO()
    console = Console(
        file=out, force_terminal=color, no_color=not color, width=width, highlight=False, legacy_windows=False
    )

    def say(text: str, style: str = "") -> None:
        console.print(Text(text, style=style), soft_wrap=not color)

    say(f"{printable(report['base']['name'])} → {printable(report['edited']['name'])}", "dim")
    say(headline(report), "bold")
    for text in warnings(report):
        say(f"Warning: {text}", "bold red")
    rows, unchanged = changed_only(group(report, by))
    if rows:
        largest = max((row.get("rel_l2") or 0 for row in rows), default=0)
        named = [label(row, by) for row in rows]
        shown = _fitting(width - max(map(len, named)))
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="dim")
        table.add_column(by, overflow="fold")
        for name in shown:
            table.add_column(name, justify="right", no_wrap=True)
            if name == "rel. change":
                table.add_column("", no_wrap=True, style="cyan", width=_BAR_CELLS)
        for name, row in zip(named, rows, strict=True):
            texts = dict(zip(HEADER, cells(row), strict=True))
            line = [texts[column] for column in shown]
            if "rel. change" in shown:
                bar = _bar((row.get("rel_l2") or 0) / largest if largest else 0)
                line.insert(shown.index("rel. change") + 1, bar)
            table.add_row(Text(name), *line)
        console.print(table)
    if rows and unchanged:
        say(f"{unchanged:,} more without any change.", "dim")
    for text in filter(None, (survival_text(report), *structure(report).values())):
        say(text)
    if rows:
        say(LEGEND, "dim")
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def _fitting(room: int) -> list[str]:
    """The columns for which there is room beside the names; the first ones say most."""
    shown = list(HEADER)
    while len(shown) > 3 and sum(len(name) + 4 for name in shown) + _BAR_CELLS > room:
        shown.pop()
    return shown


def _bar(fraction: float) -> str:
    eighths = max(round(fraction * _BAR_CELLS * 8), 1 if fraction > 0 else 0)
    return "█" * (eighths // 8) + _BAR[eighths % 8].strip()
