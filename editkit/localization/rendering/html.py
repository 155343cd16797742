"""The localization as one offline page, a sibling of that of a diff: the same frame, policy, colours and table."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from editkit.diffing.measures import UNDEFINED, count, number, share
from editkit.diffing.rendering.heatmap import outside
from editkit.diffing.rendering.html import OUTSIDE, PARTS, Columns, Rows, compose
from editkit.errors import listed, printable
from editkit.localization.rendering import wording
from editkit.localization.rendering.charts import histogram, panel, scatter
from editkit.localization.rendering.rows import expert_maps, stack_maps

Report = Mapping[str, Any]

SIDES = ("forget", "retain")
_SUMS = {"drop": "drop of the loss", "attributed": "attributed to parameters"}
_PROOFS = {"control": "a random mask to compare with", "stability": "the overlap of two halves of the forget set"}


def to_html(report: Report) -> str:
    """The whole page. Works from file://, without a network; light and dark follow the reader's system."""
    settings, summary = report["settings"], report["summary"]
    unit, gradient = settings["granularity"], wording.gradient(settings)
    experts = expert_maps(report)
    if sum(len(map_.cells) for map_ in experts) > PARTS:
        experts = []
    alone = outside(report)
    columns, rows = _table(report)
    return compose(
        "localization.html.j2",
        Path(__file__).parent,
        marked="selected",
        columns=columns,
        rows=rows,
        names=wording.names(report),
        method=printable(settings["method"]),
        sets=[f"{side} set {printable(report[side]['name'])}" for side in SIDES if report.get(side)],
        headline=wording.headline(report),
        warnings=[printable(text) for text in report["warnings"]],
        strip=_strip(report),
        panel=panel(stack_maps(report), unit, gradient),
        experts=panel(experts, unit, gradient),
        outside=_outside(alone)[:OUTSIDE],
        outside_count=len(alone),
        histogram=histogram(report["histogram"], summary["threshold"], unit),
        scatter=scatter(report["tensors"], settings, gradient),
        unit=unit,
        top=_top(report["top_units"]),
        trust=[text for text in (wording.stability(report), wording.control(report), wording.path(report)) if text],
        bars=[*_stability_bars(report), *_path_bars(report)],
        missing=listed(label for key, label in _PROOFS.items() if not report.get(key)),
        settings=_settings(report),
        data=[(side, *_data(report[side])) for side in SIDES if report.get(side)],
        gradient=gradient,
        labels=wording.labels(report),
        files=[
            (part, report[part].get("sha256") or {}) for part in ("model", "adapter", "base") if report.get(part)
        ],
        versions=f"{report['schema']}, editkit {report['editkit']}",
    )  # fmt: skip


def _strip(report: Report) -> list[tuple[str, str, str]]:
    """(label, value, note) of the numbers at the top."""
    summary, unit = report["summary"], report["settings"]["granularity"]
    tensors = report["tensors"]
    found = [
        (
            "Selected",
            share(summary["selected_fraction"]),
            f"{count(summary['selected'])} of {wording.considered(report)}",
        )
    ]
    if unit in ("row", "head"):
        found.append(
            (
                f"{unit.capitalize()}s",
                count(summary["units_selected"]),
                f"selected, of {count(summary['units'])}{f', {wording.HEAD}' if unit == 'head' else ''}",
            )
        )
    found.append(
        ("Tensors", f"{sum(row['selected'] > 0 for row in tensors):,}", f"with a selection, of {len(tensors):,}")
    )
    mu, sigma = (report["settings"].get(key) for key in ("mu", "sigma"))
    if sigma is not None:
        found.append(("Thresholds", f"mu {mu:g}", f"for the cosine, and sigma {sigma:g} for mean |G_F|"))
    elif summary["threshold"] is not None:
        note = ", ".join(filter(None, ("lowest selected score", wording.score(report["settings"]))))
        found.append(("Threshold", number(summary["threshold"]), note))
    for side in SIDES:
        if report.get(side) and report[side]["loss"] is not None:
            mean, _, spread = wording.loss(report[side]).partition(" ± ")
            note = f"nats per token, {f'sd {spread}, ' if spread else ''}n = {report[side]['examples']:,} examples"
            if said := wording.labels(report):
                note += f"; of the tokens in the loss, {said.replace(' of them', '')}"
            found.append((f"{side.capitalize()} loss", mean, note))
    return found  # fmt: skip


