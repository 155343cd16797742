"""Dropping elements of the differences before they are merged: by their size, and with what is left made as large as before.

    keep the elements that are among the k largest |d|, but not among the k' largest,    d <- d * |d|_1 before / |d|_1 after

The second step only where `rescale` asks for it, as in mergekit.
"""

from collections.abc import Callable, Generator, Sequence
from typing import Any

import numpy as np

from editkit.merging.method import Combine, Stack
from editkit.merging.methods.ranks import EVERYTHING, NOTHING, between, cuts

Drop = Callable[[Stack], None]
"""Sets elements of `stack.models` to zero."""
Steps = Generator[Callable[[Stack], Any], Any, Drop]


def largest(ranks: Sequence[tuple[int, int] | None], last: bool = False) -> Steps:
    """Keep the elements of each model between its two ranks (over, down to), all where it has None; `last`: see `Cut`."""
    chosen = [j for j, pair in enumerate(ranks) if pair is not None]
    found = []
    if chosen:
        wanted = [pair for pair in ranks if pair is not None]
        found = yield from cuts(
            lambda stack, row: _sizes(stack, chosen[row]), len(chosen), lambda positive: wanted, last
        )
    pairs = dict(zip(chosen, found, strict=True))

    def drop(stack: Stack) -> None:
        for j, (roof, floor) in pairs.items():
            if floor is not EVERYTHING or roof is not NOTHING:
                between(_sizes(stack, j), stack.models[j], stack.first, floor, roof)

    return drop


def dropping(drop: Drop, merge: Combine) -> Combine:
    """First the one, then the other."""

    def block(stack: Stack) -> np.ndarray:
        drop(stack)
        return merge(stack)

    return block


def rescaled(drop: Drop) -> Steps:
    """The same, with the sum of |d| of every model as it was before."""

    def sums(stack: Stack) -> np.ndarray:
        before = np.abs(stack.models).sum((1, 2), dtype=np.float64)
        drop(stack)
        return np.array([before, np.abs(stack.models).sum((1, 2), dtype=np.float64)])

    before, after = yield sums
    tiny = np.minimum(before, after) < 1e-7
    factors = np.where(tiny, 1, before / np.where(tiny, 1, after))

    def scaled(stack: Stack) -> None:
        drop(stack)
        for model, factor in zip(stack.models, factors, strict=True):
            model *= factor

    return scaled


def _sizes(stack: Stack, model: int) -> np.ndarray:
    """|d| as float32, in the memory of the result."""
    sizes = stack.out.reshape(-1).view(np.float32)[: stack.out.size].reshape(stack.out.shape)
    return np.abs(stack.models[model], out=sizes, casting="same_kind")
