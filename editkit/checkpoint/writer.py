"""Writing an edited checkpoint in the layout of its base, so that it is there whole or not at all.

>>> with open_checkpoint("base") as base, CheckpointWriter(base, "edited") as writer:  # doctest: +SKIP
...     for name in base:
...         writer.copy(name)

Everything is staged in a sibling folder `.edited.partial-<pid>`, where weight files end in `.partial` and load nowhere.
The last step renames the folder. An exception removes it; after a kill the next run to the same output removes it.
"""

import json
import os
import shutil
import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from editkit.checkpoint import digests, disk, provenance
from editkit.checkpoint.header import TensorInfo
from editkit.checkpoint.layout import INDEX
from editkit.checkpoint.reader import Checkpoint, open_checkpoint
from editkit.checkpoint.shards import Shard, base_shards, new_shards, placeless, usual_size
from editkit.errors import EditError, listed

if TYPE_CHECKING:
    import torch

_COPY_BLOCK = 1 << 26  # bytes of one copy inside the kernel; a cancelled copy stops after one
PARTIAL = ".partial"
"""What the names of weight files and of their index end in while they are staged."""


class Run(NamedTuple):
    """Neighbouring tensors to copy: `length` bytes from byte `begin` of an open file to byte `to` of a new one."""

    source: int
    begin: int
    target: str
    to: int
    length: int

    @property
    def ends(self) -> tuple[int, int, str, int]:
        """Where a tensor must lie, in both files, to be the next of the run."""
        return self.source, self.begin + self.length, self.target, self.to + self.length


