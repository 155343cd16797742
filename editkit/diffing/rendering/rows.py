"""The rows of a report as text: what the terminal table, Markdown and CSV have in common.

>>> label({"stack": "model.layers", "layer": 3, "tensors": 9}, "layer"), label({"layer": None}, "layer")
('model.layers.3', 'outside layers')
"""

from collections.abc import Mapping
from typing import Any

from editkit.diffing.measures import MEASURES, UNDEFINED, crossed, share
from editkit.errors import EditError, printable

Row = Mapping[str, Any]

GROUPS = ("tensor", "module", "layer")
HEADER = ("elements", "changed", "rel. change", "largest change", "sign flips", "survive 8 bit", "survive 4 bit")
LEGEND = (
    "changed: share of elements with other bits. rel. change: L2 of the change over L2 of the base. largest change: |edited "
    "- base| in weight units. survive: share of the changed elements on another code of round-to-nearest quantization. "
    f"{UNDEFINED}: not defined."
)


def group(report: Mapping[str, Any], by: str) -> list[Row]:
    """The report's rows per "tensor", "module" or "layer"."""
    if by not in GROUPS:
        raise EditError(f"cannot group by {by!r}: choose tensor, module or layer")
    return report[f"{by}s"]


def changed_only(rows: list[Row]) -> tuple[list[Row], int]:
    """The rows with a change, and how many were left out."""
    kept = [row for row in rows if row["changed"]]
    return kept, len(rows) - len(kept)


def label(row: Row, by: str) -> str:
    """What to call a row; safe to print."""
    if by == "layer":
        return "outside layers" if row["layer"] is None else printable(f"{row['stack']}.{row['layer']}")
    return printable(row["name" if by == "tensor" else "module"])


def cells(row: Row) -> list[str]:
    """The texts under HEADER."""
    shown = ("numel", "changed_fraction", "rel_l2", "max_abs", "sign_flips")
    survive = (crossed(row, bits) for bits in (8, 4))
    return [MEASURES[name].write(row.get(name)) for name in shown] + [
        UNDEFINED if value is None else share(value) for value in survive
    ]
