"""The file of a patch, to be written: it is there whole or not at all."""

import json
import os
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from editkit import __version__
from editkit.checkpoint.single import StagedFile, check_new_file
from editkit.errors import EditError
from editkit.patching.digest import xxh64
from editkit.patching.file import BLOCK, FORMAT, MAGIC
from editkit.patching.steps import compress

SUFFIX = ".editpatch"


class PatchWriter(StagedFile):
    """Frames in the order in which they are given, then the table. Raises EditError where `output` is no new `.editpatch`."""

    def __init__(self, output: str | os.PathLike[str], inputs: list[Path]) -> None:
        check_new_patch(output, inputs)
        super().__init__(output)
        self._position = len(MAGIC)

    def _begin(self) -> None:
        os.write(self.descriptor, MAGIC)

    def add(self, packed: bytes) -> list[Any]:
        """Write a frame; its entry in the table: first byte, size, XXH64."""
        entry = [self._position, len(packed), hexadecimal([xxh64(np.frombuffer(packed, np.uint8))])]
        self.write_at(self._position, packed)
        self._position += len(packed)
        return entry

    def file(self, path: Path) -> dict[str, Any]:
        """Write a whole file, block by block; its entry in the table."""
        frames, digest, size = [], sha256(), 0
        with open(path, "rb") as stream:
            while block := stream.read(BLOCK):
                digest.update(block)
                size += len(block)
                frames.append(self.add(compress(block)))
        return {"size": size, "sha256": digest.hexdigest(), "frames": frames}

    def close_with(self, table: Mapping[str, Any]) -> None:
        """Write the table, the last thing in the file."""
        said = {"format": FORMAT, "editkit": __version__, "block": BLOCK, **table}
        packed = compress(json.dumps(said, separators=(",", ":")).encode())
        self.write_at(self._position, packed + len(packed).to_bytes(8, "little") + sha256(packed).digest())


def check_new_patch(output: str | os.PathLike[str], inputs: list[Path]) -> None:
    """Raise EditError where `output` is not the name of a new patch outside of the folders `inputs`, that of the edit among them."""
    place = Path(output).expanduser().resolve()
    for folder in inputs:
        if folder.expanduser().resolve() in place.parents:
            raise EditError(f"{output} lies inside {folder}: give the patch a place outside of it")
    check_new_file(output, inputs, suffix=SUFFIX, what="a patch")


def hexadecimal(digests: list[int]) -> str:
    """Checksums as they stand in the table: 16 digits each."""
    return np.array(digests, ">u8").tobytes().hex()
