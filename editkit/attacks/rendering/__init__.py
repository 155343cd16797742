"""Attacks (schema `editkit.attack/1`, see docs) as a page, a picture and a table for the terminal."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from editkit.diffing.rendering import plain

PAGE, PICTURE = "report.html", "attack.png"


def write_pictures(report: Mapping[str, Any], folder: Path) -> None:
    """Write report.html and attack.png into `folder`, which exists. Same report, same bytes.

    >>> write_pictures(report, Path("OUT"))  # doctest: +SKIP
    """
    from editkit.attacks.rendering.html import to_html
    from editkit.attacks.rendering.picture import to_png

    report = plain(report)
    (folder / PAGE).write_text(to_html(report), "utf-8")
    (folder / PICTURE).write_bytes(to_png(report))


def to_table(report: Mapping[str, Any], *, color: bool = False) -> str:
    """The verdicts as text; with `color` for a terminal.

    >>> print(to_table(report), end="")  # doctest: +SKIP
    """
    from editkit.attacks.rendering.table import verdict_table

    return verdict_table(plain(report), color=color)
