"""What writers ask of the disk: a place to stage, room, positioned writes, copies inside the kernel, locks.

>>> import tempfile
>>> with tempfile.TemporaryFile() as file:
...     allocate(file.fileno(), 5)
...     write_at(file.fileno(), memoryview(b"edit"), 1)
...     file.read()
b'\\x00edit'
"""

import errno
import fcntl
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from editkit.errors import EditError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
BLOCK = 4096  # file systems that share blocks between files do so at multiples of this
_BUFFER = 1 << 20  # bytes of one copy through memory, where the kernel cannot


@contextmanager
def writing(shown: str) -> Iterator[None]:
    """Failures of the disk become one sentence about the output, which the user calls `shown`."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise EditError(
                f"no space left for {shown} ({error.strerror}): make space; no part of it was left"
            ) from error
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
            raise EditError(f"{shown} is written by somebody else at the same time: give another output") from error
        reason = error.strerror or error
        raise EditError(f"{shown} cannot be written ({reason}): check its folder and permissions") from error


def refuse_inputs(output: Path, shown: str, inputs: Iterable[Path]) -> None:
    """Raise EditError where `output` is, lies in or contains one of the files and folders `inputs`, also via links."""
    for path in inputs:
        place = path.expanduser().resolve()
        if output == place:
            raise EditError(f"{shown} is an input as well: give another output")
        if output.is_relative_to(place):
            raise EditError(f"{shown} lies inside the input {path}: give an output outside it")
        if place.is_relative_to(output):
            raise EditError(f"{shown} contains the input {path}: give another output")


def make_parents(output: Path, made: list[Path]) -> None:
    """Make the folders above `output`; those that were not there are added to `made`, the outermost first."""
    for parent in reversed(output.parents):
        if not parent.exists():
            parent.mkdir(exist_ok=True)
            made.append(parent)


def remove_made(made: list[Path]) -> None:
    """Undo `make_parents`, as far as nobody put something there."""
    for parent in reversed(made):
        try:
            parent.rmdir()
        except OSError:
            break


@contextmanager
def staged(output: Path) -> Iterator[Path]:
    """A new folder beside `output`, to be renamed to it at the end; nothing else of it stays, nor of parents it needed."""
    folder, made = staging_folder(output), list[Path]()
    try:
        make_parents(output, made)
        remove_stale(output)
        if folder.exists():
            raise FileExistsError(f"{folder} is there already")
        guard = None
        try:  # before the folder is made: a signal may come right after
            folder.mkdir()
            guard = lock(folder, needed=False)
            yield folder
        finally:
            remove_staged(folder)
            if guard is not None:
                os.close(guard)
    finally:
        remove_made(made)


def put(staged: Path, output: Path) -> None:
    """Give a staged file its name. Raises FileExistsError where there is one of this name, which stays."""
    try:
        os.link(staged, output)
        os.unlink(staged)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links: reserve the name, then replace what was just made
        os.close(os.open(output, os.O_CREAT | os.O_EXCL, 0o666))
        os.rename(staged, output)


def allocate(descriptor: int, size: int) -> None:
    """Give a file its size, and its blocks where the system can: a full disk shows now, and writing gets faster."""
    if hasattr(os, "posix_fallocate"):
        try:
            return os.posix_fallocate(descriptor, 0, size)
        except OSError as error:
            if error.errno in FULL:
                raise
    os.ftruncate(descriptor, size)


def write_at(descriptor: int, view: memoryview, position: int) -> None:
    """Write all of `view` at a byte of a file, whatever else writes there at once."""
    done = 0
    while done < len(view):
        done += os.pwrite(descriptor, view[done:], position + done)


def copy_at(source: int, target: int, begin: int, to: int, length: int) -> int:
    """Copy up to `length` bytes between files, inside the kernel where it can; returns how many."""
    if hasattr(os, "copy_file_range"):
        try:
            if count := os.copy_file_range(source, target, length, begin, to):
                return count
        except OSError as error:
            if error.errno in FULL:
                raise
    data = os.pread(source, min(length, _BUFFER), begin)
    if not data:
        raise EditError("the base became shorter while it was copied: do not change it meanwhile")
    return os.pwrite(target, data, to)


def sync(path: str | Path) -> None:
    """Have a file or the entries of a folder reach the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lock(path: str | Path, needed: bool) -> int:
    """Lock a folder or file for as long as the returned descriptor is open; a killed process loses its locks.

    Raises OSError where another holds it and, if `needed`, where the file system has no locks.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        if needed:
            os.close(descriptor)
            raise
    return descriptor


def staging_folder(output: Path) -> Path:
    """Where this process stages the folder `output`."""
    return output.parent / f".{output.name}.partial-{os.getpid()}"


def staged_for(path: Path) -> str | None:
    """The name of the output that was staged in the folder `path`, None where it is no such folder.

    >>> staged_for(Path("models/.edited.partial-123"))
    'edited'
    """
    found = re.fullmatch(r"\.(.+)\.partial-\d+", path.name)
    return found[1] if found else None


def remove_stale(output: Path) -> None:
    """Remove the folders or files that killed runs staged for this output. One that is locked belongs to a run that lives."""
    for entry in os.scandir(output.parent):
        if staged_for(Path(entry)) == output.name and not entry.is_symlink():
            try:
                descriptor = lock(entry.path, needed=True)
            except OSError:
                continue
            if entry.is_dir():
                remove_staged(Path(entry))
            else:
                os.unlink(entry)
            os.close(descriptor)


def remove_staged(folder: Path) -> None:
    """Remove a staged folder, weights and index first: killed on the way, it must not leave a folder that loads."""
    for path in [*folder.glob("*.index.json"), *folder.glob("*.safetensors")]:
        path.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
