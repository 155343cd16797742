"""Other ways to ask: the question in other words, and after solved examples of other questions.

An edit that only broke the exact prompt shows here. Both are measured teacher-forced on the same answers, so that the accuracies can
be compared example by example.

>>> row = {"question": "Who wrote it?", "answer": "Ada.", "paraphrased_question": "By whom is it?"}
>>> asked = paraphrased(Examples("forget.jsonl", "question/answer", [row, row], [1, 2], "line"))
>>> asked.examples.rows[0]["question"]
'By whom is it?'
"""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from editkit.errors import EditError, listed
from editkit.training.data import Examples
from editkit.training.encoding import TEMPLATES, fill

KEY = "paraphrased_question"  # as in TOFU
SHOTS = 3
_WHOLE = "{question}{answer}"


class Prompts(NamedTuple):
    """Examples with other prompts, where each stands in the set they come from, and the template that writes them."""

    examples: Examples
    indices: list[int]
    template: str | None


def paraphrased(examples: Examples, template: str | None = None) -> Prompts | str:
    """Each question as its `paraphrased_question` asks it, where there is one; or why there is none.

    Raises EditError that lists the rows where it is not text.
    """
    if why := _no_prompts(examples):
        return why
    indices = [index for index, row in enumerate(examples.rows) if KEY in row]
    if bad := [examples.numbers[index] for index in indices if not isinstance(examples.rows[index][KEY], str)]:
        raise EditError(f"{examples.label}: {examples.unit} {listed(bad)}: {KEY} must be text")
    if len(indices) < 2:
        return f"skipped: {len(indices)} of {len(examples)} examples have the key {KEY!r}"
    question = examples.keys[0]
    rows = [{**row, question: row[KEY]} for row in examples.subset(indices).rows]
    return Prompts(replace(examples.subset(indices), rows=rows), indices, template)


def few_shot(
    examples: Examples,
    solved: Examples,
    template: str | None = None,
    *,
    seed: int,
    fits: Callable[[str], bool] = lambda text: True,
) -> Prompts | str:
    """Each question after three of the `solved` examples with their answers, drawn anew for each; or why that cannot be.

    The examples follow each other with an empty line between them. fits: whether a model can read so long a text; examples that
    do not fit are left out.
    """
    if why := _no_prompts(examples) or _no_prompts(solved):
        return why
    if len(solved) < SHOTS:
        return f"skipped: {len(solved)} examples to show, {SHOTS} needed"
    draws, question, answer = np.random.default_rng(seed), *examples.keys
    rows, indices = [], []
    for index in range(len(examples)):
        shown = draws.choice(len(solved), SHOTS, replace=False)
        shots = [fill(template or TEMPLATES[solved.format], *solved.pair(one))[0] for one in shown]
        text, start = fill(template or TEMPLATES[examples.format], *examples.pair(index))
        prompt = "\n\n".join([*shots, text[:start]])
        if fits(prompt + text[start:]):
            rows.append({question: prompt, answer: text[start:]})
            indices.append(index)
    if len(rows) < 2:
        return f"skipped: {len(rows)} of {len(examples)} prompts with {SHOTS} examples fit into what the model reads"
    return Prompts(replace(examples.subset(indices), rows=rows), indices, _WHOLE)


def _no_prompts(examples: Examples) -> str | None:
    if examples.format in ("text", "messages"):
        what = "plain text, which has no prompts" if examples.format == "text" else "messages, not single prompts"
        return f"skipped: {examples.label} is {what}"
    return None
