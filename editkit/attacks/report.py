"""attack.json: what was measured under each attack, the curves of relearning, and the verdicts."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from editkit.arithmetic.draws import key_of
from editkit.attacks import membership
from editkit.attacks.gathering import FORGET, PLAIN, UNSEEN, Attack, Gathered
from editkit.attacks.relearning import back_at
from editkit.attacks.settings import Settings
from editkit.attacks.verdict import NO_BASE, NO_REFERENCE, NOTHING_LOST, apart_at, judge
from editkit.errors import listed
from editkit.evaluation.metrics.statistics import Array, summary

SCHEMA = "editkit.attack/1"
METRICS = ("token_accuracy", "nll", "ma", "rougeL_recall")
ACCURACY = "token_accuracy"  # what is judged
_SIDES = {"edited": "model", "original": "base", "control": "reference"}


def conclude(found: Gathered, settings: Settings) -> dict[str, Any]:
    """The parts of attack.json that follow from the rows; `noticed`: more warnings."""
    attacks = [one for one in found.attacks.values() if one.id != PLAIN]
    judged = [one for one in attacks if one.status == "ok"]
    verdicts = [_verdict(found, one, settings.seed) for one in judged]
    inferred = []
    if "membership" in settings.kinds:
        rows = {role: {name: _rows(found, role, name) for name in (FORGET, UNSEEN)} for role in found.models}
        inferred = membership.infer(rows, seed=settings.seed)
    return {
        "attacks": [one.described() for one in attacks],
        "results": _results(found, settings.seed),
        "curves": [_curve(found, one, settings.seed) for one in judged if one.kind == "relearn"],
        "membership": inferred,
        "verdicts": verdicts,
        "noticed": _noticed(found, verdicts, inferred),
    }


def _rows(found: Gathered, role: str, name: str) -> list[dict[str, Any]]:
    place = (role, PLAIN, name)
    return [row for row in found.rows if (row["role"], row["attack"], row["set"]) == place]


def _results(found: Gathered, seed: int) -> list[dict[str, Any]]:
    """Mean, spread and interval of every metric, for each model, attack, step and set."""
    places: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in found.rows:
        places.setdefault((row["attack"], row.get("step"), row["role"], row["set"]), []).append(row)
    results = []
    for place, rows in places.items():
        for metric in METRICS:
            values = [row[metric] for row in rows if row.get(metric) is not None]
            if values:
                named = dict(zip(("attack", "step", "role", "set"), place, strict=True))
                results.append({**named, "metric": metric, **_summary(values, key_of(seed, metric))})
    return results


def _summary(values: Any, seed: int) -> dict[str, Any]:
    said = summary(values, seed=seed)
    return {key: getattr(said, key) for key in ("value", "n", "sd", "ci_low", "ci_high")}


def _verdict(found: Gathered, attack: Attack, seed: int) -> dict[str, Any]:
    """Accuracies on the forget set before and after, of the three models, and what is judged from them."""
    steps = sorted({row["step"] for row in found.rows if row["attack"] == attack.id and "step" in row})
    first, last = (steps[0], steps[-1]) if steps else (None, None)
    sides: dict[str, tuple[Array, Array] | None] = {}
    for side, role in _SIDES.items():
        after = found.column(role, attack.id, ACCURACY, step=last)
        before = found.column(role, attack.id if steps else PLAIN, ACCURACY, step=first)
        sides[side] = _aligned(before, after) if after else None
    edited = sides["edited"]
    assert edited is not None  # every attack is made on the edited model
    known = found.column("base", PLAIN, ACCURACY)
    indices = sorted(found.column("model", attack.id, ACCURACY, step=last))
    original = np.array([known[index] for index in indices]) if known else None
    key = key_of(seed, attack.id)
    judged = judge(
        *edited,
        original=original,
        original_after=sides["original"][1] if sides["original"] else None,
        control=sides["control"],
        brings_text=attack.brings_text,
        seed=key,
    )
    said: dict[str, Any] = {
        "attack": attack.id,
        "kind": attack.kind,
        "label": attack.label,
        "metric": ACCURACY,
        "set": FORGET,
    }
    for side, pair in sides.items():
        why = (
            "skipped: the original is not trained"
            if side == "original" and known
            else NO_BASE
            if side == "original"
            else NO_REFERENCE
        )
        said |= {
            f"{side}_{when}": _summary(pair[at], key_of(seed, ACCURACY)) if pair else why
            for at, when in enumerate(("before", "after"))
        }  # fmt: skip
    if original is not None:
        said["original_before"] = _summary(original, key_of(seed, ACCURACY))
    return said | judged


def _aligned(before: Mapping[int, float], after: Mapping[int, float]) -> tuple[Array, Array]:
    indices = sorted(after)
    return np.array([before[index] for index in indices]), np.array([after[index] for index in indices])


def _curve(found: Gathered, attack: Attack, seed: int) -> dict[str, Any]:
    """Accuracy and NLL by step; when the edited model is back, and when it leaves the control behind."""
    steps = sorted({row["step"] for row in found.rows if row["attack"] == attack.id})
    sides: dict[str, dict[int, Array]] = {}
    points: dict[str, list[dict[str, Any]]] = {}
    for side, role in _SIDES.items():
        columns = {step: found.column(role, attack.id, ACCURACY, step=step) for step in steps}
        if not any(columns.values()):
            continue
        sides[side] = {step: np.array([column[index] for index in sorted(column)]) for step, column in columns.items()}
        losses = {step: found.column(role, attack.id, "nll", step=step) for step in steps}
        points[side] = [
            {
                "step": step,
                ACCURACY: _summary(sides[side][step], key_of(seed, ACCURACY)),
                "nll": _summary(list(losses[step].values()), key_of(seed, "nll")),
            }
            for step in steps
        ]
    known = found.column("base", PLAIN, ACCURACY)
    held_out = found.column("model", attack.id, ACCURACY, step=steps[0])
    original = _summary([known[index] for index in sorted(held_out)], key_of(seed, ACCURACY)) if known else None
    return {
        "attack": attack.id,
        "label": attack.label,
        **found.facts[attack.id],
        "points": points,
        "original": original or NO_BASE,
        "steps_to_recover": back_at(sides["edited"], original["value"]) if original else NO_BASE,
        "apart_at": apart_at(sides["edited"], sides["control"], seed=seed) if "control" in sides else NO_REFERENCE,
    }


def _noticed(found: Gathered, verdicts: list[dict[str, Any]], inferred: list[dict[str, Any]]) -> list[str]:
    noticed = []
    if any(one["verdict"] == NOTHING_LOST for one in verdicts):
        noticed.append("the edited model knows as much of the forget set as --base, so there is nothing to bring back")
    if labels := membership.tell_themselves_apart(inferred):
        noticed.append(
            f"even the reference, which saw neither, tells the forget set from the unseen set ({listed(labels)}: the interval of its AUC leaves out "
            "0.5): the sets differ by themselves, so compare with the reference and not with 0.5"
        )
    if inferred and "reference" not in found.models:
        noticed.append(
            "membership without --reference is compared with an AUC of 0.5, as if the two sets were of one kind"
        )
    if inferred and (small := inferred[0].get("unseen", 0)) and small < 100:
        noticed.append(
            f"with {small} unseen texts the smallest false-positive rate above 0 is {100 / small:.3g} %, so that TPR at 1 % FPR is the rate "
            "without any false alarm"
        )
    return noticed
