"""Geometry of the picture of the steps: what needs what, from left to right, in pixels."""

from collections import Counter
from collections.abc import Mapping
from functools import cache
from typing import Any

from editkit.errors import printable
from editkit.recipes.rendering.wording import counted, duration

WIDE, TALL, ACROSS, DOWN = 178, 62, 48, 18  # of a step, and between two
_LONGEST = 23  # characters of a name


def columns(needs: Mapping[str, list[str]]) -> dict[str, int]:
    """The place of each step from the left: one after the last that it needs.

    >>> columns({"a": [], "b": ["a"], "c": ["a", "b"]})
    {'a': 0, 'b': 1, 'c': 2}
    """

    @cache
    def place(name: str) -> int:
        return max((place(one) + 1 for one in needs[name]), default=0)

    return {name: place(name) for name in needs}


def direct(needs: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """Only what is not needed by another need as well, so that no line runs past a step.

    >>> direct({"a": [], "b": ["a"], "c": ["a", "b"]})
    {'a': [], 'b': ['a'], 'c': ['b']}
    """

    @cache
    def behind(name: str) -> frozenset[str]:
        return frozenset(needs[name]).union(*(behind(one) for one in needs[name]))

    return {name: [one for one in own if not any(one in behind(other) for other in own)] for name, own in needs.items()}


def graph(run: Mapping[str, Any]) -> dict[str, Any] | None:
    """Boxes and lines; None for a single step."""
    steps = [one for one in run["steps"] if one["needed"]]
    names = [one["step"] for one in steps]
    if len(steps) < 2:
        return None
    needs = {one["step"]: [other for other in one["needs"] if other in names] for one in steps}
    column = columns(needs)
    rows, placed, spots = Counter(column.values()), Counter[int](), dict[str, tuple[float, float]]()
    most = max(rows.values())
    for name, at in column.items():  # every column stands in the middle
        down = placed[at] + (most - rows[at]) / 2
        spots[name] = (at * (WIDE + ACROSS), down * (TALL + DOWN))
        placed[at] += 1
    lines = [_line(spots[other], spots[name]) for name, own in direct(needs).items() for other in own]
    return {
        "width": max(column.values()) * (WIDE + ACROSS) + WIDE,
        "height": most * (TALL + DOWN) - DOWN,
        "lines": lines,
        "boxes": [_box(one, spots[one["step"]], run) for one in steps],
    }


def _line(start: tuple[float, float], end: tuple[float, float]) -> str:
    x1, y1, x2, y2 = start[0] + WIDE, start[1] + TALL / 2, end[0], end[1] + TALL / 2
    return f"M{x1} {y1:g}C{x1 + ACROSS * 0.6:g} {y1:g} {x2 - ACROSS * 0.6:g} {y2:g} {x2} {y2:g}"


def _box(step: Mapping[str, Any], spot: tuple[float, float], run: Mapping[str, Any]) -> dict[str, Any]:
    calls = [one for one in run["calls"] if one["step"] == step["step"]]
    states = {one["state"] for one in calls}
    known = [one["seconds"] for one in calls if one["seconds"] is not None]
    name = printable(step["step"])
    return {
        "x": spot[0], "y": spot[1], "wide": WIDE, "tall": TALL,
        "name": name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…",
        "function": step["function"],
        "note": " · ".join(filter(None, (f"{len(calls):,} ×" if len(calls) > 1 else "", duration(sum(known)) if known else ""))),
        "kind": "bad" if states & {"failed", "gate failed", "not run"} else "",
        "tip": "\n".join(filter(None, (f"{name}: {step['function']}", counted(calls), "for each " + " x ".join(step["variables"]) if step["variables"] else ""))),
    }  # fmt: skip
