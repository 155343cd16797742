"""`patch create`: what turns a base into its edit and back, bit for bit, in one file.

>>> found = create_patch("base", "edited", "edit.editpatch")  # doctest: +SKIP
>>> found["summary"]["changed"], found["summary"]["bytes"]  # doctest: +SKIP
(1043213, 1290114)
"""

import filecmp
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from editkit.checkpoint.blocks import Progress, Scratch, counted, ordered_map
from editkit.checkpoint.header import TensorInfo
from editkit.checkpoint.provenance import public_name
from editkit.checkpoint.reader import Checkpoint, open_checkpoint
from editkit.errors import EditError, NothingChanged, listed
from editkit.patching.digest import xxh64
from editkit.patching.file import SIDES, Side, block_sizes, misfits
from editkit.patching.inspection import inspect_patch
from editkit.patching.others import left_out, without_weights
from editkit.patching.steps import pack
from editkit.patching.writer import PatchWriter, check_new_patch, hexadecimal

Source = str | os.PathLike[str]


def create_patch(
    base: Source, edited: Source, output: Source, *, threads: int | None = None, progress: Progress | None = None
) -> dict[str, Any]:
    """Write the patch from `base` to `edited` to the file `output`, which ends in .editpatch; returns its `inspect_patch`.

    Both have the same tensors in the same dtypes; the layout of their files may differ. Files without weights (config.json,
    tokenizer, editkit.json) that differ are kept from both sides; reports (diff, unlearning) and weights in other formats are
    left out. The same two sides give the same bytes, whatever `threads`. Raises EditError where the tensors differ in name,
    shape or dtype, NothingChanged where no weight differs; then there is no file.
    """
    check_new_patch(output, [])
    with open_checkpoint(base) as one, open_checkpoint(edited) as other:
        check_new_patch(output, [one.source, other.source])
        if wrong := misfits(one.tensors, other.tensors):
            raise EditError(
                f"{one.label} and {other.label} differ in more than values, which a patch does not keep: {listed(wrong, limit=5)}"
            )
        for side in (one, other):
            side.start_hashing()
        with PatchWriter(output, [one.source, other.source]) as writer:
            tensors = _tensors(one, other, writer, threads, progress)
            if not any("edited" in entry for entry in tensors.values()):
                raise NothingChanged(f"{one.label} and {other.label} have the same weights: there is nothing to undo")
            others = _others(one, other, writer)
            sides = {"base": _side(one), "edited": _side(other)}
            alone = {"base": left_out(one) - left_out(other), "edited": left_out(other) - left_out(one)}
            absent = {side: sorted(paths) for side, paths in alone.items()}
            writer.close_with({**sides, "tensors": tensors, "others": others, "left_out": absent})
    return inspect_patch(output)


def add_patch(
    base: Source, edited: Source, output: Source, *, threads: int | None = None, progress: Progress | None = None
) -> list[str]:
    """The patch of an edit that was just written; returns what is to be said where there is none."""
    try:
        create_patch(base, edited, output, threads=threads, progress=progress)
    except NothingChanged:
        return [f"{output} was not written: there is nothing to undo"]
    except EditError as error:
        raise EditError(f"{edited} is written and its patch is not: {error}") from error
    return []


def _side(checkpoint: Checkpoint) -> dict[str, Any]:
    headers, hashes = Side.of(checkpoint), checkpoint.sha256()
    files = {file: {"sha256": hashes[file], "header": raw[8:].decode()} for file, raw in headers.items()}
    return {"name": public_name(checkpoint), "files": files}


def _tensors(
    base: Checkpoint, edited: Checkpoint, writer: PatchWriter, threads: int | None, progress: Progress | None
) -> dict[str, Any]:
    scratch = Scratch()

    def work(item: tuple[TensorInfo, int, int]) -> tuple[TensorInfo, int, list[int], bytes | None, int]:
        info, first, size = item
        one, other = (scratch.array(side, (size,), np.uint8) for side in SIDES)
        base.read_into(info.name, first, one)
        edited.read_into(info.name, first, other)
        if np.array_equal(one, other):
            return info, size, [xxh64(one)] * 2, None, 0
        packed, changed = pack(one, other, info.item.bytes)
        return info, size, [xxh64(one), xxh64(other)], packed, changed

    advance = counted(progress, sum(info.nbytes for info in base.tensors.values()))
    digests: dict[str, list[list[int]]] = {name: [] for name in base.tensors}
    frames: dict[str, list[Any]] = {name: [] for name in base.tensors}
    counts = dict.fromkeys(base.tensors, 0)
    with ordered_map(work, _blocks(base), threads) as results:
        for info, size, both, packed, changed in results:
            digests[info.name].append(both)
            frames[info.name].append(packed and writer.add(packed))
            counts[info.name] += changed
            advance(size)
    entries: dict[str, Any] = {}
    for name, pairs in digests.items():
        entries[name] = {"base": hexadecimal([pair[0] for pair in pairs])}
        if counts[name]:
            after = hexadecimal([pair[1] for pair in pairs])
            entries[name] |= {"edited": after, "changed": counts[name], "frames": frames[name]}
    return entries


def _blocks(checkpoint: Checkpoint) -> Iterator[tuple[TensorInfo, int, int]]:
    for info in checkpoint.tensors.values():
        for first, size in block_sizes(info):
            yield info, first, size


def _others(base: Checkpoint, edited: Checkpoint, writer: PatchWriter) -> dict[str, Any]:
    """Both contents of every file without weights that differs."""
    found: dict[str, Any] = {}
    sides = (without_weights(base), without_weights(edited))
    for path in sorted({**sides[0], **sides[1]}):
        one, other = (side.get(path) for side in sides)
        if one is None or other is None or not filecmp.cmp(one, other, shallow=False):
            found[path] = {
                "base": one and writer.file(one),
                "edited": other and writer.file(other),
            }
    return found
