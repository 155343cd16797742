"""results.json: what was compared, every metric with its interval, and what to be careful about; and the folder it is written to."""

from collections.abc import Mapping, Sequence
from math import isinf
from pathlib import Path
from typing import Any

import numpy as np

from editkit import __version__
from editkit.checkpoint import disk
from editkit.diffing.rendering import plain, to_json
from editkit.errors import listed
from editkit.evaluation.aggregate import aggregate, aligned, distribution
from editkit.evaluation.rows import NUMBERS, Row, columns, to_line
from editkit.evaluation.suites import FORGET, METRICS, REFERENCE, Data, Metric, Overall

SCHEMA = "editkit.evaluation/1"
RESULTS, ROWS = "results.json", "examples.jsonl"
FOR_ROWS = {
    " (--embedding-model)": "",
    " (--nli-model)": "",
    " (--base)": "",
    "give --reference, a model": "give --reference-from, rows of a model",
    "give --set unseen=FILE, text": "give rows of the set unseen, text",
}
"""Options that load something -> what stands in their place where rows are read."""


def build(
    rows: Sequence[Row],
    metrics: Sequence[Metric],
    *,
    models: Sequence[Mapping[str, Any]],
    reference_rows: Sequence[Row] = (),
    **known: Any,
) -> dict[str, Any]:
    """The report. models: label and role of each column, in order. reference_rows: in place of rows of the role "reference". known: more of
    the keys of results.json, such as sets, settings and warnings.
    """
    data = {one["label"]: columns(row for row in rows if row["model"] == one["label"]) for one in models}
    labels = {
        role: next((one["label"] for one in models if one["role"] == role), None) for role in ("base", "reference")
    }
    base = data[labels["base"]] if labels["base"] else None
    reference = data[labels["reference"]] if labels["reference"] else None
    if reference_rows:
        reference = columns(reference_rows)
    results = aggregate(data, metrics, reference=reference, base=base)
    _say_why(results, rows, labels)
    if "rows" in known["settings"]:
        for one in results:
            for said, instead in FOR_ROWS.items():
                one["status"] = one["status"].replace(said, instead)
    warnings = [
        *known.get("warnings", ()),
        *_calibrations(models),
        *_warnings(rows, data, reference, labels["reference"]),
    ]
    report = {
        "schema": SCHEMA,
        "editkit": __version__,
        "models": list(models),
        **{key: known[key] for key in ("sets", "settings")},
        "metrics": [one.described() for one in metrics],
        "results": results,
        "overlap": known.get("overlap"),
        "distribution": distribution(reference) if _same_examples(reference, next(iter(data.values()))) else None,
        "lm_eval": known.get("lm_eval"),
        "warnings": [*warnings, *_zeros(data, metrics, results)],
    }
    return plain(report)


def _say_why(results: Sequence[dict[str, Any]], rows: Sequence[Row], labels: Mapping[str, str | None]) -> None:
    """Better reasons than a missing column, for what is never measured of a base or of a reference that is no MODEL."""
    asked = {row["model"] for row in rows if "generation" in row}
    against_itself = {one.id for one in METRICS if {"kl", "generation_base_nll"} & set(one.needs)}
    only_asked = {one.id for one in METRICS if not set(one.needs) <= set(REFERENCE)}
    for one in results:
        if one["status"].startswith("skipped: no") and not one["status"].startswith("skipped: no set") and asked:
            if one["model"] == labels["base"] and one["metric"] in against_itself:
                one["status"] = "skipped: it is the base itself"
            elif one["model"] == labels["reference"] and one["model"] not in asked and one["metric"] in only_asked:
                one["status"] = "skipped: a reference is only read, not asked; give it as a MODEL too"


def _same_examples(reference: Data | None, data: Data) -> bool:
    """Whether the reference was measured on the very forget set, as far as texts are known."""
    if reference is None or any(FORGET not in one or "nll" not in one[FORGET] for one in (reference, data)):
        return False
    found = aligned(reference[FORGET], data[FORGET])["nll"]
    return len(reference[FORGET]["index"]) == len(found) and not np.isnan(found).any()


def _calibrations(models: Sequence[Mapping[str, Any]]) -> list[str]:
    return [
        f"{one['label']} keeps {found['edited'] / found['original']:.1%} of the token accuracy of the base as it is, more than it was "
        "to be mixed down to: it is compared at its own retention"
        for one in models
        if (found := one.get("calibration")) and not found["reached"]
    ]


def _warnings(rows: Sequence[Row], data: Mapping[str, Data], reference: Data | None, name: str | None) -> list[str]:
    found = []
    for label, sets in data.items():
        for one in sets:
            members = [row for row in rows if row["model"] == label and row["set"] == one]
            wild = {key: n for key in NUMBERS if (n := sum(_is_wild(row.get(key)) for row in members))}
            for key, n in wild.items():
                found.append(
                    f"{label} has a {key} that is infinite in {n} of {len(members)} rows of {one}: they are left out"
                )
            written = [row for row in members if "generation" in row]
            if empty := sum(not row["generation"] for row in written):
                found.append(f"{label} writes nothing for {empty} of {len(written)} prompts of {one}")
        if reference is not None and label != name and _alike(sets, reference):
            found.append(
                f"{label} gives every answer of forget the likelihood that the reference gives it: are they one model?"
            )
    return found


def _zeros(data: Mapping[str, Data], metrics: Sequence[Metric], results: Sequence[Mapping[str, Any]]) -> list[str]:
    """A harmonic mean is 0 by a single term: which one it was."""
    found = []
    for one in (one for one in metrics if isinstance(one, Overall) and one.terms):
        for label in (row["model"] for row in results if row["metric"] == one.id and row["value"] == 0):
            means = {name: np.nanmean(rows, 0) for name, rows in one.parts(data[label]).items()}
            zero = [
                f"{term} of {name}"
                for name, row in means.items()
                for term, value in zip(one.terms, row, strict=True)
                if not value
            ]
            found.append(
                f"{one.label} of {label} is 0, since it is a harmonic mean and this is 0 on every example: {listed(zero)}"
            )
    return found


def _is_wild(value: Any) -> bool:
    return isinstance(value, float) and isinf(value)


def _alike(data: Data, reference: Data) -> bool:
    mine, theirs = (one.get(FORGET, {}).get("nll") for one in (data, reference))
    return mine is not None and theirs is not None and np.array_equal(mine, theirs)


def write(report: Mapping[str, Any], rows: Sequence[Row], output: Path) -> None:
    """Write the folder `output`, whole or not at all: examples.jsonl, results.json, report.html and pictures."""
    from editkit.evaluation.rendering import write_pages

    place = output.expanduser().resolve()
    with disk.writing(str(output)), disk.staged(place) as folder:
        lines = "".join(map(to_line, rows))
        (folder / ROWS).write_bytes(lines.encode("utf-8", "backslashreplace"))  # unpaired characters as JSON escapes
        (folder / RESULTS).write_text(to_json(report), "utf-8")
        write_pages(report, rows, folder)
        folder.replace(place)
