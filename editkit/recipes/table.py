"""The table of a run: what its columns look up in every cell, and mean and spread over some of the variables.

>>> rows = [({"seed": 0}, {"MA": {"value": 0.2, "n": 40, "sd": 0.1}}), ({"seed": 1}, {"MA": {"value": 0.4, "n": 40, "sd": 0.1}})]
>>> found = tabulate(rows, ["MA"], ["seed"], ["seed"])["rows"][0]["values"]["MA"]
>>> round(found["value"], 3), round(found["sd"], 3), found["n"], found["of"]
(0.3, 0.141, 2, 'seed')
"""

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from editkit.errors import EditError, listed

SCHEMA = "editkit.table/1"
Cell = Mapping[str, Any]


def tabulate(
    rows: Sequence[tuple[Cell, Mapping[str, Any]]], columns: Sequence[str], matrix: Sequence[str], over: Sequence[str]
) -> dict[str, Any]:
    """The table as in run.json. rows: every cell with what each column found: a number, a text, or a mapping with `value`, which may have
    `n`, `sd`, `unit` and `status`; {"status": "unknown: why"} where there is nothing.

    Over variables: the mean, with the sample standard deviation of the cells and their number as n; texts and truths are counted. Where one of the cells
    has nothing the mean is unknown.
    """
    stay = [name for name in matrix if name not in over]
    groups: dict[str, list[tuple[Cell, Mapping[str, Any]]]] = {}
    for cell, found in rows:
        groups.setdefault(json.dumps([cell[name] for name in stay]), []).append((cell, found))
    return {
        "over": list(over),
        "variables": stay,
        "columns": list(columns),
        "rows": [
            {
                "cell": {name: members[0][0][name] for name in stay},
                "values": {name: _taken([found[name] for _, found in members], over) for name in columns},
            }
            for members in groups.values()
        ],
    }


def plain_value(found: Any) -> Any:
    """What a column found, if a table can hold it. Raises EditError for a list or mapping, with what there is in it."""
    if isinstance(found, list):
        raise EditError(f"it is a list of {len(found)}: say which in brackets, as [key=value] or [0]")
    if isinstance(found, Mapping) and "value" not in found:
        raise EditError(f"it is a mapping: say what of it, of {listed(found, 8) or 'nothing'}")
    return found


def _taken(found: Sequence[Any], over: Sequence[str]) -> dict[str, Any]:
    ones = [_one(value) for value in found]
    if not over:
        return {**ones[0], "each": [ones[0]["value"]]}
    each = [one["value"] for one in ones]
    taken = {"value": None, "sd": None, "n": None, "of": None, "unit": ones[0]["unit"], "status": "ok", "each": each}
    if lacking := [one["status"] for one in ones if one["value"] is None]:
        others = f" (so in {len(lacking)} of {len(ones)} cells)" if len(ones) > 1 else ""
        return {**taken, "status": f"{lacking[0]}{others}"}
    taken |= {"n": len(each), "of": ", ".join(over)}
    if any(_is_number(value) and not math.isfinite(value) for value in each):
        return {**taken, "status": "unknown: one of the values is not finite"}
    if all(_is_number(value) for value in each):
        return {**taken, "value": fmean(each), "sd": stdev(each) if len(each) > 1 else None}
    counts = Counter(map(_said, each))
    return {**taken, "value": ", ".join(f"{value} {count}" for value, count in counts.items())}


def _one(found: Any) -> dict[str, Any]:
    """What a single cell says."""
    known = dict(found) if isinstance(found, Mapping) else {"value": found}
    value, status = known.get("value"), str(known.get("status") or "ok")
    if not isinstance(value, str | int | float | bool):
        status = status if status != "ok" else "unknown: it has no value"
        value = None
    number = known if _is_number(value) else {}
    return {
        "value": value,
        "sd": number.get("sd"),
        "n": number.get("n"),
        "of": "examples" if number.get("n") is not None else None,
        "unit": str(number.get("unit") or ""),
        "status": status,
    }


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _said(value: Any) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def to_csv(table: Mapping[str, Any]) -> str:
    """One line per row: the variables, then value, sd and n of every column, and its status where that is not ok."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = [(name, part) for name in table["columns"] for part in ("value", "sd", "n", "status")]
    writer.writerow([*table["variables"], *(name if part == "value" else f"{name} {part}" for name, part in columns)])
    for row in table["rows"]:
        cells = [row["values"][name][part] for name, part in columns]
        writer.writerow([*row["cell"].values(), *("" if value in (None, "ok") else value for value in cells)])
    return text.getvalue()
