"""What a recipe comes to: the calls of every cell of its matrix, each once, with a key that says all its result depends on."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from editkit import __version__
from editkit.errors import listed
from editkit.merging.document import Key
from editkit.recipes.arguments import (
    Joined,
    Output,
    Place,
    Text,
    Value,
    fitted,
    folder_of,
    misfit,
    placed,
    without_folders,
)
from editkit.recipes.document import FIRST, Recipe, parts_of
from editkit.recipes.functions import STEPS, output_name, parameters
from editkit.recipes.names import check_names, wanted
from editkit.recipes.places import Places, there
from editkit.recipes.references import Reference, named
from editkit.recipes.vocabulary import misread

UNKNOWN = Output("", "", "")
"""In place of what is wrong, which the recipe's problems say."""
_DATA = {"data", "forget", "retain", "unseen", "sets", "mask", "masks", "patch"}
"""Arguments that no model of the Hub is given to."""


@dataclass(frozen=True)
class Call:
    """One call of a function. cell: the variables it depends on. arguments: with Output, Value, Joined and Place for what is no plain value.

    key: sha256 in hex. needs: the keys of the calls before it.
    """

    step: str
    function: str
    cell: dict[str, Any]
    arguments: dict[str, Any]
    key: str
    needs: list[str]

    @property
    def label(self) -> str:
        """What messages call it: `edited (method npo+gd, seed 0)`."""
        said = ", ".join(f"{name} {named(str(value))}" for name, value in self.cell.items())
        return f"{self.step} ({said})" if said else self.step

    @property
    def folder(self) -> str:
        """Where in the folder of the run it leaves what it writes and what it found."""
        return folder_of(self.step, self.key)


class Plan(NamedTuple):
    """calls: by key, in an order in which they can be made. rows: every cell with its columns. chosen: settings as they are used.
    asked: settings that the calls use. places: what of the disk and the Hub it goes by."""

    calls: dict[str, Call]
    rows: list[tuple[dict[str, Any], dict[str, Any]]]
    chosen: dict[str, Any]
    asked: set[str]
    places: Places


def plan_recipe(recipe: Recipe) -> Plan:
    """Raises EditError that lists everything which is wrong with the recipe."""
    order = check_names(recipe)
    roots = wanted(recipe)
    planner = _Planner(recipe)
    rows = []
    if order is not None:
        names = list(recipe.matrix)
        lists = (one.value if isinstance(one.value, list) else [one.value] for one in recipe.matrix.values())
        lists = (values or [UNKNOWN] for values in lists)
        for values in product(*lists):
            planner.begin(dict(zip(names, values, strict=True)))
            for step in (step for step in recipe.steps if step in roots):
                planner.call(step)
            columns = {name: planner.value(text, recipe.home, "table", name) for name, text in recipe.table.items()}
            rows.append((planner.cell, columns))
    recipe.refuse()
    return Plan(planner.calls, rows, planner.chosen, planner.asked, planner.places)


