"""An evaluation as one offline page, a sibling of those of a diff and a localization: the same frame, policy, colours and table.

Prompts and generations are texts of strangers and of models: Jinja escapes them, and `printable` shows what cannot be seen.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from editkit.diffing.measures import UNDEFINED
from editkit.diffing.rendering.html import Columns, compose
from editkit.diffing.rendering.html import Rows as TableRows
from editkit.diffing.rendering.wording import plural
from editkit.errors import printable
from editkit.evaluation.rendering import figures, wording
from editkit.evaluation.rendering.charts import short, styles
from editkit.evaluation.rendering.rows import FORGET, Line, Report, Rows, groups, known, lines, roles, stem
from editkit.evaluation.rendering.texts import texts

Pair = tuple[str, str]


def to_html(report: Report, rows: Rows) -> str:
    """The whole page. Works from file://, without a network; light and dark follow the reader's system."""
    found, looks = lines(report), styles(roles(report))
    columns, table = _table(found, report)
    others = [name for name in rows.sets(report) if name not in rows.main(report)]
    return compose(
        "evaluation.html.j2",
        Path(__file__).parent,
        marked="measured",
        things="results",
        columns=columns,
        rows=table,
        names=wording.names(report),
        headline=wording.headline(report),
        warnings=[printable(text) for text in report["warnings"]],
        verdict=wording.verdict(report),
        strip=list(_strip(report, found)),
        samples=[(looks[label], wording.called(label, role)) for label, role in roles(report).items()],
        single=figures.single(report, rows, looks, rows.main(report)),
        others=figures.single(report, rows, looks, others),
        stands=figures.stands(report, looks),
        truth=figures.truth(report, rows, looks, found),
        memorized=figures.memorized(report, rows, looks),
        buckets=list(figures.buckets(found, looks)),
        missing=figures.missing(report, rows),
        results=_results(found, list(roles(report))),
        gaps=wording.gaps(report, found),
        harness=bool(report.get("lm_eval")),
        examples=texts(report, rows),
        settings=wording.settings(report),
        data=[(printable(one["set"]), printable(one["name"] or UNDEFINED), one["examples"], one["sha256"]) for one in report["sets"]],
        definitions=_definitions(report),
        files=[(wording.called(one["label"], one.get("role") or "model"), one["sha256"] or {}) for one in report["models"]],
        versions=f"{report['schema']}, editkit {report['editkit']}",
    )  # fmt: skip


def _strip(report: Report, found: Sequence[Line]) -> Iterator[tuple[str, list[Pair], list[Pair], str]]:
    """(label, values of the models, of base and reference, note) of the numbers at the top. One model alone needs no name."""
    overall = [
        line for key, name in wording.OVERALL.items() for line in found
        if stem(line.metric) == key and line.bucket is None and line.set in (name, None)
    ]  # fmt: skip
    shown = [line for line in (*wording.keys(report).values(), *overall) if any(map(known, line.results.values()))]
    alone = sum(role == "model" for role in roles(report).values()) == 1
    for line in shown[:6]:
        values, others, notes = [], [], []
        for model, role in roles(report).items():
            one = line.results.get(model)
            if one and known(one):
                text = wording.write(line.metric, one["value"])
                if role != "model":
                    others.append((role, text))
                else:
                    values.append(("" if alone else short(model, 14), text))
                    notes += (
                        [f"95 % interval {limits}"] if alone and (limits := wording.interval(line.metric, one)) else []
                    )
        n = line.n
        notes += (
            [f"n = {'–'.join(f'{one:,}' for one in dict.fromkeys((n[0], n[-1])))} {plural('example', n[-1])}"]
            if n
            else []
        )
        of = f" of {printable(line.set)}" if line.set and wording.OVERALL.get(stem(line.metric)) != FORGET else ""
        yield wording.label(line.metric) + of, values, others, ", ".join(notes)


def _results(found: Sequence[Line], labels: Sequence[str]) -> list[dict[str, Any]]:
    """All results but those of buckets, as texts: suites of sets of lines with a cell for every model."""

    def cell(line: Line, model: str) -> tuple[str, str, str]:
        one = line.results.get(model)
        if one is None or not known(one):
            return UNDEFINED, "", printable(one["status"]) if one else "not computed"
        return wording.write(line.metric, one["value"]), wording.interval(line.metric, one), ""

    suites: dict[str, list[dict[str, Any]]] = {}
    for (name, of), group in groups(found).items():
        rows = [
            {"label": wording.label(line.metric), "id": line.metric["id"], "n": wording.size(line), "cells": [cell(line, model) for model in labels]}
            for line in group
        ]  # fmt: skip
        suites.setdefault(name, []).append({"set": printable(of) if of else "over the sets", "rows": rows})
    return [{"suite": name, "sets": sets} for name, sets in suites.items()]


def _definitions(report: Report) -> list[tuple[str, ...]]:
    return [
        (printable(one["id"]), printable(wording.label(one)), printable(one["meaning"]), one.get("better") or UNDEFINED, printable(one["source"] or UNDEFINED))
        for one in report["metrics"]
    ]  # fmt: skip


def _table(found: Sequence[Line], report: Report) -> tuple[Columns, TableRows]:
    """Columns and rows of the full table: one for every result, those of buckets too."""
    numbers = {
        "value": "", "ci_low": "lower limit of the 95 % interval", "ci_high": "upper limit of the 95 % interval",
        "sd": "standard deviation over examples", "median": "over examples", "p95": "95th percentile over examples", "max": "over examples",
    }  # fmt: skip
    columns = [
        ("result", "text", "set, metric and bucket"),
        ("model", "text", ""),
        *((key.replace("_", " "), "number", meaning) for key, meaning in numbers.items()),
        ("n", "count", "examples"),
        ("unit", "text", ""),
        ("measured", "text", ""),
        ("status", "text", "why there is no value"),
    ]
    rows = []
    for line in found:
        name = " ".join(filter(None, (line.set or "over the sets", line.metric["id"], line.bucket)))
        for model, one in line.results.items():
            values = [None if (value := one.get(key)) is None else float(f"{value:.9g}") for key in numbers]
            there = known(one)
            rows.append(
                [
                    printable(name),
                    printable(model),
                    *values,
                    one.get("n"),
                    printable(line.metric["unit"]),
                    "yes" if there else "",
                    "" if there else printable(one["status"]),
                ]
            )
    return columns, rows
