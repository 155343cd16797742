"""Writing an edited checkpoint in the layout of its base, so that it is there whole or not at all.

>>> with open_checkpoint("base") as base, CheckpointWriter(base, "edited") as writer:  # doctest: +SKIP
...     for name in base:
...         writer.copy(name)

Everything is staged in a sibling folder `.edited.partial-<pid>`, where weight files end in `.partial` and load nowhere. The
last step renames the folder. An exception removes it; after a kill the next run to the same output removes it.
"""

import errno
import fcntl
import json
import os
import shutil
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from editkit.checkpoint import provenance
from editkit.checkpoint.header import TensorInfo, encode
from editkit.checkpoint.layout import INDEX
from editkit.checkpoint.reader import Checkpoint, open_checkpoint
from editkit.errors import EditError, listed

if TYPE_CHECKING:
    import torch

_COPY_BLOCK = 1 << 26  # bytes of one copy inside the kernel; a cancelled copy stops after one
_BUFFER = 1 << 20  # bytes of one copy through memory, where the kernel cannot
_PARTIAL = ".partial"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Shard(NamedTuple):
    """One file of the output: its header with the 8 bytes of its length, its tensors in order, its size in bytes."""

    header: bytes
    tensors: list[TensorInfo]
    size: int


class CheckpointWriter:
    """Writes the tensors of `base` to the folder `output`: some copied, some given, each byte exactly once.

    Files, order of tensors, headers and index are the base's, byte for byte. With `shard_size` (bytes of tensor data in
    one file) they are `model-00001-of-0000N.safetensors` and a new index, tensors in the base's order. All other files of
    the base are copied, see `Checkpoint.other_files`; they lie in `folder` as soon as the writer is entered, and may be
    replaced or added to there. `inputs` are further files or folders that the output must not touch.

    Constructing it checks and writes nothing. Raises EditError where `output` is not empty, is an input or lies in one,
    also through links, or where the disk has too little space.
    """

    def __init__(
        self,
        base: Checkpoint,
        output: str | os.PathLike[str],
        *,
        shard_size: int | None = None,
        inputs: Sequence[str | os.PathLike[str]] = (),
    ) -> None:
        self.base, self.shown, self.output = base, os.fspath(output), Path(output).expanduser().resolve()
        self.folder = self.output.parent / f".{self.output.name}.partial-{os.getpid()}"
        self._refuse_bad_output([base.source, *map(Path, inputs)])
        if shard_size is not None and shard_size < 1:
            raise EditError(f"a shard size of {shard_size} bytes holds nothing: give at least 1")
        self._resharded = shard_size is not None
        self.shards = _base_shards(base) if shard_size is None else _new_shards(base, shard_size)
        self._places = {info.name: info for shard in self.shards.values() for info in shard.tensors}
        self._others = base.other_files()
        self._refuse_full_disk()
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._written: Counter[str] = Counter()
        self._left = {file: sum(info.nbytes for info in shard.tensors) for file, shard in self.shards.items()}
        self._run: tuple[str, int, str, int, int] | None = None
        self._jobs: list[Future[None]] = []
        self._descriptors: dict[str, int] = {}
        self._made: list[Path] = []
        self._guard: int | None = None
        self._pool = ThreadPoolExecutor(1, "editkit-writer")
        self._done = False

    # -- what the caller does

    def __enter__(self) -> "CheckpointWriter":
        try:
            with self._disk():
                self._stage()
        except BaseException:
            self._abort()
            raise
        return self

    def copy(self, name: str) -> None:
        """Take a tensor over from the base byte for byte, in the background; neighbours are copied in one go."""
        source, place = self.base.tensors[name], self._places[name]
        with self._lock:
            if self._run is not None:
                from_file, begin, to_file, to, length = self._run
                if (from_file, begin + length, to_file, to + length) == (source.file, source.start, place.file, place.start):
                    self._run = from_file, begin, to_file, to, length + source.nbytes
                else:
                    self._flush()
            if self._run is None:
                self._run = source.file, source.start, place.file, place.start, source.nbytes
            self._written[name] += source.nbytes
            if self._run[-1] >= _COPY_BLOCK:
                self._flush()

    def write(self, name: str, first_byte: int, data: np.ndarray) -> None:
        """Write `data` (contiguous) at byte `first_byte` of a tensor. Threads may call it at once."""
        place, view = self._places[name], memoryview(data).cast("B")
        if first_byte < 0 or first_byte + len(view) > place.nbytes:
            raise ValueError(f"bytes {first_byte} to {first_byte + len(view)} lie outside {name} of {place.nbytes} bytes")
        with self._disk():
            _pwrite(self._descriptors[place.file], view, place.start + first_byte)
        with self._lock:
            self._written[name] += len(view)
            self._account(place.file, len(view))

    def finish(self) -> Path:
        """Put the output in place and return it. Leaving the `with` block without an exception does this as well.

        Raises EditError where the disk fails, RuntimeError where a tensor was not written in full, once.
        """
        if self._done:
            return self.output
        with self._lock:
            self._flush()
        with self._disk():
            for job in self._jobs:
                job.result()
            wrong = [name for name, info in self._places.items() if self._written[name] != info.nbytes]
            if wrong:
                raise RuntimeError(f"tensors not written exactly once: {listed(wrong)}")
            self._close()
            self._publish()
        self._done = True
        self._unlock()
        return self.output

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self.finish()
        finally:
            if not self._done:
                self._abort()

    # -- checks before the first byte

    def _refuse_bad_output(self, inputs: Sequence[Path]) -> None:
        for path in inputs:
            place = path.expanduser().resolve()
            if self.output == place:
                raise EditError(f"{self.shown} is an input as well: give another output folder")
            if self.output.is_relative_to(place):
                raise EditError(f"{self.shown} lies inside the input {path}: give an output folder outside it")
            if place.is_relative_to(self.output):
                raise EditError(f"{self.shown} contains the input {path}: give another output folder")
        if self.output.is_dir():
            if any(self.output.iterdir()):
                raise EditError(f"{self.shown} is not empty: give a new folder, or empty it first")
            if self.output.is_mount():
                raise EditError(f"{self.shown} is a mount point, which cannot be renamed into: give a folder inside it")
        elif self.output.exists():
            raise EditError(f"{self.shown} is a file: give a folder")

    def _refuse_full_disk(self) -> None:
        needed = sum(shard.size for shard in self.shards.values())
        needed += sum((self.base.path / path).stat().st_size for path in self._others)
        existing = next(parent for parent in self.output.parents if parent.exists())
        if (free := shutil.disk_usage(existing).free) < needed:
            raise EditError(f"{self.shown} needs {needed / 1e9:.2f} GB and its disk has {free / 1e9:.2f} GB free: make space")

    # -- staging

    def _stage(self) -> None:
        for parent in reversed(self.output.parents):
            if not parent.exists():
                parent.mkdir()
                self._made.append(parent)
        _remove_stale(self.output)
        try:
            self.folder.mkdir()
        except FileExistsError:
            raise EditError(f"{self.shown} is being written by this process already: give another output folder") from None
        self._guard = _lock(self.folder, needed=False)
        for path in self._others:
            (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.base.path / path, self.folder / path)
        if self._resharded and len(self.shards) > 1:
            (self.folder / (INDEX + _PARTIAL)).write_text(self._new_index(), "utf-8")
        elif not self._resharded and self.base.index is not None:
            shutil.copyfile(self.base.path / INDEX, self.folder / (INDEX + _PARTIAL))
        for file, shard in self.shards.items():
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0)
            descriptor = self._descriptors[file] = os.open(self.folder / (file + _PARTIAL), flags, 0o666)
            _allocate(descriptor, shard.size)
            _pwrite(descriptor, memoryview(shard.header), 0)
            with self._lock:
                self._account(file, 0)

    def _new_index(self) -> str:
        metadata = {**(self.base.index or {}).get("metadata", {}), "total_size": sum(i.nbytes for i in self._places.values())}
        weight_map = {name: info.file for name, info in self._places.items()}
        return json.dumps({"metadata": metadata, "weight_map": weight_map}, indent=2, sort_keys=True) + "\n"

    def _flush(self) -> None:
        """Hand the collected run of neighbouring tensors to the background. The lock is held."""
        if self._run is not None:
            self._jobs.append(self._pool.submit(self._copy_run, *self._run))
            self._run = None

    def _copy_run(self, from_file: str, begin: int, to_file: str, to: int, length: int) -> None:
        source, target, done = self.base.descriptor(from_file), self._descriptors[to_file], 0
        while done < length and not self._stop.is_set():
            block = _COPY_BLOCK - (begin + done) % 4096  # file systems that share blocks do so at multiples of 4096
            done += _copy(source, target, begin + done, to + done, min(length - done, block))
        with self._lock:
            self._account(to_file, done)

    def _account(self, file: str, count: int) -> None:
        """Count bytes of a file; a complete file goes to the disk while others are still written. The lock is held."""
        self._left[file] -= count
        if self._left[file] == 0:
            self._jobs.append(self._pool.submit(os.fsync, self._descriptors[file]))

    # -- the end

    def _publish(self) -> None:
        weights = [file for file in (*self.shards, INDEX) if (self.folder / (file + _PARTIAL)).exists()]
        synced = {file + _PARTIAL for file in self.shards}
        for folder, _, files in os.walk(self.folder, topdown=False):
            for file in files:
                if file not in synced:
                    _sync(os.path.join(folder, file))
            _sync(folder)
        for file in weights:
            os.rename(self.folder / (file + _PARTIAL), self.folder / file)
        _sync(self.folder)
        os.rename(self.folder, self.output)
        _sync(self.output.parent)

    def _close(self) -> None:
        """Stop the background and close the files."""
        self._stop.set()
        self._pool.shutdown(cancel_futures=True)
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def _abort(self) -> None:
        """Leave nothing behind: neither the staged folder nor the parents made for it."""
        if self._guard is not None:
            self._close()
            shutil.rmtree(self.folder, ignore_errors=True)
        for parent in reversed(self._made):
            try:
                parent.rmdir()
            except OSError:
                break  # somebody else put something there
        self._unlock()

    def _unlock(self) -> None:
        if self._guard is not None:
            os.close(self._guard)
            self._guard = None

    @contextmanager
    def _disk(self) -> Iterator[None]:
        """Failures of the disk become one sentence."""
        try:
            yield
        except OSError as error:
            if error.errno in _FULL:
                raise EditError(f"no space left for {self.shown} ({error.strerror}): make space; nothing was kept") from error
            raise EditError(f"{self.shown} cannot be written ({error}): check its folder and permissions") from error


