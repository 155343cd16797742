"""Units: what a localization selects as a whole, and how the blocks of a tensor fall into them.

>>> from editkit.checkpoint.header import TensorInfo
>>> info = TensorInfo("model.layers.0.self_attn.q_proj.weight", "F32", (8, 6), "model.safetensors", 0, 192)
>>> units_of(info, "row", None).count, units_of(info, "head", {"num_attention_heads": 4})
(8, Units(granularity='head', count=4, rows=2, parts=1))
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from editkit.checkpoint.blocks import Block
from editkit.checkpoint.header import TensorInfo
from editkit.names import grid

GRANULARITIES = ("tensor", "row", "head", "element")


@dataclass(frozen=True)
class Units:
    """`count` equal parts of one tensor: each `rows` rows of its matrix view high, `parts` of them side by side."""

    granularity: str
    count: int
    rows: int
    parts: int

    def spread(self, block: Block, values: np.ndarray) -> np.ndarray:
        """One value per unit [count] -> the values of the units in the rows of `block`, broadcastable to its shape."""
        if self.count == 1:
            return values.reshape(1, 1)
        if self.parts > 1:
            return np.repeat(values, block.info.columns // self.parts)[None, :]
        return values[np.arange(block.first, block.last) // self.rows][:, None]

    def add(self, block: Block, values: np.ndarray, into: np.ndarray) -> None:
        """Add the sums, in float64, of `values` [rows, columns] over the parts of units in `block` to `into` [count]."""
        if self.parts > 1:
            into += values.reshape(len(values), self.parts, -1).sum((0, 2), np.float64)
        elif self.count == 1:
            into += values.sum(dtype=np.float64)
        else:
            np.add.at(into, np.arange(block.first, block.last) // self.rows, values.sum(1, np.float64))


def units_of(info: TensorInfo, granularity: str, config: Mapping[str, Any] | None) -> Units | None:
    """The units of a tensor; None where it has none, as an MLP has no heads.

    A row is an entry of the first axis, as stored: an output of a linear layer, an input of GPT-2's Conv1D, a token of an
    embedding, an expert of fused experts. A vector is one row. Elements have no Units of their own: theirs is the tensor.
    """
    if granularity in ("tensor", "element"):
        return Units(granularity, 1, max(info.rows, 1), 1)
    if granularity == "row":
        if len(info.shape) < 2:
            return Units("row", 1, max(info.rows, 1), 1)
        return Units("row", info.shape[0], info.rows // max(info.shape[0], 1), 1)
    parts = grid(info.name, info.shape, config)
    if parts is None or parts.unit != "head":
        return None
    return Units("head", parts.rows * parts.columns, info.rows // parts.rows, parts.columns)
