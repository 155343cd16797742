"""A recipe as it is written: settings, a matrix of variables, steps that call functions, and a table of what they find.

>>> recipe = read_recipe({"editkit": 1, "steps": {"people": {"invent": {"forget": 4}}}})
>>> recipe.steps["people"]
Step(function='invent', arguments={'forget': 4})
>>> recipe.problems
[]
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from editkit.errors import EditError, listed, meant
from editkit.merging.document import Document, Key, read_document
from editkit.recipes.functions import STEPS, parameters
from editkit.recipes.references import NAME, parse, references

FORMAT = 1
KEYS = ("editkit", "title", "settings", "matrix", "steps", "table")
FIRST, OVER = "first", "over"


class Setting(NamedTuple):
    """A value that `--set` may change. home: what relative paths in it are relative to. given: it was changed."""

    value: Any
    home: Path
    given: bool = False


class Step(NamedTuple):
    """A call of a function of STEPS."""

    function: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Recipe:
    """header: the comment at the top. matrix: variable -> its values. table: column -> what is looked up. over: variables that the table
    takes mean and spread over. problems: all that is wrong with it, each with its line."""

    document: Document
    name: str
    title: str
    header: str
    text: str | None
    home: Path
    settings: dict[str, Setting]
    matrix: dict[str, Setting]
    steps: dict[str, Step]
    table: dict[str, Any]
    over: list[str]
    problems: list[str] = field(default_factory=list)

    def wrong(self, said: str, *keys: Key) -> None:
        """Add what is wrong with the value at these keys; once, however many cells have it."""
        text = f"{self._place(*keys)} {said}" if keys else said
        if text not in self.problems:
            self.problems.append(text)

    def _place(self, *keys: Key) -> str:
        rooms: Mapping[Key, dict[str, Setting]] = {"settings": self.settings, "matrix": self.matrix}
        one = rooms[keys[0]].get(str(keys[1])) if len(keys) > 1 and keys[0] in rooms else None
        return f"--set {keys[1]}" if one and one.given else self.document.place(*keys)

    def refuse(self) -> None:
        """Raise EditError with all problems, where there are any."""
        if self.problems:
            raise EditError(f"{self.document.shown}: {'; '.join(self.problems)}")


def read_recipe(source: str | os.PathLike[str] | Mapping[str, Any], given: Mapping[str, Any] | None = None) -> Recipe:
    """A recipe from a file or a dictionary; given: settings and variables of the matrix in place of its own.

    Raises EditError for what is no recipe of this format; what is wrong within it is in `problems`.
    """
    document = read_document(source, "recipe", "the keys editkit: 1 and steps")
    data = document.data
    version = data.get("editkit")
    if type(version) is int and version > FORMAT:
        raise EditError(
            f"{document.shown} is a recipe of format {version}, and this editkit reads format {FORMAT}: update editkit"
        )
    rooms = {room: data[room] for room in KEYS if isinstance(data.get(room), Mapping)}
    if bad := [f"{key!r} in {room}" for room, named in rooms.items() for key in named if not isinstance(key, str)]:
        raise EditError(f"{document.shown}: {listed(bad)}: names are text, so write them in quotes")
    path = None if isinstance(source, Mapping) else Path(source).expanduser()
    home = path.resolve().parent if path else Path.cwd()
    text = path.read_text("utf-8") if path else None
    name = path.stem if path else "recipe"
    table = dict(_mapping(data.get("table")))
    over = table.pop(OVER, [])
    recipe = Recipe(
        document=document,
        name=name,
        title=str(data.get("title") or name),
        header=_header(text or ""),
        text=text,
        home=home,
        settings={key: Setting(value, home) for key, value in _mapping(data.get("settings")).items()},
        matrix={key: Setting(value, home) for key, value in _mapping(data.get("matrix")).items()},
        steps={key: _step(value) for key, value in _mapping(data.get("steps")).items()},
        table=table,
        over=[over] if isinstance(over, str) else over,
    )
    if version != FORMAT or type(version) is not int:
        recipe.wrong(f"editkit is {version!r}: write editkit: {FORMAT}, the version of the format")
    _check_keys(recipe)
    _check_names(recipe)
    _check_steps(recipe)
    _override(recipe, given or {})
    for room, named in (("settings", recipe.settings), ("matrix", recipe.matrix)):
        for key, one in named.items():
            _check_value(recipe, one.value, room, key)
    for key, step in recipe.steps.items():
        _check_value(recipe, step.arguments, "steps", key, step.function)
    _check_matrix(recipe)
    return recipe


def _header(text: str) -> str:
    comment = re.match(r"(?:#[^\n]*(?:\n|$))*", text)
    lines = comment[0].splitlines() if comment else []
    return "\n".join(line.removeprefix("#").removeprefix(" ") for line in lines).strip()


def _mapping(value: Any) -> Mapping[str, Any]:
    return {str(key): one for key, one in value.items()} if isinstance(value, Mapping) else {}


def _step(value: Any) -> Step:
    if not isinstance(value, Mapping) or len(value) != 1:
        return Step("", {})
    [(function, arguments)] = value.items()
    return Step(str(function), dict(_mapping(arguments)))


def _check_keys(recipe: Recipe) -> None:
    data = recipe.document.data
    for key in data:
        if key not in KEYS:
            recipe.wrong(f"is unknown: {meant(key, KEYS)}", key)
    for key in ("settings", "matrix", "steps", "table"):
        if data.get(key) is not None and not isinstance(data[key], Mapping):
            recipe.wrong(f"is {data[key]!r}: give names with values", key)
    if not data.get("steps"):
        recipe.wrong("there are no steps: give some, such as steps: {people: {invent: {}}}")
    for name in recipe.over if isinstance(recipe.over, list) else []:
        if not isinstance(name, str) or name not in recipe.matrix:
            recipe.wrong(
                f"is {name!r}, which is no variable of the matrix: {meant(name, recipe.matrix)}", "table", OVER
            )
    if not isinstance(recipe.over, list):
        recipe.wrong(f"is {recipe.over!r}: give a variable of the matrix, or a list of them", "table", OVER)
    for column, value in recipe.table.items():
        if not isinstance(value, str) or not any(references(value)):
            recipe.wrong(f"is {value!r}: give text with what is looked up, such as '${{step: value}}'", "table", column)


def _check_names(recipe: Recipe) -> None:
    seen: dict[str, str] = {}
    for room in ("settings", "matrix", "steps"):
        for name in getattr(recipe, room):
            if not NAME.fullmatch(name):
                recipe.wrong("is no name: use letters, digits, _ and -", room, name)
            if name in seen:
                recipe.wrong(
                    f"has the name of {recipe.document.place(seen[name], name)}: rename one of them", room, name
                )
            seen.setdefault(name, room)


def _check_steps(recipe: Recipe) -> None:
    """Functions and names of arguments; their values are for the plan, which knows them."""
    for name, (function, arguments) in recipe.steps.items():
        written = recipe.document.data["steps"][name]
        if not isinstance(written, Mapping) or len(written) != 1:
            recipe.wrong(
                "is no call: give one function with its arguments, such as {diff: {base: a, edited: b}}", "steps", name
            )
            continue
        place = ("steps", name, function)
        if function not in STEPS:
            recipe.wrong(f"is no function of editkit: {meant(function, STEPS)}", *place)
            continue
        if written[function] is not None and not isinstance(written[function], Mapping):
            recipe.wrong(f"is {written[function]!r}: give arguments with values", *place)
            continue
        known = parameters(function)
        for argument in arguments:
            if argument == "output" and argument not in known:
                recipe.wrong("is chosen by the run, not by the recipe: leave it out", *place, argument)
            elif argument not in known:
                recipe.wrong(f"is no argument of {function}: {meant(argument, known)}", *place, argument)
        needed = [key for key, one in known.items() if one.default is one.empty and key not in arguments]
        if needed:
            recipe.wrong(f"lacks {listed(needed)}", *place)


def _check_value(recipe: Recipe, value: Any, *keys: Key) -> None:
    """Whether a value can be told as JSON, used or not: YAML makes dates of texts."""
    if isinstance(value, Mapping):
        for key, one in value.items():
            _check_value(recipe, one, *keys, key)
    elif isinstance(value, list | tuple):
        for index, one in enumerate(value):
            _check_value(recipe, one, *keys, index)
    elif isinstance(value, int) and abs(value) >= 1 << 63:
        recipe.wrong("is a whole number of more than 63 bits: give a smaller one", *keys)
    elif value is not None and not isinstance(value, str | bool | int | float):
        recipe.wrong(f"is {str(value)!r}, which is neither text nor a number: write it in quotes", *keys)


def _override(recipe: Recipe, given: Mapping[str, Any]) -> None:
    """Put in what was given in place of the recipe's own. Relative paths in it are relative to the working directory."""
    for name, said in given.items():
        value = os.fspath(said) if isinstance(said, os.PathLike) else list(said) if isinstance(said, tuple) else said
        if name in recipe.matrix:
            recipe.matrix[name] = Setting(value if isinstance(value, list) else [value], Path.cwd(), True)
        elif name in recipe.settings:
            recipe.settings[name] = Setting(value, Path.cwd(), True)
        else:
            recipe.wrong(f"--set {name}: there is no such setting, {meant(name, [*recipe.settings, *recipe.matrix])}")


def _check_matrix(recipe: Recipe) -> None:
    for name, (values, _, _) in recipe.matrix.items():
        if not isinstance(values, list) or not values:
            recipe.wrong(f"is {values!r}: give a list of values", "matrix", name)
        elif twice := listed(dict.fromkeys(repr(one) for one in values if values.count(one) > 1)):
            recipe.wrong(f"has {twice} more than once: give each value once", "matrix", name)


def parts_of(recipe: Recipe, text: str, *keys: Key) -> list[Any]:
    """The parts of a text, see `references.parse`; where it cannot be read that is a problem, and there are none."""
    try:
        return parse(text)
    except ValueError as error:
        recipe.wrong(str(error), *keys)
        return []