def _base_shards(base: Checkpoint) -> dict[str, Shard]:
    tensors: dict[str, list[TensorInfo]] = {file: [] for file in base.files}
    for info in base.tensors.values():
        tensors[info.file].append(info)
    shards = {}
    for file, data in base.data.items():
        header = os.pread(base.descriptor(file), data, 0)
        shards[file] = Shard(header, tensors[file], data + sum(info.nbytes for info in tensors[file]))
    return shards


def _new_shards(base: Checkpoint, shard_size: int) -> dict[str, Shard]:
    """Fill shards in the base's order; a tensor larger than `shard_size` gets a shard of its own."""
    groups: list[list[TensorInfo]] = [[]]
    filled = 0
    for info in base.tensors.values():
        if groups[-1] and filled + info.nbytes > shard_size:
            groups.append([])
            filled = 0
        groups[-1].append(info)
        filled += info.nbytes
    metadata = {key: value for one in base.metadata.values() for key, value in one.items()}
    shards = {}
    for number, group in enumerate(groups, 1):
        file = f"model-{number:05d}-of-{len(groups):05d}.safetensors" if len(groups) > 1 else "model.safetensors"
        group.sort(key=lambda info: -info.item.bytes)  # stable; wide items first keeps each of them aligned in memory maps
        header = encode({info.name: (info.dtype, info.shape) for info in group}, metadata)
        tensors, position = [], len(header)
        for info in group:
            tensors.append(replace(info, file=file, start=position, end=position + info.nbytes))
            position += info.nbytes
        shards[file] = Shard(header, tensors, position)
    return shards


