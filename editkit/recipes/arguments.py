"""Whether a value of a recipe is what an argument takes, by the annotation of the function, and which values are places on the disk.

>>> fitted("1e-4", float | None), fitted(3, float), fitted([1, 2], Sequence[float])
(0.0001, 3.0, [1, 2])
>>> misfit("much", float | None)
"is 'much': give a number"
>>> misfit(True, int), misfit(["a"], str | Sequence[str]), misfit({"a": "x"}, Mapping[str, float])
('is True: give a whole number', None, "is {'a': 'x'}: give a mapping (a number each)")
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

_PLAIN = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
_NESTED = ("mask",)
"""Keys of a mapping of settings under which there is a place."""


@dataclass(frozen=True)
class Output:
    """What the call `key` of a step writes; the name is that of the file or folder, "" where it writes nothing."""

    step: str
    key: str
    name: str

    @property
    def path(self) -> str:
        """Where it is in the folder of the run."""
        return f"{folder_of(self.step, self.key)}/{self.name}"


@dataclass(frozen=True)
class Value:
    """What the result of a step has at `path`."""

    step: str
    key: str
    path: str


@dataclass(frozen=True)
class Joined:
    """A text with outputs or values in it."""

    parts: tuple[Any, ...]


Later = Output | Value | Joined
"""What is known when other steps are done."""


@dataclass(frozen=True)
class Place:
    """A file or folder that is there, or a Hub id. written: as the recipe has it. content: what its key goes by."""

    path: str
    written: str
    content: str


def without_folders(value: Any) -> Any:
    """A value as a reader is told, without folders of this machine: of an absolute path the last part.

    >>> without_folders(["/home/me/model/", "../model", 3])
    ['model', '../model', 3]
    """
    if isinstance(value, str):
        return os.path.basename(value.rstrip("/")) or value if os.path.isabs(os.path.expanduser(value)) else str(value)
    if isinstance(value, Mapping):
        return {without_folders(key): without_folders(one) for key, one in value.items()}
    return [without_folders(one) for one in value] if isinstance(value, list) else value


def folder_of(step: str, key: str) -> str:
    """Where in the folder of the run a call has its files."""
    return f"steps/{step}-{key[:12]}"


class Text(str):
    """A text of a recipe or of `--set`. home: what a relative path in it is relative to. keys: where it is written."""

    home: Path
    keys: tuple[str | int, ...]

    def __new__(cls, text: str, home: Path, keys: tuple[str | int, ...] = ()) -> "Text":
        made = super().__new__(cls, text)
        made.home, made.keys = home, keys
        return made


def _arms(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)


def _is_place(annotation: Any) -> bool:
    return get_origin(annotation) is os.PathLike or annotation is os.PathLike


def misfit(value: Any, annotation: Any) -> str | None:
    """What is wrong with a value for an argument, None where nothing is. What is known later may be anything."""
    if _fits(value, annotation):
        return None
    wanted = dict.fromkeys(said for arm in _arms(annotation) if (said := _said(arm)))
    return f"is {value!r}: give {' or '.join(wanted)}"


def fitted(value: Any, annotation: Any) -> Any:
    """The value as the number that is meant: text such as 1e-4, which is none in YAML, and 1 where an argument takes 1.0."""
    if type(value) is int and float in _arms(annotation) and int not in _arms(annotation):
        return float(value)
    if isinstance(value, str) and not _fits(value, annotation) and _fits(0.5, annotation):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _fits(value: Any, annotation: Any) -> bool:
    if isinstance(value, Later):
        return True
    return any(_fits_arm(value, arm) for arm in _arms(annotation))


def _fits_arm(value: Any, arm: Any) -> bool:
    if arm is Any:
        return True
    if arm in (None, NoneType):
        return value is None
    if _is_place(arm):
        return isinstance(value, str)
    if arm is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if arm in _PLAIN:
        return isinstance(value, arm) and (arm is bool or not isinstance(value, bool))
    inner = get_args(arm)
    if get_origin(arm) is Sequence:
        return isinstance(value, list | tuple) and all(_fits(one, inner[0]) for one in value)
    if get_origin(arm) is Mapping:
        return isinstance(value, Mapping) and all(
            _fits(key, inner[0]) and _fits(one, inner[1]) for key, one in value.items()
        )
    return False


def _said(arm: Any) -> str:
    if _is_place(arm):
        return "a path"
    inner = get_args(arm)
    if get_origin(arm) is Sequence:
        return f"a list ({' or '.join(dict.fromkeys(map(_said, _arms(inner[0]))))} each)"
    if get_origin(arm) is Mapping:
        return f"a mapping ({' or '.join(dict.fromkeys(map(_said, _arms(inner[1]))))} each)"
    return _PLAIN.get(arm, "anything" if arm is Any else "")


def placed(value: Any, annotation: Any, found: Callable[[Text], Any]) -> Any:
    """The value with `found(text)` for every text that is a place; of a mapping also its keys, and what it has under `mask`."""
    arms = _arms(annotation)
    if isinstance(value, Text):
        return found(value) if any(map(_is_place, arms)) else value
    if isinstance(value, list):
        inner = next((get_args(arm)[0] for arm in arms if get_origin(arm) is Sequence), None)
        return [placed(one, inner, found) for one in value]
    if isinstance(value, Mapping):
        keys, values = next((get_args(arm) for arm in arms if get_origin(arm) is Mapping), (None, None))
        return {
            placed(key, keys, found): found(one)
            if key in _NESTED and isinstance(one, Text)
            else placed(one, values, found)
            for key, one in value.items()
        }
    return value
