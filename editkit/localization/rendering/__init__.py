"""A localization (schema `editkit.localization/1`, see docs) as a page, a picture and a table for the terminal."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from editkit.diffing.rendering import plain

PAGE, PICTURE = "localization.html", "localization.png"


def write_pictures(report: Mapping[str, Any], folder: Path) -> None:
    """Write localization.html and localization.png into `folder`, which exists. Same report, same bytes.

    >>> write_pictures(report, Path("LOC"))  # doctest: +SKIP
    """
    from editkit.localization.rendering.html import to_html
    from editkit.localization.rendering.picture import to_png

    report = plain(report)
    (folder / PAGE).write_text(to_html(report), "utf-8")
    (folder / PICTURE).write_bytes(to_png(report))


def to_table(report: Mapping[str, Any], *, color: bool = False) -> str:
    """What was selected, the ten most selected modules and how far to trust it, as text; with `color` for a terminal.

    >>> print(to_table(report), end="")  # doctest: +SKIP
    """
    from editkit.localization.rendering.table import modules_table

    return modules_table(plain(report), color=color)
