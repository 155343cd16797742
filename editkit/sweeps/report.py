"""What follows from the points of a sweep: the front, the knee, the point that a rule chooses, and what to be careful about."""

import os
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from editkit.diffing.rendering.wording import plural
from editkit.sweeps.choice import Rule, choose, closest
from editkit.sweeps.pareto import front, knee
from editkit.sweeps.points import Choice

Report = dict[str, Any]
Source = str | os.PathLike[str]


def concluded(points: Sequence[Mapping[str, Any]], rule: Rule | None) -> dict[str, Any]:
    """The keys `front`, `knee`, `chosen` and `closest` of sweep.json: places in `points`, of which the first is the unedited model.

    The unedited model may be on the front and is never chosen.
    """
    pairs = [_pair(point) for point in points]
    on = front(pairs, [abs(point["alpha"]) for point in points])
    numbers = [values(point) for point in points[1:]]
    chosen = choose(rule, numbers) if rule else None
    near = closest(rule, numbers) if rule and chosen is None else None
    return {
        "front": on,
        "knee": knee(pairs, on),
        "chosen": None if chosen is None else chosen + 1,
        "closest": None if near is None else near + 1,
    }


def values(point: Mapping[str, Any]) -> dict[str, float | None]:
    """What a rule may ask of a point."""
    return {name: score["value"] for name, score in point["values"].items()} | {"alpha": point["alpha"]}


def _pair(point: Mapping[str, Any]) -> tuple[float, float] | None:
    found = values(point)
    x, y = found.get("forgetting"), found.get("retention")
    return None if x is None or y is None else (x, y)


def named(report: Mapping[str, Any], place: int) -> str:
    """A point in words: `alpha 0.5`, and its choice where there are several."""
    point, choices = report["points"][place], report["choices"]
    if point["choice"] is None:
        return "unedited"
    where = f" ({choices[point['choice']]['label']})" if len(choices) > 1 else ""
    return f"alpha {point['alpha']:g}{where}"


def refusal(report: Mapping[str, Any], rule: Rule) -> str:
    """Why no point was chosen, with the closest one."""
    near, several = report["closest"], len(rule.terms) > 1
    text = f"no point of the sweep has {' and '.join(map(str, rule.terms))}"
    if near is not None:
        found = values(report["points"][near])
        said = ", ".join(f"{term.name} {found[term.name]:.4g}" for term in rule.terms)
        text += f"; the closest is {named(report, near)} with {said}"
    return f"{text}: no checkpoint was written, ask for less{' of them' if several else ''} or sweep other alphas"


def command(
    choice: Choice, alpha: float, model: Source, vector: Source, vector_base: Source | None, other: bool
) -> str:
    """The `editkit negate` that writes a point.

    >>> command(Choice("runs/loc", ("*.mlp.*",), "loc, *.mlp.*"), 0.5, "model", "tuned", "before", False)
    "editkit negate model tuned --vector-base before --alpha 0.5 --mask runs/loc --only '*.mlp.*' -o EDITED"
    """
    words = ["editkit", "negate", os.fspath(model), os.fspath(vector)]
    words += ["--vector-base", os.fspath(vector_base)] if vector_base is not None else []
    words += ["--alpha", f"{alpha:.15g}"]
    words += ["--mask", os.fspath(choice.mask)] if choice.mask is not None else []
    words += [word for glob in choice.only for word in ("--only", glob)]
    return shlex.join([*words, *(["--allow-other-base"] if other else []), "-o", "EDITED"])


def warnings(report: Mapping[str, Any]) -> list[str]:
    """What must not be overlooked."""
    points, found = report["points"][1:], []
    if report["overlap"]:
        found.append(
            f"{report['overlap']} of the examples to forget are in the retain set too: forgetting them costs retention"
        )
    if broken := [point for point in points if point["status"] != "ok"]:
        first = f"alpha {broken[0]['alpha']:g}: {broken[0]['status'].removeprefix('broken: ')}"
        found.append(f"{len(broken)} of {len(points)} {plural('point', len(points))} cannot be measured ({first})")
    if still := [point for point in points if point.get("changed") == 0]:
        found.append(
            f"{len(still)} of {len(points)} points are the unedited model bit for bit: the change is zero, or below half a step of its dtype"
        )
    level = (report["reference"] or {"values": {}})["values"].get("forgetting", {}).get("value")
    if level is not None and level <= 0:
        found.append(
            "the reference gets as many tokens of the forget set right as the unedited model: there is nothing to forget, or it saw the set"
        )
    elif level is not None:
        found += _beyond(report, level)
    return found


def _beyond(report: Mapping[str, Any], level: float) -> list[str]:
    """Whether the point that matters forgets more than a model that never knew, with its whole interval."""
    text = report["settings"]["choose"]
    place, role = (report["knee"], "knee") if text is None else (report["chosen"], "chosen point")
    if place is None:
        return []
    score = report["points"][place]["values"]["forgetting"]
    if score["ci_low"] is None or score["ci_low"] <= level:
        return []
    limit = f"forgetting <= {level:.3f}"
    if text is None:
        what = f"give a rule, --choose 'max forgetting s.t. {limit}'"
    else:
        what = f"add '{'and' if 's.t.' in text else 's.t.'} {limit}' to the rule"
    return [
        f"the {role} forgets more ({score['value']:.3f}) than a model that never saw the forget set ({level:.3f}), which shows too: {what}"
    ]
