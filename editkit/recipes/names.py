"""Who refers to whom in a recipe: unknown names, circles, names that nobody uses, and which steps are wanted."""

from collections.abc import Iterable, Iterator
from graphlib import CycleError, TopologicalSorter

from editkit.errors import meant
from editkit.merging.document import Key
from editkit.recipes import lookup
from editkit.recipes.document import Recipe
from editkit.recipes.functions import STEPS, output_name
from editkit.recipes.references import Reference, references

Found = Iterator[tuple[str, tuple[Key, ...], Reference]]


def check_names(recipe: Recipe) -> list[str] | None:
    """The steps in an order in which they can be run; None for a circle. What is wrong is added to the recipe's problems."""
    known = [*recipe.settings, *recipe.matrix, *recipe.steps]
    uses: dict[str, set[str]] = {}
    for owner, keys, one in _references(recipe):
        if one.name not in known:
            recipe.wrong(f"has ${{{one.name}}}, which is no setting, variable or step: {meant(one.name, known)}", *keys)
        else:
            uses.setdefault(owner, set()).add(one.name)
            _check_kind(recipe, one, *keys)
    used = {name for names in uses.values() for name in names} | {one.name for _, _, one in _written(recipe)}
    for room in ("settings", "matrix"):
        for name in getattr(recipe, room):
            if name not in used:
                recipe.wrong("is used by nothing: remove it, or write ${" + name + "} where it is meant", room, name)
    try:
        order = list(TopologicalSorter({name: uses.get(name, set()) for name in known}).static_order())
    except CycleError as error:
        circle = list(reversed(error.args[1]))
        room = next(room for room in ("steps", "settings", "matrix") if circle[0] in getattr(recipe, room))
        recipe.wrong(f"needs itself: {' → '.join(circle)}: take one of these references out", room, circle[0])
        return None
    return [name for name in order if name in recipe.steps]


def wanted(recipe: Recipe) -> set[str]:
    """The steps to be run for their own sake: all but those that only settings refer to, which may have been changed since."""
    referring: dict[str, set[str]] = {name: set() for name in recipe.steps}
    for owner, keys, one in _written(recipe):
        if one.name in referring:
            referring[one.name].add(owner if keys[0] == "steps" else str(keys[0]))
    optional: set[str] = set()
    while True:
        more = {name for name, owners in referring.items() if owners and owners <= {"settings", *optional}}
        if more <= optional:
            return recipe.steps.keys() - optional
        optional |= more


def left_behind(recipe: Recipe, asked: Iterable[str]) -> list[str]:
    """Of the settings that the calls use those which are not given and come, in the recipe, from the same steps as one that is."""
    uses: dict[str, set[str]] = {}
    for owner, _, one in _written(recipe):
        uses.setdefault(owner, set()).add(one.name)

    def steps(name: str) -> set[str]:
        found, open_ = set[str](), [name]
        while open_:
            more = uses.get(open_.pop(), set()) - found
            found |= more
            open_ += more
        return found & recipe.steps.keys()

    given = [name for name, one in recipe.settings.items() if one.given]
    origins = {step for name in given for step in steps(name)}
    return [name for name in recipe.settings if name in asked and name not in given and steps(name) & origins]


def _references(recipe: Recipe) -> Found:
    """Every reference, with the name whose value it is in; of settings as they are now."""
    for room in ("settings", "matrix"):
        for name, (value, _, given) in getattr(recipe, room).items():
            for keys, one in references(value):
                yield name, (room, name) if given else (room, name, *keys), one
    yield from (found for found in _written(recipe) if found[1][0] in ("steps", "table"))


def _written(recipe: Recipe) -> Found:
    """The same, of settings as the recipe has them."""
    data = recipe.document.data
    for room in ("settings", "matrix"):
        for name in getattr(recipe, room):
            yield from ((name, (room, name, *keys), one) for keys, one in references(data[room][name]))
    for name, step in recipe.steps.items():
        place = ("steps", name, step.function)
        yield from ((name, (*place, *keys), one) for keys, one in references(step.arguments))
    for column, text in recipe.table.items():
        yield from (("", ("table", column), one) for _, one in references(text))


def _check_kind(recipe: Recipe, one: Reference, *keys: Key) -> None:
    """Whether what a name stands for has an output or a result."""
    step = recipe.steps.get(one.name)
    if one.path is None:
        if step and keys[0] == "table":
            recipe.wrong(f"has ${{{one.name}}}, a path: write ${{{one.name}: ...}} for a value of its result", *keys)
        elif step and step.function in STEPS and output_name(step.function, one.name) is None:
            recipe.wrong(
                f"has ${{{one.name}}}, and {step.function} writes nothing: write ${{{one.name}: ...}} for a value of its result",
                *keys,
            )
    elif step is None:
        recipe.wrong(f"has ${{{one.name}: {one.path}}}, and only a step has a result: write ${{{one.name}}}", *keys)
    else:
        try:
            lookup.parse(one.path)
        except ValueError as error:
            recipe.wrong(str(error), *keys)
