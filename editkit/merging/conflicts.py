"""`conflicts`: where task vectors of one base pull in different directions, before they are merged.

Of two vectors a and b, over the elements of a tensor, a module, or all:

    cosine             a.b / (|a| |b|)
    sign disagreement  share of the elements that both change which they change in opposite directions: what TIES votes on
    overlap            elements that both change, as a share of those that either changes
    norm ratio         |b| / |a|

Vectors that have nothing to do with each other have a cosine near 0 and disagree in half of the signs (Yadav et al. 2023,
https://arxiv.org/abs/2306.01708, count these "sign conflicts").
"""

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from itertools import combinations
from math import sqrt
from typing import Any

import numpy as np
from numba import njit

from editkit import __version__
from editkit.arithmetic.codec import working_dtype
from editkit.checkpoint.blocks import Block, Progress, Scratch, blocks, counted, ordered_map
from editkit.checkpoint.provenance import public_name
from editkit.checkpoint.reader import Checkpoint, open_checkpoint
from editkit.errors import EditError, listed
from editkit.masks.mask import Mask
from editkit.names import parse, select
from editkit.vectors.open import open_vector
from editkit.vectors.vector import TaskVector, refuse_quantized

SCHEMA = "editkit.conflicts/1"
Source = str | os.PathLike[str]
SQUARE, CHANGED = range(2)
DOT, BOTH, EITHER, OPPOSITE = range(4)


