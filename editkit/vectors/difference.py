"""Task vectors from two checkpoints: tau = tuned - origin."""

from typing import Any

import numpy as np

from editkit.checkpoint.blocks import Block, Scratch
from editkit.checkpoint.provenance import public_name
from editkit.checkpoint.reader import Checkpoint
from editkit.errors import EditError, listed
from editkit.names import tied_pair
from editkit.vectors.vector import misfits, refuse_quantized


class DifferenceVector:
    """tau = tuned - origin, a block at a time; nothing is kept.

    `origin` is the checkpoint that `tuned` started from. None means the edited `base` itself, whose rows are then not
    read a second time.
    """

    def __init__(
        self, base: Checkpoint, tuned: Checkpoint, origin: Checkpoint | None = None, *, allow_other_base: bool = False
    ) -> None:
        self.base, self.tuned, self.start, self.allow_other_base = base, tuned, origin, allow_other_base
        self.inputs = [tuned, origin] if origin else [tuned]
        self.names = [name for name, info in base.tensors.items() if info.item.floating]
        self._scratch = Scratch()
        embedding, head = tied_pair(base.tensors)
        self._tied = {head: embedding} if base.tied and embedding and head else {}

    def _name(self, other: Checkpoint, name: str) -> str:
        """What `other` calls a tensor of the base: of a tied pair it may hold the embedding alone."""
        return name if name in other.tensors else self._tied.get(name, name)

    def check(self, base: Checkpoint, names: list[str]) -> None:
        refuse_quantized(*self.inputs)
        problems: list[str] = []
        for other in self.inputs:
            problems += misfits(base, other, {name: self._name(other, name) for name in names})
        extra = [name for name in self.tuned.tensors if name not in base.tensors]
        embedding, head = tied_pair(self.tuned.tensors)
        if base.tied and embedding and head in extra:
            extra.remove(head)
            if not _same_bytes(self.tuned, embedding, head):
                problems.append(
                    f"{base.label} ties its output head to {embedding}, but {self.tuned.label} has a {head} of its own: "
                    "untie the base first, or tune it tied"
                )
        if extra and len(names) == len(self.names):
            problems.append(f"{self.tuned.label} has tensors that {base.label} lacks: {listed(extra)}")
        if problems:
            raise EditError("; ".join(problems))
        if not self.allow_other_base:
            self._check_history(self.start or base)

    def _check_history(self, origin: Checkpoint) -> None:
        """A checkpoint that editkit tuned says from what; subtracting another one would be no task vector."""
        record = self.tuned.provenance or {}
        if record.get("command") != "finetune":
            return
        for made_from in (one for one in record["inputs"] if one["role"] == "base"):
            if sorted(made_from["files"].values()) != sorted(origin.sha256().values()):
                raise EditError(
                    f"{self.tuned.label} was tuned from {made_from['name']}, whose weight files differ from those of "
                    f"{origin.label}: name what it was tuned from with --vector-base, or say --allow-other-base"
                )

    def rows(self, name: str, first: int, last: int, base: np.ndarray) -> np.ndarray:
        block = Block(self.base.tensors[name], first, last)
        tau = self._scratch.read("tuned", self.tuned, self._name(self.tuned, name), block, base.dtype)
        if self.start is None:
            return np.subtract(tau, base, out=tau)
        start = self._scratch.read("origin", self.start, self._name(self.start, name), block, base.dtype)
        return np.subtract(tau, start, out=tau)

    def origin(self) -> dict[str, Any]:
        return {"kind": "difference", "tuned": public_name(self.tuned), "base": public_name(self.start or self.base)}


def _same_bytes(checkpoint: Checkpoint, one: str, other: str) -> bool:
    a, b = checkpoint.tensors[one], checkpoint.tensors[other]
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    step = 1 << 20
    for start in range(0, a.nbytes, step):
        size = min(step, a.nbytes - start)
        left, right = np.empty(size, np.uint8), np.empty(size, np.uint8)
        checkpoint.read_into(one, start, left)
        checkpoint.read_into(other, start, right)
        if not np.array_equal(left, right):
            return False
    return True
