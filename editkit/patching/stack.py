"""Which side of a patch a model is, and in which order several patches follow each other."""

from collections.abc import Iterator, Sequence

import numpy as np

from editkit.checkpoint.reader import Checkpoint
from editkit.errors import EditError, listed
from editkit.patching.digest import xxh64
from editkit.patching.file import BLOCK, SIDES, Patch, Side, block_sizes, misfits

VERBS = {"base": ("apply", "applied"), "edited": ("undo", "undone")}
"""What is done to a model that is this side."""
PROBED = 32
"""Tensors of which a block is looked at before the work begins; that checks them all."""


def differing(patch: Patch, model: Checkpoint) -> dict[str, list[str]]:
    """The sides whose weight files have the headers of the model's -> the tensors, of those probed, that differ from that side."""
    headers = _headers(Side.of(model))
    alike = [side for side in SIDES if headers == _headers(patch.sides[side].headers)]
    return {
        side: [
            name
            for name, number in _probes(patch)
            if _digest(model, name, number) != patch.tensors[name].digests(side)[number]
        ]
        for side in alike
    }


def _probes(patch: Patch) -> Iterator[tuple[str, int]]:
    """Some tensors and a block of each, among them one that the patch changes."""
    names = [name for name, info in patch.infos.items() if info.nbytes]
    chosen = {*names[:: -(-len(names) // PROBED) or 1], next(name for name in names if patch.tensors[name].changed)}
    for name in sorted(chosen):
        yield name, next((number for number, frame in enumerate(patch.tensors[name].frames) if frame), 0)


def digests(model: Checkpoint, name: str) -> tuple[int, ...]:
    """The checksums of the blocks of a tensor."""
    return tuple(_digest(model, name, number) for number, _ in enumerate(block_sizes(model.tensors[name])))


def _digest(model: Checkpoint, name: str, number: int) -> int:
    first = number * BLOCK
    block = np.empty(min(BLOCK, model.tensors[name].nbytes - first), np.uint8)
    model.read_into(name, first, block)
    return xxh64(block)


def _headers(found: dict[str, bytes]) -> object:
    """A single file may be called otherwise."""
    return list(found.values()) if len(found) == 1 else found


def refuse_unfit(patches: Sequence[Patch], model: Checkpoint, source: str, target: str) -> None:
    """Raise EditError unless `model` is the side `source` of the first patch, and each patch goes on from the one before."""
    verb, done = VERBS[source]
    first = [one for one in patches if not any(_follows(one, other, source, target) for other in patches)] or patches[
        :1
    ]
    looked = {id(one): differing(one, model) for one in first}
    fitting = [one for one in first if looked[id(one)].get(source) == []]
    if not fitting:
        raise EditError(_neither(first[0], looked[id(first[0])], model, source, target, verb))
    order = fitting[:1]
    while following := [one for one in patches if one not in order and _follows(one, order[-1], source, target)]:
        order.append(following[0])
    if len(order) < len(patches):
        left = listed(patch.label for patch in patches if patch not in order)
        raise EditError(f"{left}: not between states of {model.label} that the other patches lead to, so leave it out")
    if any(one is not other for one, other in zip(order, patches, strict=True)):
        raise EditError(f"these patches are {done} in another order: give {' '.join(patch.label for patch in order)}")


def _follows(patch: Patch, before: Patch, source: str, target: str) -> bool:
    return patch is not before and patch.sides[source].sha256 == before.sides[target].sha256


def _neither(patch: Patch, found: dict[str, list[str]], model: Checkpoint, source: str, target: str, verb: str) -> str:
    if found.get(target) == []:
        return f"{model.label} is the {target} side of {patch.label} already: there is nothing to {verb}"
    differ = found.get(source)
    later = verb == "undo" and not misfits(patch.infos, model.tensors)
    hint = "; if it got a later edit, undo that one first: give its patch before this one" if later else ""
    why = "in the headers of its weight files" if differ is None else f"in {listed(differ)}"
    return (
        f"{model.label} is neither side of {patch.label}, which is between {patch.sides['base'].name} and {patch.sides['edited'].name}: "
        f"it differs from the {source} side {why} (`editkit patch info` shows the sha256 of both){hint}"
    )