def _allocate(descriptor: int, size: int) -> None:
    """Give a file its size, and its blocks where the system can: a full disk shows now, and writing gets faster."""
    if hasattr(os, "posix_fallocate"):
        try:
            return os.posix_fallocate(descriptor, 0, size)
        except OSError as error:
            if error.errno in _FULL:
                raise
    os.ftruncate(descriptor, size)


def _pwrite(descriptor: int, view: memoryview, position: int) -> None:
    done = 0
    while done < len(view):
        done += os.pwrite(descriptor, view[done:], position + done)


def _copy(source: int, target: int, begin: int, to: int, length: int) -> int:
    """Copy up to `length` bytes between files, inside the kernel where it can; returns how many."""
    if hasattr(os, "copy_file_range"):
        try:
            if count := os.copy_file_range(source, target, length, begin, to):
                return count
        except OSError as error:
            if error.errno in _FULL:
                raise
    data = os.pread(source, min(length, _BUFFER), begin)
    if not data:
        raise EditError("the base became shorter while it was copied: do not change it meanwhile")
    return os.pwrite(target, data, to)


def _sync(path: str | Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _lock(folder: str | Path, needed: bool) -> int:
    """Lock a folder for as long as the returned descriptor is open; a killed process loses its locks.

    Raises OSError where another holds it and, if `needed`, where the file system has no locks.
    """
    descriptor = os.open(folder, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        if needed:
            os.close(descriptor)
            raise
    return descriptor


def _remove_stale(output: Path) -> None:
    """Remove what killed runs staged for this output. A folder that is locked belongs to a run that lives."""
    for entry in os.scandir(output.parent):
        prefix, _, process = entry.name.rpartition("-")
        if prefix == f".{output.name}.partial" and process.isdigit() and entry.is_dir(follow_symlinks=False):
            try:
                descriptor = _lock(entry.path, needed=True)
            except OSError:
                continue
            shutil.rmtree(entry.path, ignore_errors=True)
            os.close(descriptor)


def write_checkpoint(
    tensors: "Mapping[str, torch.Tensor] | Iterable[tuple[str, torch.Tensor]]",
    output: str | os.PathLike[str],
    *,
    like: "Checkpoint | str | os.PathLike[str]",
    shard_size: int | None = None,
) -> Path:
    """Write a checkpoint like the base `like`, with the given tensors in place of its own; returns the output folder.

    >>> write_checkpoint({"lm_head.weight": head}, "edited", like="base")  # doctest: +SKIP
    PosixPath('edited')

    Tensors are rounded once to the base's dtype. Those not given are copied byte for byte, as are all other files;
    `shard_size` is in bytes, by default the base's layout stays. Raises EditError that lists all names the base does not
    have, names given twice, shapes that differ, and integer tensors given in another dtype.
    """
    base = like if isinstance(like, Checkpoint) else open_checkpoint(like)
    pairs = tensors.items() if isinstance(tensors, Mapping) else tensors
    problems: list[str] = []
    seen: set[str] = set()
    try:
        with CheckpointWriter(base, output, shard_size=shard_size) as writer:
            for name, tensor in pairs:
                if problem := _misfit(base, name, tensor, seen):
                    problems.append(problem)
                seen.add(name)
                if not problems:
                    _write_tensor(writer, base.tensors[name], tensor)
            if problems:
                raise EditError(f"these tensors do not fit {base.label}: {listed(problems)}")
            for name in base.tensors:
                if name not in seen:
                    writer.copy(name)
            provenance.save(provenance.record("write_checkpoint", [base]), writer.folder)
            return writer.finish()
    finally:
        if base is not like:
            base.close()


def _misfit(base: Checkpoint, name: str, tensor: "torch.Tensor", seen: set[str]) -> str | None:
    if name not in base.tensors:
        return f"{name} (not in it)"
    if name in seen:
        return f"{name} (given twice)"
    info, dtype = base.tensors[name], str(tensor.dtype).removeprefix("torch.")
    if tuple(tensor.shape) != info.shape:
        return f"{name} (shape {tuple(tensor.shape)} instead of {info.shape})"
    if dtype != info.item.torch and not (info.item.floating and tensor.is_floating_point()):
        return f"{name} ({dtype} instead of {info.item.torch})"
    return None


def _write_tensor(writer: CheckpointWriter, info: TensorInfo, tensor: "torch.Tensor") -> None:
    import torch

    if info.numel:
        plain = tensor.detach().cpu().to(getattr(torch, info.item.torch)).contiguous()
        writer.write(info.name, 0, plain.reshape(-1).view(torch.uint8).numpy())
