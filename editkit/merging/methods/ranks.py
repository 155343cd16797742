"""The k-th largest of a tensor's scores, exactly, in two passes and bounded memory (see `arithmetic/ranking.py`).

>>> scores = np.array([[3.0, 1.0, 2.0, 2.0]], np.float32)
>>> steps = cuts(lambda stack, row: scores, 1, lambda positive: [[2]])
>>> stack = Stack(None, np.empty((1, 1, 4)), 0, np.empty((1, 4)))
>>> total = next(steps)(stack)
>>> total = steps.send(total)(stack)
>>> try: steps.send(total)
... except StopIteration as found: cut = found.value[0][0]
>>> float(cut.value), cut.equals(0)      # of the two scores of 2.0 the first one is above the cut
(2.0, (0, 1, 2))
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numba import njit

from editkit.arithmetic import ranking
from editkit.arithmetic.bits import int_of_bits
from editkit.merging.method import Stack


class Cut(NamedTuple):
    """Scores above `value` are in, and of those that are equal to it the first `taken`, or the last ones where `last`.

    blocks: index of the first element of a block -> number of equal scores before the block, and in it; `equal` of them in all.
    """

    value: np.float32
    taken: int = 0
    equal: int = 0
    blocks: Mapping[int, tuple[int, int]] = MappingProxyType({})
    last: bool = False

    def equals(self, first: int) -> tuple[int, int, int]:
        """Which of the equal scores of a block are in, counted from 0: from, to, and how many there are."""
        before, here = self.blocks.get(first, (0, 0))
        if self.last:
            return min(max(self.equal - self.taken - before, 0), here), here, here
        return 0, min(max(self.taken - before, 0), here), here


NOTHING, EVERYTHING = Cut(np.float32(np.inf)), Cut(np.float32(0))


def cuts(
    scores: Callable[[Stack, int], np.ndarray],
    rows: int,
    ranks: Callable[[np.ndarray], Sequence[Sequence[int]]],
    last: bool = False,
) -> Generator[Callable[[Stack], Any], Any, list[list[Cut]]]:
    """For every row of scores the cuts below its `ranks`-th largest ones.

    scores: of a block, float32, for one row of 0 ... rows - 1. ranks: from the numbers of positive scores to the ranks, 0 for
    none. Scores of zero or below are never in.
    """
    high = yield lambda stack: np.array([ranking.upper(scores(stack, row)) for row in range(rows)], np.int64)
    positive = high.sum(1)
    wanted = [list(found) for found in ranks(positive)]
    tops = {
        (row, rank): ranking.position(high[row], rank)
        for row, asked in enumerate(wanted)
        for rank in asked
        if 0 < rank <= positive[row]
    }
    bins = sorted({(row, bin) for (row, _), (bin, _) in tops.items()})
    fine: list[tuple[int, list[tuple[np.ndarray, np.ndarray]]]] = []
    if bins:
        fine = yield lambda stack: [(stack.first, [_fine(scores(stack, row), bin) for row, bin in bins])]

    def cut(row: int, rank: int) -> Cut:
        if (row, rank) not in tops:
            return EVERYTHING if rank else NOTHING
        bin, above = tops[row, rank]
        place = bins.index((row, bin))
        counts = np.zeros(ranking.BINS, np.int64)
        for _, found in fine:
            counts[found[place][0]] += found[place][1]
        low, more = ranking.position(counts, rank - above)
        blocks, before = {}, 0
        for first, found in fine:
            values, numbers = found[place]
            here = int(numbers[values == low].sum())
            if here:
                blocks[first] = (before, here)
            before += here
        return Cut(np.float32(ranking.value_of(bin, low)), rank - above - more, before, blocks, last)

    return [[cut(row, rank) for rank in asked] for row, asked in enumerate(wanted)]


def _fine(scores: np.ndarray, bin: int) -> tuple[np.ndarray, np.ndarray]:
    """Which lower 16 bits the positive scores of a bin have, and how often."""
    found = np.empty(scores.size + 1, np.uint16)
    return np.unique(found[: _gather(scores.reshape(-1), bin, found)], return_counts=True)


def between(scores: np.ndarray, values: np.ndarray, first: int, floor: Cut, roof: Cut = NOTHING) -> None:
    """Set `values` to zero where the scores are not in by `floor`, or are in by `roof` as well.

    scores: float32, of the block that begins with element `first`. values: of the same shape.
    """
    low_from, low_to, low_here = floor.equals(first)
    high_from, high_to, high_here = roof.equals(first)
    flat, kept = scores.reshape(-1), values.reshape(-1)
    if low_to - low_from in (0, low_here) and high_to - high_from in (0, high_here):
        _between(flat, kept, floor.value, low_to > low_from, roof.value, high_to > high_from)
    else:
        _between_equals(flat, kept, floor.value, low_from, low_to, roof.value, high_from, high_to)


@njit(cache=True, nogil=True)
def _gather(scores, bin, found):
    count = 0
    for i in range(scores.size):  # every one is put down, and the next one over it where it does not belong
        bits = int_of_bits(scores[i])  # type: ignore[call-arg, var-annotated]
        found[count] = np.uint16(bits & 0xFFFF)
        count += (bits >> 16 == bin) & (bits > 0)
    return count


@njit(cache=True, nogil=True)
def _between(scores, values, floor, with_floor, roof, with_roof):
    for i in range(scores.size):
        s = scores[i]
        inside = (s > floor) | (with_floor & (s == floor))
        over = (s > roof) | (with_roof & (s == roof))
        values[i] = values[i] if inside & (not over) else values.dtype.type(0)


@njit(cache=True, nogil=True)
def _between_equals(scores, values, floor, low_from, low_to, roof, high_from, high_to):
    low, high = 0, 0
    for i in range(scores.size):
        inside, over = scores[i] > floor, scores[i] > roof
        if scores[i] == floor:
            inside = low_from <= low < low_to
            low += 1
        if scores[i] == roof:
            over = high_from <= high < high_to
            high += 1
        if over or not inside:
            values[i] = 0
