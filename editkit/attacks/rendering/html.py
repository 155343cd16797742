"""Attacks as one offline page, a sibling of that of an evaluation: the same frame, policy, colours, charts and table."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import editkit
from editkit.attacks.rendering import wording
from editkit.attacks.rendering.wording import SIDES, Report, area, both, interval, percent, word
from editkit.diffing.measures import UNDEFINED
from editkit.diffing.rendering.html import Columns, Rows, compose
from editkit.errors import printable
from editkit.evaluation.rendering.charts import Point, curves

STYLES = {"edited": "m0", "original": "base", "control": "reference"}
_HOME = Path(editkit.__file__).parent  # templates are taken from here and from evaluation/rendering
TRACK = 190  # pixels from 0 to 1


def to_html(report: Report) -> str:
    """The whole page. Works from file://, without a network; light and dark follow the reader's system."""
    columns, rows = _table(report)
    return compose(
        "attacks/rendering/attack.html.j2",
        _HOME,
        marked="n",
        columns=columns,
        rows=rows,
        names=wording.names(report),
        headline=wording.headline(report),
        warnings=[printable(text) for text in report["warnings"]],
        samples=[(STYLES[side], f"{side} {wording.called(one)}") for side, one in _models(report).items()],
        verdicts=[_verdict(one) for one in report["verdicts"]],
        curves=[_curve(one) for one in report["curves"]],
        membership=[_scores(one) for one in report["membership"]],
        sizes=next(((one["members"], one["unseen"]) for one in report["membership"] if "members" in one), None),
        below=wording.BELOW,
        target=next((one["target"] for one in report["membership"] if "target" in one), None),
        notes=[*wording.reasons(report), *wording.skipped(report)],
        rule=wording.RULE,
        track=TRACK,
        settings=wording.shown(report),
        data=[(one["set"], printable(one["name"]), f"{one['examples']:,}", one["sha256"]) for one in report["sets"]],
        files=[(f"{side} {wording.called(one)}", one["sha256"] or {}) for side, one in _models(report).items()],
        versions=f"{report['schema']}, editkit {report['editkit']}",
    )


def _models(report: Report) -> dict[str, Mapping[str, Any]]:
    by_role = {one["role"]: one for one in report["models"]}
    return {side: by_role[role] for side, role in SIDES.items() if role in by_role}


def _verdict(one: Mapping[str, Any]) -> dict[str, Any]:
    marks = [
        _mark(side, when, one[f"{side}_{when}"])
        for side in ("control", "original", "edited")
        for when in ("before", "after")
        if wording.known(one[f"{side}_{when}"])
    ]
    cells = [
        f"{percent(one['edited_before'])} → {interval(one['edited_after'])}",
        both(one, "original"),
        both(one, "control"),
    ]
    cells += [*(interval(one[key]) for key in ("recovered", "excess", "judged")), f"{one['n']:,}"]
    return {"label": one["label"], "verdict": word(one["verdict"]), "marks": marks, "cells": cells}


def _mark(side: str, when: str, found: Mapping[str, Any]) -> dict[str, Any]:
    ends = [None, None] if found["ci_low"] is None else [round(TRACK * found[key], 1) for key in ("ci_low", "ci_high")]
    return {
        "style": STYLES[side], "hollow": when == "before", "x": round(TRACK * found["value"], 1), "low": ends[0], "high": ends[1],
        "tip": f"{side}, {when} the attack\n{interval(found)} %, n = {found['n']:,}",
    }  # fmt: skip


def _curve(one: Mapping[str, Any]) -> dict[str, Any]:
    series: dict[str, list[Point]] = {}
    steps = [point["step"] for point in one["points"]["edited"]]
    for side, points in one["points"].items():
        series[side] = [_point(place, point) for place, point in enumerate(points)]
    if isinstance(one["original"], Mapping):
        level = one["original"]["value"]
        text = f"not trained: {100 * level:.1f} %"
        series["original"] = [Point(x, level, tip=text) for x in (0, len(steps) - 1)]
    names = ("steps of fine-tuning", "token accuracy on the forget set")
    return {
        "title": one["label"].capitalize(),
        "chart": curves(series, STYLES, names, texts=[f"{step:,}" for step in steps]),
        "text": wording.curve(one),
    }


def _point(place: int, point: Mapping[str, Any]) -> Point:
    found, loss = point["token_accuracy"], point["nll"]
    tip = f"after {point['step']:,} steps: {interval(found)} %\nNLL {loss['value']:.3g} nats/token, n = {found['n']:,}"
    return Point(place, found["value"], found["ci_low"], found["ci_high"], tip=tip)


def _scores(one: Mapping[str, Any]) -> dict[str, Any]:
    areas = {side: one["roles"][role] for side, role in SIDES.items() if role in one["roles"]}
    marks = []
    for side in ("control", "original", "edited"):
        if side in areas:
            found = areas[side]["auc"]
            ends = {
                key: None if found[f"ci_{key}"] is None else round(TRACK * found[f"ci_{key}"], 1)
                for key in ("low", "high")
            }
            marks.append(
                {
                    "style": STYLES[side],
                    "hollow": False,
                    "x": round(TRACK * found["value"], 1),
                    "tip": f"{side}\nAUC {area(found)}",
                }
                | ends
            )
    leak, edited = one.get("priv_leak"), areas.get("edited", {})
    cells = [area(areas[side]["auc"]) if side in areas else UNDEFINED for side in SIDES]
    cells += [area(edited.get("two_sided_auc")), area(edited.get("tpr_at_fpr")), area(leak)]
    return {"label": one["label"], "verdict": word(one["verdict"]), "marks": marks, "cells": cells}


def _table(report: Report) -> tuple[Columns, Rows]:
    """Columns and rows of all results."""
    columns: Sequence[tuple[str, str, str]] = [
        ("attack, set, model, metric", "text", ""),
        ("step", "number", "of relearning"),
        ("mean", "number", "over examples"),
        ("sd", "number", "over examples"),
        ("95 % from", "number", "bootstrap over examples"),
        ("to", "number", "bootstrap over examples"),
        ("n", "count", "examples"),
    ]
    roles = {role: side for side, role in SIDES.items()}
    rows = [
        [f"{one['attack']} {printable(one['set'])} {roles[one['role']]} {one['metric']}", one["step"]]
        + [one[key] for key in ("value", "sd", "ci_low", "ci_high", "n")]
        for one in report["results"]
    ]
    return columns, rows
