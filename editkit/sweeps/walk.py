"""From point to point: the loaded model is moved, measured, and moved on; the unedited model is the first point.

A sweep of p points costs p + 1 evaluations and as many passes over the files of base and vector; nothing is tokenized or loaded twice.
"""

from collections.abc import Callable, Sequence
from typing import Any

from editkit.arithmetic.apply import CHANGED
from editkit.checkpoint.blocks import Progress
from editkit.editing.live import LiveEdit
from editkit.editing.stream import Subtraction
from editkit.errors import EditError
from editkit.evaluation.subject import Subject
from editkit.evaluation.suites import Data
from editkit.sweeps.choice import Rule
from editkit.sweeps.evaluating import Evaluation
from editkit.sweeps.scores import derived, measured

Point = dict[str, Any]
_ARRIVED = ("requested_l2", "applied_l2", "lost_to_rounding")


def walk(
    subject: Subject,
    live: LiveEdit,
    evaluation: Evaluation,
    plans: Sequence[Subtraction],
    alphas: Sequence[float],
    *,
    reference: Data | None,
    rule: Rule | None,
    progress: Progress | None,
) -> tuple[list[Point], Data]:
    """The points as in sweep.json, the unedited model first, then every alpha of every plan; and the columns of the first.

    A point where the model breaks has the reason as its status and no values. Raises EditError where all do, and where the
    quantities of the rule are unknown for the unedited model already, before any other point is measured.
    """
    for plan in plans:
        live.check(plan)
    sets = evaluation.prepare(subject)
    many = 1 + len(plans) * len(alphas)
    unedited = evaluation.measure(subject, sets, _part(progress, 0, many))
    points = [_point(0.0, None, unedited, unedited, evaluation, reference)]
    _refuse_unknown(rule, points[0])
    for choice, plan in enumerate(plans):
        for alpha in alphas:
            try:
                applied = live.apply(plan._replace(alphas=dict.fromkeys(plan.alphas, alpha)))
                data = evaluation.measure(subject, sets, _part(progress, len(points), many))
            except EditError as error:
                points.append({"alpha": alpha, "choice": choice, "status": f"broken: {error}", "values": {}})
                continue
            row = applied.row()
            arrived = {key: row[key] for key in _ARRIVED} | {
                "changed": int(applied.sums[CHANGED]),
                "through": applied.through,
            }
            points.append(_point(alpha, choice, data, unedited, evaluation, reference) | arrived)
    if all(point["status"] != "ok" for point in points[1:]):
        raise EditError(f"no point can be measured, {points[1]['status']}")
    return points, unedited


def _point(
    alpha: float, choice: int | None, data: Data, unedited: Data, evaluation: Evaluation, reference: Data | None
) -> Point:
    values = derived(data, unedited) | measured(data, evaluation.metrics, reference)
    return {"alpha": alpha, "choice": choice, "status": "ok", "values": values}


def _refuse_unknown(rule: Rule | None, point: Point) -> None:
    """What a rule asks for must be there, or hours would be spent on a choice that cannot be made."""
    for name in rule.names if rule else ():
        score = point["values"].get(name, {"value": point.get(name), "status": "unknown"})
        if score["value"] is None:
            raise EditError(f"--choose {rule.text!r}: {name} of the unedited model is not there, {score['status']}")  # type: ignore[union-attr]


def _part(progress: Progress | None, place: int, many: int) -> Callable[[int, int], None]:
    """The progress of one point as that of the whole walk, in examples."""

    def advance(done: int, total: int) -> None:
        if progress:
            progress(place * total + done, many * total)

    return advance
