"""The one pass of an edit: read a block, change it, write it and measure it while it is still in the cache."""

from collections.abc import Iterator, Mapping
from itertools import zip_longest
from typing import NamedTuple

import numpy as np

from editkit.arithmetic.apply import Applied, project, subtract
from editkit.arithmetic.codec import decode, encode, round_stochastically, working_dtype
from editkit.arithmetic.draws import key_of
from editkit.arithmetic.measure import Sums
from editkit.checkpoint.blocks import Block, Progress, Scratch, blocks, counted, default_threads, ordered_map
from editkit.checkpoint.header import TensorInfo
from editkit.checkpoint.reader import Checkpoint
from editkit.checkpoint.writer import CheckpointWriter
from editkit.diffing.audit import Audit, Touched, changed_bits
from editkit.diffing.diff import sums_for
from editkit.diffing.report import Compared
from editkit.errors import EditError
from editkit.masks.mask import Mask
from editkit.vectors.vector import TaskVector


class Subtraction(NamedTuple):
    """base - alpha * mask * tau for the tensors in `alphas`; `seed` None rounds to nearest, else stochastically.

    `shares` maps copies of a tied tensor to the one whose random draws they share.
    """

    vector: TaskVector
    alphas: Mapping[str, float]
    mask: Mask | None
    seed: int | None
    shares: Mapping[str, str]


def run(
    base: Checkpoint,
    edit: Subtraction,
    writer: CheckpointWriter,
    *,
    measure: bool,
    audit: Audit | None,
    threads: int | None,
    progress: Progress | None,
) -> list[Compared]:
    """Write every tensor of `base`, edited or copied, and return what became of each, in the base's order.

    With `measure` all floating tensors get the sums of the diff report, else only the edited ones are read at all. `audit`
    is given what was written to these.
    """
    compared = {info.name: Compared(info, None) for info in base.tensors.values()}
    scratch = Scratch()

    def work(block: Block) -> tuple[Block, Sums | None, np.ndarray | None, Touched]:
        name, dtype = block.info.name, working_dtype(block.info.dtype)
        before = scratch.read("base", base, name, block, dtype)
        after, sums, applied, touched = before, None, None, Touched()
        if name in edit.alphas:
            after, applied = _edit_block(block, before, edit, writer, scratch)
            if audit is not None:
                touched = audit.look(block, changed_bits(before, after))
        if measure:
            sums, parts = sums_for(block.info, base.config)
            sums.add(before, after, first_row=block.first, **parts)
        return block, sums, applied, touched

    advance = counted(progress, sum(info.nbytes for info in base.tensors.values()))
    lanes = threads or default_threads()
    with ordered_map(work, _plan(base, edit, writer, measure, lanes), threads) as results:
        for block, sums, applied, touched in results:
            tensor = compared[block.info.name]
            if audit is not None:
                audit.add(block.info.name, touched)
            if sums is not None:
                tensor.sums = sums if tensor.sums is None else tensor.sums.merge(sums)
            if applied is not None:
                part = Applied(edit.alphas[block.info.name], applied)
                tensor.applied = part if tensor.applied is None else Applied.total([tensor.applied, part])
            advance(block.nbytes)
    return list(compared.values())


def _plan(base: Checkpoint, edit: Subtraction, writer: CheckpointWriter, measure: bool, lanes: int) -> Iterator[Block]:
    """All blocks to work on: from `lanes` files in turn, because two writers to one file wait for each other."""
    for info in base.tensors.values():
        if info.name not in edit.alphas or info.numel == 0:
            writer.copy(info.name)
    files: dict[str, list[TensorInfo]] = {}
    for info in base.tensors.values():
        if info.name in edit.alphas or (measure and info.item.floating):
            files.setdefault(info.file, []).append(info)
    turns = [list(files.values())[lane::lanes] for lane in range(lanes)]
    streams = [(block for infos in turn for info in infos for block in blocks(info)) for turn in turns]
    for together in zip_longest(*streams):
        yield from (block for block in together if block is not None)


def _edit_block(
    block: Block, before: np.ndarray, edit: Subtraction, writer: CheckpointWriter, scratch: Scratch
) -> tuple[np.ndarray, np.ndarray]:
    """Edit and write one block; returns its values as stored and the sums of `project`."""
    info = block.info
    tau = edit.vector.rows(info.name, block.first, block.last, before)
    whole = None
    if edit.mask is not None:
        whole = float(np.square(tau, dtype=np.float64).sum())
        edit.mask.clear_outside(info.name, block, tau)
    after = subtract(before, tau, edit.alphas[info.name], scratch.array("after", before.shape, before.dtype))
    if edit.seed is not None and info.dtype != "F64":  # the arithmetic itself is F64: nothing is left to round
        key = key_of(edit.seed, edit.shares.get(info.name, info.name))
        round_stochastically(after, info.dtype, key, block.first * info.columns)
    stored = encode(after, info.dtype)
    decode(stored, info.dtype, after)
    applied = project(before, after, tau, whole)
    if not np.isfinite(applied).all():
        _refuse_nonfinite(info, before, tau, after)
    writer.write(info.name, block.offset, stored)
    return after, applied


def _refuse_nonfinite(info: TensorInfo, before: np.ndarray, tau: np.ndarray, after: np.ndarray) -> None:
    for values, what, remedy in (
        (before, "the base has", "an edit cannot mend it, so leave the tensor out with --only"),
        (tau, "the task vector has", "check what it was made from"),
        (after, "the edit makes", f"{info.dtype} cannot hold the result, so choose a smaller alpha"),
    ):
        if bad := int(values.size - np.isfinite(values).sum()):
            raise EditError(f"{what} {bad} NaN or Inf in a block of {info.name}: {remedy}")
    raise EditError(f"the change of {info.name} is too large to be measured: choose a smaller alpha")
