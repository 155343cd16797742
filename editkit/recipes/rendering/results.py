"""The table of a run for the page: every number with its spread, and a small picture of all of them on the scale of their column."""

from collections.abc import Mapping, Sequence
from typing import Any

from editkit.diffing.rendering.heatmap import Scale
from editkit.errors import printable
from editkit.recipes.rendering import wording
from editkit.recipes.rendering.wording import EXAMPLES, spreads, unknown, written

WIDE, PAD = 112, 5  # pixels of a picture, and of the room at its ends
Value = Mapping[str, Any]


def results(table: Mapping[str, Any]) -> dict[str, Any]:
    """Head, rows of cells and the notes below."""
    scales = {name: _scale([row["values"][name] for row in table["rows"]]) for name in table["columns"]}
    return {
        "variables": [printable(name) for name in table["variables"]],
        "columns": [_head(name, table) for name in table["columns"]],
        "rows": [
            {
                "cell": [wording.name(str(row["cell"][name])) for name in table["variables"]],
                "values": [_value(row["values"][name], scales[name], name) for name in table["columns"]],
            }
            for row in table["rows"]
        ],
        "spreads": spreads(table),
        "unknown": unknown(table),
        "drawn": any(scales.values()),
    }


def _head(name: str, table: Mapping[str, Any]) -> tuple[str, str]:
    """Name and unit."""
    units = dict.fromkeys(row["values"][name]["unit"] for row in table["rows"])
    return printable(name), printable(", ".join(filter(None, units)))


def _scale(values: Sequence[Value]) -> Scale | None:
    """From the lowest to the highest number of a column; None where there are no two to compare."""
    found = [number for one in values for number in _numbers(one)]
    if sum(bool(_numbers(one)) for one in values) < 2 or min(found) == max(found):
        return None
    return Scale(min(found), max(found), False)


def _numbers(one: Value) -> list[float]:
    """Those that are drawn of a value: itself, those it is the mean of, and the ends of their spread."""
    if not _is_number(one["value"]):
        return []
    spread = _spread(one)
    return [one["value"], one["value"] - spread, one["value"] + spread, *filter(_is_number, one["each"])]


def _spread(one: Value) -> float:
    """The standard deviation over cells; that over examples is not drawn, it is far wider than what the mean may be off by."""
    return one["sd"] or 0.0 if one["of"] != EXAMPLES else 0.0


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _value(one: Value, scale: Scale | None, name: str) -> dict[str, Any]:
    n = f"n = {one['n']:,} ({one['of'] or EXAMPLES})" if one["n"] is not None else ""
    tip = [f"{printable(name)} {written(one)}", n, printable(one["status"]) if one["status"] != "ok" else ""]
    if len(one["each"]) > 1:
        tip.append("each: " + ", ".join(written({"value": each, "sd": None}) for each in one["each"]))
    picture = None
    if scale is not None and _is_number(one["value"]):

        def across(number: float) -> float:
            return round(PAD + scale.position(number) * (WIDE - 2 * PAD), 1)

        spread = _spread(one)
        picture = {
            "at": across(one["value"]),
            "ends": (across(one["value"] - spread), across(one["value"] + spread)) if spread else None,
            "each": [across(each) for each in one["each"] if _is_number(each)] if len(one["each"]) > 1 else [],
        }
    return {
        "text": written(one),
        "known": one["status"] == "ok",
        "tip": "\n".join(filter(None, tip)),
        "picture": picture,
    }
