"""`patch info` and `patch verify`: what a patch holds, whether it is whole, and which of its sides a model is."""

import os
from typing import Any

from editkit.checkpoint.blocks import Progress, counted, ordered_map
from editkit.checkpoint.digests import sha256_of
from editkit.checkpoint.provenance import public_name
from editkit.checkpoint.reader import Checkpoint, open_checkpoint
from editkit.errors import EditError, listed
from editkit.patching.file import FORMAT, SIDES, Patch, misfits
from editkit.patching.others import without_weights
from editkit.patching.stack import digests

Source = str | os.PathLike[str]


def inspect_patch(patch: Source) -> dict[str, Any]:
    """What a patch holds, as a dictionary of schema `editkit.patch/1`; only its table is read and checked.

    >>> inspect_patch("edit.editpatch")["tensors"][0]  # doctest: +SKIP
    {'name': 'model.norm.weight', 'dtype': 'BF16', 'shape': [2048], 'numel': 2048, 'changed': 1790, 'bytes': 1532}

    Raises EditError for a file that is no patch, or a damaged one.
    """
    with Patch(patch) as opened:
        rows = [
            {
                "name": name,
                "dtype": opened.infos[name].dtype,
                "shape": list(opened.infos[name].shape),
                "numel": opened.infos[name].numel,
                "changed": tensor.changed,
                "bytes": sum(frame.size for frame in tensor.frames if frame),
            }
            for name, tensor in opened.tensors.items()
            if tensor.changed
        ]
        others = [
            {"path": path, **{side: one and {"bytes": one.size, "sha256": one.sha256} for side, one in sides.items()}}
            for path, sides in opened.others.items()
        ]
        numel = sum(info.numel for info in opened.infos.values())
        changed = sum(row["changed"] for row in rows)
        return {
            "schema": FORMAT,
            "editkit": opened.table["editkit"],
            **{side: {"name": one.name, "sha256": one.sha256} for side, one in opened.sides.items()},
            "summary": {
                "tensors": len(opened.infos),
                "tensors_changed": len(rows),
                "numel": numel,
                "changed": changed,
                "bytes": opened.size,
                "bytes_of_model": sum(info.nbytes for info in opened.infos.values()),
            },
            "tensors": rows,
            "others": others,
        }


def verify_patch(
    patch: Source, model: Source | None = None, *, threads: int | None = None, progress: Progress | None = None
) -> dict[str, Any]:
    """Check every byte of a patch, and which of its two sides `model` is.

    >>> verify_patch("edit.editpatch", "somewhere")["side"]  # doctest: +SKIP
    'edited'

    Returns `side` ("base" or "edited", None where the model is neither), `nearest` (the side that more of it is) and what differs from
    that: `tensors`, `files` without weights, and `sha256`, the weight files with another sha256 (where no tensor differs, their
    headers do). Raises EditError where the patch is damaged, or the model has other tensors.
    """
    with Patch(patch) as opened:
        opened.check()
        found: dict[str, Any] = {"patch": os.path.basename(opened.label), "frames": sum(1 for _ in opened.frames())}
        if model is None:
            return found
        with open_checkpoint(model) as checkpoint:
            return {**found, "model": public_name(checkpoint), **_compared(opened, checkpoint, threads, progress)}


def _compared(patch: Patch, model: Checkpoint, threads: int | None, progress: Progress | None) -> dict[str, Any]:
    if wrong := misfits(patch.infos, model.tensors):
        raise EditError(f"{patch.label} is for another model than {model.label}: {listed(wrong, limit=5)}")
    model.start_hashing()
    advance = counted(progress, sum(info.nbytes for info in model.tensors.values()))
    differ: dict[str, list[str]] = {side: [] for side in SIDES}
    with ordered_map(lambda name: (name, digests(model, name)), model.tensors, threads) as results:
        for name, found in results:
            for side in SIDES:
                if found != patch.tensors[name].digests(side):
                    differ[side].append(name)
            advance(model.tensors[name].nbytes)
    nearest = min(SIDES, key=lambda one: len(differ[one]))
    present = without_weights(model)
    files = [
        path
        for path, sides in patch.others.items()
        if (sha256_of(present[path]) if path in present else None) != ((one := sides[nearest]) and one.sha256)
    ]
    hashes = patch.sides[nearest].sha256
    renamed = [file for file, digest in model.sha256().items() if digest not in hashes.values()]
    clean = not (differ[nearest] or renamed)
    return {
        "side": nearest if clean else None,
        "nearest": nearest,
        "tensors": differ[nearest],
        "sha256": renamed,
        "files": files,
    }
