"""Writing one new safetensors file, such as a task vector: it is there whole or not at all."""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from editkit.arithmetic.dtypes import DTYPES
from editkit.checkpoint.disk import FULL, allocate, sync, write_at
from editkit.checkpoint.header import encode
from editkit.errors import EditError


class SingleFileWriter:
    """Positioned writes into a staged file `.NAME.partial-<pid>`, renamed to `output` when the `with` block ends well.

    Constructing it checks and writes nothing. Raises EditError where `output` exists or is no `.safetensors` file name.
    """

    def __init__(
        self, output: str | os.PathLike[str], entries: Mapping[str, tuple[str, tuple[int, ...]]], metadata: Mapping[str, str]
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
        for stale in self.output.parent.glob(f".{self.output.name}.partial-*"):
            stale.unlink()
        self._descriptor = os.open(self._staged, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
        try:
            self._guarded(allocate, self._descriptor, self._size)
            self._guarded(write_at, self._descriptor, memoryview(self._header), 0)
        except BaseException:
            self._abandon()
            raise
        return self

    def write(self, name: str, first_byte: int, data: np.ndarray) -> None:
        """Write `data` (contiguous) at byte `first_byte` of a tensor. Threads may call it at once."""
        self._guarded(write_at, self._descriptor, memoryview(data).cast("B"), self._start[name] + first_byte)

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            self._abandon()
            return
        os.fsync(self._descriptor)
        os.close(self._descriptor)
        os.rename(self._staged, self.output)
        sync(self.output.parent)

    def _abandon(self) -> None:
        os.close(self._descriptor)
        self._staged.unlink(missing_ok=True)

    def _guarded(self, function, *arguments) -> None:  # type: ignore[no-untyped-def]
        try:
            function(*arguments)
        except OSError as error:
            if error.errno in FULL:
                raise EditError(f"no space left for {self.shown} ({error.strerror}): make space; nothing was kept") from error
            raise


def check_new_file(output: str | os.PathLike[str]) -> None:
    """Raise EditError where `output` is not the name of a `.safetensors` file that does not exist yet."""
    path = Path(output).expanduser()
    if path.suffix != ".safetensors":
        raise EditError(f"{output} is no file name for a task vector: let it end in .safetensors")
    if path.exists() or path.is_symlink():
        raise EditError(f"{output} exists: give another file name, or remove it first")
