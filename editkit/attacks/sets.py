"""The examples of an attack: what was to be forgotten, what was kept, and text of the same kind that no model saw."""

from editkit.errors import EditError, listed
from editkit.evaluation import sets
from editkit.evaluation.sets import Sets, Source
from editkit.localization.examples import contents
from editkit.training.data import Examples


def read(forget: Source, retain: Source | None, unseen: Source | None, max_examples: int | None) -> Sets:
    """The first `max_examples` of each file, as "forget", "retain" and "unseen".

    Raises EditError for a set of one example, for a forget set that lies in the retain set, and for an unseen set with examples of the
    others.
    """
    found = sets.read(forget, retain, {"unseen": unseen}, max_examples)
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
    there = set(contents(others))
    return {index for index, content in enumerate(contents(ones)) if content in there}
