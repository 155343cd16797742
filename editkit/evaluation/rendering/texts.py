"""What the models wrote, example by example: texts of strangers and of models, escaped, and cut where they are long."""

from collections.abc import Mapping
from typing import Any

from editkit.diffing.measures import UNDEFINED, number
from editkit.errors import printable
from editkit.evaluation.rendering.charts import styles
from editkit.evaluation.rendering.rows import Report, Row, Rows, finite, roles

FIRST, MOST, LONG = 30, 10, 700  # examples of a set by number, and by how much the models differ; characters of a text
VALUES = {"token_accuracy": "accuracy", "rougeL_recall": "ROUGE-L", "nll": "NLL"}
"""Columns that are written beside a generation; the models are compared by the first that they have."""


def texts(report: Report, rows: Rows) -> list[dict[str, Any]]:
    """For each set that has texts: the examples in which the models differ most, then the first ones."""
    found = []
    for name in rows.sets(report):
        examples: dict[int, dict[str, Row]] = {}
        for model in roles(report):
            for place, row in enumerate(rows.of.get((model, name), ())):
                examples.setdefault(row.get("index", place), {})[model] = row
        key, ranked = _differing(name, report, rows)
        most, first = ranked[:MOST], sorted(examples)[:FIRST]
        groups = [most, [index for index in first if index not in most]]
        if any(
            row.get(part)
            for index in first
            for row in examples[index].values()
            for part in ("prompt", "answer", "generation")
        ):
            found.append({
                "set": printable(name), "n": len(examples), "first": len(first), "key": VALUES.get(key, ""),
                "groups": [[_example(index, examples[index], styles(roles(report))) for index in group] for group in groups],
            })  # fmt: skip
    return found


def _differing(name: str, report: Report, rows: Rows) -> tuple[str, list[int]]:
    """The column by which models are compared, and the examples in which they differ, those that differ most first."""
    for key in VALUES:
        columns = list(rows.columns(report, name, key).values())
        if len(columns) > 1:
            shared = set(columns[0]).intersection(*columns[1:])
            spans = {index: max(one[index] for one in columns) - min(one[index] for one in columns) for index in shared}
            return key, sorted(
                (index for index in shared if spans[index] > 0), key=lambda index: (-spans[index], index)
            )
    return "", []


def _example(index: int, of: Mapping[str, Row], looks: Mapping[str, str]) -> dict[str, Any]:
    said = []
    for model, row in of.items():
        values = (f"{text} {number(row[key])}" for key, text in VALUES.items() if finite(row.get(key)))
        one = {"model": printable(model), "style": looks[model], "text": _cut(row.get("generation"))}
        said.append(one | {"numbers": " · ".join(values)})
    prompt, answer = (next((row[key] for row in of.values() if row.get(key)), None) for key in ("prompt", "answer"))
    return {"index": index, "prompt": _cut(prompt), "answer": _cut(answer), "said": said}


def _cut(text: str | None) -> str:
    if text is None:
        return UNDEFINED
    return printable(text[:LONG]) + (f" … ({len(text) - LONG:,} more characters)" if len(text) > LONG else "")
