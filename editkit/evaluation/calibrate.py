"""Calibrated comparison: forgetting is compared at one level of retention (Wang et al. 2024, https://arxiv.org/abs/2406.09179).

An edit that forgets more may only have broken more. So the weights of the edited model are mixed with the original ones,
w(lambda) = original + lambda (edited - original), until retention is at a target; what is then left of the forget set can be
compared between methods.

>>> with opened("model") as subject:  # doctest: +SKIP
...     retain = prepare(read_examples("retain.jsonl"), "retain", subject, {"token_accuracy"})
...     forget = prepare(read_examples("forget.jsonl"), "forget", subject, {"token_accuracy"})
...     with calibrated(subject, "edited", retain) as found:
...         print(found.mix, found.score, measure(subject, forget)[0]["token_accuracy"])
0.41015625 0.9503 0.31
"""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import isfinite
from statistics import fmean

from editkit.checkpoint.reader import Checkpoint, open_checkpoint
from editkit.editing.live import LiveEdit
from editkit.editing.stream import planned
from editkit.errors import EditError
from editkit.evaluation.measuring import Prepared, measure
from editkit.evaluation.subject import Subject
from editkit.training.loading import split
from editkit.vectors.open import open_vector
from editkit.vectors.vector import TaskVector

KEPT = 0.95
"""The default target, as a share of what the original scores."""
GRID, HALVINGS = 8, 5
"""Mixes of the first look, evenly from 0 to 1, and how often the gap of the crossing is halved: lambda is exact to 1/256."""


@dataclass(frozen=True)
class Calibration:
    """Where the mix is. mix: lambda. score: there; original, edited: at 0 and 1. n: examples in each mean.

    reached: whether the score comes down to the target at all; where the edited model is above it, mix is 1 and reached false: the
    edit can then not be compared at this number, only at its own.
    """

    mix: float
    score: float
    target: float
    original: float
    edited: float
    reached: bool
    evaluations: int
    n: int


@contextmanager
def calibrated(
    subject: Subject,
    edited: str | os.PathLike[str],
    prepared: Prepared,
    *,
    kept: float = KEPT,
    column: str = "token_accuracy",
    batch_size: int = 16,
    threads: int | None = None,
) -> Iterator[Calibration]:
    """Within it `subject` is the mix of its weights and those of `edited`, with the original weights before and after.

    subject: the original, a loaded model without an adapter. edited: a checkpoint, or MODEL+ADAPTER with the original as MODEL. prepared: the
    set whose score decides, the mean of `column` over its examples, of which higher is better. kept: the target, as a share of
    the original's score.

    Raises EditError where the two do not fit together, and where the original scores nothing.
    """
    if not (isfinite(kept) and 0 < kept <= 1):
        raise EditError(f"the retention to calibrate to is {kept}: give a share of the original's, such as 0.95")
    with ExitStack() as stack:
        base = subject.checkpoint
        if subject.adapter is not None:
            raise EditError(f"{subject.label} has an adapter: give the whole model that was edited as the original")
        tau = _change(edited, base)
        for checkpoint in tau.inputs:
            stack.callback(checkpoint.close)
        whole = planned(base, tau, -1.0, {}, (), None)
        live = stack.enter_context(LiveEdit(subject.net, base, threads=threads))

        def score(mix: float) -> float:
            live.apply(whole._replace(alphas=dict.fromkeys(whole.alphas, -mix)))
            return fmean(row[column] for row in measure(subject, prepared, batch_size=batch_size))

        found = search(score, kept, n=len(prepared.examples))
        live.apply(whole._replace(alphas=dict.fromkeys(whole.alphas, -found.mix)))
        yield found


def _change(edited: str | os.PathLike[str], base: Checkpoint) -> TaskVector:
    """edited - original."""
    weights, adapter = split(edited)
    if adapter is None:
        return open_vector(weights, base, allow_other_base=True)  # whatever it was tuned from: the way there is meant
    with open_checkpoint(weights) as model:
        if model.sha256() != base.sha256():
            raise EditError(
                f"{weights} has other weights than {base.label}, so the mix is not on the way to {os.fspath(edited)}: give the "
                "adapter on the original, or merge it into a checkpoint"
            )
    return open_vector(adapter, base, allow_other_base=True)


def search(score: Callable[[float], float], kept: float, *, n: int = 1) -> Calibration:
    """The largest lambda before `score` first falls below kept * score(0), to 1/256.

    >>> found = search(lambda mix: 1 - mix**2, 0.75)
    >>> found.mix, found.score, found.reached, found.evaluations
    (0.5, 0.75, True, 12)

    The score need not fall steadily. It is looked at in even steps from the original on, and the gap in which it first is below the
    target is halved; a dip between two steps can be missed, a rise after the crossing does not count. The end of the
    gap that keeps the target is taken.
    """
    original, edited = score(0.0), score(1.0)
    target, evaluations = kept * original, 2
    if original <= 0:
        raise EditError(
            "the original scores 0 on the examples to calibrate with: nothing can be retained, take other examples"
        )

    def found(mix: float, value: float, reached: bool) -> Calibration:
        return Calibration(mix, value, target, original, edited, reached, evaluations, n)

    if edited >= target:
        return found(1.0, edited, edited == target)
    low, high, at_low = 0.0, 1.0, original
    for step in range(1, GRID):
        evaluations += 1
        value = score(step / GRID)
        if value < target:
            high = step / GRID
            break
        low, at_low = step / GRID, value
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        evaluations += 1
        value = score(middle)
        if value < target:
            high = middle
        else:
            low, at_low = middle, value
    return found(low, at_low, True)
