"""A LoRA adapter as a task vector: the product of its factors, computed one block of rows at a time.

>>> vector = LowRankVector(open_adapter("my-lora"), open_checkpoint("base"))  # doctest: +SKIP
>>> vector.names[0]  # doctest: +SKIP
'model.layers.0.self_attn.q_proj.weight'
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from editkit.checkpoint.adapter import Adapter
from editkit.checkpoint.provenance import public_name
from editkit.checkpoint.reader import Checkpoint
from editkit.errors import EditError, listed
from editkit.names import tied_pair
from editkit.vectors.difference import refuse_other_origin

_COMPARED = 1 << 20  # elements at a time
_REMEDY = "use the base that it was trained on"
_CACHED = 4  # tensors whose factors stay in memory: as many as threads may be at work on


class LowRankVector:
    """`tau = scale * B @ A` for every module of an adapter, under the tensor names of `base`.

    Raises EditError that lists every module which `base` does not have, or has in another shape, or shares with another
    module (tied embeddings).
    """

    def __init__(self, adapter: Adapter, base: Checkpoint, *, allow_other_base: bool = False) -> None:
        self.adapter, self.inputs, self.allow_other_base = adapter, [adapter.checkpoint], allow_other_base
        find = _finder(base)
        self._modules = _joined(adapter, base, find)
        self._copies = {copy: find(target) for target, copy in adapter.copies.items()}
        self._shapes = {name: base.tensors[name].shape for name in self._modules}
        self._transposed = _orientations(adapter, base, self._modules)
        self.names = [name for name in base.tensors if name in self._modules]
        self._factors = lru_cache(_CACHED)(self._read_factors)

    def check(self, base: Checkpoint, names: list[str]) -> None:
        """Raise EditError where `base` does not have the shapes, or a factor among `names` is not finite.

        Embeddings that peft saved beside the factors must be those of `base`, rounded to the dtype they were saved in. An adapter
        that editkit made records its base, and is refused on other weights unless `allow_other_base`.
        """
        tensors = base.tensors
        if wrong := [n for n in names if n not in tensors or tensors[n].shape != self._shapes.get(n)]:
            raise EditError(f"{self.adapter.label} does not fit {base.label}: {listed(wrong)}: {_REMEDY}")
        problems = [f"{name} (its change has NaN or Inf)" for name in names if not self._finite(name)]
        for copy, found in self._copies.items():
            if len(found) != 1 or not _same(base, found[0], self.adapter.checkpoint, copy):
                problems.append(f"{copy} (its own copy of a base tensor, with other values or another size)")
        if problems:
            raise EditError(f"{self.adapter.label} cannot be applied to {base.label}: {listed(problems)}")
        if not self.allow_other_base:
            refuse_other_origin(self.adapter.checkpoint, base, "give that one as the model")

    def rows(self, name: str, first: int, last: int, base: np.ndarray) -> np.ndarray:
        """tau[first:last] as [last - first, columns] in `base`'s dtype, from a float64 product. Threads may call it."""
        left, right = self._factors(name)
        return (left[first:last] @ right).astype(base.dtype, copy=False)

    def origin(self) -> dict[str, Any]:
        """What the vector was made from, for provenance."""
        other = {"allow_other_base": True} if self.allow_other_base else {}
        return {"kind": "adapter", "adapter": public_name(self.adapter.checkpoint), **other}

    def _read_factors(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        change = self.adapter.modules[self._modules[name]]
        a, b = (_values(self.adapter.checkpoint, factor) for factor in (change.a, change.b))
        b *= change.scale
        return (np.ascontiguousarray(a.T), np.ascontiguousarray(b.T)) if self._transposed[name] else (b, a)

    def _finite(self, name: str) -> bool:
        return all(np.isfinite(factor).all() for factor in self._read_factors(name))


def _finder(base: Checkpoint) -> Callable[[str], list[str]]:
    """From a parameter's name in the model to its names in the files: itself, else all that differ by a prefix."""
    embedding, _ = tied_pair(base.tensors)
    tails: dict[str, list[str]] = defaultdict(list)
    for name in base.tensors:
        for tail in _tails(name):
            tails[tail].append(name)

    def find(target: str) -> list[str]:
        if base.tied and embedding and tied_pair([target])[1]:
            return [embedding]
        if target in base.tensors:
            return [target]
        return tails.get(target, []) + [tail for tail in _tails(target) if tail in base.tensors]

    return find


def _joined(adapter: Adapter, base: Checkpoint, find: Callable[[str], list[str]]) -> dict[str, str]:
    """Base tensor name -> module path."""
    embedding, _ = tied_pair(base.tensors)
    modules: dict[str, str] = {}
    unknown, tied = [], []
    for module, change in adapter.modules.items():
        found = find(f"{module}.weight")
        if base.tied and found == [embedding]:
            one, other = ("input embedding", "output head") if change.embedding else ("output head", "input embedding")
            tied.append(f"{module} (LoRA on the {one}, which is also the {other})")
        elif len(found) != 1 or found[0] in modules:
            unknown.append(module)
        else:
            modules[found[0]] = module
    if unknown:
        trained_on = f", {adapter.base}" if adapter.base else ""
        raise EditError(
            f"{adapter.label} is an adapter for another model than {base.label}, whose tensors (such as "
            f"{listed(base.tensors, limit=1)}) do not include {listed(unknown)}: {_REMEDY}{trained_on}"
        )
    if tied:
        raise EditError(
            f"{adapter.label} changes one of two modules that {base.label} keeps in one tensor: {listed(tied)}: "
            "save the base with a separate lm_head.weight and tie_word_embeddings false first"
        )
    return modules


def _tails(name: str) -> Iterator[str]:
    while "." in name:
        name = name.split(".", 1)[1]
        if "." in name:  # a lone "weight" says nothing
            yield name


def _orientations(adapter: Adapter, base: Checkpoint, modules: Mapping[str, str]) -> dict[str, bool]:
    """Which weights are stored [in, out] (embeddings, GPT-2's Conv1D): shapes tell, of square ones the config does."""
    said = bool(adapter.config.get("fan_in_fan_out"))
    transposed: dict[str, bool] = {}
    square, wrong, seen = [], [], set()
    for name, module in modules.items():
        change, shape = adapter.modules[module], base.tensors[name].shape
        inner, outer = adapter.checkpoint.tensors[change.a].shape[1], adapter.checkpoint.tensors[change.b].shape[0]
        if change.embedding:
            transposed[name] = True
            fits = shape == (inner, outer)
        else:
            fits = shape in ((outer, inner), (inner, outer))
            transposed[name] = said if inner == outer else shape == (inner, outer)
            if inner == outer:
                square.append(module)
            else:
                seen.add(transposed[name])
        if not fits:
            wrong.append(f"{name} {list(shape)} (the adapter's factors make {[outer, inner]})")
    if wrong:
        raise EditError(f"{adapter.label} does not fit the shapes of {base.label}: {listed(wrong)}: {_REMEDY}")
    if square and (not said) in seen:
        raise EditError(
            f"{adapter.label} mixes Linear and Conv1D modules, so that nothing tells which way round the square ones "
            f"are stored: {listed(square)}: merge it with peft (merge_and_unload) and give the merged checkpoint"
        )
    return transposed


def _values(checkpoint: Checkpoint, name: str) -> np.ndarray:
    from editkit.arithmetic.codec import decode

    info = checkpoint.tensors[name]
    return decode(checkpoint.array(name), info.dtype, np.empty(info.shape, np.float64))


def _same(base: Checkpoint, name: str, other: Checkpoint, copy: str) -> bool:
    """Whether `copy` holds the values of `name`, rounded to its own dtype."""
    from editkit.arithmetic.codec import decode, encode

    wide, narrow = base.tensors[name], other.tensors[copy]
    if wide.shape != narrow.shape or not (wide.item.floating and narrow.item.floating):
        return False
    for first in range(0, wide.numel, _COMPARED):
        count = min(_COMPARED, wide.numel - first)
        raw, held = np.empty(count * wide.item.bytes, np.uint8), np.empty(count * narrow.item.bytes, np.uint8)
        base.read_into(name, first * wide.item.bytes, raw)
        other.read_into(copy, first * narrow.item.bytes, held)
        if not np.array_equal(encode(decode(raw, wide.dtype, np.empty(count)), narrow.dtype), held):
            return False
    return True
