"""An evaluation (schema `editkit.evaluation/1`, see docs) as a page, a picture and a table for the terminal."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from editkit.diffing.rendering import plain

PAGE, PICTURE = "report.html", "report.png"


def write_pages(report: Mapping[str, Any], rows: Iterable[Mapping[str, Any]], folder: Path) -> None:
    """Write report.html and report.png into `folder`, which exists. Same report and rows, same bytes.

    >>> write_pages(results, read_rows("OUT"), Path("OUT"))  # doctest: +SKIP

    report: what results.json holds. rows: those of examples.jsonl, of all models; any column may be absent. There is no picture where no
    row has anything to draw.
    """
    from editkit.evaluation.rendering.html import to_html
    from editkit.evaluation.rendering.picture import to_png
    from editkit.evaluation.rendering.rows import Rows

    report, found = plain(report), Rows(rows)
    (folder / PAGE).write_text(to_html(report, found), "utf-8")
    if picture := to_png(report, found):
        (folder / PICTURE).write_bytes(picture)


def to_table(report: Mapping[str, Any], *, color: bool = False) -> str:
    """All results in one table, a column for each model; with `color` for a terminal, else at most 100 columns wide.

    >>> print(to_table(results), end="")  # doctest: +SKIP
    """
    from editkit.evaluation.rendering.table import results_table

    return results_table(plain(report), color=color)
