"""Membership inference as an attack: can one tell from the edited model what it was trained on before?

Five scores (`evaluation/metrics/membership.py`) of the forget set, the members, against text of the same kind that no model saw. An edit is
visible on both sides: what is still known scores too high, what was pushed away too low. Where the two sets differ by themselves, even a model that
saw neither tells them apart, which is what the reference is for.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from editkit.arithmetic.draws import key_of
from editkit.attacks.verdict import judge_auc
from editkit.evaluation.metrics import membership
from editkit.evaluation.metrics.statistics import Array, bootstrap

Row = Mapping[str, Any]
Rows = Sequence[Row]

SCORES = {
    "loss": "loss",
    "zlib": "zlib",
    "reference": "reference",
    "min_k": "Min-K%",
    "min_k_plus_plus": "Min-K%++",
}
COLUMNS = ("nll", "num_tokens", "zlib_bytes", "min_k", "min_k_plus_plus")
FPR = 0.01
MEMBERS, UNSEEN = "forget", "unseen"


def scores(rows: Rows, reference: Rows | None = None) -> dict[str, Array]:
    """Score -> [n], higher for what looks like a member; `reference` only where its rows of the same examples are given.

    >>> row = {"nll": 0.5, "num_tokens": 4, "zlib_bytes": 20, "min_k": -2.0, "min_k_plus_plus": -1.0}
    >>> {name: values.tolist() for name, values in scores([row], [{**row, "nll": 3.0}]).items()}
    {'loss': [-0.5], 'zlib': [-0.1], 'reference': [2.5], 'min_k': [-2.0], 'min_k_plus_plus': [-1.0]}
    """
    data = {column: np.array([row[column] for row in rows], np.float64) for column in COLUMNS}
    found = {
        "loss": membership.loss_score(data["nll"]),
        "zlib": membership.zlib_score(data["nll"], data["num_tokens"], data["zlib_bytes"]),
    }
    if reference is not None:
        found["reference"] = membership.reference_score(data["nll"], [row["nll"] for row in reference])
    return {**found, "min_k": data["min_k"], "min_k_plus_plus": data["min_k_plus_plus"]}


def infer(rows: Mapping[str, Mapping[str, Rows]], *, seed: int = 0) -> list[dict[str, Any]]:
    """One result for each score: AUC (members above unseen), two-sided AUC, TPR at 1 % FPR and PrivLeak of every role, and the verdict.

    rows: role ("model", "base", "reference") -> set ("forget", "unseen") -> rows with COLUMNS. With fewer than 100 unseen texts the
    smallest false-positive rate that can be told from zero is 1 / m (`fpr_resolution`).
    """
    control = rows.get("reference")
    scored = {
        role: {name: scores(sets[name], control[name] if control and role != "reference" else None) for name in sets}
        for role, sets in rows.items()
    }
    found = []
    for score, label in SCORES.items():
        key = key_of(seed, score)
        roles = {
            role: {name: values[score] for name, values in sets.items()}
            for role, sets in scored.items()
            if score in sets[MEMBERS]
        }
        result: dict[str, Any] = {"score": score, "label": label, "roles": {}}
        if not roles:
            found.append(result | {"verdict": "unknown: give --reference, a model that never saw the forget set"})
            continue
        mine, theirs = roles["model"], roles.get("reference")
        for role, one in roles.items():
            result["roles"][role] = {
                "auc": _estimate(membership.auc, one, key),
                "two_sided_auc": _estimate(lambda a, b: membership.two_sided(membership.auc(a, b)), one, key),
                "tpr_at_fpr": _estimate(partial(membership.tpr_at_fpr, fpr=FPR), one, key),
            }
        both = [mine] if theirs is None else [mine, theirs]
        members, unseen = (np.stack([one[name] for one in both], axis=-1) for name in (MEMBERS, UNSEEN))
        result["priv_leak"] = _priv_leak(members, unseen, key) if theirs is not None else None
        sizes = {
            "members": len(members),
            "unseen": len(unseen),
            "fpr": FPR,
            "fpr_resolution": max(FPR, 1 / len(unseen)),
        }
        result |= {**sizes, "target": "0.5" if theirs is None else "reference"}
        found.append(result | judge_auc(members, unseen, membership.auc, seed=key))
    return found


def tell_themselves_apart(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """The scores by which even the reference tells the two sets apart: they differ in more than that one was trained on."""
    areas = {one["label"]: one["roles"].get("reference", {}).get("auc") for one in results}
    return [
        label
        for label, area in areas.items()
        if area and area["ci_low"] is not None and not area["ci_low"] <= 0.5 <= area["ci_high"]
    ]


def _estimate(statistic: Any, sets: Mapping[str, Array], seed: int) -> dict[str, float | None]:
    low, high = bootstrap(lambda drawn: statistic(drawn[MEMBERS], drawn[UNSEEN]), sets, seed=seed)
    return {"value": float(statistic(sets[MEMBERS], sets[UNSEEN])), "ci_low": low, "ci_high": high}


def _priv_leak(members: Array, unseen: Array, seed: int) -> dict[str, float | None]:
    def leak(ones: Array, others: Array) -> Array:
        edited, reference = (membership.auc(ones[..., k], others[..., k]) for k in range(2))
        return membership.priv_leak(edited, reference)

    return _estimate(leak, {MEMBERS: members, UNSEEN: unseen}, seed)
