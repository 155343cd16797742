"""`patch apply` and `patch undo`: from one side of a patch, or of several in turn, to the other, bit for bit.

Every block of the model is checked against the patch before it is changed, and what comes out before it is written, so that the
output is the other side or nothing. Of several patches only the last state is written: a block goes through all of them in memory.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from itertools import zip_longest
from pathlib import Path

import numpy as np

from editkit.checkpoint.blocks import Progress, Scratch, counted, default_threads, ordered_map
from editkit.checkpoint.digests import sha256_of
from editkit.checkpoint.header import TensorInfo
from editkit.checkpoint.layout import INDEX
from editkit.checkpoint.reader import Checkpoint, open_checkpoint
from editkit.checkpoint.writer import PARTIAL, CheckpointWriter
from editkit.errors import EditError, listed
from editkit.patching.digest import xxh64
from editkit.patching.file import Content, Patch, block_sizes
from editkit.patching.others import without_weights
from editkit.patching.stack import refuse_unfit
from editkit.patching.steps import unpack

Source = str | os.PathLike[str]


def apply_patch(
    model: Source,
    patch: Source | Sequence[Source],
    output: Source,
    *,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write what `patch` makes of `model`, its base, to the folder `output`: the edited checkpoint as it was.

    >>> apply_patch("base", "edit.editpatch", "edited")  # doctest: +SKIP
    PosixPath('edited')

    patch: one, or several that follow each other, the first edit first. Files of the model that the patch says nothing of are
    copied. Raises EditError for any other model (also one that is the edited side already), and for damage in either; then
    nothing is left behind.
    """
    return _moved(model, patch, output, "base", "edited", threads, progress)


def undo_patch(
    edited: Source,
    patch: Source | Sequence[Source],
    output: Source,
    *,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write the base that `patch` was made from, bit for bit, to the folder `output`.

    >>> undo_patch("edited-twice", ["second.editpatch", "first.editpatch"], "base-again")  # doctest: +SKIP
    PosixPath('base-again')

    patch: one, or a stack of them, the last edit first. Otherwise as `apply_patch`.
    """
    return _moved(edited, patch, output, "edited", "base", threads, progress)


def _moved(
    model: Source,
    patch: Source | Sequence[Source],
    output: Source,
    source: str,
    target: str,
    threads: int | None,
    progress: Progress | None,
) -> Path:
    given = [patch] if isinstance(patch, str | os.PathLike) else list(patch)
    if not given:
        raise EditError("no patch given: name one")
    with ExitStack() as stack:
        opened = stack.enter_context(open_checkpoint(model))
        patches = [stack.enter_context(Patch(one)) for one in given]
        refuse_unfit(patches, opened, source, target)
        changes = _changes(patches, opened, source, target)
        shards = patches[-1].sides[target].shards()
        writer = CheckpointWriter(opened, output, shards=shards, inputs=[Path(one) for one in given])
        with writer:
            _write_tensors(patches, opened, writer, source, target, threads, progress)
            gone = [path for path, (_, content) in changes.items() if content is None]
            for path in {*gone, *(path for patch in patches for path in patch.left_out[source])}:
                _remove(writer.folder, _staged(path))  # before others are written: a folder may become a file, and back
            for path, (last, content) in changes.items():
                if content is not None:
                    _write_other(writer.folder, _staged(path), last, content)
        return writer.output


def _write_tensors(
    patches: Sequence[Patch],
    model: Checkpoint,
    writer: CheckpointWriter,
    source: str,
    target: str,
    threads: int | None,
    progress: Progress | None,
) -> None:
    scratch = Scratch()

    def work(item: tuple[TensorInfo, int, int, int]) -> int:
        info, number, first, size = item
        block = scratch.array("block", (size,), np.uint8)
        model.read_into(info.name, first, block)
        if xxh64(block) != patches[0].tensors[info.name].digests(source)[number]:
            raise EditError(
                f"{info.name} of {model.label} is not as on the {source} side of {patches[0].label} (its bytes {first} to "
                f"{first + size} differ): the model was changed, damaged, or is another one"
            )
        for patch in patches:
            tensor = patch.tensors[info.name]
            if frame := tensor.frames[number]:
                try:
                    unpack(patch.read(frame), block, info.item.bytes, 1 if target == "edited" else -1)
                except ValueError as error:
                    raise patch.damaged(f"{info.name}: {error}") from error
                if xxh64(block) != tensor.digests(target)[number]:
                    raise patch.damaged(f"its steps of {info.name} lead elsewhere")
        writer.write(info.name, first, block)
        return size

    advance = counted(progress, sum(info.nbytes for info in model.tensors.values()))
    with ordered_map(work, _blocks(model, threads or default_threads()), threads) as results:
        for size in results:
            advance(size)


def _blocks(model: Checkpoint, lanes: int) -> Iterator[tuple[TensorInfo, int, int, int]]:
    """All blocks, from `lanes` files in turn, because two writers to one file wait for each other."""
    files: dict[str, list[TensorInfo]] = {file: [] for file in model.files}
    for info in model.tensors.values():
        files[info.file].append(info)
    turns = [list(files.values())[lane::lanes] for lane in range(lanes)]
    streams = [
        (
            (info, number, first, size)
            for infos in turn
            for info in infos
            for number, (first, size) in enumerate(block_sizes(info))
        )
        for turn in turns
    ]
    for together in zip_longest(*streams):
        yield from (item for item in together if item is not None)


def _changes(
    patches: Sequence[Patch], model: Checkpoint, source: str, target: str
) -> dict[str, tuple[Patch, Content | None]]:
    """Files without weights that become others: path -> the last patch with it and what it says, None to remove the file.

    Raises EditError for those that are not as the first patch with them says.
    """
    present = without_weights(model)
    state: dict[str, str | None] = {}
    changes: dict[str, tuple[Patch, Content | None]] = {}
    wrong: dict[str, None] = {}
    for patch in patches:
        for path, sides in patch.others.items():
            if path not in state:
                state[path] = sha256_of(present[path]) if path in present else None
            before, after = sides[source], sides[target]
            if state[path] != (before and before.sha256):
                wrong[path] = None
            state[path], changes[path] = after and after.sha256, (patch, after)
    if wrong:
        raise EditError(
            f"{listed(model.layout.shown(path) for path in wrong)}: changed since the patch was made, and it would be "
            "overwritten: put the old file back, or make a new patch"
        )
    made = {Path(path) for path, (_, content) in changes.items() if content is not None}
    stay = sorted(map(Path, present.keys() - changes.keys()))
    if blocking := [path for path in stay if any(path in new.parents or new in path.parents for new in made)]:
        raise EditError(
            f"{listed(model.layout.shown(str(path)) for path in blocking)}: not known to the patch, and in the way of a "
            f"file of the {target} side: move it away"
        )
    return changes


def _staged(path: str) -> str:
    """What a file is called while it is staged."""
    return path + PARTIAL if path == INDEX else path


def _write_other(folder: Path, path: str, patch: Patch, content: Content) -> None:
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    with open(folder / path, "wb") as stream:
        stream.writelines(patch.contents(content))


def _remove(folder: Path, path: str) -> None:
    """Remove a file, and folders that it leaves empty."""
    if (folder / path).is_file():  # of several patches one may have made it a folder
        (folder / path).unlink()
    for parent in Path(path).parents[:-1]:
        with suppress(OSError):  # it holds other files
            (folder / parent).rmdir()
