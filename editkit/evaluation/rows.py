"""Rows of an evaluation, one per example, set and model: as files, and as columns for the metrics.

>>> data = columns([{"set": "forget", "index": 1, "nll": 2.0}, {"set": "forget", "index": 0, "nll": 0.5, "ma": 1}])
>>> data["forget"]["nll"], data["forget"]["ma"]
(array([0.5, 2. ]), array([ 1., nan]))
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from editkit.errors import EditError, listed
from editkit.evaluation.measuring import COLUMNS
from editkit.evaluation.metrics.rouge import rouge

Row = dict[str, Any]
Columns = Mapping[str, Any]
"""Column -> float64 [n], NaN where a row lacks it; `perturbed_nll` -> list of n arrays, empty where a row lacks it; `answer` -> list of n
texts or None, by which examples are known again."""

ROLES = ("model", "base", "reference")
LISTS = ("perturbed_nll",)
TEXTS = ("generation",)
NUMBERS = tuple(column for column in COLUMNS if column not in (*LISTS, *TEXTS))
LOSSES = ("nll", "paraphrased_nll", "generation_base_nll")
SHARES = (
    *("token_accuracy", "ma", "extraction_strength", "el_10", "rouge1_recall", "rougeL_recall", "rougeL_f1"),
    *("token_entropy", "repetition", "distinct_2", "cosine", "entails_truth", "entailed_by_truth"),
)
TOFU_LOG = {
    "avg_gt_loss": "nll",
    "num_token_gt": "num_tokens",
    "avg_paraphrased_loss": "paraphrased_nll",
    "average_perturb_loss": "perturbed_nll",
    "rouge1_recall": "rouge1_recall",
    "rougeL_recall": "rougeL_recall",
    "generated": "generation",
    "truth": "answer",
}
"""Keys of the logs that TOFU's own evaluation writes -> ours."""


def strange_keys(rows: Iterable[Row]) -> list[str]:
    """Keys that no metric reads, misspelt ones perhaps."""
    known = {"model", "role", "set", "index", "prompt", "answer", *COLUMNS}
    return sorted({key for row in rows for key in row} - known - {"avg_gt_loss", "num_token_gt", "question"})


def to_line(row: Mapping[str, Any]) -> str:
    """A row as a line of examples.jsonl; what is not finite becomes null."""

    def plain(value: Any) -> Any:
        if isinstance(value, list):
            return [plain(one) for one in value]
        return None if isinstance(value, float) and not isfinite(value) else value

    return json.dumps({key: plain(value) for key, value in row.items()}, ensure_ascii=False) + "\n"


def read_rows(path: str | os.PathLike[str]) -> list[Row]:
    """Rows from examples.jsonl, also of other programs, or from a log of TOFU's evaluation (.json).

    A row needs `set`; ROUGE is worked out where a row has texts and lacks it; `index` counts within set and model where it is absent, `model` is the file's name, `role` "model". Raises EditError
    that names every bad line.
    """
    label, place = os.fspath(path), Path(path).expanduser()
    if place.is_dir():
        place = place / "examples.jsonl"
    try:
        text = place.read_text("utf-8-sig")
    except OSError as error:
        raise EditError(f"{label} cannot be read ({error.strerror}): give examples.jsonl of an evaluation") from error
    except UnicodeDecodeError as error:
        raise EditError(f"{label} is not UTF-8 ({error.reason} at byte {error.start}): save it as UTF-8") from error
    numbered = _log(text, label) if place.suffix == ".json" else _lines(text, label)
    if not numbered:
        raise EditError(f"{label} has no rows: give examples.jsonl of an evaluation")
    rows = _checked(numbered, label)
    counts: dict[tuple[str, str], int] = {}
    for row in rows:
        row.setdefault("model", place.stem)
        row.setdefault("role", "model")
        key = (row["model"], row["set"])
        row.setdefault("index", counts.get(key, 0))
        counts[key] = counts.get(key, 0) + 1
        if "generation" in row and "answer" in row and not any("rouge" in column for column in row):
            row |= rouge(row["generation"], row["answer"])
    _refuse_twice(rows, label)
    return rows


def _lines(text: str, label: str) -> list[tuple[int, Any]]:
    numbered, broken = [], []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                numbered.append((number, json.loads(line)))
            except (ValueError, RecursionError):
                broken.append(number)
    if broken:
        raise EditError(f"{label}: line {listed(broken)} cannot be read as JSON: one object on each line")
    return numbered


