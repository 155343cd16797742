"""A conflict report (schema `editkit.conflicts/1`) as a table, and as a folder with JSON and a picture."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from editkit.checkpoint import disk
from editkit.diffing.rendering import check_folder, to_json

JSON, PICTURE = "conflicts.json", "conflicts.png"


def to_table(report: Mapping[str, Any], *, color: bool = False) -> str:
    from editkit.merging.rendering.table import to_table as drawn

    return drawn(report, color=color)


def write_report(report: Mapping[str, Any], folder: Path) -> None:
    """Write conflicts.json and conflicts.png as the new folder `folder`, whole or not at all."""
    from editkit.merging.rendering.picture import to_png

    check_folder(folder)
    output = folder.expanduser().resolve()
    with disk.writing(str(folder)), disk.staged(output) as staged:
        (staged / JSON).write_text(to_json(report), "utf-8")
        (staged / PICTURE).write_bytes(to_png(report))
        staged.replace(output)
