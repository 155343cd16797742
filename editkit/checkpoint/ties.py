"""Tied tensors: the input embedding and the output head of many models are one tensor, which files may hold several times."""

import numpy as np

from editkit.checkpoint.reader import Checkpoint
from editkit.names import embeddings_and_heads

_STEP = 1 << 20  # bytes


def tied_copies(checkpoint: Checkpoint) -> list[str]:
    """Names under which the files of a tied model hold one tensor more than once; [] where they hold it once.

    A config that says tied makes a model load one of them for all, so an edit must change all of them alike.
    """
    if not checkpoint.said_tied:
        return []
    first, *others = embeddings_and_heads(checkpoint.tensors) or [""]
    copies = [name for name in others if same_bytes(checkpoint, first, name)]
    return [first, *copies] if copies else []


def same_bytes(checkpoint: Checkpoint, one: str, other: str, second: Checkpoint | None = None) -> bool:
    """Whether two tensors of a checkpoint, or `other` of a second one, are equal bit for bit."""
    second = second or checkpoint
    a, b = checkpoint.tensors[one], second.tensors[other]
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    for start in range(0, a.nbytes, _STEP):
        left, right = (np.empty(min(_STEP, a.nbytes - start), np.uint8) for _ in range(2))
        checkpoint.read_into(one, start, left)
        second.read_into(other, start, right)
        if not np.array_equal(left, right):
            return False
    return True
