"""What a task vector is to the rest of editkit: a named change, read a block of rows at a time."""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from editkit.checkpoint.reader import Checkpoint
from editkit.errors import EditError, listed


class TaskVector(Protocol):
    """`tau`, a change under a base checkpoint's tensor names.

    `names` lists the tensors that it may change, in the base's order; `inputs` are the checkpoints that it reads.
    """

    names: list[str]
    inputs: list[Checkpoint]

    def check(self, base: Checkpoint, names: list[str]) -> None:
        """Raise EditError that lists everything among `names` which does not fit `base`: absent names, other shapes."""

    def rows(self, name: str, first: int, last: int, base: np.ndarray) -> np.ndarray:
        """tau[first:last] as an array of `base`'s shape, float32 or float64, the caller's to change; for any thread.

        Rows are those of the matrix view (`TensorInfo.rows`, `TensorInfo.columns`). `base` holds the same rows of the
        checkpoint that is being edited, decoded to the working precision (float32 or float64).
        """

    def origin(self) -> dict[str, Any]:
        """What the vector was made from, for provenance."""


def misfits(base: Checkpoint, other: Checkpoint, names: Mapping[str, str]) -> list[str]:
    """One clause per kind of disagreement between `base` and `other`; `names` maps names in the one to names in the other."""
    found = {name: other.tensors.get(there) for name, there in names.items()}
    absent = [name for name, info in found.items() if info is None]
    shapes = [
        f"{name} {list(info.shape)} instead of {list(base.tensors[name].shape)}"
        for name, info in found.items()
        if info and info.shape != base.tensors[name].shape
    ]
    whole = [name for name, info in found.items() if info and not info.item.floating]
    problems = []
    if absent:
        problems.append(f"{other.label} lacks {len(absent)} of the tensors of {base.label}: {listed(absent)}")
    if shapes:
        problems.append(f"{other.label} has other shapes than {base.label}: {listed(shapes)}")
    if whole:
        problems.append(f"{other.label} holds whole numbers where {base.label} holds floating point: {listed(whole)}")
    return problems


def refuse_quantized(*checkpoints: Checkpoint) -> None:
    """Raise EditError for checkpoints whose stored numbers are codes, not weights."""
    if coded := [f"{one.label} ({one.quantization})" for one in checkpoints if one.quantization]:
        raise EditError(
            f"quantized: {listed(coded)}; arithmetic on stored codes would be wrong: give checkpoints in full precision"
        )
