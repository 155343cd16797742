"""The file of a patch, to be read: frames of changed blocks, and a table that says what they are. See docs/formats.md.

    MAGIC, frames one after another, the table (JSON in one frame of zstandard), its length (8 bytes) and its sha256

The table has the sha256 of both sides, the headers of their weight files, and checksums of every block of every tensor.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from editkit.checkpoint import header
from editkit.checkpoint.blocks import Scratch
from editkit.checkpoint.header import TensorInfo
from editkit.checkpoint.layout import INDEX, weight_file
from editkit.checkpoint.reader import Checkpoint
from editkit.checkpoint.shards import Shard
from editkit.checkpoint.writer import PARTIAL
from editkit.errors import EditError
from editkit.patching.digest import xxh64
from editkit.patching.steps import decompress, unpacked_size

FORMAT = "editkit.patch/1"
MAGIC = f"{FORMAT}\n".encode()
BLOCK = 1 << 20
"""Bytes of a block; all elements have 1, 2, 4 or 8 bytes, so that none is cut."""
SIDES = ("base", "edited")
_TRAILER = 8 + 32


class Frame(NamedTuple):
    """Where a packed block lies in the file of the patch, and its XXH64."""

    start: int
    size: int
    digest: int


class Tensor(NamedTuple):
    """The XXH64 of every block on either side; `frames` has None for a block that is alike. changed: elements."""

    base: tuple[int, ...]
    edited: tuple[int, ...]
    changed: int
    frames: tuple[Frame | None, ...]

    def digests(self, side: str) -> tuple[int, ...]:
        return self.base if side == "base" else self.edited


class Content(NamedTuple):
    """A whole file that holds no weights."""

    size: int
    sha256: str
    frames: tuple[Frame, ...]


@dataclass(frozen=True)
class Side:
    """One of the two checkpoints: sha256 and header (with the 8 bytes of its length) of every weight file."""

    name: str
    sha256: dict[str, str]
    headers: dict[str, bytes]

    def shards(self) -> dict[str, Shard]:
        """The weight files as they are to be written."""
        found = {}
        for file, raw in self.headers.items():
            entries = json.loads(raw[8:])
            ends = [entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__"]
            size = len(raw) + max(ends, default=0)
            found[file] = Shard(raw, list(header.parse(raw[8:], size, file).tensors), size)
        return found

    @staticmethod
    def of(checkpoint: Checkpoint) -> dict[str, bytes]:
        """The headers of an open checkpoint."""
        return {file: os.pread(checkpoint.descriptor(file), data, 0) for file, data in checkpoint.data.items()}


class Patch:
    """An open patch. tensors: by name, in the order of the base's bytes. others: files without weights that differ, path -> side ->
    Content, None where there is no such file on that side. left_out: side -> files without weights that only this side has, in
    folders that hold weights; the patch does not bring them back."""

    def __init__(self, source: str | os.PathLike[str]) -> None:
        self.label, self._scratch = os.fspath(source), Scratch()
        place = Path(source).expanduser()
        if os.path.isdir(place):
            raise EditError(f"{self.label} is a folder: give the file of a patch")
        try:
            self._descriptor = os.open(place, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        except OSError as error:
            raise EditError(f"{self.label} cannot be read ({error.strerror}): give the file of a patch") from error
        try:
            self._read_table()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Patch":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        os.close(self._descriptor)

    def read(self, frame: Frame) -> np.ndarray:
        """A frame as it is stored (uint8), until the thread calls this again; shorter where the file ends before."""
        stored = self._scratch.array("frame", (frame.size,), np.uint8)
        return stored[: os.preadv(self._descriptor, [stored.data], frame.start)]

    def contents(self, content: Content) -> Iterator[bytes]:
        """A file without weights, block by block. Raises EditError where it is not what it was."""
        digest = sha256()
        for frame in content.frames:
            try:
                block = decompress(self.read(frame), BLOCK)
            except ValueError as error:
                raise self.damaged(str(error)) from error
            digest.update(block)
            yield bytes(block)
        if digest.hexdigest() != content.sha256:
            raise self.damaged("a file in it has another sha256")

    def check(self) -> None:
        """Raise EditError where a stored byte is not what it was. Opening a patch has checked its table."""
        position = len(MAGIC)
        for frame in sorted(self.frames()):
            if frame.start != position or xxh64(self.read(frame)) != frame.digest:
                raise self.damaged(f"a block at byte {frame.start} has another checksum")
            position += frame.size
        if position != self._table_start:
            raise self.damaged(f"bytes {position} to {self._table_start} belong to no block")

    def frames(self) -> Iterator[Frame]:
        """All frames."""
        for tensor in self.tensors.values():
            yield from filter(None, tensor.frames)
        for sides in self.others.values():
            for content in filter(None, sides.values()):
                yield from content.frames

    def damaged(self, why: str) -> EditError:
        """What to raise for bytes of the patch that are not what they were."""
        return EditError(f"{self.label} is damaged ({why}): copy it again")

    def _read_table(self) -> None:
        self.size = os.fstat(self._descriptor).st_size
        if os.pread(self._descriptor, len(MAGIC), 0) != MAGIC:
            raise EditError(
                f"{self.label} is no patch of this version of editkit ({FORMAT}): give one, or copy it again"
            )
        end = self.size - _TRAILER
        trailer = os.pread(self._descriptor, _TRAILER, max(end, 0))
        length = int.from_bytes(trailer[:8], "little")
        self._table_start = end - length
        if self._table_start < len(MAGIC):
            raise self.damaged("it ends too early, or goes on after its end")
        packed = os.pread(self._descriptor, length, self._table_start)
        if sha256(packed).digest() != trailer[8:]:
            raise self.damaged("its table has another sha256")
        try:
            self.table: dict[str, Any] = json.loads(bytes(decompress(packed, unpacked_size(packed))))
            self._understand(self.table)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise EditError(f"{self.label} was not written by editkit ({error!r}): make it again") from error

    def _understand(self, table: Mapping[str, Any]) -> None:
        if table["block"] != BLOCK:
            raise ValueError(f"blocks of {table['block']} bytes")
        self.sides = {}
        for side in SIDES:
            files = table[side]["files"]
            if wrong := [file for file in files if not re.fullmatch(r"[^/\\\0]+\.safetensors", file)]:
                raise ValueError(f"{wrong} are no names of weight files")
            headers = {file: _framed(one["header"].encode()) for file, one in files.items()}
            self.sides[side] = Side(table[side]["name"], {file: one["sha256"] for file, one in files.items()}, headers)
        self.tensors = {name: _tensor(one) for name, one in table["tensors"].items()}
        self.infos = {info.name: info for shard in self.sides["base"].shards().values() for info in shard.tensors}
        other = {info.name: info for shard in self.sides["edited"].shards().values() for info in shard.tensors}
        if misfits(self.infos, other) or self.infos.keys() != self.tensors.keys():
            raise ValueError("its sides have other tensors")
        for name, info in self.infos.items():
            if not len(self.tensors[name].base) == len(self.tensors[name].frames) == -(-info.nbytes // BLOCK):
                raise ValueError(f"{name} has another number of blocks")
        self.others: dict[str, dict[str, Content | None]] = {}
        self.left_out = {side: list(table["left_out"][side]) for side in SIDES}
        for path in [*table["others"], *self.left_out["base"], *self.left_out["edited"]]:
            place = PurePosixPath(path)
            if not place.name or place.is_absolute() or ".." in place.parts or "\0" in path:
                raise ValueError(f"{path!r} leads out of the folder")
            if path != INDEX and weight_file(place.name.removesuffix(PARTIAL)):
                raise ValueError(f"{path!r} is the name of weights")
        for path, sides in table["others"].items():
            self.others[path] = {side: sides[side] and _content(sides[side]) for side in SIDES}


def _framed(text: bytes) -> bytes:
    return len(text).to_bytes(8, "little") + text


def _tensor(entry: Mapping[str, Any]) -> Tensor:
    base, edited = (_numbers(entry.get(side, entry["base"])) for side in SIDES)
    frames = tuple(one and _frame(*one) for one in entry.get("frames", [None] * len(base)))
    if len(base) != len(edited):
        raise ValueError("sides of different length")
    return Tensor(base, edited, entry.get("changed", 0), frames)


def _content(entry: Mapping[str, Any]) -> Content:
    return Content(entry["size"], entry["sha256"], tuple(_frame(*one) for one in entry["frames"]))


def _frame(start: int, size: int, digest: str) -> Frame:
    return Frame(start, size, int(digest, 16))


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(np.frombuffer(bytes.fromhex(text), ">u8").tolist())


def misfits(base: Mapping[str, TensorInfo], edited: Mapping[str, TensorInfo]) -> list[str]:
    """Tensors that one side lacks, or holds in another dtype or shape: no patch leads from one to the other.

    One clause where all of several tensors are of one dtype on one side, and of another on the other.
    """
    if _shapes(base) == _shapes(edited) and len(base) > 1:
        one, other = ({info.dtype for info in side.values()} for side in (base, edited))
        if one != other and len(one) == len(other) == 1:
            return [f"all {len(base)} tensors are {other.pop()} instead of {one.pop()}"]
    found = [f"{name} (only in one of the two)" for name in {**base, **edited} if not (name in base and name in edited)]
    for name, info in base.items():
        kinds = [f"{one.dtype} {list(one.shape)}" for one in (info, edited.get(name, info))]
        if kinds[0] != kinds[1]:
            found.append(f"{name} ({' and '.join(kinds)})")
    return found


def _shapes(side: Mapping[str, TensorInfo]) -> dict[str, tuple[int, ...]]:
    return {name: info.shape for name, info in side.items()}


def block_sizes(info: TensorInfo) -> Iterator[tuple[int, int]]:
    """First byte and size of the blocks of a tensor."""
    for first in range(0, info.nbytes, BLOCK):
        yield first, min(BLOCK, info.nbytes - first)
