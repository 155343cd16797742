"""The one pass of an edit: read a block, change it, write it and measure it while it is still in the cache."""

from collections.abc import Iterator, Mapping, Sequence
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
from editkit.checkpoint.ties import same_bytes, tied_copies
from editkit.checkpoint.writer import CheckpointWriter
from editkit.diffing.audit import Audit, Touched, changed_bits
from editkit.diffing.diff import sums_for
from editkit.diffing.report import Compared
from editkit.errors import EditError, listed
from editkit.masks.mask import Mask
from editkit.names import select
from editkit.vectors.vector import TaskVector


class Subtraction(NamedTuple):
    """base - alpha * mask * tau for the tensors in `alphas`; `seed` None rounds to nearest, else stochastically.

    `shares` maps copies of a tied tensor to the one whose random draws they share.
    """

    vector: TaskVector
    alphas: dict[str, float]
    mask: Mask | None
    seed: int | None
    shares: Mapping[str, str]


def planned(
    base: Checkpoint,
    tau: TaskVector,
    alpha: float,
    alpha_for: Mapping[str, float],
    only: Sequence[str],
    mask: Mask | None,
    *,
    seed: int | None = None,
) -> Subtraction:
    """The subtraction of `tau` from `base`, with everything checked that can be before the first tensor is read.

    alpha_for: whole-name globs with an alpha of their own. only: whole-name globs. Raises EditError where the names have
    nothing in common, the vector does not fit, or copies of a tied tensor would not be edited alike.
    """
    alphas = _alphas(base, tau, alpha, alpha_for, only, mask)
    tau.check(base, list(alphas))
    copies = _whole_ties(base, alphas, mask)
    return Subtraction(tau, alphas, mask, seed, dict.fromkeys(copies, copies[0]) if copies else {})


def _alphas(
    base: Checkpoint,
    tau: TaskVector,
    alpha: float,
    alpha_for: Mapping[str, float],
    only: Sequence[str],
    mask: Mask | None,
) -> dict[str, float]:
    """The tensors to edit, each with its alpha."""
    named = set(select(base.tensors, only)) & set(mask.names if mask else base.tensors)
    alphas = {name: alpha for name in tau.names if name in named and base.tensors[name].item.floating}
    if not alphas:
        raise EditError(f"nothing to edit in {base.label}: the vector, --only and the mask have no tensor in common")
    for glob, value in alpha_for.items():
        meant = [name for name in select(base.tensors, [glob], "--alpha-for") if name in alphas]
        if not meant:
            raise EditError(
                f"--alpha-for {glob!r} names no tensor that is edited: the vector, --only or the mask leave them out"
            )
        alphas.update(dict.fromkeys(meant, value))
    return alphas


def _whole_ties(base: Checkpoint, alphas: Mapping[str, float], mask: Mask | None) -> list[str]:
    """The copies of a tied tensor that are edited. Raises EditError where only some are, or not all in the same way."""
    copies = tied_copies(base)
    edited = [name for name in copies if name in alphas]
    if not edited:
        return []
    alike = len(edited) == len(copies) and len({alphas[name] for name in copies}) == 1
    if alike and mask is not None:
        alike = all(same_bytes(mask.file, copies[0], name) for name in copies)
    if not alike:
        raise EditError(
            f"{listed(copies)} are one tensor in {base.label} (tied): edit them alike, or none of them (see --only, "
            "--alpha-for, the mask and the names in the vector)"
        )
    return copies


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
            stored, after, applied = edit_block(block, before, edit, scratch)
            writer.write(name, block.offset, stored)
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


def edit_block(
    block: Block, before: np.ndarray, edit: Subtraction, scratch: Scratch
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Edit one block: its bytes in the dtype of the file, the values that these stand for, and the sums of `project`."""
    info = block.info
    tau, whole = masked_rows(block, before, edit)
    after = subtract(before, tau, edit.alphas[info.name], scratch.array("after", before.shape, before.dtype))
    if edit.seed is not None and info.dtype != "F64":  # the arithmetic itself is F64: nothing is left to round
        key = key_of(edit.seed, edit.shares.get(info.name, info.name))
        round_stochastically(after, info.dtype, key, block.first * info.columns)
    stored = encode(after, info.dtype)
    decode(stored, info.dtype, after)
    applied = project(before, after, tau, whole)
    if not np.isfinite(applied).all():
        _refuse_nonfinite(info, before, tau, after)
    return stored, after, applied


def masked_rows(block: Block, before: np.ndarray, edit: Subtraction) -> tuple[np.ndarray, float | None]:
    """mask * tau in the rows of a block, and the squared L2 of tau there before the mask (None without one)."""
    tau = edit.vector.rows(block.info.name, block.first, block.last, before)
    if edit.mask is None:
        return tau, None
    whole = float(np.square(tau, dtype=np.float64).sum())
    edit.mask.clear_outside(block.info.name, block, tau)
    return tau, whole


def _refuse_nonfinite(info: TensorInfo, before: np.ndarray, tau: np.ndarray, after: np.ndarray) -> None:
    for values, what, remedy in (
        (before, "the base has", "an edit cannot mend it, so leave the tensor out with --only"),
        (tau, "the task vector has", "check what it was made from"),
        (after, "the edit makes", f"{info.dtype} cannot hold the result, so choose a smaller alpha or scale"),
    ):
        if bad := int(values.size - np.isfinite(values).sum()):
            raise EditError(f"{what} {bad} NaN or Inf in a block of {info.name}: {remedy}")
    raise EditError(f"the change of {info.name} is too large to be measured: choose a smaller alpha or scale")
