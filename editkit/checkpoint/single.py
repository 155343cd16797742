"""Writing one new safetensors file, such as a task vector: it is there whole or not at all."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from editkit.arithmetic.dtypes import DTYPES
from editkit.checkpoint import disk
from editkit.checkpoint.header import encode
from editkit.errors import EditError


class SingleFileWriter:
    """Positioned writes into a staged file `.NAME.partial-<pid>`, renamed to `output` when the `with` block ends well.

    Constructing it checks and writes nothing. Raises EditError where `output` exists, is no `.safetensors` file name or
    lies in one of `inputs`. A file that somebody else puts there meanwhile stays.
    """

    def __init__(
        self,
        output: str | os.PathLike[str],
        entries: Mapping[str, tuple[str, tuple[int, ...]]],
        metadata: Mapping[str, str],
        inputs: Sequence[Path] = (),
    ) -> None:
        check_new_file(output, inputs)
        self.shown, self.output = os.fspath(output), Path(output).expanduser().resolve()
        self._staged = disk.staging_folder(self.output)
        self._made: list[Path] = []
        self._header = encode(entries, metadata)
        self._start: dict[str, int] = {}
        self._size = len(self._header)
        for name, (dtype, shape) in entries.items():
            self._start[name] = self._size
            self._size += int(np.prod(shape)) * DTYPES[dtype].bytes

    def __enter__(self) -> "SingleFileWriter":
        try:
            with disk.writing(self.shown):
                disk.make_parents(self.output, self._made)
                disk.remove_stale(self.output)
                self._descriptor = os.open(self._staged, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        except BaseException:
            disk.remove_made(self._made)
            raise
        self._guard = disk.lock(self._staged, needed=False)
        try:
            with disk.writing(self.shown):
                disk.allocate(self._descriptor, self._size)
                disk.write_at(self._descriptor, memoryview(self._header), 0)
        except BaseException:
            self._abandon()
            raise
        return self

    def write(self, name: str, first_byte: int, data: np.ndarray) -> None:
        """Write `data` (uint8, contiguous) at byte `first_byte` of a tensor. Threads may call it at once."""
        with disk.writing(self.shown):
            disk.write_at(self._descriptor, memoryview(data), self._start[name] + first_byte)

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                with disk.writing(self.shown):
                    os.fsync(self._descriptor)
                    disk.put(self._staged, self.output)
                    disk.sync(self.output.parent)
        finally:
            self._abandon()

    def _abandon(self) -> None:
        os.close(self._descriptor)
        os.close(self._guard)
        self._staged.unlink(missing_ok=True)  # not there any more where it was put in place
        disk.remove_made(self._made)  # those that hold the output stay


def check_new_file(output: str | os.PathLike[str], inputs: Sequence[Path] = ()) -> None:
    """Raise EditError where `output` is not the name of a new `.safetensors` file, outside of the folders `inputs`."""
    path = Path(output).expanduser()
    if path.suffix != ".safetensors":
        raise EditError(f"{output} is no file name for a task vector: let it end in .safetensors")
    if path.exists() or path.is_symlink():
        raise EditError(f"{output} exists: give another file name, or remove it first")
    disk.refuse_inputs(path.resolve(), os.fspath(output), inputs)
