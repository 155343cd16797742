"""The work of a merge: passes over the blocks of each tensor, then the last one, which reads, merges, writes and measures.

Methods that need passes first get some tensors at a time, so that all threads have work and a few thresholds and norms are all that is
kept. Every sum is taken in the order of the blocks: threads and the layout of files change nothing.
"""

from collections.abc import Callable, Container, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from operator import iadd
from typing import Any

import numpy as np

from editkit.arithmetic.apply import Applied, project
from editkit.arithmetic.codec import decode, encode
from editkit.arithmetic.measure import Sums
from editkit.checkpoint.blocks import Block, Progress, Scratch, blocks, counted, default_threads, ordered_map
from editkit.checkpoint.header import TensorInfo
from editkit.checkpoint.writer import CheckpointWriter
from editkit.diffing.diff import sums_for
from editkit.diffing.report import Compared
from editkit.errors import EditError
from editkit.merging.compatible import rounded
from editkit.merging.inputs import Inputs, Work, finite
from editkit.merging.method import Combine, Stack

_TOGETHER = 1 << 25, 16
"""Elements, and tensors, that go through the passes of a method at a time."""
_CACHED = 1 << 21
"""Elements of a block in all models, which stay in the processor's cache."""


@dataclass
class Running:
    """One tensor on its way. waits: what the method has yet to measure; combine: what it returned in the end."""

    work: Work
    steps: Generator[Callable[[Stack], Any], Any, Combine] | None = None
    waits: Callable[[Stack], Any] | None = None
    combine: Combine | None = None
    total: Any = None

    def advance(self) -> None:
        """Hand the method what it asked for; it asks for more, or is done."""
        assert self.steps is not None
        try:
            self.waits, self.total = self.steps.send(self.total), None
        except StopIteration as done:
            self.waits, self.combine, self.total = None, done.value, None


