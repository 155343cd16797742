"""The models of a merge, opened, and read side by side: the same block of a tensor from all of them.

>>> with ExitStack() as stack:  # doctest: +SKIP
...     inputs = Inputs(plan, stack)
...     inputs.stack(work, block, Scratch()).models.shape
(2, 512, 1024)
"""

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, NamedTuple

import numpy as np
from numba import njit

from editkit.arithmetic.bits import int_of_bits
from editkit.arithmetic.codec import decode
from editkit.arithmetic.dtypes import DTYPES
from editkit.checkpoint.adapter import open_adapter
from editkit.checkpoint.blocks import Block, Scratch
from editkit.checkpoint.header import TensorInfo
from editkit.checkpoint.reader import Checkpoint, open_checkpoint
from editkit.checkpoint.ties import tied_copies
from editkit.errors import EditError
from editkit.masks.mask import Mask
from editkit.merging.compatible import rounded
from editkit.merging.method import Stack, Terms
from editkit.merging.methods import REGISTRY
from editkit.merging.plan import Model, Part, Plan, Target
from editkit.vectors.lowrank import LowRankVector
from editkit.vectors.open import open_vector
from editkit.vectors.vector import TaskVector


class Opened(NamedTuple):
    """One model: values of a `checkpoint` with the changes of `adapters` on top, or a change of the base (`vector`)."""

    model: Model
    checkpoint: Checkpoint | None
    adapters: list[LowRankVector]
    vector: TaskVector | None
    mask: Mask | None

    @property
    def label(self) -> str:
        return "+".join([self.model.source, *self.model.adapters])

    def touches(self, name: str) -> bool:
        """Whether the tensor of this name can differ from the base."""
        return self.vector is None or name in self.vector.names


class Work(NamedTuple):
    """One tensor of the output. info: its name, dtype and shape there. dtype: float32 or float64, to calculate in."""

    target: Target
    info: TensorInfo
    terms: Terms
    dtype: Any


