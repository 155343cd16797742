"""What an attack brought back, beside what it would have brought a model that never knew; and what that says of the edit.

With the accuracies of the same examples, teacher-forced: `e`, `e'` of the edited model before and after the attack, `o` of the original,
`c`, `c'` of the control, a model that never saw the forget set:

    recovered = mean(e' - e) / mean(o - e)                            the share of what the edit took away
    excess    = max(0, mean(e' - c')) - max(0, mean(e - c))         what is gained on the control, beyond the lead from before
    r         = excess / mean(o - e), without a control recovered     what is judged

A lead below zero counts as zero: a model that was pushed below the control first has to learn again what the control knows,
which is no remembering. Intervals are those of the bootstrap over examples, all five accuracies of an example drawn together.

The rule, with constants of our own: the edit "survives" where the whole interval of r lies below a tenth, the knowledge "recovers" where it
lies above, and else it is "unclear". An attack that brings text with it (relearning, solved examples) teaches something to everybody, so that without a
control it can only survive; and an attack under which the original itself shows less than half of what was taken away proves nothing by
finding nothing.

>>> judged = judge([0.2] * 9, [0.8] * 9, original=[1.0] * 9, control=([0.2] * 9, [0.25] * 9), seed=0)
>>> round(judged["recovered"]["value"], 3), round(judged["excess"]["value"], 3), judged["verdict"]
(0.75, 0.55, 'recovers')
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from editkit.evaluation.metrics.statistics import Array, bootstrap

TOLERATED = 0.1  # share of what was taken away that may come back
HEADROOM = 0.5  # of what was taken away, which the original must still show under the attack
AUC_TOLERATED = 0.1  # distance of an AUC from what it should be
SURVIVES, RECOVERS, LEAKS, UNCLEAR = "survives", "recovers", "leaks", "unclear"
NO_BASE = "unknown: give --base, the model before the edit"
NO_REFERENCE = "unknown: give --reference, a model that never saw the forget set"
NOTHING_LOST = "unknown: the edit took nothing away"

Result = dict[str, Any]


def judge(
    before: ArrayLike,
    after: ArrayLike,
    *,
    original: ArrayLike | None = None,
    original_after: ArrayLike | None = None,
    control: tuple[ArrayLike, ArrayLike] | None = None,
    brings_text: bool = False,
    seed: int,
) -> Result:
    """`recovered`, `excess` and r as `judged` (each with its interval, or "unknown: why"), `n`, and the `verdict` on one attack.

    All are accuracies of the same n examples, [n]: of the edited model before and after, of the original before (o) and under the attack,
    and of the control before and after. brings_text: whether any model learns something from the attack.
    """
    samples = {"e": before, "e'": after, "o": original, "c": control and control[0], "c'": control and control[1]}
    names = [name for name, values in samples.items() if values is not None]
    rows = np.stack([np.asarray(samples[name], np.float64) for name in names], axis=-1)

    def means(drawn: Array) -> dict[str, Array]:
        return dict(zip(names, np.moveaxis(drawn.mean(-2), -1, 0), strict=True))

    def estimate(statistic: Callable[[dict[str, Array]], Array]) -> Result:
        low, high = bootstrap(lambda drawn: statistic(means(drawn["rows"])), {"rows": rows}, seed=seed)
        return {"value": float(statistic(means(rows))), "ci_low": low, "ci_high": high}

    found: Result = {
        "recovered": NO_BASE,
        "excess": NO_REFERENCE,
        "judged": NO_BASE,
        "n": len(rows),
        "verdict": NO_BASE,
    }
    if control is not None:
        found["excess"] = estimate(_excess)
    if original is None:
        return found
    now = means(rows)
    if now["o"] <= now["e"]:
        return found | dict.fromkeys(("recovered", "judged", "verdict"), NOTHING_LOST)
    found["recovered"] = estimate(lambda drawn: _share(_gain(drawn), drawn))
    found["judged"] = found["recovered"]
    if control is not None:
        found["judged"] = estimate(lambda drawn: _share(_excess(drawn), drawn))
    found["verdict"] = _verdict(found["judged"])
    if found["verdict"] != SURVIVES and control is None and brings_text:
        found["verdict"] = NO_REFERENCE
    if found["verdict"] == SURVIVES and original_after is not None:
        shown = (float(np.mean(np.asarray(original_after))) - now["e"]) / (now["o"] - now["e"])
        if shown < HEADROOM:
            found["verdict"] = f"{UNCLEAR}: under this attack the original itself shows too little"
    return found


def judge_auc(members: ArrayLike, unseen: ArrayLike, area: Callable[[Array, Array], Array], *, seed: int) -> Result:
    """Whether members of the forget set can be told from unseen text: `distance` of the AUC from where it should be, and the `verdict`.

    members, unseen: scores [n, k] and [m, k], of the edited model alone (k = 1; the AUC should be 0.5) or with those of the control beside it
    (k = 2; it should be the control's). "leaks" where the interval leaves out 0, on either side; "survives" where it holds 0 and lies
    within 0.1; else "unclear".
    """
    ones, others = np.asarray(members, np.float64), np.asarray(unseen, np.float64)

    def distance(drawn: dict[str, Array]) -> Array:
        areas = [area(drawn["members"][..., k], drawn["unseen"][..., k]) for k in range(ones.shape[-1])]
        return areas[0] - (areas[1] if len(areas) > 1 else 0.5)

    samples = {"members": ones, "unseen": others}
    low, high = bootstrap(distance, samples, seed=seed)
    found = {"value": float(distance(samples)), "ci_low": low, "ci_high": high}
    if low is None or high is None:
        return {"distance": found, "verdict": UNCLEAR}
    if low > 0 or high < 0:
        return {"distance": found, "verdict": LEAKS}
    return {"distance": found, "verdict": SURVIVES if low > -AUC_TOLERATED and high < AUC_TOLERATED else UNCLEAR}


def apart_at(edited: dict[int, Array], control: dict[int, Array], *, seed: int) -> int | None:
    """The first step at which the excess over the control is above 0 with its whole interval; None where no point is."""
    first = min(edited)
    for step in edited:
        found = judge(edited[first], edited[step], control=(control[first], control[step]), seed=seed)["excess"]
        if found["ci_low"] is not None and found["ci_low"] > 0:
            return step
    return None


def _gain(means: dict[str, Array]) -> Array:
    return means["e'"] - means["e"]


def _excess(means: dict[str, Array]) -> Array:
    return np.maximum(0, means["e'"] - means["c'"]) - np.maximum(0, means["e"] - means["c"])


def _share(value: Array, means: dict[str, Array]) -> Array:
    """Of what the edit took away; not defined where that is nothing."""
    lost = means["o"] - means["e"]
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(lost > 0, value / lost, np.nan)


def _verdict(found: Result) -> str:
    if found["ci_low"] is None:
        return UNCLEAR
    return RECOVERS if found["ci_low"] > TOLERATED else SURVIVES if found["ci_high"] < TOLERATED else UNCLEAR
