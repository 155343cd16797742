"""A run in words: its numbers, its times, what was computed and what was not.

>>> number(0.24), number(3.4e-16), number(12), number(True), number("survives"), number(None)
('0.240', '3.40e-16', '12', 'yes', 'survives', '–')
>>> written({"value": 0.24, "sd": 0.0283, "n": 2, "of": "seed", "unit": "", "status": "ok", "each": [0.22, 0.26]})
'0.240 ± 0.028'
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from editkit.diffing import measures
from editkit.diffing.rendering.wording import plural
from editkit.errors import listed, printable
from editkit.recipes.references import named

Run = Mapping[str, Any]
EXAMPLES = "examples"
"""What `of` says where a value came with a spread of its own, over the examples of a set."""


def number(value: Any, like: float | None = None) -> str:
    """A value of the table: about three digits, not more decimals than three. like: write it with as many decimals as this number has.

    >>> number(1067520.3), number(16.667), number(2.1254), number(0.0141, like=16.667)
    ('1,067,520', '16.7', '2.125', '0.0')
    """
    if value is None:
        return measures.UNDEFINED
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        decimals = _decimals(value if like is None else like)
        return measures.number(value) if decimals is None else f"{value:,.{decimals}f}"
    return f"{value:,}" if isinstance(value, int) else name(str(value))


def _decimals(value: float) -> int | None:
    size = abs(value)
    if size >= 1e9 or 0 < size < 0.0005:
        return None
    return 0 if size >= 100 else 1 if size >= 10 else 3


def name(text: str) -> str:
    """Text of a recipe, see `references.named`, for the terminal and the page."""
    return printable(named(text))


def written(one: Mapping[str, Any]) -> str:
    """A value with its spread."""
    if one["sd"] is None or one["value"] is None:
        return number(one["value"])
    return f"{number(float(one['value']))} ± {number(float(one['sd']), like=one['value'])}"


def spreads(table: Mapping[str, Any]) -> str:
    """What ± and n mean, in one line: column by column where they differ; "" where no value is a mean."""
    found: dict[str, list[str]] = {}
    for column in table["columns"]:
        ones = [row["values"][column] for row in table["rows"]]
        values = [
            one for one in ones if one["n"] is not None and not isinstance(one["value"], str)
        ]  # texts are counted
        if values:
            of = " and ".join(dict.fromkeys(one["of"] for one in values if one["of"])) or EXAMPLES
            counts = sorted({one["n"] for one in values})
            many = f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
            spread = any(one["sd"] is not None for one in values)
            said = f"±: standard deviation over {of}, n = {many}" if spread else f"mean over {of}, n = {many}"
            found.setdefault(said, []).append(printable(column))
    parts = [f"{text} ({listed(names)})" if len(found) > 1 else text for text, names in found.items()]
    return f"{'; '.join(parts)}." if parts else ""


def unknown(table: Mapping[str, Any]) -> list[str]:
    """Why values are missing, each reason once."""
    states = ((column, row["values"][column]["status"]) for row in table["rows"] for column in table["columns"])
    return list(dict.fromkeys(printable(f"{column}: {status}") for column, status in states if status != "ok"))


def duration(seconds: float | None) -> str:
    """
    >>> duration(0.01), duration(0.42), duration(41.2), duration(200), duration(7320), duration(None)
    ('< 0.1 s', '0.4 s', '41 s', '3 min 20 s', '2 h 2 min', '–')
    """
    if seconds is None:
        return measures.UNDEFINED
    if seconds < 0.05:
        return "< 0.1 s"
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def counted(calls: list[Mapping[str, Any]]) -> str:
    """How many calls are in which state, such as "2 computed, 5 cached"."""
    return ", ".join(f"{n:,} {state}" for state, n in Counter(call["state"] for call in calls).items())


def settled(call: Mapping[str, Any]) -> str:
    """A line about a call that has come to its end.

    >>> settled({"label": "edited (seed 0)", "state": "computed", "seconds": 10.3, "summary": "reached at step 20", "why": None})
    'edited (seed 0): computed in 10 s; reached at step 20'
    """
    took = f" in {duration(call['seconds'])}" if call["state"] == "computed" else ""
    return printable("; ".join(filter(None, (f"{call['label']}: {call['state']}{took}", call["summary"], call["why"]))))


def headline(run: Run) -> str:
    """What was run, how it ended and how long it took."""
    n, steps = len(run["calls"]), sum(one["needed"] for one in run["steps"])
    took = "; nothing was run" if run["dry_run"] else f", in {duration(run['seconds'])}"
    return f"{n:,} {plural('call', n)} of {steps} {plural('step', steps)}: {counted(run['calls'])}{took}."


def cell(variables: Mapping[str, Any]) -> str:
    """
    >>> cell({"method": "npo+gd", "seed": 0})
    'method npo+gd, seed 0'
    """
    return ", ".join(f"{printable(key)} {name(str(value))}" for key, value in variables.items())


def header(text: str) -> list[tuple[str, str]]:
    """The comment at the top of a recipe as (label, text): `Paper: ...` begins a part, other lines go on with it.

    >>> header("What: two\\nlines\\nTime: 2 min")
    [('What', 'two lines'), ('Time', '2 min')]
    """
    parts: list[tuple[str, str]] = []
    for line in (one.strip() for one in text.splitlines()):
        label, colon, rest = line.partition(": ")
        if colon and label.isalpha() and label[0].isupper():
            parts.append((label, rest.strip()))
        elif line:
            label, before = parts.pop() if parts else ("", "")
            parts.append((label, f"{before} {line}".strip()))
    return [(label, printable(said)) for label, said in parts]
