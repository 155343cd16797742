"""What a call found, in one line; and whether it is a verdict that fails a gate, as exit code 1 of the same command says."""

import os
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from typing import Any

from editkit.diffing.rendering import plain
from editkit.errors import listed

Result = Mapping[str, Any]


def as_json(result: Any, names: Mapping[str, str]) -> dict[str, Any]:
    """What a function returned, as JSON can hold it: dataclasses by their fields, several of them by their names. names: see `plainly`."""
    if isinstance(result, tuple):
        return {type(one).__name__.lower(): as_json(one, names) for one in result}
    if isinstance(result, os.PathLike):
        return {"output": os.path.basename(result)}
    known = asdict(result) if is_dataclass(result) and not isinstance(result, type) else result
    return plain(_told(known, names))


def _told(value: Any, names: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        return plainly(value, names)
    if isinstance(value, os.PathLike):
        return os.path.basename(value)
    if isinstance(value, Mapping):
        return {_told(key, names): _told(one, names) for key, one in value.items()}
    return [_told(one, names) for one in value] if isinstance(value, list | tuple) else value


def plainly(text: str, names: Mapping[str, str]) -> str:
    """A text with places as the recipe calls them, without the folders of this machine. names: place -> what it is called.

    >>> plainly("/home/me/data/forget.jsonl is empty", {"/home/me/data/forget.jsonl": "forget.jsonl"})
    'forget.jsonl is empty'
    """
    for place in sorted(names, key=len, reverse=True):
        text = text.replace(place, names[place])
    return text


def warnings_of(result: Result) -> list[str]:
    """What the function warned of."""
    return [str(one) for part in _parts(result) for one in part.get("warnings") or ()]


def gate(function: str, result: Result) -> str | None:
    """Why the result of a function fails a gate, None where it does not."""
    if function == "diff":
        return "; ".join(result["violations"]) or None
    if function == "verify" and result["verdict"] != "ok":
        wrong = [f"{row['what']} {row['name']} {row['state']}" for row in result["rows"] if row["state"] != "ok"]
        return f"{result['output']}: {result['verdict']} ({listed(wrong, 5)})"
    if function == "verify_patch" and "side" in result and result["side"] is None and result.get("nearest"):
        return f"it is neither side of the patch, and nearest to the {result['nearest']} one"
    if function == "sweep":
        return result["refusal"]
    if function in ("negate", "bake", "merge", "forget") and not all(part.get("changed", 1) for part in _parts(result)):
        return "no weight differs from the base"
    return None


def summary(function: str, result: Result) -> str:
    """One line for a list of calls, "" where there is nothing short to say."""
    said = _SUMMARIES.get(function)
    return said(result) if said else ""


def _parts(result: Result) -> list[Result]:
    """The result, and those of the parts of `forget`."""
    return [result, *(result[key] for key in ("finetuned", "negation", "edit") if isinstance(result.get(key), Mapping))]


def _invented(result: Result) -> str:
    people = result["people"]
    return f"{people['forget']} people to forget, {people['retain']} to keep, {people['unseen']} never met"


def _unlearned(result: Result) -> str:
    ends = [f"{task['outcome']} at step {task['points'][task['chosen']]['step']}" for task in result["tasks"]]
    moved = [
        f"MA of {row['set']} {row['before']['value']:.2f} → {row['after']['value']:.2f} (n = {row['after']['n']})"
        for row in result["result"]
        if row["quantity"] == "ma" and None not in (row["before"]["value"], row["after"]["value"])
    ]
    return "; ".join([listed(ends, 3), *moved[:3]])


def _located(result: Result) -> str:
    from editkit.localization.rendering.wording import headline

    return headline(result)


def _attacked(result: Result) -> str:
    return listed(f"{one['label']}: {one['verdict']}" for one in result["verdicts"])


def _swept(result: Result) -> str:
    from editkit.sweeps.report import named

    report = result["report"]
    for role in ("chosen", "knee"):
        if report[role] is not None:
            return f"{role}: {named(report, report[role])}"
    return f"{len(report['points'])} points"


def _diffed(result: Result) -> str:
    from editkit.diffing.rendering.wording import audit, headline

    return " ".join(filter(None, (headline(result), audit(result))))


def _edited(result: Result) -> str:
    changed = next((part["changed"] for part in _parts(result) if "changed" in part), None)
    return "" if changed is None else f"{changed:,} elements changed"


_SUMMARIES = {
    "invent": _invented,
    "unlearn": _unlearned,
    "localize": _located,
    "attack": _attacked,
    "sweep": _swept,
    "diff": _diffed,
    "verify": lambda result: result["verdict"],
    "evaluate": lambda result: f"{len(result['models'])} models on {listed(one['set'] for one in result['sets'])}",
    **dict.fromkeys(("negate", "bake", "merge", "forget"), _edited),
}
