"""A report (schema `editkit.diff/1`, see docs) as a table, JSON, CSV, Markdown, a page and a picture."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from editkit.checkpoint import disk
from editkit.errors import EditError

FORMATS = ("table", "json", "csv", "md", "html")


def render(report: Mapping[str, Any], format: str = "table", by: str = "layer", *, color: bool = False) -> str:
    """The report as one string.

    >>> summary = {"tensors": 1, "tensors_changed": 0, "numel": 8, "changed": 0, "changed_fraction": 0.0}
    >>> names = {"base": {"name": "a"}, "edited": {"name": "b"}}
    >>> print(render({**names, "summary": summary, "layers": [], "tensors": []}), end="")
    a → b
    Nothing changed: all 8 parameters in 1 tensor are equal bit for bit.

    `format`: "table" (plain text; `color=True` adds ANSI styles for a terminal), "json", "csv", "md" or "html".
    `by`: one row per "tensor", "module" or "layer"; JSON and HTML always hold all three. Raises EditError on other values.
    """
    if format not in FORMATS:
        raise EditError(f"unknown format {format!r}: choose table, json, csv, md or html")
    report = plain(report)
    if format == "json":
        return to_json(report)
    if format == "html":
        from editkit.diffing.rendering.html import to_html

        return to_html(report)
    if format == "csv":
        from editkit.diffing.rendering.csv import to_csv

        return to_csv(report, by)
    if format == "md":
        from editkit.diffing.rendering.markdown import to_markdown

        return to_markdown(report, by)
    from editkit.diffing.rendering.table import to_table

    return to_table(report, by, color=color)


def check_folder(folder: Path, inputs: Sequence[str] = ()) -> None:
    """Raise EditError where `write_report` would have to overwrite something, or to write into one of `inputs`.

    `inputs`: paths, or Hub ids, whose files are out of the way.
    """
    shown, folder = folder, folder.expanduser().resolve()
    disk.refuse_inputs(folder, str(shown), (Path(one) for one in inputs if os.path.exists(os.path.expanduser(one))))
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise EditError(f"{shown} exists and is not an empty folder: remove it, or write the report somewhere else")


def write_report(report: Mapping[str, Any], folder: Path) -> None:
    """Write report.json, report.html and layers.png as the new folder `folder`, whole or not at all.

    `folder` may exist if it is empty; otherwise EditError is raised. Same report, same bytes.
    """
    from editkit.diffing.rendering.html import to_html
    from editkit.diffing.rendering.picture import to_png

    check_folder(folder)
    report = plain(report)
    output = folder.expanduser().resolve()
    texts = {"report.json": to_json(report), "report.html": to_html(report)}
    files = {**{name: text.encode() for name, text in texts.items()}, "layers.png": to_png(report)}
    with disk.writing(str(folder)), disk.staged(output) as staged:
        for name, content in files.items():
            (staged / name).write_bytes(content)
        staged.replace(output)


def to_json(report: Mapping[str, Any]) -> str:
    """Strict JSON in the report's own order, one line per row, so that grep and diff work on it.

    >>> print(to_json({"schema": "editkit.diff/1", "tensors": [{"l2": float("nan")}, {"l2": 0.5}]}), end="")
    {"schema": "editkit.diff/1",
     "tensors": [
      {"l2": null},
      {"l2": 0.5}]}
    """

    def value(item: Any) -> str:
        if isinstance(item, list) and item:
            return "[\n  " + ",\n  ".join(json.dumps(row, allow_nan=False) for row in item) + "]"
        return json.dumps(item, allow_nan=False)

    items = (f"{json.dumps(key)}: {value(item)}" for key, item in plain(report).items())
    return "{" + ",\n ".join(items) + "}\n"


def plain(item: Any) -> Any:
    """Only what JSON knows: NaN and infinities become null, numpy scalars and tuples their plain counterparts."""
    if isinstance(item, Mapping):
        return {str(key): plain(value) for key, value in item.items()}
    if isinstance(item, list | tuple):
        return [plain(value) for value in item]
    if hasattr(item, "tolist"):
        return plain(item.tolist())
    return None if isinstance(item, float) and not math.isfinite(item) else item