def _outside(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    rows = sorted(rows, key=lambda row: (-row["selected_fraction"], -row["numel"], row["name"]))
    return [
        {
            "name": printable(row["name"]),
            "bar": round(100 * row["selected_fraction"], 2),
            "value": share(row["selected_fraction"]) if row["selected"] else "0 %",
            "note": f"{count(row['selected'])} of {count(row['numel'])} parameters",
        }
        for row in rows
    ]


def _top(units: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    def value(unit: Mapping[str, Any]) -> float:
        return unit["selected"] if unit["score"] is None else unit["score"]

    largest = max(map(value, units), default=0)
    return [
        {
            "name": ("" if unit["unit"] == "tensor" else f"{unit['unit']} {unit['index']} of ")
            + printable(unit["name"]),
            "bar": round(100 * max(value(unit), 0) / largest, 2) if largest > 0 else 0,
            "value": count(unit["selected"]) if unit["score"] is None else number(unit["score"]),
            "note": f"{share(unit['selected'] / unit['numel'])} of {count(unit['numel'])} parameters",
        }
        for unit in units
    ]


def _stability_bars(report: Report) -> list[dict[str, Any]]:
    found = report.get("stability")
    if not found:
        return []
    texts = (("jaccard", "two halves of the forget set"), ("expected_of_random", "random, same share of every tensor"))
    return [
        {"name": name, "bar": round(100 * (found[key] or 0), 2), "value": wording.overlap(found[key]), "note": "Jaccard, 0 to 1"}
        for key, name in texts
    ]  # fmt: skip


def _path_bars(report: Report) -> list[dict[str, Any]]:
    path = report.get("path") or {}
    sides = [(side, path[side]) for side in SIDES if path.get(side)]
    largest = max((abs(one[key]) for _, one in sides for key in _SUMS), default=0)
    return [
        {"name": f"{side}: {text}", "bar": round(100 * abs(one[key]) / largest, 2) if largest else 0, "value": value, "note": "nats per token"}
        for side, one in sides
        for (key, text), value in zip(_SUMS.items(), wording.alike(*(one[key] for key in _SUMS)), strict=True)
    ]  # fmt: skip


def _settings(report: Report) -> list[tuple[str, str]]:
    settings = report["settings"]

    def text(value: Any) -> str:
        if isinstance(value, list):
            return listed(map(printable, value)) or "all tensors"
        return "none" if value is None else printable(str(value))

    shown = ("accumulate", "labels", "draws", "only", "seed", "dtype", "batch_size")
    asked = (key for key in ("max_examples", "max_length", "prompt_template") if settings.get(key) is not None)
    return [
        ("method", printable(settings["method"])),
        ("granularity", settings["granularity"]),
        ("budget", printable(wording.budget(settings))),
        *((key.replace("_", " "), text(settings.get(key))) for key in (*shown, *asked)),
        *(("examples in both sets", f"{report['overlap']:,}") for _ in [0] if report.get("overlap") is not None),
    ]


def _data(found: Mapping[str, Any]) -> tuple[str, str, str, str, str]:
    return (
        printable(found["name"]),
        f"{found['examples']:,}",
        UNDEFINED if found["tokens"] is None else count(found["tokens"]),
        wording.loss(found),
        found.get("sha256") or UNDEFINED,
    )


def _table(report: Report) -> tuple[Columns, Rows]:
    """Columns and rows of the full table; of the measures, those that some tensor has."""
    gradient = wording.gradient(report["settings"])
    measures = [
        ("units", "units", "count", "rows, heads or tensors"),
        ("units_selected", "units selected", "count", "rows, heads or tensors"),
        ("score_mean", "mean score", "number", "over the units"),
        ("score_max", "highest score", "number", "of a unit"),
        ("cosine", "cosine", "number", "of the forget and the retain gradient"),
        ("mean_abs_forget", "mean |G_F|", "number", f"forget set: {gradient}"),
        ("mean_abs_retain", "mean |G_R|", "number", f"retain set: {gradient}"),
        ("attribution_forget", "attributed, forget", "number", "drop of the forget loss along the path, nats"),
        ("attribution_retain", "attributed, retain", "number", "drop of the retain loss along the path, nats"),
    ]
    known = [one for one in measures if any(row.get(one[0]) is not None for row in report["tensors"])]
    if report["settings"]["granularity"] in ("element", "tensor"):
        known = [one for one in known if not one[0].startswith("units")]
    columns = [
        ("tensor", "text", ""),
        ("shape", "text", ""),
        ("parameters", "count", ""),
        ("selected", "count", "parameters"),
        ("share selected", "share", "of the parameters of the tensor"),
        *((label, kind, meaning) for _, label, kind, meaning in known),
    ]
    rows = [
        [
            printable(row["name"]),
            "×".join(map(str, row["shape"])) or "scalar",
            *(row[name] for name in ("numel", "selected", "selected_fraction")),
            *(row.get(name) for name, *_ in known),
        ]
        for row in report["tensors"]
    ]
    return columns, rows
