"""Task vectors from two checkpoints: tau = tuned - origin."""

from typing import Any

import numpy as np

from editkit.checkpoint.blocks import Block, Scratch
from editkit.checkpoint.provenance import public_name
from editkit.checkpoint.reader import Checkpoint
from editkit.checkpoint.ties import same_bytes, tied_copies
from editkit.errors import EditError, listed
from editkit.names import embeddings_and_heads
from editkit.vectors.vector import misfits, refuse_quantized

_TUNINGS = ("finetune", "unlearn", "extract-lora")
"""Commands that make adapters; their base is the one that such an adapter is a change of."""


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
        self._tied = (tied_copies(base) or embeddings_and_heads(base.tensors)[:1]) if base.tied else []

    def _name(self, other: Checkpoint, name: str) -> str:
        """What `other` calls a tensor of the base: of tied tensors it may hold only one."""
        if name in other.tensors or name not in self._tied:
            return name
        return next(iter(embeddings_and_heads(other.tensors)), name)

    def check(self, base: Checkpoint, names: list[str]) -> None:
        refuse_quantized(*self.inputs)
        problems: list[str] = []
        for other in self.inputs:
            problems += misfits(base, other, {name: self._name(other, name) for name in names})
        extra = [name for name in self.tuned.tensors if name not in base.tensors]
        if base.tied and (shared := embeddings_and_heads(self.tuned.tensors)):
            tied = [name for name in shared[1:] if name in self._tied or name not in base.tensors]
            own = [name for name in tied if not same_bytes(self.tuned, shared[0], name)]
            extra = [name for name in extra if name not in shared]
            if own:
                problems.append(
                    f"{base.label} ties its output head to its embedding, but in {self.tuned.label} {listed(own)} differs "
                    f"from {shared[0]}: tune it tied, or untie the base first"
                )
        if extra and len(names) == len(self.names):
            problems.append(f"{self.tuned.label} has tensors that {base.label} lacks: {listed(extra)}")
        if problems:
            raise EditError("; ".join(problems) + ": give checkpoints of one architecture and vocabulary")
        if not self.allow_other_base and _command(self.tuned.provenance) == "finetune":
            # Subtracting another checkpoint than the one that was tuned would be no task vector.
            refuse_other_origin(
                self.tuned, self.start or base, "take that one as the base of the vector (--vector-base)"
            )

    def rows(self, name: str, first: int, last: int, base: np.ndarray) -> np.ndarray:
        block = Block(self.base.tensors[name], first, last)
        tuned = self._name(self.tuned, name)
        wide = any(one.tensors[self._name(one, name)].item.bytes > 2 for one in self.inputs)
        dtype = (
            np.float64 if wide else base.dtype
        )  # the difference of two 16-bit numbers is exact in float32, as a rule
        tau = self._scratch.read("tuned", self.tuned, tuned, block, dtype)
        if self.start is None:
            return np.subtract(tau, base, out=tau)
        start = self._scratch.read("origin", self.start, self._name(self.start, name), block, dtype)
        return np.subtract(tau, start, out=tau)

    def origin(self) -> dict[str, Any]:
        other = {"allow_other_base": True} if self.allow_other_base else {}
        names = {"tuned": public_name(self.tuned), "base": public_name(self.start or self.base)}
        return {"kind": "difference", **names, **other}


def refuse_other_origin(tuned: Checkpoint, origin: Checkpoint, remedy: str) -> None:
    """Raise EditError where `tuned`, a checkpoint or an adapter, says that editkit made it from other weights than `origin`."""
    for name, hashes in tuned_from(tuned.provenance):
        if hashes != sorted(origin.sha256().values()):
            raise EditError(
                f"{tuned.label} was tuned from {name}, whose weight files differ from those of {origin.label}: "
                f"{remedy}, or allow another base where it is meant"
            )


def tuned_from(provenance: Any) -> list[tuple[str, list[str]]]:
    """Name and sorted weight hashes of what a checkpoint or adapter says editkit tuned it from; [] where it says nothing usable."""
    if _command(provenance) not in _TUNINGS:
        return []
    inputs = provenance.get("inputs")
    bases = (
        [one for one in inputs if isinstance(one, dict) and one.get("role") == "base"]
        if isinstance(inputs, list)
        else []
    )
    return [
        (str(one.get("name")), sorted(one["files"].values())) for one in bases if isinstance(one.get("files"), dict)
    ]


def _command(provenance: Any) -> Any:
    return provenance.get("command") if isinstance(provenance, dict) else None