class Sums:
    """Of k vectors: `own` [k, 2] holds squared L2 and elements that change, `pairs` [k (k - 1) / 2, 4] a.b and counts of elements."""

    def __init__(self, count: int) -> None:
        self.own, self.pairs = np.zeros((count, 2)), np.zeros((count * (count - 1) // 2, 4))

    def __iadd__(self, other: "Sums") -> "Sums":
        self.own += other.own
        self.pairs += other.pairs
        return self

    def rows(self) -> list[dict[str, Any]]:
        """One for each pair, in the order of `itertools.combinations`."""
        found = []
        for (a, b), (dot, both, either, opposite) in zip(
            combinations(range(len(self.own)), 2), self.pairs, strict=True
        ):
            lengths = np.sqrt(self.own[[a, b], SQUARE])
            found.append({
                "a": a,
                "b": b,
                "cosine": float(np.clip(dot / lengths.prod(), -1, 1)) if lengths.all() else None,
                "sign_disagreement": float(opposite / both) if both else None,
                "overlap": float(both / either) if either else None,
                "norm_ratio": float(lengths[1] / lengths[0]) if lengths[0] else None,
                "both": int(both),
                "either": int(either),
            })  # fmt: skip
        return found


def conflicts(
    base: Source,
    vectors: Sequence[Source],
    *,
    masks: Mapping[str, Source] | None = None,
    only: Sequence[str] = (),
    allow_other_base: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Compare `vectors`, all of them changes of `base`, two by two.

    >>> report = conflicts("base", ["tuned", "my-lora"])  # doctest: +SKIP
    >>> report["pairs"][0]["cosine"]  # doctest: +SKIP
    0.031

    vectors: at least two of tuned checkpoints, LoRA adapters and saved vectors. masks: from a vector, as it is given, to a mask of `base`,
    outside of which that vector counts as zero. only: whole-name globs. The report (schema `editkit.conflicts/1`) has `pairs` for all
    elements and for every module, layer and tensor. Nothing is written, and no more is kept in memory than a block of each vector.

    Raises EditError where a vector does not fit the base, or changes nothing that is asked for.
    """
    masks = {os.fspath(name): mask for name, mask in (masks or {}).items()}
    if len(vectors) < 2:
        raise EditError(f"{len(vectors)} vectors: give at least two to compare")
    given = [os.fspath(one) for one in vectors]
    if unknown := [name for name in masks if name not in given]:
        raise EditError(f"a mask is given for {listed(unknown)}, which is none of the vectors: {listed(given)}")
    with ExitStack() as stack:
        start = stack.enter_context(open_checkpoint(base))
        refuse_quantized(start)
        opened: list[tuple[TaskVector, Mask | None]] = []
        for source in vectors:
            vector = open_vector(source, start, allow_other_base=allow_other_base)
            for checkpoint in vector.inputs:
                stack.callback(checkpoint.close)
            chosen = None
            if (mask := masks.get(os.fspath(source))) is not None:
                chosen = Mask(mask, start, allow_other_base=allow_other_base)
                stack.callback(chosen.file.close)
            opened.append((vector, chosen))
        asked = select(start.tensors, only)
        changed = {name for vector, _ in opened for name in vector.names}
        names = [name for name in asked if name in changed and start.tensors[name].numel]
        for vector, _ in opened:
            vector.check(start, [name for name in vector.names if name in set(names)])
        found = _measured(start, opened, names, threads, progress)
        described = [
            {"name": public_name(vector.inputs[0]), "kind": vector.origin()["kind"], "mask": public_name(mask.file) if mask else None}
            for vector, mask in opened
        ]  # fmt: skip
        return _report(public_name(start), described, found)


def _measured(
    base: Checkpoint,
    vectors: Sequence[tuple[TaskVector, Mask | None]],
    names: Sequence[str],
    threads: int | None,
    progress: Progress | None,
) -> dict[str, Sums]:
    scratch, inside = Scratch(), [set(vector.names) for vector, _ in vectors]
    infos = [base.tensors[name] for name in names]
    advance = counted(progress, sum(info.nbytes for info in infos))
    found = {name: Sums(len(vectors)) for name in names}

    def work(block: Block) -> tuple[Block, Sums]:
        name, dtype = block.info.name, working_dtype(block.info.dtype)
        before = scratch.read("base", base, name, block, dtype)
        stack = scratch.array("vectors", (len(vectors), *block.shape), dtype)
        for place, (vector, mask), has in zip(stack, vectors, inside, strict=True):
            if name not in has:
                place[:] = 0
                continue
            place[:] = vector.rows(name, block.first, block.last, before)
            if mask is not None:
                mask.clear_outside(name, block, place)
        sums = Sums(len(vectors))
        _compare(stack.reshape(len(stack), -1), sums.own, sums.pairs)
        if not np.isfinite(sums.own).all():
            raise EditError(f"a vector has NaN or Inf in {name}: check the checkpoints that it is made from")
        return block, sums

    with ordered_map(work, (block for info in infos for block in blocks(info)), threads) as results:
        for block, sums in results:
            found[block.info.name] += sums
            advance(block.nbytes)
    return found


@njit(cache=True, nogil=True)
def _compare(stack, own, pairs):
    count = len(stack)
    for i in range(stack.shape[1]):
        at = 0
        for a in range(count):
            one = np.float64(stack[a, i])
            own[a, 0] += one * one
            own[a, 1] += 1.0 if one != 0.0 else 0.0
            for b in range(a + 1, count):
                other = np.float64(stack[b, i])
                product = one * other
                both = one != 0.0 and other != 0.0
                pairs[at, 0] += product
                pairs[at, 1] += 1.0 if both else 0.0
                pairs[at, 2] += 1.0 if one != 0.0 or other != 0.0 else 0.0
                pairs[at, 3] += 1.0 if both and (one < 0.0) != (other < 0.0) else 0.0
                at += 1


def _report(base: str, vectors: list[dict[str, Any]], found: Mapping[str, Sums]) -> dict[str, Any]:
    def grouped(key: Any) -> list[dict[str, Any]]:
        groups: dict[Any, Sums] = {}
        for name, sums in found.items():
            groups.setdefault(key(name), Sums(len(vectors))).__iadd__(sums)
        return [{"name": name, "pairs": sums.rows()} for name, sums in groups.items()]

    total = Sums(len(vectors))
    for sums in found.values():
        total += sums
    if idle := [one["name"] for one, (_, changed) in zip(vectors, total.own, strict=True) if not changed]:
        raise EditError(
            f"{listed(idle)} changes none of the tensors that are compared: see --only, the mask and the base"
        )
    for one, (square, changed) in zip(vectors, total.own, strict=True):
        one |= {"l2": sqrt(square), "changed": int(changed)}
    return {
        "schema": SCHEMA,
        "editkit": __version__,
        "base": {"name": base},
        "vectors": vectors,
        "pairs": total.rows(),
        "modules": grouped(lambda name: parse(name).module),
        "layers": grouped(lambda name: parse(name).layer),
        "tensors": grouped(lambda name: name),
    }