def size_of_blocks(work: Work) -> int:
    """Elements of a block: all models of it, base and result fit in the cache together."""
    return max(_CACHED // (len(work.target.parts) + 3), 1 << 16)


def run(
    inputs: Inputs,
    works: Sequence[Work],
    taken: Container[str],
    writer: CheckpointWriter,
    *,
    measure: bool,
    threads: int | None,
    progress: Progress | None,
) -> list[Compared]:
    """Merge and write the tensors `works`, and return what became of those that `inputs.like` has as well, in order.

    taken: names of those that were taken over byte for byte, and are only looked at. With `measure` all get the sums of the diff
    report, else those of requested and applied change alone.
    """
    scratch, like = Scratch(), inputs.like
    compared = {one.info.name: Compared(like.tensors[one.info.name], None) for one in works if _known(inputs, one)}
    merged = [one for one in works if one.info.name not in taken]
    others = [one for one in works if one.info.name in taken and one.info.name in compared]
    others = [one for one in others if measure or not _own(inputs, one)]
    advance = counted(progress, sum(one.info.nbytes for one in [*merged, *others]))

    def measured(
        block: Block, before: np.ndarray, after: np.ndarray, applied: np.ndarray | None
    ) -> tuple[Block, Sums | None, np.ndarray | None]:
        if not measure:
            return block, None, applied
        sums, parts = sums_for(compared[block.info.name].info, like.config)
        sums.add(before, after, first_row=block.first, **parts)
        return block, sums, applied

    def finish(item: tuple[Running, Block]) -> tuple[Block, Sums | None, np.ndarray | None]:
        one, block = item
        stack = inputs.stack(one.work, block, scratch)
        assert one.combine is not None
        wanted = one.combine(stack)
        if one.work.terms.precision:
            wanted = rounded(wanted, one.work.terms.precision)
        stored = encode(wanted, block.info.dtype)
        after = decode(stored, block.info.dtype, scratch.array("after", block.shape, one.work.dtype))
        _refuse_overflow(block.info, after)
        writer.write(block.info.name, block.offset, stored)
        if block.info.name not in compared:
            return block, None, None
        before = _before(inputs, one.work, block, stack, scratch)
        return measured(block, before, after, project(before, after, np.subtract(wanted, before, out=stack.out)))

    def look(item: tuple[Work, Block]) -> tuple[Block, Sums | None, np.ndarray | None]:
        one, block = item
        before = scratch.read("before", like, block.info.name, block, one.dtype)
        found = inputs.source(one.target)
        if found is None or _own(inputs, one):
            return measured(block, before, before, None)
        after = scratch.read("after", found[0], found[1].name, block, one.dtype)
        change = np.subtract(after, before, out=scratch.array("out", block.shape, one.dtype))
        return measured(block, before, after, project(before, after, change))

    lanes = threads or default_threads()
    items = ((one, block) for one, block in _items(inputs, _in_turn(merged, lanes), scratch, threads))
    looks = ((one, block) for one in others for block in blocks(one.info))
    with ordered_map(finish, items, threads) as first, ordered_map(look, looks, threads) as second:
        for block, sums, applied in chain(first, second):
            advance(block.nbytes)
            tensor = compared.get(block.info.name, Compared(block.info, None))
            if sums is not None:
                tensor.sums = sums if tensor.sums is None else tensor.sums.merge(sums)
            if applied is not None:
                part = Applied(-1.0, applied)  # the change that was wanted, subtracted with alpha -1
                tensor.applied = part if tensor.applied is None else Applied.total([tensor.applied, part])
    return list(compared.values())


def _known(inputs: Inputs, work: Work) -> bool:
    there = inputs.like.tensors.get(work.info.name)
    return there is not None and there.shape == work.info.shape and there.item.floating


def _own(inputs: Inputs, work: Work) -> bool:
    """Whether a tensor that is taken over is that of `like` itself."""
    found = inputs.source(work.target)
    return found is not None and found[0] is inputs.like and found[1].name == work.info.name


def _before(inputs: Inputs, work: Work, block: Block, stack: Stack, scratch: Scratch) -> np.ndarray:
    """The block as `like` has it."""
    name, target = work.info.name, work.target
    if stack.base is not None and inputs.like is inputs.base and target.base == name and inputs.narrow is None:
        return stack.base
    return scratch.read("before", inputs.like, name, block, work.dtype)


def _in_turn(works: Sequence[Work], lanes: int) -> Iterator[Work]:
    """From `lanes` files in turn, because two writers to one file wait for each other."""
    files: dict[str, list[Work]] = {}
    for one in works:
        files.setdefault(one.info.file, []).append(one)
    streams = [[one for file in list(files.values())[lane::lanes] for one in file] for lane in range(lanes)]
    for together in zip_longest(*streams):
        yield from (one for one in together if one is not None)


def _items(
    inputs: Inputs, works: Iterable[Work], scratch: Scratch, threads: int | None
) -> Iterator[tuple[Running, Block]]:
    """All blocks of all tensors whose methods have seen what they need to."""
    group: list[Running] = []
    for work in works:
        group.append(_started(inputs, work))
        full = sum(one.work.info.numel for one in group) >= _TOGETHER[0] or len(group) >= _TOGETHER[1]
        if full:
            yield from _passed(inputs, group, scratch, threads)
            group = []
    yield from _passed(inputs, group, scratch, threads)


def _started(inputs: Inputs, work: Work) -> Running:
    if not inputs.merges(work.target):  # it only gets another dtype
        return Running(work, combine=_as_it_is)
    result = inputs.method.merge(work.terms)
    if not isinstance(result, Generator):
        return Running(work, combine=result)
    one = Running(work, result)
    one.advance()
    return one


def _as_it_is(stack: Stack) -> np.ndarray:
    return stack.models[0] if stack.base is None else stack.base


def _passed(
    inputs: Inputs, group: list[Running], scratch: Scratch, threads: int | None
) -> Iterator[tuple[Running, Block]]:
    def measure(item: tuple[Running, Block]) -> tuple[Running, Any]:
        one, block = item
        assert one.waits is not None
        return one, one.waits(inputs.stack(one.work, block, scratch))

    while waiting := [one for one in group if one.waits is not None]:
        with ordered_map(measure, _woven(waiting), threads) as results:
            for one, found in results:
                one.total = found if one.total is None else iadd(one.total, found)
        for one in waiting:
            one.advance()
    yield from _woven(group)


def _woven(group: list[Running]) -> Iterator[tuple[Running, Block]]:
    """The blocks of neighbours in turn: they lie in different files, see `_in_turn`."""
    streams = [[(one, block) for block in blocks(one.work.info, size_of_blocks(one.work))] for one in group]
    for start in range(0, len(streams), 2):
        for together in zip_longest(*streams[start : start + 2]):
            yield from (item for item in together if item is not None)


def _refuse_overflow(info: TensorInfo, after: np.ndarray) -> None:
    if not finite(after):
        raise EditError(f"the merge makes numbers in {info.name} that {info.dtype} cannot hold: choose smaller weights")
