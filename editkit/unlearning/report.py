"""unlearn.json: what was run, which way it went, and what came of it, measured on the saved files."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from editkit.evaluation.metrics.exposure import gen_exposure
from editkit.evaluation.metrics.statistics import summary
from editkit.evaluation.metrics.tofu import probability
from editkit.evaluation.suites import RETAIN
from editkit.unlearning.course import NEAR
from editkit.unlearning.rules import Rule
from editkit.unlearning.watch import Columns, Level

SCHEMA = "editkit.unlearning/1"
QUANTITIES = {
    "ma": ("MA", "", lambda data: data["ma"]),
    "accuracy": ("Token accuracy", "", lambda data: data["token_accuracy"]),
    "nll": ("NLL", "nats/token", lambda data: data["nll"]),
    "probability": ("Probability", "", lambda data: probability(data["nll"])),
}
"""Quantity -> label, unit, values of the examples."""
Data = Mapping[str, Columns]


def result_rows(before: Data, after: Data, reference: Data, seed: int) -> list[dict[str, Any]]:
    """A row per set and quantity, and of the exposure to the reference, of which only the forget sets are known."""
    rows = [
        {
            "set": name, "quantity": quantity, "label": label, "unit": unit,
            "before": _summed(values(before[name]), seed),
            "after": _summed(values(after[name]), seed),
            "reference": _summed(values(reference[name]), seed) if name in reference else None,
        }
        for name in before
        for quantity, (label, unit, values) in QUANTITIES.items()
    ]  # fmt: skip
    for name, known in reference.items():
        then, now = (_summed(gen_exposure(data[name]["nll"], known["nll"]), seed) for data in (before, after))
        rows.append({"set": name, "quantity": "exposure", "label": "Exposure", "unit": "nats/token",
                     "before": then, "after": now, "reference": None})  # fmt: skip
    return rows


def _summed(values: np.ndarray, seed: int) -> dict[str, Any]:
    found = summary(values, seed=seed)._asdict()
    return {key: found[key] for key in ("value", "n", "sd", "p95", "max", "ci_low", "ci_high")}


def warnings(
    tasks: list[dict[str, Any]], rules: Sequence[Rule], level_from: str, kept: bool, floor: float
) -> list[str]:
    """What a reader should not overlook. rules: those that end a run."""
    found = [f"{task['set']}: {said}" for task in tasks if (said := _stopped(task, bool(rules), floor))]
    if level_from == "assumed" and any(term.unit == "level" for rule in rules for term in rule.terms):
        found.append(
            "what a model that never saw the forget set would know of it is assumed (MA 0.33): give --reference or --unseen to measure it"
        )
    if kept and not tasks[0]["points"][0]["values"].get("ma(retain)", 1):
        found.append(
            "MODEL has no token of the retain set right (MA 0), so that the floor watches nothing: give text that it knows"
        )
    if not kept:
        found.append(
            f"without a retain set nothing watches what else is lost: give --retain, so that a run stops below {floor:.0%} of it"
        )
    return found


def over_forgotten(result: Sequence[Mapping[str, Any]], levels: Mapping[str, Level]) -> list[str]:
    """Forget sets that the saved model knows less of than one that never saw them, which shows that something was there."""
    ends = {row["set"]: row["after"] for row in result if row["quantity"] == "ma"}
    return [
        f"{name} is over-forgotten: MA {ends[name]['value']:.2f} (n = {ends[name]['n']}), and {one.ma:.2f} (n = {one.n}) where it was never seen; that can "
        "be told from outside"
        for name, one in levels.items()
        if one.origin != "assumed" and ends[name]["value"] < one.ma - NEAR
    ]


def below_floor(result: Sequence[Mapping[str, Any]], floor: float) -> list[str]:
    """What is said where the saved files keep less than the floor, though the point that they are of was above it."""
    return [
        f"the files that were written keep {row['after']['value'] / row['before']['value']:.3f} of the MA on the retain set (n = {row['after']['n']}), and the "
        f"floor is {floor:g}: the looks on the way are at fewer examples, and before weights are rounded"
        for row in result
        if (row["set"], row["quantity"]) == (RETAIN, "ma") and row["after"]["value"] < floor * row["before"]["value"]
    ]


def _stopped(task: Mapping[str, Any], ruled: bool, floor: float) -> str:
    """Where a forget set was left and why, unless it is where it should be."""
    points, chosen = task["points"], task["points"][task["chosen"]]
    last, later = points[-1], points[task["chosen"] + 1 :]
    ma = chosen["values"]["ma(forget)"]
    where = f"step {chosen['step']} is kept, with MA {'unknown' if ma is None else f'{ma:.2f}'}"
    if task["outcome"] == "collapsed":
        return f"{task['ended']}; {where}"
    if task["outcome"] == "stopped":
        retention = last["values"]["retention"]
        return f"{task['ended']} held at step {last['step']}, with retention {retention:.2f} below its floor of {floor:g}; {where}"
    if task["outcome"] != "not reached":
        return ""
    if later and all(_below(one, floor) for one in later):
        return f"from step {later[0]['step']} on retention was below its floor of {floor:g}; {where}: give a lower --lr, or another --floor"
    if ruled:
        return f"the stop rule never held in {last['step']} steps; {where}: give more --steps, or another --lr"
    return ""


def _below(point: Mapping[str, Any], floor: float) -> bool:
    retention = point["values"]["retention"]
    return retention is not None and retention < floor