class CheckpointWriter:
    """Writes the tensors of `base` to the folder `output`: some copied, some given, each byte exactly once.

    Files, order of tensors, headers and index are the base's, byte for byte. With `shard_size` (bytes of tensor data in
    one file) they are `model-00001-of-0000N.safetensors` and a new index, tensors in the base's order. All other files
    of the base are copied, see `Checkpoint.other_files`; they lie in `folder` as soon as the writer is entered, and may
    be replaced or added to there. `inputs` are further files or folders that the output must not touch. `shards` are files
    with the same tensors that take the place of the base's. `tensors` are the output's where it has others (name -> dtype,
    shape): their files are new ones, by default about as large as the base's.

    Constructing it checks and writes nothing. Raises EditError where `output` is not empty, is an input or lies in one,
    also through links, or where the disk has too little space.
    """

    def __init__(
        self,
        base: Checkpoint,
        output: str | os.PathLike[str],
        *,
        shard_size: int | None = None,
        shards: Mapping[str, Shard] | None = None,
        tensors: Mapping[str, tuple[str, tuple[int, ...]]] | None = None,
        inputs: Sequence[str | os.PathLike[str]] = (),
    ) -> None:
        self.base, self.shown, self.output = base, os.fspath(output), Path(output).expanduser().resolve()
        self.folder = disk.staging_folder(self.output)
        self._refuse_bad_output([base.source, *map(Path, inputs)])
        if shard_size is not None and shard_size < 1:
            raise EditError(f"a shard size of {shard_size} bytes holds nothing: give at least 1")
        infos = base.tensors if tensors is None else placeless(tensors)
        if tensors not in (None, {name: (info.dtype, info.shape) for name, info in base.tensors.items()}):
            shard_size = shard_size or usual_size(base)
        self._resharded = shard_size is not None
        metadata = {key: value for one in base.metadata.values() for key, value in one.items()}
        own = base_shards(base) if shard_size is None else new_shards(infos, metadata, shard_size)
        self.shards = own if shards is None else dict(shards)
        self._places = {info.name: info for shard in self.shards.values() for info in shard.tensors}
        self._others = base.other_files()
        self._refuse_full_disk()
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._idle, self._busy = threading.Condition(), 0
        self._written: Counter[str] = Counter()
        self._left = {file: sum(info.nbytes for info in shard.tensors) for file, shard in self.shards.items()}
        self._run: Run | None = None
        self._copies: list[Future[None]] = []
        self._syncs: list[Future[None]] = []
        self._descriptors: dict[str, int] = {}
        self._made: list[Path] = []
        self._guard: int | None = None
        self._mine = False
        self._pool = ThreadPoolExecutor(2, "editkit-writer")  # one copies while one waits for the disk
        self._done = False

    # -- what the caller does

    def __enter__(self) -> "CheckpointWriter":
        try:
            with disk.writing(self.shown):
                self._stage()
        except BaseException:
            self._abort()
            raise
        return self

    def copy(self, name: str, checkpoint: Checkpoint | None = None, origin: str | None = None) -> None:
        """Take a tensor over byte for byte, in the background; neighbours are copied in one go.

        checkpoint: where from, by default the base; it stays open until the writer is done. origin: the tensor's name there.
        """
        checkpoint = checkpoint or self.base
        source, place = checkpoint.tensors[origin or name], self._places[name]
        descriptor = checkpoint.descriptor(source.file)
        with self._lock:
            run = self._run
            if run is not None and run.ends == (descriptor, source.start, place.file, place.start):
                self._run = run._replace(length=run.length + source.nbytes)
            else:
                self._flush()
                self._run = Run(descriptor, source.start, place.file, place.start, source.nbytes)
            self._written[name] += source.nbytes
            if self._run.length >= _COPY_BLOCK:
                self._flush()

    def write(self, name: str, first_byte: int, data: np.ndarray) -> None:
        """Write `data` (contiguous) at byte `first_byte` of a tensor. Threads may call it at once."""
        place, view = self._places[name], data.data.cast("B") if data.size else memoryview(b"")
        if not 0 <= first_byte <= place.nbytes - len(view):
            raise ValueError(f"{len(view)} bytes at {first_byte} leave {name}, which has {place.nbytes} bytes")
        with self._idle:
            if self._stop.is_set():
                raise RuntimeError("the writer is closed")
            self._busy += 1  # keeps the descriptor open until the bytes are written
        try:
            with disk.writing(self.shown):
                disk.write_at(self._descriptors[place.file], view, place.start + first_byte)
        finally:
            with self._idle:
                self._busy -= 1
                self._idle.notify_all()
        with self._lock:
            self._written[name] += len(view)
            self._account(place.file, len(view))

    def sha256(self) -> dict[str, str]:
        """The sha256 of every file that is staged by now, weights and others, under the names that they will have.

        To be called when all tensors are written or copied. It runs while files that are complete go to the disk.
        """
        with self._lock:
            self._flush()
        with disk.writing(self.shown):
            self._wait(self._copies)
        found = {str(path.relative_to(self.folder)): path for path in sorted(self.folder.rglob("*")) if path.is_file()}
        with ThreadPoolExecutor(2, "editkit-sha256") as pool:
            hashed = list(pool.map(digests.sha256_of, found.values()))
        staged = {file + PARTIAL: file for file in (*self.shards, INDEX)}
        return {staged.get(name, name): one for name, one in zip(found, hashed, strict=True)}

    def finish(self) -> Path:
        """Put the output in place and return it. Leaving the `with` block without an exception does this as well.

        Raises EditError where the disk fails, RuntimeError where a tensor was not written in full, once.
        """
        if self._done:
            return self.output
        with self._lock:
            self._flush()
        with disk.writing(self.shown):
            self._wait(self._copies)
            self._wait(self._syncs)
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
        disk.refuse_inputs(self.output, self.shown, inputs)
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
            raise EditError(
                f"{self.shown} needs {needed / 1e6:,.3f} MB and its disk has {free / 1e6:,.3f} MB free: make space"
            )

    # -- staging

    def _stage(self) -> None:
        disk.make_parents(self.output, self._made)
        disk.remove_stale(self.output)
        try:
            self._mine = not self.folder.exists()  # before it is made: a signal may come right after
            self.folder.mkdir()
        except FileExistsError:
            self._mine = False
            raise EditError(
                f"{self.shown} is being written by this process already: give another output folder"
            ) from None
        self._guard = disk.lock(self.folder, needed=False)
        for path in self._others:
            (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
            with ExitStack() as stack:
                with self.base.reading(str(path)):
                    source = stack.enter_context(open(self.base.path / path, "rb"))
                shutil.copyfileobj(source, stack.enter_context(open(self.folder / path, "wb")))
        if self._resharded and len(self.shards) > 1:
            (self.folder / (INDEX + PARTIAL)).write_text(self._new_index(), "utf-8")
        elif not self._resharded and self.base.index is not None:
            shutil.copyfile(self.base.path / INDEX, self.folder / (INDEX + PARTIAL))
        for file, shard in self.shards.items():
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0)
            descriptor = self._descriptors[file] = os.open(self.folder / (file + PARTIAL), flags, 0o666)
            disk.allocate(descriptor, shard.size)
            disk.write_at(descriptor, memoryview(shard.header), 0)
            with self._lock:
                self._account(file, 0)

    def _new_index(self) -> str:
        total_size = sum(info.nbytes for info in self._places.values())
        before = (self.base.index or {}).get("metadata")
        metadata = {**(before if isinstance(before, dict) else {}), "total_size": total_size}
        if "total_parameters" in metadata:
            metadata["total_parameters"] = sum(info.numel for info in self._places.values())
        weight_map = {name: info.file for name, info in self._places.items()}
        return json.dumps({"metadata": metadata, "weight_map": weight_map}, indent=2, sort_keys=True) + "\n"

    def _flush(self) -> None:
        """Hand the collected run of neighbouring tensors to the background. The lock is held."""
        if self._run is not None:
            self._copies.append(self._pool.submit(self._copy_run, self._run))
            self._run = None

    def _copy_run(self, run: Run) -> None:
        target, done = self._descriptors[run.target], 0
        while done < run.length and not self._stop.is_set():
            block = min(run.length - done, _COPY_BLOCK - (run.begin + done) % disk.BLOCK)
            done += disk.copy_at(run.source, target, run.begin + done, run.to + done, block)
        with self._lock:
            self._account(run.target, done)

    def _account(self, file: str, count: int) -> None:
        """Count bytes of a file; a complete file goes to the disk while others are still written. The lock is held."""
        self._left[file] -= count
        if self._left[file] == 0:
            self._syncs.append(self._pool.submit(os.fsync, self._descriptors[file]))

    # -- the end

    @staticmethod
    def _wait(jobs: list[Future[None]]) -> None:
        for job in jobs:
            job.result()

    def _publish(self) -> None:
        weights = [file for file in (*self.shards, INDEX) if (self.folder / (file + PARTIAL)).exists()]
        synced = {file + PARTIAL for file in self.shards}
        for folder, _, files in os.walk(self.folder, topdown=False):
            for file in files:
                if file not in synced:
                    disk.sync(os.path.join(folder, file))
            disk.sync(folder)
        for file in weights:  # the index comes last: without it the others load nowhere
            os.rename(self.folder / (file + PARTIAL), self.folder / file)
        disk.sync(self.folder)
        os.rename(self.folder, self.output)
        disk.sync(self.output.parent)

    def _close(self) -> None:
        """Stop the background and close the files."""
        with self._idle:
            self._stop.set()
            self._idle.wait_for(lambda: self._busy == 0)
        self._pool.shutdown(cancel_futures=True)
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def _abort(self) -> None:
        """Leave nothing behind: neither the staged folder nor the parents made for it."""
        if self._mine:
            self._close()
            disk.remove_staged(self.folder)
        disk.remove_made(self._made)
        self._unlock()

    def _unlock(self) -> None:
        if self._guard is not None:
            os.close(self._guard)
            self._guard = None


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
    `shard_size` is in bytes, by default the base's layout stays. Raises EditError that lists all names the base does
    not have, names given twice, shapes that differ, and integer tensors given in another dtype.
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
            provenance.save(provenance.record("write_checkpoint", [base]), writer.folder, writer.sha256())
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