def _log(text: str, label: str) -> list[tuple[int, Any]]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise EditError(
            f"{label} is broken JSON ({error}): give examples.jsonl, or a log of TOFU's evaluation"
        ) from error
    shaped = isinstance(found, dict) and found and all(isinstance(rows, list) for rows in found.values())
    if not shaped:
        raise EditError(
            f"{label} is no log of TOFU's evaluation, which holds a list of rows for each set: give examples.jsonl"
        )
    rows = [{**row, "set": name} if isinstance(row, dict) else row for name, rows in found.items() for row in rows]
    return list(enumerate(rows, 1))


def _checked(numbered: Sequence[tuple[int, Any]], label: str) -> list[Row]:
    """The rows with our keys. Raises EditError for rows that are none, and values of the wrong kind."""
    rows, faults = [], dict[str, list[int]]()
    for number, found in numbered:
        if not isinstance(found, dict):
            faults.setdefault("no JSON object", []).append(number)
            continue
        row: Row = {str(TOFU_LOG.get(key, key)): value for key, value in found.items() if value is not None}
        for key, right, what in _KINDS:
            if key in row and not right(row[key]):
                faults.setdefault(f"with a {key!r} that is not {what}", []).append(number)
        if "attack" in row:
            faults.setdefault("of an attack, whose numbers attack.json has", []).append(number)
        if "set" not in row:
            faults.setdefault("without 'set'", []).append(number)
        rows.append(row)
    if faults:
        said = "; ".join(f"line {listed(lines)} {fault}" for fault, lines in faults.items())
        raise EditError(f"{label}: {said}: see examples.jsonl in docs/formats.md")
    return rows


def _is_number(value: Any) -> bool:
    whole = isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**1000  # which a float can hold
    return whole or isinstance(value, float)


def _is_loss(value: Any) -> bool:
    return _is_number(value) and not value < 0


def _is_share(value: Any) -> bool:
    return _is_number(value) and not (value < -1e-6 or value > 1 + 1e-6)  # NaN is unknown


def _is_name(value: Any) -> bool:
    """Text that can be written: JSON holds unpaired surrogates, and UTF-8 does not."""
    return isinstance(value, str) and bool(value) and not any("\ud800" <= one <= "\udfff" for one in value)


_KINDS = (
    *((key, _is_name, "a name") for key in ("set", "model")),
    ("role", lambda value: value in ROLES, f"one of {listed(ROLES)}"),
    ("index", lambda value: type(value) is int and value >= 0, "a number from 0"),
    *((key, lambda value: isinstance(value, str), "text") for key in ("prompt", "answer", "generation")),
    *((key, _is_number, "a number") for key in NUMBERS if key not in (*LOSSES, *SHARES)),
    *((key, _is_loss, "a number of 0 or more") for key in LOSSES),
    *((key, _is_share, "a share from 0 to 1") for key in SHARES),
    *(
        (
            key,
            lambda value: isinstance(value, list) and all(one is None or _is_loss(one) for one in value),
            "a list of numbers of 0 or more",
        )
        for key in LISTS
    ),
)


def _refuse_twice(rows: Iterable[Row], label: str) -> None:
    seen, twice = set(), []
    for row in rows:
        key = (row["model"], row["set"], row["index"])
        if key in seen:
            twice.append(f"{row['set']} {row['index']} of {row['model']}")
        seen.add(key)
    if twice:
        raise EditError(f"{label}: twice in it: {listed(twice)}: give each model its own name in 'model'")


def columns(rows: Iterable[Row]) -> dict[str, Columns]:
    """Set -> its columns, rows in the order of `index`; only columns of which some row knows the value, and `index` and `answer`."""
    sets: dict[str, list[Row]] = {}
    for row in rows:
        sets.setdefault(row["set"], []).append(row)
    found: dict[str, Columns] = {}
    for name, members in sets.items():
        members.sort(key=lambda row: row["index"])
        data: dict[str, Any] = {"index": np.array([row["index"] for row in members])}
        for column in NUMBERS:
            values = np.array([_number(row.get(column)) for row in members])
            if not np.isnan(values).all():
                data[column] = values
        for column in LISTS:
            lists = [np.array([_number(one) for one in row.get(column) or []]) for row in members]
            if any(map(len, lists)):
                data[column] = lists
        data["texts"] = [(row.get("prompt"), row.get("answer")) for row in members]
        found[name] = data
    return found


def _number(value: float | None) -> float:
    """NaN for all that a line of examples.jsonl has null for."""
    return float(value) if value is not None and isfinite(value) else float("nan")
