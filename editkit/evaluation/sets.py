"""The example sets of an evaluation, an attack or a sweep, by name.

>>> read("forget.jsonl", "retain.jsonl", {}, max_examples=100)  # doctest: +SKIP
{'forget': Examples(...), 'retain': Examples(...)}
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from editkit.errors import EditError, listed
from editkit.evaluation.suites import FORGET, RETAIN
from editkit.localization.examples import overlap
from editkit.training.data import Examples, read_examples

Source = str | os.PathLike[str]
Sets = dict[str, Examples]


def read(
    forget: Source | None, retain: Source | None, others: Mapping[str, Source | None], max_examples: int | None
) -> Sets:
    """The first `max_examples` of each file that is given.

    Raises EditError for another set of the name forget or retain, and where every example to forget is one to keep.
    """
    if taken := [name for name in others if name in (FORGET, RETAIN)]:
        raise EditError(f"--set {listed(taken)}: these names are for --forget and --retain: give another name")
    files = {FORGET: forget, RETAIN: retain, **others}
    found = {name: read_examples(path).first(max_examples) for name, path in files.items() if path is not None}
    if (common(found) or 0) == len(found.get(FORGET, ())) > 0:
        raise EditError(
            f"all of {found[FORGET].label} is in {found[RETAIN].label} too: nothing tells what to forget from what to keep, so "
            "give a retain set without it"
        )
    return found


def common(sets: Mapping[str, Examples]) -> int | None:
    """How many examples of the forget set are in the retain set too; None without one of them."""
    both = {name: sets[name] for name in (FORGET, RETAIN) if name in sets}
    return overlap(both) if len(both) == 2 else None


def described(sets: Mapping[str, Examples]) -> list[dict[str, Any]]:
    """As in the reports."""
    return [
        {"set": name, "name": Path(one.label).name, "sha256": one.sha256, "examples": len(one)}
        for name, one in sets.items()
    ]
