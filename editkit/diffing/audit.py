"""Audits: did an edit change anything outside its mask? Counted in the same pass, and block by block, as everything else.

>>> Touched(inside=3, outside=0, first=None).merge(Touched(inside=1, outside=2, first=700))
Touched(inside=4, outside=2, first=700)
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from editkit.checkpoint.blocks import Block
from editkit.checkpoint.header import TensorInfo
from editkit.errors import printable
from editkit.masks.mask import Mask

KINDS = {"retyped": "retyped", "reshaped": "reshaped", "removed": "removed", "added": "added", "settings": "setting"}
"""Lists of a report that no mask covers -> what `kind` says of their items; the last one counts."""


class Touched(NamedTuple):
    """Changed elements of a tensor inside and outside a mask; `first` of those outside, counted from 0 as they are stored."""

    inside: int = 0
    outside: int = 0
    first: int | None = None

    def merge(self, later: "Touched") -> "Touched":
        """Together with what a later block of the same tensor has."""
        first = later.first if self.first is None else self.first
        return Touched(self.inside + later.inside, self.outside + later.outside, first)


def changed_bits(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Which elements of two arrays, both float32 or both float64, have other bits."""
    whole = np.int32 if before.dtype == np.float32 else np.int64
    return before.view(whole) != after.view(whole)


class Audit:
    """What the blocks of a comparison changed inside and outside of `mask`, which was opened from `source`."""

    def __init__(self, mask: Mask, source: str | os.PathLike[str]) -> None:
        self.mask, self.name = mask, printable(os.path.basename(os.path.abspath(source)))
        self.touched: dict[str, Touched] = {}

    def look(self, block: Block, changed: np.ndarray) -> Touched:
        """Split the changed elements of a block, bool of its shape. Threads may call it at once."""
        outside = changed & ~self.mask.chosen(block.info.name, block)
        beyond = int(np.count_nonzero(outside))
        first = block.first * block.info.columns + int(outside.argmax()) if beyond else None
        return Touched(int(np.count_nonzero(changed)) - beyond, beyond, first)

    def add(self, name: str, found: Touched) -> None:
        """Add what `look` found, block by block in their order."""
        self.touched[name] = self.touched.get(name, Touched()).merge(found)

    def row(
        self, compared: Sequence[TensorInfo], structure: Mapping[str, Iterable[Mapping[str, Any]]]
    ) -> dict[str, Any]:
        """The key `mask` of the report. Elements are those of the `compared` tensors.

        What was added, removed, reshaped or retyped is outside of any mask; only a retyped tensor has elements to count,
        those whose values differ.
        """
        numel, selected = sum(info.numel for info in compared), sum(map(self.mask.selected, compared))
        known = {info.name: self.touched.get(info.name, Touched()) for info in compared}
        kinds = {item["name"]: kind for key, kind in KINDS.items() for item in structure[key]}
        names = [name for name, found in known.items() if found.outside or name in kinds]
        outside = [
            {
                "name": name,
                "kind": kinds.get(name, "changed"),
                "changed": known[name].outside if name in known else None,
                "first_index": known[name].first if name in known else None,
            }
            for name in [*names, *(name for name in kinds if name not in known)]
        ]
        return {
            "name": self.name,
            "granularity": self.mask.record.get("granularity"),
            "selected": selected,
            "selected_fraction": selected / numel if numel else None,
            "changed_inside": sum(found.inside for found in known.values()),
            "changed_outside": sum(found.outside for found in known.values()),
            "outside": outside,
        }
