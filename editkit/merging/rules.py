"""Settings of a merge as mergekit writes them: a value, a gradient over the layers, or either for names that a filter hits.

>>> setting = [{"filter": "self_attn", "value": [0, 1]}, {"value": 0.5}]
>>> [resolve("t", [{"t": setting}], name, 0.25).value for name in ("layers.1.self_attn.q_proj.weight", "norm.weight")]
[0.25, 0.5]

A gradient with values v[0] ... v[n-1] is the straight line between neighbours at `t * (n - 1)`, with t = 0 in the first
layer of a slice and 1 in its last; a slice of one layer has t = 1, and what lies outside layers t = 0, as in mergekit.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from math import isfinite
from numbers import Real
from typing import Any, NamedTuple

from editkit.names import matches

Scopes = list[Mapping[str, Any]]


def hits(name: str, pattern: str | None, *, compatible: bool = False) -> bool:
    """Whether a filter means this tensor: it stands in the name, and neither of its ends cuts a number in two.

    >>> [hits(f"model.layers.{layer}.mlp.up_proj.weight", "layers.1") for layer in (1, 10)]
    [True, False]
    >>> hits("model.layers.10.mlp.up_proj.weight", "layers.1", compatible=True)
    True

    With `*`, `?` or `[` in it, it is a glob for the whole name, which mergekit does not have.
    """
    if pattern is None or pattern == "*":
        return True
    if compatible:
        return pattern in name
    if is_glob(pattern):
        return matches(name, pattern)
    before = r"(?<!\d)" if pattern[:1].isdigit() else ""
    after = r"(?!\d)" if pattern[-1:].isdigit() else ""
    return re.search(before + re.escape(pattern) + after, name) is not None


def is_glob(pattern: str) -> bool:
    """Whether a filter is a glob for the whole name."""
    return pattern != "*" and any(sign in pattern for sign in "*?[")


class Said(NamedTuple):
    """What a setting is for one tensor, and which of the scopes, and which condition in it, says so."""

    value: Any
    scope: int
    condition: int


def resolve(key: str, scopes: Scopes, name: str, t: float, *, compatible: bool = False) -> Said | None:
    """What the first of the scopes says that says something, from the narrowest to the whole merge; None where none does."""
    for scope, settings in enumerate(scopes):
        for condition, one in enumerate(conditions(settings[key]) if key in settings else ()):
            if hits(name, one.get("filter"), compatible=compatible):
                return Said(_at(one["value"], t), scope, condition)
    return None


def filters(setting: Any) -> Iterator[str]:
    """The filters in a setting, other than `*`."""
    for condition in conditions(setting):
        if condition.get("filter") not in (None, "*"):
            yield condition["filter"]


def longest(setting: Any) -> int:
    """The number of values in the longest gradient of a setting."""
    return max(len(one["value"]) if isinstance(one["value"], list) else 1 for one in conditions(setting))


def parsed(setting: Any, read: Callable[[Any], Any], where: str, problems: list[str]) -> Any:
    """The same setting with every value read by `read`, which raises ValueError. Adds what is wrong to `problems`."""
    if isinstance(setting, Mapping):
        setting = [setting]
    if not isinstance(setting, list) or not any(isinstance(one, Mapping) for one in setting):
        return _gradient(setting, read, where, problems)
    found = []
    for one in setting:
        if not isinstance(one, Mapping) or "value" not in one or not one.keys() <= {"filter", "value"}:
            problems.append(f"{where} holds {one!r}: each entry of such a list is value, or filter and value")
        elif not isinstance(one.get("filter"), str | None) or one.get("filter") == "":
            problems.append(f"{where} has the filter {one.get('filter')!r}: give text that is in a tensor's name")
        else:
            found.append({**one, "value": _gradient(one["value"], read, where, problems)})
    return found


def _gradient(value: Any, read: Callable[[Any], Any], where: str, problems: list[str]) -> Any:
    try:
        if not isinstance(value, list):
            return read(value)
        if not value:
            raise ValueError("is an empty list: give one value, or one for each point of a gradient over the layers")
        return [read(one) for one in value]
    except ValueError as error:
        problems.append(f"{where} {error}")
        return None


def conditions(setting: Any) -> list[Mapping[str, Any]]:
    """A setting as a list of values with or without a filter."""
    return setting if isinstance(setting, list) and isinstance(setting[0], Mapping) else [{"value": setting}]


def _at(value: Any, t: float) -> Any:
    if not isinstance(value, list):
        return value
    place = t * (len(value) - 1)
    low = int(place)
    if isinstance(value[low], bool) or not isinstance(value[low], int | float):
        return value[low]
    share = place - low
    return (1 - share) * value[low] + share * value[min(low + 1, len(value) - 1)]


def number(low: float | None = None, high: float | None = None) -> Callable[[Any], float]:
    """A reader of numbers, from `low` to `high`, that says what is wrong with one.

    >>> number(0, 1)("5e-1")  # what YAML 1.1 takes for text
    0.5
    >>> number(0, 1)(2)
    Traceback (most recent call last):
    ...
    ValueError: is 2: give a number from 0 to 1
    """
    wanted = (
        "give a number" + (f" from {low:g}" if low is not None else "") + (f" to {high:g}" if high is not None else "")
    )

    def read(value: Any) -> float:
        try:
            if isinstance(value, bool) or not isinstance(value, Real | str):
                raise ValueError
            found = float(value)
            if not isfinite(found) or (low is not None and found < low) or (high is not None and found > high):
                raise ValueError
        except (ValueError, OverflowError):
            raise ValueError(f"is {value!r}: {wanted}") from None
        return found

    return read


def truth(value: Any) -> bool:
    """A reader of true and false."""
    if not isinstance(value, bool | int) or value not in (0, 1):
        raise ValueError(f"is {value!r}: give true or false")
    return bool(value)
