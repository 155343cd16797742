"""The header of a safetensors file: read by hand, so that every lie in it is found before a tensor is.

>>> raw = encode({"w": ("F32", (2, 3))}, {"format": "pt"})
>>> header = parse(raw[8:], size=len(raw) + 24, file="model.safetensors")
>>> header.tensors[0].rows, header.tensors[0].columns, header.tensors[0].nbytes
(2, 3, 24)
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from editkit.arithmetic.dtypes import DTYPES, DType
from editkit.errors import EditError, listed

LIMIT = 100_000_000  # bytes; the limit of the safetensors library
LONGEST_ROW = 1 << 20  # elements
AGAIN = "copy or download it again"


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of one file. As a matrix it has `rows` = all axes but the last, `columns` = the last axis.

    A vector is one row; a vector of more than LONGEST_ROW elements is cut into such rows, the last one shorter.

    `start` and `end` are byte offsets from the beginning of the file `file`.

    >>> norm = TensorInfo("norm.weight", "BF16", (64,), "model.safetensors", 80, 208)
    >>> norm.rows, norm.columns, norm.numel, norm.item.floating
    (1, 64, 64, True)
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    start: int
    end: int

    @property
    def item(self) -> DType:
        return DTYPES[self.dtype]

    @property
    def numel(self) -> int:
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.end - self.start

    @property
    def rows(self) -> int:
        if len(self.shape) == 1:
            return -(-self.shape[0] // LONGEST_ROW)
        return prod(self.shape[:-1])

    @property
    def columns(self) -> int:
        if len(self.shape) == 1:
            return min(self.shape[0], LONGEST_ROW)
        return self.shape[-1] if self.shape else 1


class Header(NamedTuple):
    """What a header says: tensors in the order of their bytes, `metadata`, and the offset of the first data byte."""

    tensors: tuple[TensorInfo, ...]
    metadata: dict[str, str]
    data: int


def read_header(path: Path, shown: str) -> Header:
    """Read and check the header of one file; `shown` is its name in messages.

    Raises EditError that lists everything wrong with the file.
    """
    try:
        with open(path, "rb", buffering=0) as stream:
            size = os.fstat(stream.fileno()).st_size
            return fetch_header(
                lambda begin, end: os.pread(stream.fileno(), end - begin, begin), size, path.name, shown
            )
    except OSError as error:
        raise EditError(f"{shown} cannot be read ({error.strerror}): check the file and its permissions") from error


def fetch_header(read: Callable[[int, int], bytes], size: int, file: str, shown: str) -> Header:
    """Read and check the header of a file of `size` bytes through `read(first byte, end)`, wherever it is."""
    if size < 8:
        raise EditError(f"{shown} has {size} bytes, too few for a safetensors file: {AGAIN}")
    length = int.from_bytes(read(0, 8), "little")
    if length > LIMIT:
        raise EditError(f"{shown} claims a header of {length} bytes, over the limit of 100 MB: {AGAIN}")
    if 8 + length > size:
        raise EditError(f"{shown} is truncated: a header of {length} bytes does not fit in {size} bytes: {AGAIN}")
    try:
        return parse(read(8, 8 + length), size, file)
    except ValueError as error:
        raise EditError(f"{shown} {error}") from error


def parse(raw: bytes, size: int, file: str) -> Header:
    """Check a header (`raw`, without the 8 bytes of its length) against the `size` in bytes of its whole file.

    Raises ValueError with every offence, as a phrase that continues the name of the file.
    """
    duplicates: list[str] = []

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            duplicates.extend(repr(name) for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        return found

    try:
        entries = json.loads(raw.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise ValueError(f"has a header that is not JSON in UTF-8 ({error}): {AGAIN}") from None
    if not isinstance(entries, dict):
        raise ValueError(f"has a header that is not a JSON object: {AGAIN}")
    if duplicates:
        raise ValueError(f"has duplicate names in its header ({listed(duplicates)}): write the file again")
    metadata = entries.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("has __metadata__ that is not a map of strings: write the file again")

    tensors, foreign, problems = [], [], []
    for name, entry in entries.items():
        try:
            tensors.append(_tensor(name, entry, file, 8 + len(raw)))
        except NotImplementedError as error:
            foreign.append(f"tensor {name!r} {error}")
        except ValueError as error:
            problems.append(f"tensor {name!r} {error}")
    if foreign:
        raise ValueError(
            f"holds what editkit does not work with: {listed([*foreign, *problems])}: leave these tensors out or convert "
            f"them (supported: {', '.join(DTYPES)}, under printable names)"
        )
    if not problems:
        tensors.sort(key=lambda tensor: (tensor.start, tensor.end))
        problems = _coverage(tensors, 8 + len(raw), size)
    if problems:
        raise ValueError(f"has a header that does not fit its data: {listed(problems)}: {AGAIN}")
    return Header(tuple(tensors), metadata, 8 + len(raw))


def _tensor(name: str, entry: Any, file: str, data: int) -> TensorInfo:
    if not name.isprintable():
        raise NotImplementedError("has a name with unprintable characters")
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise ValueError("lacks dtype, shape or data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise NotImplementedError(f"has the unsupported dtype {dtype!r}")
    if not _naturals(shape):
        raise ValueError(f"has the shape {shape!r}, not a list of natural numbers")
    if not _naturals(offsets) or len(offsets) != 2:
        raise ValueError(f"has the offsets {offsets!r}, not two natural numbers")
    begin, end = offsets
    if begin > end:
        raise ValueError(f"begins at byte {begin}, after its end {end}")
    if (expected := prod(shape) * DTYPES[dtype].bytes) != end - begin:
        raise ValueError(f"spans {end - begin} bytes where {dtype} of shape {shape} takes {expected}")
    return TensorInfo(name, dtype, tuple(shape), file, data + begin, data + end)


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(type(number) is int and number >= 0 for number in value)


def _coverage(tensors: list[TensorInfo], data: int, size: int) -> list[str]:
    """Tensors must cover the data of the file exactly: no overlap, no hole, nothing after the last one."""
    problems = [
        f"tensor {tensor.name!r} ends at byte {tensor.end}, outside the file of {size} bytes (truncated?)"
        for tensor in tensors
        if tensor.end > size
    ]
    previous, position = "the header", data
    for tensor in tensors:
        if tensor.start < position:
            problems.append(f"tensor {tensor.name!r} overlaps {previous}")
        elif tensor.start > position:
            problems.append(f"{tensor.start - position} bytes before tensor {tensor.name!r} belong to no tensor")
        previous, position = f"tensor {tensor.name!r}", max(position, tensor.end)
    if position < size:
        problems.append(f"{size - position} trailing bytes belong to no tensor")
    return problems


def encode(tensors: Mapping[str, tuple[str, tuple[int, ...]]], metadata: Mapping[str, str]) -> bytes:
    """Length and header of a file that holds `tensors` (name -> dtype, shape) one after another, aligned to 8 bytes."""
    entries: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for name, (dtype, shape) in tensors.items():
        end = position + prod(shape) * DTYPES[dtype].bytes
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, end]}
        position = end
    raw = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    raw += b" " * (-len(raw) % 8)
    return len(raw).to_bytes(8, "little") + raw
