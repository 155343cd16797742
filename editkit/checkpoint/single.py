"""Writing one new file, such as a task vector: it is there whole or not at all."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from editkit.arithmetic.dtypes import DTYPES
from editkit.checkpoint import disk
from editkit.checkpoint.header import encode
from editkit.errors import EditError

File = TypeVar("File", bound="StagedFile")


class StagedFile:
    """One new file, staged as `.NAME.partial-<pid>` and renamed to `output` when the `with` block ends well.

    Constructing it writes nothing. A file that somebody else puts there meanwhile stays, and is an EditError.
    """

    def __init__(self, output: str | os.PathLike[str]) -> None:
        self.shown, self.output = os.fspath(output), Path(output).expanduser().resolve()
        self._staged = disk.staging_folder(self.output)
        self._made: list[Path] = []

    def __enter__(self: File) -> File:
        try:
            with disk.writing(self.shown):
                disk.make_parents(self.output, self._made)
                disk.remove_stale(self.output)
                self.descriptor = os.open(self._staged, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        except BaseException:
            disk.remove_made(self._made)
            raise
        self._guard = disk.lock(self._staged, needed=False)
        try:
            with disk.writing(self.shown):
                self._begin()
        except BaseException:
            self._abandon()
            raise
        return self

    def _begin(self) -> None:
        """What is written first."""

    def write_at(self, position: int, data: np.ndarray | bytes) -> None:
        """Write `data` (contiguous) at byte `position` of the file. Threads may call it at once."""
        with disk.writing(self.shown):
            disk.write_at(self.descriptor, memoryview(data), position)

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                with disk.writing(self.shown):
                    os.fsync(self.descriptor)
                    disk.put(self._staged, self.output)
                    disk.sync(self.output.parent)
        finally:
            self._abandon()

    def _abandon(self) -> None:
        os.close(self.descriptor)
        os.close(self._guard)
        self._staged.unlink(missing_ok=True)  # not there any more where it was put in place
        disk.remove_made(self._made)  # those that hold the output stay


class SingleFileWriter(StagedFile):
    """A safetensors file with `entries` (name -> dtype, shape) and `metadata`, written in any order.

    Constructing it checks and writes nothing. Raises EditError where `output` exists, is no `.safetensors` file name or
    lies in one of `inputs`.
    """

    def __init__(
        self,
        output: str | os.PathLike[str],
        entries: Mapping[str, tuple[str, tuple[int, ...]]],
        metadata: Mapping[str, str],
        inputs: Sequence[Path] = (),
    ) -> None:
        check_new_file(output, inputs)
        super().__init__(output)
        self._header = encode(entries, metadata)
        self._start: dict[str, int] = {}
        self._size = len(self._header)
        for name, (dtype, shape) in entries.items():
            self._start[name] = self._size
            self._size += int(np.prod(shape)) * DTYPES[dtype].bytes

    def _begin(self) -> None:
        disk.allocate(self.descriptor, self._size)
        disk.write_at(self.descriptor, memoryview(self._header), 0)

    def write(self, name: str, first_byte: int, data: np.ndarray) -> None:
        """Write `data` (uint8, contiguous) at byte `first_byte` of a tensor. Threads may call it at once."""
        self.write_at(self._start[name] + first_byte, data)


def check_new_file(
    output: str | os.PathLike[str],
    inputs: Sequence[Path] = (),
    *,
    suffix: str = ".safetensors",
    what: str = "a task vector",
) -> None:
    """Raise EditError where `output` is not the name of a new file that ends in `suffix`, outside of the folders `inputs`."""
    path = Path(output).expanduser()
    if path.suffix != suffix:
        raise EditError(f"{output} is no file name for {what}: let it end in {suffix}")
    if path.exists() or path.is_symlink():
        raise EditError(f"{output} exists: give another file name, or remove it first")
    disk.refuse_inputs(path.resolve(), os.fspath(output), inputs)