class _Planner:
    """Resolves what the steps of one cell refer to, on demand, so that what nobody refers to is left out."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe, self.places = recipe, Places()
        self.calls: dict[str, Call] = {}
        self.chosen: dict[str, Any] = {name: one.value for name, one in recipe.settings.items()}
        self.asked: set[str] = set()

    def begin(self, cell: dict[str, Any]) -> None:
        """Go on with another cell of the matrix."""
        self.cell = cell
        self._made: dict[str, tuple[Output, set[str]]] = {}
        self._used: set[str] = set()

    def call(self, step: str) -> Output:
        """The call of a step in this cell."""
        if step not in self._made:
            around, self._used = self._used, set()
            self._made[step] = self._planned(step), self._used
            self._used = around
        made, used = self._made[step]
        self._used |= used
        return made

    def _planned(self, step: str) -> Output:
        function, given = self.recipe.steps[step]
        if function not in STEPS:
            return UNKNOWN
        known, arguments = parameters(function), {}
        for name, written in given.items():
            keys = ("steps", step, function, name)
            value = self.value(written, self.recipe.home, *keys)
            if name in known:
                arguments[name] = self._checked(written, value, known[name].annotation, *keys)
        arguments = {
            name: value
            for name, value in arguments.items()
            if value != known[name].default and [value] != [_listed(known[name].default)]
        }
        needs = list(dict.fromkeys(one.key for one in _later(arguments)))
        identity = {
            "editkit": __version__,
            "step": step,
            "function": function,
            "arguments": {name: _canonical(arguments[name]) for name in sorted(arguments)},
        }
        key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
        cell = {name: without_folders(value) for name, value in self.cell.items() if name in self._used}
        self.calls.setdefault(key, Call(step, function, cell, arguments, key, needs))
        return Output(step, key, output_name(function, step) or "")

    def _checked(self, written: Any, value: Any, annotation: Any, *keys: Key) -> Any:
        value = fitted(value, annotation)
        wrong = misfit(value, annotation) or misread(str(keys[-2]), str(keys[-1]), value)
        if wrong is not None:
            self.recipe.wrong(wrong, *(self._given(written) or _written_at(value, keys)))
            return value
        found = placed(value, annotation, partial(self._place, keys))
        if isinstance(found, Mapping) and isinstance(value, Mapping):
            self._refuse_same(list(value), {key.path if isinstance(key, Place) else key for key in found}, *keys)
        return found

    def _given(self, written: Any) -> tuple[Key, ...] | None:
        """What --set gave where a value is just that."""
        for room, ones in (("settings", self.recipe.settings), ("matrix", self.recipe.matrix)):
            for name, one in ones.items():
                if one.given and written == f"${{{name}}}":
                    return room, name
        return None

    def _place(self, keys: tuple[Key, ...], text: Text) -> Place | Output:
        try:
            return self.places.find(text, hub=not _DATA & {str(key) for key in keys[3:]})
        except LookupError as error:
            where = "working directory" if text.home != self.recipe.home else "folder of the recipe"
            said = f"is {error.args[0]!r}, which is not there: paths are relative to the {where}"
            self.recipe.wrong(said, *_written_at(text, keys))
            return UNKNOWN

    def value(self, value: Any, home: Path, *keys: Key) -> Any:
        """A value of the recipe with what it refers to."""
        if isinstance(value, str):
            return self._text(value, home, *keys)
        if isinstance(value, Mapping):
            found = {self._key(key, home, *keys): self.value(one, home, *keys, key) for key, one in value.items()}
            self._refuse_same(list(value), set(found), *keys)
            return UNKNOWN if UNKNOWN in found or UNKNOWN in found.values() else found
        if isinstance(value, list | tuple):
            items = [self.value(one, home, *keys, index) for index, one in enumerate(value)]
            return UNKNOWN if UNKNOWN in items else items
        return value if value is None or isinstance(value, bool | int | float) else UNKNOWN

    def _refuse_same(self, written: list[Any], found: set[Any], *keys: Key) -> None:
        """Where two keys of a mapping stand for the same one of the two would be lost."""
        if len(found) < len(written) and UNKNOWN not in found:
            self.recipe.wrong(
                f"has keys that stand for the same, of {listed(map(str, written))}: give each once", *keys
            )

    def _key(self, key: Any, home: Path, *keys: Key) -> Any:
        found = self._text(key, home, *keys) if isinstance(key, str) else key
        if not isinstance(found, str | int | float | Output | Value | Joined):
            self.recipe.wrong(f"has {str(key)!r} for a key, which is {found!r}: give text", *keys)
            return UNKNOWN
        return found

    def _text(self, text: str, home: Path, *keys: Key) -> Any:
        parts = [part if isinstance(part, str) else self._referred(part) for part in parts_of(self.recipe, text, *keys)]
        if len(parts) < 2:
            [part] = parts or [UNKNOWN]
            return Text(part, home, keys) if type(part) is str else part
        if UNKNOWN in parts:
            return UNKNOWN
        if bad := [one for one in parts if one is None or isinstance(one, list | dict)]:
            self.recipe.wrong(f"has {bad[0]!r} within a text: give it alone", *keys)
            return UNKNOWN
        if any(isinstance(one, Output | Value | Joined) for one in parts):
            if any(".." in one.split("/") for one in parts if isinstance(one, str)):
                self.recipe.wrong("leads out of the output of a step by '..': give that place itself", *keys)
            flat = (inner for one in parts for inner in (one.parts if isinstance(one, Joined) else [one]))
            return Joined(tuple(one if isinstance(one, Output | Value) else str(one) for one in flat))
        return Text("".join(map(str, parts)), parts[0].home if isinstance(parts[0], Text) else home, keys)

    def _referred(self, one: Reference) -> Any:
        recipe = self.recipe
        if one.name in recipe.steps:
            made = self.call(one.name)
            return made if one.path is None or made is UNKNOWN else Value(made.step, made.key, one.path)
        if one.name in recipe.matrix:
            self._used.add(one.name)
            return self.value(self.cell[one.name], recipe.matrix[one.name].home, "matrix", one.name)
        if one.name in recipe.settings:
            return self._setting(one.name)
        return UNKNOWN

    def _setting(self, name: str) -> Any:
        self.asked.add(name)
        value, home, _ = self.recipe.settings[name]
        if not (isinstance(value, Mapping) and value.keys() == {FIRST}):
            return self.value(value, home, "settings", name)
        candidates = value[FIRST] if isinstance(value[FIRST], list) else [value[FIRST]]
        for index, one in enumerate(candidates):
            before = set(self._used)
            found = self.value(one, home, "settings", name, FIRST, index)
            if not isinstance(found, Text) or there(found) is not None:
                self.chosen[name] = one
                return found
            self._used = before
        self.recipe.wrong(
            f"is {candidates!r}, of which nothing is there: give one that is, with --set {name}=...", "settings", name
        )
        return UNKNOWN


def _written_at(value: Any, keys: tuple[Key, ...]) -> tuple[Key, ...]:
    """Where a value was written, which for the text of a setting is not where it is used."""
    return value.keys or keys if isinstance(value, Text) else keys


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _later(value: Any) -> Iterator[Output | Value]:
    """What of other calls a value needs."""
    if isinstance(value, Output | Value):
        yield value
    for inner in within(value):
        yield from _later(inner)


def within(value: Any) -> list[Any]:
    """The values that a value is made of, keys too; of a plain one none."""
    if isinstance(value, Joined):
        return list(value.parts)
    if isinstance(value, Mapping):
        return [*value, *value.values()]
    return value if isinstance(value, list) else []


def _canonical(value: Any) -> Any:
    """As JSON in which equal means that the same comes out."""
    if isinstance(value, Output):
        return {"output": value.key}
    if isinstance(value, Value):
        return {"value": [value.key, value.path]}
    if isinstance(value, Joined):
        return {"joined": [_canonical(one) for one in value.parts]}
    if isinstance(value, Place):
        return {"place": [Path(value.path).name, value.content]}
    if isinstance(value, Mapping):
        return {"mapping": [[_canonical(key), _canonical(one)] for key, one in value.items()]}
    return [_canonical(one) for one in value] if isinstance(value, list) else value


def shown(value: Any) -> Any:
    """As a reader is told, as JSON, without folders of this machine."""
    if isinstance(value, Output):
        return value.path
    if isinstance(value, Value):
        return f"${{{value.step}: {value.path}}}"
    if isinstance(value, Joined):
        return "".join(str(shown(one)) for one in value.parts)
    if isinstance(value, Place):
        return without_folders(value.written)
    if isinstance(value, Mapping):
        return {str(shown(key)): shown(one) for key, one in value.items()}
    if isinstance(value, list):
        return [shown(one) for one in value]
    return str(value) if isinstance(value, Text) else value
