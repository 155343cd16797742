"""Masks: which elements of a checkpoint an edit may touch. A tensor without an entry is not touched at all.

A mask file is safetensors under the checkpoint's tensor names, BOOL or U8 (0 or 1), of one of three shapes: the tensor's
own (elements), one entry per row of the first axis (rows), or a single entry (the whole tensor).
"""

import os
from pathlib import Path

import numpy as np

from editkit.checkpoint.blocks import Block
from editkit.checkpoint.header import TensorInfo
from editkit.checkpoint.reader import Checkpoint, open_checkpoint
from editkit.errors import EditError, listed

FILE = "mask.safetensors"


class Mask:
    """The mask in a file, or in a folder that holds `mask.safetensors`, checked against `base`.

    Raises EditError that lists names `base` lacks, shapes that fit no granularity, other dtypes, and a mask that selects
    nothing.
    """

    def __init__(self, source: str | os.PathLike[str], base: Checkpoint) -> None:
        path = Path(source)
        self.file = open_checkpoint(path / FILE if (path / FILE).exists() else path)
        problems = []
        if unknown := [name for name in self.file.tensors if name not in base.tensors]:
            problems.append(f"{base.label} has no {listed(unknown)}")
        for name, info in self.file.tensors.items():
            if info.dtype not in ("BOOL", "U8"):
                problems.append(f"{name} is {info.dtype} instead of BOOL or U8")
            elif name in base.tensors and not _granularity(info, base.tensors[name]):
                wanted = list(base.tensors[name].shape)
                problems.append(f"{name} has the shape {list(info.shape)}, not {wanted}, its first axis, or one entry")
        if problems:
            raise EditError(f"{source} is no mask for {base.label}: {listed(problems)}")
        self.names = [name for name in base.tensors if name in self.file.tensors]
        if not any(self.file.array(name).any() for name in self.names):
            raise EditError(f"{source} selects nothing: its {len(self.names)} entries are all false")

    def clear_outside(self, name: str, block: Block, tau: np.ndarray) -> None:
        """Set `tau`, the rows of `block`, to zero wherever the mask is false."""
        info, rows = self.file.tensors[name], block.last - block.first
        kind = _granularity(info, block.info)
        if kind == "element":
            chosen = np.empty(tau.size, np.uint8)
            self.file.read_into(name, block.first * block.info.columns, chosen)
            tau[chosen.reshape(tau.shape) == 0] = 0
        elif kind == "row":
            per_entry = block.info.rows // info.numel  # rows of the matrix view in one row of the first axis
            chosen = self.file.array(name)[np.arange(block.first, block.first + rows) // per_entry]
            tau[chosen == 0] = 0
        elif not self.file.array(name)[0]:
            tau[:] = 0


def _granularity(mask: TensorInfo, tensor: TensorInfo) -> str | None:
    if mask.numel == 1:
        return "tensor"
    if mask.shape == tensor.shape:
        return "element"
    rows = tensor.shape[0]
    return "row" if len(tensor.shape) > 1 and mask.shape in ((rows,), (rows, *(1,) * (len(tensor.shape) - 1))) else None
