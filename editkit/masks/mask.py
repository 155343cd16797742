"""Masks: which elements of a checkpoint an edit may touch. A tensor without an entry is not touched at all.

A mask file is safetensors under the checkpoint's tensor names. An entry (BOOL, or U8 with 0 or 1) has the tensor's own shape
(elements), one value per row of the first axis (rows), or a single value (the whole tensor). Files that `localize` writes say
their granularity in their metadata, and may also hold one value per attention head, or elements as packed bits, lowest
bit first.
"""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from editkit.checkpoint.blocks import Block, blocks
from editkit.checkpoint.header import TensorInfo
from editkit.checkpoint.reader import Checkpoint, open_checkpoint
from editkit.errors import EditError, listed
from editkit.masks.units import GRANULARITIES, Units, units_of

FILE = "mask.safetensors"
FORMAT = "editkit.mask/1"
"""Value of the key `format` in the JSON that the header's metadata keeps under `editkit`."""


class Mask:
    """The mask in a file, or in a folder that holds `mask.safetensors`, checked against `base`.

    names: the tensors of which it selects something, in the order of `base`. record: what a file of `localize` says of itself, else {}.

    Raises EditError that lists names `base` lacks, shapes that fit no granularity, other dtypes, a mask that selects
    nothing, and one made for other weights than `base` has, unless `allow_other_base`.
    """

    def __init__(self, source: str | os.PathLike[str], base: Checkpoint, *, allow_other_base: bool = False) -> None:
        self.file, self._config = open_checkpoint(mask_file(source)), base.config
        try:
            self.record = _record(self.file)
            self._refuse_misfits(os.fspath(source), base)
            if not allow_other_base:
                self._refuse_other_base(os.fspath(source), base)
            self._selected = {
                name: self._count(base.tensors[name]) for name in base.tensors if name in self.file.tensors
            }
            self.names = [name for name, count in self._selected.items() if count]
            if not self.names:
                raise EditError(f"{source} selects nothing: its {len(self.file)} entries are all false")
        except BaseException:
            self.file.close()
            raise

    def chosen(self, name: str, block: Block) -> np.ndarray:
        """Which elements of `block` are selected: bool, of the block's shape or one that broadcasts to it.

        `name` is the tensor whose entry is asked; one without an entry has none selected.
        """
        if name not in self.file.tensors:
            return np.zeros((1, 1), np.bool_)
        info, shape = self.file.tensors[name], block.shape
        units = self._units(info, block.info)
        if units is not None:
            return units.spread(block, self.file.array(name) != 0)
        first, count = block.first * block.info.columns, shape[0] * shape[1]
        if not self._packed:
            raw = np.empty(count, np.uint8)
            self.file.read_into(name, first, raw)
            return (raw != 0).reshape(shape)
        raw = np.empty((first + count + 7) // 8 - first // 8, np.uint8)
        self.file.read_into(name, first // 8, raw)
        return np.unpackbits(raw, count=first % 8 + count, bitorder="little")[first % 8 :].reshape(shape) != 0

    def clear_outside(self, name: str, block: Block, values: np.ndarray) -> None:
        """Set `values`, the rows of `block`, to zero wherever the mask is false."""
        values[~np.broadcast_to(self.chosen(name, block), values.shape)] = 0

    def selected(self, tensor: TensorInfo) -> int:
        """How many elements of a tensor of the base are selected."""
        return self._selected.get(tensor.name, 0)

    def _count(self, tensor: TensorInfo) -> int:
        units = self._units(self.file.tensors[tensor.name], tensor)
        if units is not None and tensor.numel:
            return int(np.count_nonzero(self.file.array(tensor.name))) * (tensor.numel // units.count)
        return sum(int(np.count_nonzero(self.chosen(tensor.name, block))) for block in blocks(tensor))

    @property
    def _packed(self) -> bool:
        return self.record.get("granularity") == "element"

    def _units(self, entry: TensorInfo, tensor: TensorInfo) -> Units | None:
        """How the entry covers the tensor; None where it has one value per element."""
        if self.record:
            said = self.record["granularity"]
            return None if said == "element" else units_of(tensor, said, self._config)
        if entry.numel == 1:
            return units_of(tensor, "tensor", None)
        return None if entry.shape == tensor.shape else units_of(tensor, "row", None)

    def _fits(self, entry: TensorInfo, tensor: TensorInfo) -> bool:
        if self._packed:
            return entry.shape == (-(-tensor.numel // 8),)
        if self.record:
            units = self._units(entry, tensor)
            return units is not None and entry.shape == (units.count,)
        rows = tensor.shape[:1]
        by_row = len(tensor.shape) > 1 and entry.shape in (rows, rows + (1,) * (len(tensor.shape) - 1))
        return by_row or entry.numel == 1 or entry.shape == tensor.shape

    def _refuse_misfits(self, source: str, base: Checkpoint) -> None:
        problems = []
        if unknown := [name for name in self.file.tensors if name not in base.tensors]:
            problems.append(f"{base.label} has no {listed(unknown)}")
        for name, info in self.file.tensors.items():
            if info.dtype not in ("BOOL", "U8"):
                problems.append(f"{name} is {info.dtype} instead of BOOL or U8")
            elif name in base.tensors and not self._fits(info, base.tensors[name]):
                wanted = list(base.tensors[name].shape)
                asked = f"{wanted}, its first axis, or one entry"
                if self.record:
                    asked = f"that of a mask by {self.record['granularity']} of {wanted}"
                problems.append(f"{name} has the shape {list(info.shape)}, not {asked}")
        if problems:
            raise EditError(f"{source} is no mask for {base.label}: {listed(problems)}")

    def _refuse_other_base(self, source: str, base: Checkpoint) -> None:
        made_for = self.record.get("base_sha256")
        if made_for and made_for != base.sha256():
            raise EditError(
                f"{source} was made for {self.record.get('base')}, and {base.label} has other weights (sha256): give the "
                "checkpoint that was localized, or --allow-other-base"
            )


def mask_file(source: str | os.PathLike[str]) -> Path:
    """The file of a mask, or of the folder of one. Raises EditError for a folder without it."""
    path = Path(source)
    if not path.is_dir():
        return path
    if not (path / FILE).exists():
        raise EditError(f"{source} has no {FILE}: give a mask file, or the folder of a localization")
    return path / FILE


def _record(file: Checkpoint) -> dict[str, Any]:
    """What the file says of itself: format, granularity, base, base_sha256 ...; {} for a mask from elsewhere."""
    said = next((metadata["editkit"] for metadata in file.metadata.values() if "editkit" in metadata), None)
    if said is None:
        return {}
    try:
        record = json.loads(said)
    except ValueError:
        record = None
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        found = record.get("format") if isinstance(record, dict) else said[:40]
        raise EditError(f"{file.label} has the format {found}: this editkit reads masks of {FORMAT}")
    if record.get("granularity") not in GRANULARITIES:
        raise EditError(
            f"{file.label} has the granularity {record.get('granularity')}: it must be one of {listed(GRANULARITIES)}"
        )
    return record
