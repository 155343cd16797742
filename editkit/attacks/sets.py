"""The examples of an attack: what was to be forgotten, what was kept, and text of the same kind that no model saw."""

import json
import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from editkit.errors import EditError, listed
from editkit.localization.examples import read_sets
from editkit.training.data import Examples, read_examples

Source = str | os.PathLike[str]
Sets = dict[str, Examples]


def read(forget: Source, retain: Source | None, unseen: Source | None, max_examples: int | None) -> Sets:
    """The first `max_examples` of each file, as "forget", "retain" and "unseen".

    Raises EditError for a set of one example, for equal forget and retain sets, and for an unseen set with examples of the others.
    """
    found = read_sets(forget, retain, max_examples)
    if unseen is not None:
        found["unseen"] = subset(one := read_examples(unseen), range(len(one))[:max_examples])
    if small := [one.label for one in found.values() if len(one) < 2]:
        raise EditError(f"{listed(small)}: one example has no spread, and nothing to hold out: give at least 2")
    for name in ("forget", "retain"):
        if unseen is not None and name in found and (both := shared(found["unseen"], found[name])):
            raise EditError(
                f"{found['unseen'].label}: {len(both)} of {len(found['unseen'])} examples are in {found[name].label} too, "
                f"so a model has seen them: give --unseen text that none was trained on"
            )
    return found


def shared(ones: Examples, others: Examples) -> set[int]:
    """Which of `ones`, by index, have the texts of one of the others.

    >>> made = [Examples("", "text", [{"text": one} for one in texts], [1, 2], "line") for texts in ("ab", "bc")]
    >>> shared(*made)
    {1}
    """
    there = set(_texts(others))
    return {index for index, texts in enumerate(_texts(ones)) if texts in there}


def subset(examples: Examples, indices: Iterable[int]) -> Examples:
    """Some examples, in the order given, with their places in the file."""
    chosen = list(indices)
    return replace(
        examples,
        rows=[examples.rows[index] for index in chosen],
        numbers=[examples.numbers[index] for index in chosen],
    )


def described(name: str, examples: Examples) -> dict[str, Any]:
    """As in attack.json."""
    found = {"name": Path(examples.label).name, "sha256": examples.sha256, "examples": len(examples)}
    return {"set": name, **found}


def _texts(examples: Examples) -> list[str]:
    return [json.dumps([row[key] for key in examples.keys], sort_keys=True) for row in examples.rows]
