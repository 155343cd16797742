"""Writing one new safetensors file, such as a task vector: it is there whole or not at all."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from editkit.arithmetic.dtypes import DTYPES
from editkit.checkpoint.disk import FULL, allocate, lock, remove_stale, sync, write_at
from editkit.checkpoint.header import encode
from editkit.errors import EditError


class SingleFileWriter:
    """Positioned writes into a staged file `.NAME.partial-<pid>`, renamed to `output` when the `with` block ends well.

    Constructing it checks and writes nothing. Raises EditError where `output` exists or is no `.safetensors` file name.
    """

    def __init__(
        self,
        output: str | os.PathLike[str],
        entries: Mapping[str, tuple[str, tuple[int, ...]]],
        metadata: Mapping[str, str],
    ) -> None:
        check_new_file(output)
        self.shown, self.output = os.fspath(output), Path(output).expanduser().resolve()
        self._staged = self.output.parent / f".{self.output.name}.partial-{os.getpid()}"
        self._header = encode(entries, metadata)
        self._start: dict[str, int] = {}
        self._size = len(self._header)
        for name, (dtype, shape) in entries.items():
            self._start[name] = self._size
            self._size += int(np.prod(shape)) * DTYPES[dtype].bytes

    def __enter__(self) -> "SingleFileWriter":
        self.output.parent.mkdir(parents=True, exist_ok=True)
        remove_stale(self.output)
        self._descriptor = os.open(self._staged, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        self._guard = lock(self._staged, needed=False)
        try:
            self._guarded(allocate, self._descriptor, self._size)
            self._guarded(write_at, self._descriptor, memoryview(self._header), 0)
        except BaseException:
            self._abandon()
            raise
        return self

    def write(self, name: str, first_byte: int, data: np.ndarray) -> None:
        """Write `data` (uint8, contiguous) at byte `first_byte` of a tensor. Threads may call it at once."""
        self._guarded(write_at, self._descriptor, memoryview(data), self._start[name] + first_byte)

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self._guarded(os.fsync, self._descriptor)
                os.rename(self._staged, self.output)
                sync(self.output.parent)
        finally:
            self._abandon()

    def _abandon(self) -> None:
        os.close(self._descriptor)
        os.close(self._guard)
        self._staged.unlink(missing_ok=True)  # not there any more where it was renamed

    def _guarded(self, function: Callable[..., object], *arguments: object) -> None:
        try:
            function(*arguments)
        except OSError as error:
            if error.errno in FULL:
                raise EditError(
                    f"no space left for {self.shown} ({error.strerror}): make space; nothing was kept"
                ) from error
            raise


def check_new_file(output: str | os.PathLike[str]) -> None:
    """Raise EditError where `output` is not the name of a `.safetensors` file that does not exist yet."""
    path = Path(output).expanduser()
    if path.suffix != ".safetensors":
        raise EditError(f"{output} is no file name for a task vector: let it end in .safetensors")
    if path.exists() or path.is_symlink():
        raise EditError(f"{output} exists: give another file name, or remove it first")
