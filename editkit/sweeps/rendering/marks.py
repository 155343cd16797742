"""What page and picture draw of a sweep: a mark for every point, and the lines through and beside them."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from editkit.diffing.measures import UNDEFINED
from editkit.errors import printable
from editkit.sweeps.choice import Rule, parse
from editkit.sweeps.report import named

Report = Mapping[str, Any]
Limits = tuple[float | None, float | None]

AXES = ("forgetting", "retention")


class Mark(NamedTuple):
    """A point of the sweep at (forgetting, retention), with the limits of both. series: its choice, None for the unedited model."""

    x: float
    y: float
    across: Limits
    up: Limits
    series: int | None
    alpha: float
    front: bool
    said: str
    tip: str

    @property
    def special(self) -> bool:
        """Whether it is the knee, the chosen or the unedited point."""
        return self.said != f"{self.alpha:g}"


def marks(report: Report) -> list[Mark]:
    """The points that have both values, in the order of sweep.json."""
    found = []
    for place, point in enumerate(report["points"]):
        x, y = (point["values"].get(axis, {}) for axis in AXES)
        if x.get("value") is None or y.get("value") is None:
            continue
        across, up = ((one["ci_low"], one["ci_high"]) for one in (x, y))
        front = place in report["front"]
        found.append(
            Mark(
                x["value"],
                y["value"],
                across,
                up,
                point["choice"],
                point["alpha"],
                front,
                said(report, place),
                tip(report, place),
            )
        )
    return found


def said(report: Report, place: int) -> str:
    """The label of a point: its alpha, and what is special about it."""
    if report["points"][place]["choice"] is None:
        return "unedited"
    roles = [role for role in ("chosen", "knee") if report[role] == place]
    return " ".join([*(", ".join(roles),) * bool(roles), f"{report['points'][place]['alpha']:g}"])


def tip(report: Report, place: int) -> str:
    """Everything about a point, line by line."""
    lines = [printable(named(report, place)), *(value(report, place, name, True) for name in AXES)]
    others = [row["name"] for row in report["quantities"] if row["name"] not in AXES]
    lines += [value(report, place, name, True) for name in others[:6]]
    lines.append(
        "on the front" if place in report["front"] else "another point is as good in both, or better" if place else ""
    )
    return "\n".join(filter(None, lines))


def value(report: Report, place: int, name: str, titled: bool = False) -> str:
    """A value with its 95 % interval; titled: after its name."""
    one = report["points"][place]["values"].get(name)
    if one is None:
        return "" if titled else UNDEFINED
    return f"{name} {written(one)}" if titled else written(one)


def written(one: Mapping[str, Any]) -> str:
    """
    >>> written({"value": 0.5, "ci_low": 0.4, "ci_high": 0.61234}), written({"value": None})
    ('0.500 [0.400, 0.612]', '–')
    """
    if one["value"] is None:
        return UNDEFINED
    limits = f" [{plain(one['ci_low'])}, {plain(one['ci_high'])}]" if one.get("ci_low") is not None else ""
    return plain(one["value"]) + limits


def around(one: Mapping[str, Any] | None) -> str:
    """A value and half the width of its 95 % interval.

    >>> around({"value": 0.5, "ci_low": 0.4, "ci_high": 0.61234}), around({"value": None}), around(None)
    ('0.500 ± 0.106', '–', '–')
    """
    if one is None or one["value"] is None:
        return UNDEFINED
    low, high = one["ci_low"], one["ci_high"]
    return plain(one["value"]) + (f" ± {plain((high - low) / 2)}" if low is not None else "")


def plain(number: float) -> str:
    """Three decimals, or three digits of what is large. What rounds to zero has no sign."""
    text = f"{number:.3f}" if abs(number) < 100 else f"{number:.3g}"
    return text.removeprefix("-") if not float(text) else text


def series(report: Report) -> list[str]:
    """What the choices are called."""
    return [printable(one["label"]) for one in report["choices"]]


def lines_beside(report: Report) -> dict[str, list[tuple[float, str]]]:
    """Lines across the chart: at which forgetting ("x") the reference is, and what a rule demands of both ("x", "y")."""
    found: dict[str, list[tuple[float, str]]] = {"x": [], "y": []}
    level = ((report["reference"] or {}).get("values") or {}).get("forgetting", {}).get("value")
    if level is not None:
        found["x"].append((level, f"reference {plain(level)}"))
    for term in asked.terms if (asked := rule(report)) else ():
        if term.name in AXES:
            found["xy"[AXES.index(term.name)]].append((term.number, str(term)))
    return found


def rule(report: Report) -> Rule | None:
    text = report["settings"]["choose"]
    return parse(text) if text else None


def reach(
    found: Sequence[Mark], beside: Mapping[str, Sequence[tuple[float, str]]]
) -> tuple[tuple[float, float], tuple[float, float]]:
    """The ends of both axes: all points and lines, and as much again of the intervals as is free; a little more for the labels."""
    ends = []
    for axis, key in enumerate("xy"):
        values = [(one.x, one.y)[axis] for one in found] + [number for number, _ in beside[key]]
        limits = [limit for one in found if one.front for limit in (one.across, one.up)[axis] if limit is not None]
        low, high = min([*values, *limits]), max([*values, *limits])
        spare = 0.06 * (high - low) or 0.05
        ends.append((low - spare, high + spare))
    return ends[0], ends[1]
