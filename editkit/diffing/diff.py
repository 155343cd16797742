"""`diff`: what changed between two checkpoints, tensor by tensor, in one read of each and in bounded memory."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from editkit.arithmetic.codec import working_dtype
from editkit.arithmetic.measure import CHANGED, Sums
from editkit.checkpoint.adapter import settings_that_differ
from editkit.checkpoint.blocks import Block, Progress, Scratch, blocks, counted, ordered_map
from editkit.checkpoint.header import TensorInfo
from editkit.checkpoint.provenance import public_name
from editkit.checkpoint.reader import Checkpoint, open_checkpoint
from editkit.diffing.audit import Audit, Touched, changed_bits
from editkit.diffing.report import Compared, Comparison, build_report
from editkit.errors import EditError
from editkit.masks.mask import Mask
from editkit.names import grid, select


def diff(
    base: str | os.PathLike[str] | Checkpoint,
    edited: str | os.PathLike[str] | Checkpoint,
    *,
    only: str | Sequence[str] = (),
    mask: str | os.PathLike[str] | None = None,
    allow_other_base: bool = False,
    spectral: bool = False,
    hashes: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """The report of what changed from `base` to `edited`, as a dictionary of schema `editkit.diff/1`.

    >>> report = diff("base", "edited", only=["*.mlp.*"])  # doctest: +SKIP
    >>> report["summary"]["changed"], report["tensors"][0]["rel_l2"]  # doctest: +SKIP
    (131072, 0.0123)

    base, edited: checkpoints, adapters or saved task vectors. only: a whole-name glob or several. mask: a mask file for
    `base`, or the folder of one: adds `mask`, what changed inside and outside of it. allow_other_base: accept a mask that was
    made for other weights. spectral: adds the spectral norm, stable rank and top singular energies of every changed matrix
    (slower). hashes: adds the sha256 of all weight files. threads: default all cores. progress: called with (bytes done,
    bytes in all). Elements are compared by their bits; where the two dtypes differ, by their values. Raises EditError for files that cannot be read, globs that match nothing and masks that do not fit.
    """
    opened = [side if isinstance(side, Checkpoint) else open_checkpoint(side) for side in (base, edited)]
    old, new = opened
    audit = None
    try:
        if mask is not None:
            audit = Audit(Mask(mask, old, allow_other_base=allow_other_base), mask)
        chosen = set(select(dict.fromkeys([*old.tensors, *new.tensors]), [only] if isinstance(only, str) else only))
        comparison = _compare_structure(old, new, chosen)
        both = [
            info
            for name, info in old.tensors.items()
            if name in chosen and name in new.tensors and new.tensors[name].shape == info.shape
        ]
        if old.tensors and new.tensors and not old.tensors.keys() & new.tensors.keys():
            raise EditError(
                f"{old.label} and {new.label} have no tensor name in common: compare two checkpoints, two adapters or two "
                "task vectors"
            )
        if hashes:
            old.start_hashing()
            new.start_hashing()
        matrices = [info for info in both if spectral and _has_spectrum(info, new.tensors[info.name])]
        advance = counted(progress, sum(info.nbytes + new.tensors[info.name].nbytes for info in both + matrices))
        comparison.audit = audit
        comparison.tensors = _compare_tensors(old, new, both, audit, threads, advance)
        _add_spectra(old, new, {info.name for info in matrices}, comparison.tensors, threads, advance)
        if hashes:
            comparison.base["sha256"], comparison.edited["sha256"] = old.sha256(), new.sha256()
        return build_report(comparison)
    finally:
        if audit is not None:
            audit.mask.file.close()
        for side, given in zip(opened, (base, edited), strict=True):
            if side is not given:
                side.close()


def sums_for(info: TensorInfo, config: dict[str, Any] | None) -> tuple[Sums, dict[str, int]]:
    """Empty sums for a tensor, one part per head or fused expert, and how its blocks map to the parts."""
    parts = grid(info.name, info.shape, config)
    rows, columns = (parts.rows, parts.columns) if parts and info.numel else (1, 1)
    return Sums(rows * columns), {"rows_per_part": max(info.rows // rows, 1), "column_parts": columns}


def _compare_structure(old: Checkpoint, new: Checkpoint, chosen: set[str]) -> Comparison:
    def brief(info: TensorInfo) -> dict[str, Any]:
        return {"name": info.name, "dtype": info.dtype, "shape": list(info.shape)}

    base, edited = ({"name": public_name(one), "sha256": None, "quantization": one.quantization} for one in (old, new))
    comparison = Comparison(base, edited, old.config, settings=settings_that_differ(old, new))
    comparison.added = [brief(info) for name, info in new.tensors.items() if name in chosen and name not in old.tensors]
    for name, info in old.tensors.items():
        if name not in chosen:
            continue
        other = new.tensors.get(name)
        if other is None:
            comparison.removed.append(brief(info))
            continue
        if other.shape != info.shape:
            shapes = {"base_shape": list(info.shape), "edited_shape": list(other.shape)}
            comparison.reshaped.append({"name": name, **shapes})
        if other.dtype != info.dtype:
            comparison.retyped.append({"name": name, "base_dtype": info.dtype, "edited_dtype": other.dtype})
    return comparison


def _compare_tensors(
    old: Checkpoint,
    new: Checkpoint,
    infos: list[TensorInfo],
    audit: Audit | None,
    threads: int | None,
    advance: Callable[[int], None],
) -> list[Compared]:
    scratch = Scratch()
    compared = {info.name: Compared(info, None) for info in infos}

    def measure(block: Block) -> tuple[Block, Sums | int, Touched]:
        info, other = block.info, new.tensors[block.info.name]
        if not (info.item.floating and other.item.floating):
            changed = _changed_whole(old, new, block)
            return block, int(np.count_nonzero(changed)), audit.look(block, changed) if audit else Touched()
        precise = np.float64 in (working_dtype(info.dtype), working_dtype(other.dtype))
        dtype = np.float64 if precise else np.float32
        before = scratch.read("base", old, info.name, block, dtype)
        after = scratch.read("edited", new, info.name, block, dtype)
        sums, parts = sums_for(info, old.config)
        sums.add(before, after, first_row=block.first, **parts)
        differs = audit is not None and sums.values[:, CHANGED].any()
        return block, sums, audit.look(block, changed_bits(before, after)) if audit and differs else Touched()

    with ordered_map(measure, (block for info in infos for block in blocks(info)), threads) as results:
        for block, result, touched in results:
            tensor = compared[block.info.name]
            if audit is not None:
                audit.add(block.info.name, touched)
            if isinstance(result, int):
                tensor.changed += result
            else:
                tensor.sums = result if tensor.sums is None else tensor.sums.merge(result)
            advance(block.nbytes + block.shape[0] * block.shape[1] * new.tensors[block.info.name].item.bytes)
    return list(compared.values())


def _changed_whole(old: Checkpoint, new: Checkpoint, block: Block) -> np.ndarray:
    """Which elements differ where at least one side holds whole numbers; all of them where the dtypes do."""
    info, other = block.info, new.tensors[block.info.name]
    if info.dtype != other.dtype:
        return np.ones(block.shape, np.bool_)
    left, right = (np.empty(block.nbytes, np.uint8) for _ in range(2))
    old.read_into(info.name, block.offset, left)
    new.read_into(info.name, block.offset, right)
    return (left != right).reshape(*block.shape, info.item.bytes).any(axis=2)


def _has_spectrum(info: TensorInfo, other: TensorInfo) -> bool:
    return info.item.floating and other.item.floating and len(info.shape) == 2 and info.numel > 0


def _add_spectra(
    old: Checkpoint,
    new: Checkpoint,
    names: set[str],
    tensors: list[Compared],
    threads: int | None,
    advance: Callable[[int], None],
) -> None:
    """The spectra of the named tensors, each tensor by one thread: linear algebra has no use for more on such sizes."""
    from editkit.diffing.spectral import spectral

    scratch = Scratch()

    def measure(tensor: Compared) -> tuple[Compared, dict[str, Any]]:
        info = tensor.info

        def rows(first: int, last: int) -> np.ndarray:
            block = Block(info, first, last)
            before = scratch.read("base", old, info.name, block, np.float64)
            return scratch.read("edited", new, info.name, block, np.float64) - before

        return tensor, spectral(rows, info.rows, info.columns)

    chosen = (tensor for tensor in tensors if tensor.info.name in names)
    with ordered_map(measure, chosen, threads) as results:
        for tensor, found in results:
            tensor.spectral = found
            advance(tensor.info.nbytes + new.tensors[tensor.info.name].nbytes)
