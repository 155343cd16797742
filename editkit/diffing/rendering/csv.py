"""The report as CSV: every measure in full precision, one line per tensor, module or layer; null is an empty field."""

import csv
import io
from collections.abc import Mapping
from typing import Any

from editkit.diffing.measures import MEASURES
from editkit.diffing.rendering.rows import group

_KEYS = {
    "tensor": ("name", "dtype", "shape", "stack", "layer", "module", "expert"),
    "module": ("module", "tensors"),
    "layer": ("stack", "layer", "tensors"),
}


def to_csv(report: Mapping[str, Any], by: str) -> str:
    """A header line and one line per row, unchanged ones included. Shapes are written as 2048x5632."""
    rows = group(report, by)
    columns = (*_KEYS[by], *MEASURES)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_field(row.get(column)) for column in columns] for row in rows)
    return text.getvalue()


def _field(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return "x".join(map(str, value))
    # A spreadsheet would run a name that starts like a formula.
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@")) else value