class Inputs:
    """Everything that a plan reads. `like`: whose files the output takes. Raises EditError where models do not open."""

    def __init__(self, plan: Plan, stack: ExitStack, *, allow_other_base: bool = False) -> None:
        self.plan, self.method = plan, REGISTRY[plan.method]
        self.base = stack.enter_context(open_checkpoint(plan.base)) if plan.base is not None else None
        self.models = [self._open(model, stack, allow_other_base) for model in plan.models]
        self.like = self._like()
        self.narrow = plan.dtype if plan.dtype and DTYPES[plan.dtype].bytes < 8 else None

    def _open(self, model: Model, stack: ExitStack, allow_other_base: bool) -> Opened:
        checkpoint, vector, mask = None, None, None
        if (model.vector or model.mask) and self.base is None:
            raise EditError(f"{model.source} is a vector or has a mask, which say what changes in a base: give a base")
        if model.vector:
            vector = open_vector(model.source, self.base, allow_other_base=allow_other_base)  # type: ignore[arg-type]
            for one in vector.inputs:
                stack.callback(one.close)
        else:
            checkpoint = stack.enter_context(open_checkpoint(model.source))
        adapters = []
        for source in model.adapters:
            adapter = open_adapter(source)
            stack.callback(adapter.checkpoint.close)
            adapters.append(LowRankVector(adapter, checkpoint, allow_other_base=allow_other_base))  # type: ignore[arg-type]
        if model.mask:
            mask = Mask(model.mask, self.base, allow_other_base=allow_other_base)  # type: ignore[arg-type]
            stack.callback(mask.file.close)
        return Opened(model, checkpoint, adapters, vector, mask)

    def _like(self) -> Checkpoint:
        found = self.base if self.plan.like is None else self.models[self.plan.like].checkpoint
        if found is None:
            raise EditError("the merge has no base and names no model whose files the output takes: give a base model")
        return found

    def checkpoints(self) -> Iterator[tuple[str, Checkpoint]]:
        """Everything that is read, by its role in the provenance."""
        if self.base is not None:
            yield "base", self.base
        for number, one in enumerate(self.models, 1):
            for checkpoint in one.vector.inputs if one.vector else [one.checkpoint]:
                if checkpoint is not None:
                    yield f"model {number}", checkpoint
            for part, adapter in enumerate(one.adapters, 1):
                yield f"model {number} adapter {part}", adapter.adapter.checkpoint
            if one.mask is not None:
                yield f"model {number} mask", one.mask.file

    # -- names and shapes

    def source(self, target: Target) -> tuple[Checkpoint, TensorInfo] | None:
        """A tensor of the target's shape: that of the base, else of the first model; None where it is absent."""
        for checkpoint, name in self.tensors(target):
            return (checkpoint, checkpoint.tensors[name]) if name in checkpoint.tensors else None
        return None

    def tensors(self, target: Target) -> Iterator[tuple[Checkpoint, str]]:
        """Those that a target is made of: that of the base first, vectors left out."""
        if target.base is not None and self.base is not None:
            yield self.base, target.base
        for part in target.parts:
            checkpoint = self.models[part.model].checkpoint
            if checkpoint is not None:
                yield checkpoint, part.name

    def merges(self, target: Target) -> bool:
        """Whether anything is to be calculated; else the tensor is that of `source`."""
        found = self.source(target)
        if found is None or not found[1].item.floating or not found[1].numel:
            return False
        if self.plan.method == "passthrough" and target.parts and target.base is None:
            one = self.models[target.parts[0].model]
            return target.parts[0].settings.get("scale", 1.0) != 1 or bool(one.adapters)
        return bool(target.parts) and (
            not self.method.deltas or any(self._moves(target, part) for part in target.parts)
        )

    def _moves(self, target: Target, part: Part) -> bool:
        one = self.models[part.model]
        return target.base is None or (one.touches(target.base) and (one.mask is None or target.base in one.mask.names))

    def precision(self, target: Target) -> str:
        """The dtype that mergekit would calculate in: that of the plan, or the one that holds all inputs."""
        if self.plan.dtype:
            return self.plan.dtype
        found = set(self.dtypes(target))
        return found.pop() if len(found) == 1 else "F64" if "F64" in found else "F32"

    def dtypes(self, target: Target) -> list[str]:
        """Those in which its tensors are stored."""
        return [one.tensors[name].dtype for one, name in self.tensors(target) if name in one.tensors]

    def copies(self) -> list[str]:
        """Tensors of the output that are one tensor, because the config of `like` says tied and its files hold it twice."""
        named = {target.name for target in self.plan.targets}
        return [name for name in tied_copies(self.like) if name in named]

    # -- values

    def stack(self, work: Work, block: Block, scratch: Scratch) -> Stack:
        """One block of all models. Raises EditError where one holds NaN or Inf there."""
        target, shape = work.target, block.shape
        base = None
        if target.base is not None and self.base is not None:
            base = self._read(self.base, target.base, block, scratch.array("base", shape, work.dtype), scratch)
        models = scratch.array("models", (len(target.parts), *shape), work.dtype)
        deltas = self.method.deltas and base is not None
        for values, part in zip(models, target.parts, strict=True):
            self._fill(values, self.models[part.model], part, target, block, base, deltas, scratch)
            if deltas and work.terms.precision:
                values[:] = rounded(values, work.terms.precision)
        out = scratch.array("out", shape, work.dtype)
        if self.method.base == "unused" and target.parts:
            base = None
        return Stack(base, models, block.first * block.info.columns, out)

    def _fill(
        self,
        values: np.ndarray,
        one: Opened,
        part: Part,
        target: Target,
        block: Block,
        base: np.ndarray | None,
        deltas: bool,
        scratch: Scratch,
    ) -> None:
        if one.vector is not None:
            assert base is not None and target.base is not None
            changes = one.touches(target.base)
            values[:] = one.vector.rows(target.base, block.first, block.last, base) if changes else 0
            _refuse_nonfinite(values, one.label, target.base)
        else:
            assert one.checkpoint is not None
            self._read(one.checkpoint, part.name, block, values, scratch)
            for adapter in one.adapters:
                if part.name in adapter.names:
                    values += adapter.rows(part.name, block.first, block.last, values)
            if deltas or one.mask is not None:
                assert base is not None
                np.subtract(values, base, out=values)
        if one.mask is not None:
            assert target.base is not None
            one.mask.clear_outside(target.base, block, values)
        if not deltas and (one.vector is not None or one.mask is not None):
            assert base is not None
            np.add(values, base, out=values)

    def _read(self, checkpoint: Checkpoint, name: str, block: Block, out: np.ndarray, scratch: Scratch) -> np.ndarray:
        info = checkpoint.tensors[name]
        raw = scratch.array("raw", (out.size * info.item.bytes,), np.uint8)
        checkpoint.read_into(name, block.first * block.info.columns * info.item.bytes, raw)
        decode(raw, info.dtype, out)
        _refuse_nonfinite(out, checkpoint.label, name)
        if self.narrow not in (None, info.dtype):
            out[:] = _narrowed(out, str(self.narrow))
            _refuse_nonfinite(out, checkpoint.label, f"{name}, in {self.narrow}")
        return out


def _narrowed(values: np.ndarray, dtype: str) -> np.ndarray:
    return values.astype(np.float32) if dtype == "F32" else rounded(values, dtype)


def _refuse_nonfinite(values: np.ndarray, label: str, name: str) -> None:
    if not finite(values):
        bad = int(values.size - np.isfinite(values).sum())
        raise EditError(f"{label} has {bad} NaN or Inf in a block of {name}: a merge cannot mend it, check that model")


def finite(values: np.ndarray) -> bool:
    """Whether there is neither NaN nor Inf."""
    return not values.size or bool(_finite(values.reshape(-1)))


@njit(cache=True, nogil=True)
def _finite(values):
    # The largest of the bits without sign: whole numbers, so that vector instructions do it.
    top = int_of_bits(abs(values[0]))  # type: ignore[call-arg, var-annotated]
    for i in range(values.size):
        top = max(top, int_of_bits(abs(values[i])))
    return top < int_of_bits(values.dtype.type(np.inf))
