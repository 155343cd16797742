"""A sweep (schema `editkit.sweep/1`, see docs) as a page, a picture and a table for the terminal."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from editkit.checkpoint import disk
from editkit.diffing.rendering import plain, to_json

REPORT, PAGE, PICTURE = "sweep.json", "sweep.html", "pareto.png"


def write_report(report: Mapping[str, Any], folder: Path) -> None:
    """Write sweep.json, sweep.html and, where there is a front, pareto.png as the new folder `folder`, whole or not at all.

    Same report, same bytes.
    """
    from editkit.sweeps.rendering.html import to_html
    from editkit.sweeps.rendering.picture import to_png

    report = plain(report)
    place = folder.expanduser().resolve()
    files = {REPORT: to_json(report).encode(), PAGE: to_html(report).encode()}
    if report["front"]:
        files[PICTURE] = to_png(report)
    with disk.writing(str(folder)), disk.staged(place) as staged:
        for name, content in files.items():
            (staged / name).write_bytes(content)
        staged.replace(place)


def to_table(report: Mapping[str, Any], *, color: bool = False) -> str:
    """The points of the sweep as text; with `color` for a terminal.

    >>> print(to_table(report), end="")  # doctest: +SKIP
    """
    from editkit.sweeps.rendering.table import points_table

    return points_table(plain(report), color=color)
