"""Thresholds: the budgeted number of highest scores among any number of elements, exactly, in bounded memory.

Two counting passes find the k-th largest score (see `arithmetic/ranking.py`); a third tells element by element. Extra memory
is the counts, 256 kB for each group, and the packed bits of one tensor, however many scores there are.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from editkit.arithmetic import ranking
from editkit.checkpoint.blocks import Block, blocks, ordered_map
from editkit.checkpoint.header import TensorInfo

Scores = Callable[[Block], np.ndarray]
"""The scores (float32) of the elements of a block. Threads call it at once, and more than once for a block."""


class Threshold(NamedTuple):
    """All scores above `value` are chosen, and the first `ties` that are equal to it."""

    value: float
    ties: int


def thresholds(
    infos: Sequence[TensorInfo],
    scores: Scores,
    wanted: Mapping[str, int],
    groups: Mapping[str, str],
    threads: int | None = None,
    advance: Callable[[int], None] = lambda nbytes: None,
) -> tuple[dict[str, Threshold], dict[str, np.ndarray]]:
    """For every group the threshold that chooses its `wanted` number of elements; fewer where fewer are above zero.

    groups: tensor name -> group. `advance` is called with the bytes of each block. Also returns how many scores of each
    group have which upper 16 bits, int64 [65536].
    """
    high = _count(infos, lambda block: ranking.upper(scores(block)), groups, threads, advance)
    ranks = {group: min(wanted[group], int(counts.sum(dtype=np.int64))) for group, counts in high.items()}
    tops = {group: ranking.position(counts, ranks[group]) for group, counts in high.items() if ranks[group]}

    def fine(block: Block) -> np.ndarray | None:
        group = groups[block.info.name]
        return ranking.lower(scores(block), tops[group][0]) if group in tops else None

    low = _count(infos, fine, groups, threads, advance)
    found = dict.fromkeys(high, Threshold(float("inf"), 0))
    for group, (bin, above) in tops.items():
        place, more = ranking.position(low[group], ranks[group] - above)
        found[group] = Threshold(ranking.value_of(bin, place), ranks[group] - above - more)
    return found, high


def chosen_bits(
    infos: Sequence[TensorInfo],
    scores: Scores,
    limits: Mapping[str, Threshold],
    groups: Mapping[str, str],
    threads: int | None = None,
    advance: Callable[[int], None] = lambda nbytes: None,
) -> Iterator[tuple[TensorInfo, np.ndarray]]:
    """Each tensor with its chosen elements as packed bits, lowest bit first: uint8 [ceil(numel / 8)]."""
    left = {group: limit.ties for group, limit in limits.items()}

    def compare(block: Block) -> tuple[Block, np.ndarray, np.ndarray | None]:
        limit, values = limits[groups[block.info.name]].value, scores(block)
        chosen, ties = ranking.choose(values, limit)
        return block, chosen, np.flatnonzero(values.reshape(-1) == np.float32(limit)) if ties else None

    work = (block for info in infos for block in blocks(info))
    bits: dict[str, np.ndarray] = {}
    with ordered_map(compare, work, threads) as results:
        for block, chosen, ties in results:
            info, group = block.info, groups[block.info.name]
            if ties is not None and left[group]:
                chosen[ties[: left[group]]] = True
                left[group] -= min(left[group], len(ties))
            first = block.first * info.columns
            packed = np.packbits(np.concatenate([np.zeros(first % 8, np.bool_), chosen]), bitorder="little")
            whole = bits.setdefault(info.name, np.zeros(-(-info.numel // 8), np.uint8))
            whole[first // 8 : first // 8 + len(packed)] |= packed
            advance(block.nbytes)
            if first + chosen.size == info.numel:
                yield info, bits.pop(info.name)


def _count(
    infos: Sequence[TensorInfo],
    count: Callable[[Block], np.ndarray | None],
    groups: Mapping[str, str],
    threads: int | None,
    advance: Callable[[int], None],
) -> dict[str, np.ndarray]:
    totals = {group: np.zeros(ranking.BINS, np.int64) for group in dict.fromkeys(groups[info.name] for info in infos)}
    work = (block for info in infos for block in blocks(info))
    with ordered_map(lambda block: (block, count(block)), work, threads) as results:
        for block, counts in results:
            if counts is not None:
                totals[groups[block.info.name]] += counts
            advance(block.nbytes)
    return totals
