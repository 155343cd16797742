"""A value of the result of a step: keys with dots between them, and in brackets which element of a list.

>>> result = {"result": [{"set": "forget", "after": {"value": 0.24}}, {"set": "retain", "after": {"value": 0.98}}],
...           "knee": 1, "points": ["first", "second"]}
>>> lookup(result, parse("result[set=retain].after.value"))
0.98
>>> lookup(result, parse("points[0]")), lookup(result, parse("points[knee]"))
('first', 'second')

`[key=value, key=value]` is the one element with these values, which may be shell globs; `[0]` and `[-1]` count; `[word]` takes
the number that the result has under that key beside the list.
"""

import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from editkit.errors import EditError, listed

_PART = re.compile(r"(?:^|\.)\s*([^.\[\]]+?)\s*(?=[.\[]|$)|\[([^\[\]]*)\]")
Part = str | int | tuple[tuple[str, str], ...] | tuple[str]


def parse(path: str) -> list[Part]:
    """A path as its parts: keys, numbers, (word,) and ((key, value), ...). Raises ValueError, with a phrase, for what is none."""
    parts: list[Part] = []
    end = 0
    for found in _PART.finditer(path):
        if found.start() != end:
            break
        end = found.end()
        parts.append(found[1] if found[1] is not None else _selector(found[2].strip(), path))
    if end != len(path) or not parts:
        raise ValueError(f"has {path!r}: write keys, and in brackets which one, such as result[set=forget].after")
    return parts


def _selector(text: str, path: str) -> Part:
    if re.fullmatch(r"-?\d+", text):
        return int(text)
    if re.fullmatch(r"\w+", text):
        return (text,)
    pairs = [one.partition("=") for one in text.split(",")]
    if not all(key.strip() and sign for key, sign, _ in pairs):
        raise ValueError(f"has [{text}] in {path!r}: write [key=value], [key=value, key=value] or [0]")
    return tuple((key.strip(), value.strip()) for key, _, value in pairs)


def lookup(result: Any, parts: list[Part]) -> Any:
    """The value there. Raises EditError, with what there is instead, where there is none or more than one."""
    found, around, shown = result, None, ""
    for part in parts:
        before = shown or "the result"
        if isinstance(part, str):
            if not isinstance(found, Mapping) or part not in found:
                there = listed(found, 8) if isinstance(found, Mapping) else f"{_kind(found)}, without keys"
                raise EditError(f"{before} has no {part!r}: there is {there}")
            around, found, shown = found, found[part], f"{shown}.{part}".lstrip(".")
            continue
        if not isinstance(found, list):
            raise EditError(f"{before} is {_kind(found)} and no list: leave the brackets out")
        found, shown = _element(found, part, around, before), f"{before}[...]"
    return found


def _element(items: list[Any], part: Part, around: Any, shown: str) -> Any:
    if isinstance(part, tuple) and isinstance(part[0], str):
        index = around.get(part[0]) if isinstance(around, Mapping) else None
        if type(index) is not int:
            raise EditError(f"{shown}[{part[0]}]: there is no number under {part[0]!r} beside the list, but {index!r}")
        part = index
    if isinstance(part, int):
        if not -len(items) <= part < len(items):
            raise EditError(f"{shown} has {len(items)} elements: there is no [{part}]")
        return items[part]
    fitting = list(items)
    for key, value in part:  # type: ignore[misc,str-unpack]
        there = list(dict.fromkeys(str(one.get(key)) for one in fitting if isinstance(one, Mapping)))
        fitting = [one for one in fitting if isinstance(one, Mapping) and key in one and _fits(one[key], value)]
        if not fitting:
            raise EditError(f"{shown} has nothing with {key}={value}: there is {key}={listed(there, 8) or 'nothing'}")
    if len(fitting) > 1:
        keys = [key for key in fitting[0] if all(isinstance(one.get(key), str | None) for one in fitting)]  # no numbers
        differ = [key for key in keys if len({str(one.get(key)) for one in fitting}) > 1]
        chosen = ", ".join("=".join(pair) for pair in part)  # type: ignore[arg-type]
        raise EditError(
            f"{shown} has {len(fitting)} elements with {chosen}: say which, by {listed(differ, 4) or 'a number'}"
        )
    return fitting[0]


def _fits(value: Any, wanted: str) -> bool:
    """Whether a value is the wanted one, as text with globs, or as a number.

    >>> _fits("edited × 0.9", "edited*"), _fits(1.0, "1"), _fits(None, "null"), _fits(True, "true")
    (True, True, True, True)
    """
    if value is None or isinstance(value, bool):
        return wanted == {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int | float):
        try:
            return float(wanted) == value
        except ValueError:
            return False
    return str(value) == wanted or fnmatchcase(str(value), wanted)


def _kind(value: Any) -> str:
    if value is None:
        return "unknown (null)"
    return {dict: "a mapping", list: "a list", str: "text", bool: "yes or no"}.get(type(value), "a number")
