"""The examples of a localization: forget and retain set as tokens, and what they have in common."""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from editkit.errors import EditError, listed
from editkit.localization.gradients import Set
from editkit.training.data import Examples, read_examples
from editkit.training.encoding import encode, fit

Source = str | os.PathLike[str]


def read_sets(forget: Source | None, retain: Source | None, max_examples: int | None) -> dict[str, Examples]:
    """The first `max_examples` of the two files, by label. Raises EditError where both hold the same examples."""
    files = {"forget": forget, "retain": retain}
    found = {}
    for label, path in files.items():
        if path is not None:
            found[label] = read_examples(path).first(max_examples)
    if len(found) == 2 and set(contents(found["forget"])) == set(contents(found["retain"])):
        raise EditError(
            f"{found['forget'].label} and {found['retain'].label} hold the same examples: nothing tells what to forget "
            "from what to keep, so give a retain set without them"
        )
    return found


def overlap(sets: dict[str, Examples]) -> int:
    """How many examples of the forget set are in the retain set too, with the same prompt and answer."""
    if len(sets) < 2:
        return 0
    kept = set(contents(sets["retain"]))
    return sum(content in kept for content in contents(sets["forget"]))


def encoded(
    label: str,
    examples: Examples,
    tokenizer: Any,
    *,
    context: int | None,
    vocabulary: int,
    max_length: int | None = None,
    prompt_template: str | None,
    can_cut: bool = False,
) -> Set:
    """A set as tokens, cut at `max_length` tokens where one is given.

    Raises EditError that lists examples longer than the model's context, examples of which nothing of the answer is left,
    and tokens that the model does not have.
    """
    fit(max_length, context)
    made = encode(examples, tokenizer, max_length=max_length, prompt_template=prompt_template)
    if made.dropped:
        raise EditError(
            f"{examples.label}: nothing of the answer is left within {max_length} tokens in {examples.unit} "
            f"{listed(made.dropped)}: give a larger --max-length, or leave these examples out"
        )
    longer = [
        f"{number} ({len(row.ids)})"
        for number, row in zip(examples.numbers, made.rows, strict=True)
        if context and len(row.ids) > context
    ]
    if longer:
        raise EditError(
            f"{examples.label}: more tokens than the model reads ({context}) in {examples.unit} {listed(longer)}: shorten these "
            f"examples, or {f'cut all with --max-length {context}' if can_cut else 'leave them out'}"
        )
    if (highest := max(max(row.ids) for row in made.rows)) >= vocabulary:
        raise EditError(
            f"{examples.label}: the tokenizer gives token {highest}, and the model has {vocabulary} of them"
        )
    return Set(label, made.rows, examples.numbers, examples.unit, examples.label)


def described(one: Set, examples: Examples) -> dict[str, Any]:
    """As in localization.json: name, hash, number of examples and of tokens in the loss, mean and spread of the loss."""
    losses = list(one.losses.values())
    return {
        "name": Path(examples.label).name,
        "sha256": examples.sha256,
        "examples": len(one.rows),
        "tokens": sum(row.trained for row in one.rows),
        "loss": fmean(losses) if losses else None,
        "loss_sd": stdev(losses) if len(losses) > 1 else None,
    }


def fingerprint(sets: Sequence[Set]) -> str:
    """The sha256 of all tokens and labels, so that a run goes on with the examples that it began with."""
    return hashlib.sha256(json.dumps([one.rows for one in sets]).encode()).hexdigest()


def contents(examples: Examples) -> list[str]:
    """The prompt and answer of every row, or its messages, as one text that is equal for equal examples."""
    return [json.dumps([row[key] for key in examples.keys], sort_keys=True) for row in examples.rows]
