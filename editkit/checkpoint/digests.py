"""sha256 of files, remembered while a file is the same by device, inode, size and times, as git's index does.

>>> import os, tempfile
>>> with tempfile.TemporaryFile() as file:
...     _ = file.write(b"abc"), file.flush()
...     sha256(file.fileno(), lambda: False)[:16]
'ba7816bf8f01cfea'

Hashing two checkpoints takes longer than subtracting one from the other, and a sweep over alpha does it for each. Any write
to a file changes its ctime, in nanoseconds; a file that changed in the last seconds is not remembered.
"""

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path

_BLOCK = 1 << 20  # bytes
_SETTLED = 2.0  # seconds without a change after which the times of a file tell versions apart on every file system


def cache_folder() -> Path:
    """Where editkit keeps what it can make again: $EDITKIT_CACHE, or editkit in $XDG_CACHE_HOME, by default ~/.cache."""
    given = os.environ.get("EDITKIT_CACHE")
    home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    return (Path(given) if given else home / "editkit").expanduser()


def sha256(descriptor: int, stopped: Callable[[], bool]) -> str:
    """The sha256 in hex of an open file; what it is after `stopped()` turned true has no meaning."""
    before = os.fstat(descriptor)
    name = "-".join(str(getattr(before, f"st_{part}")) for part in ("dev", "ino", "size", "mtime_ns", "ctime_ns"))
    known = cache_folder() / "sha256" / name
    try:
        return known.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError):
        pass
    digest, buffer, position = hashlib.sha256(), memoryview(bytearray(_BLOCK)), 0
    while not stopped() and (count := os.preadv(descriptor, [buffer], position)):
        digest.update(buffer[:count])
        position += count
    after = os.fstat(descriptor)
    same = (before.st_size, before.st_mtime_ns, before.st_ctime_ns) == (position, after.st_mtime_ns, after.st_ctime_ns)
    if same and not stopped() and time.time() - max(after.st_mtime, after.st_ctime) > _SETTLED:
        _remember(known, digest.hexdigest())
    return digest.hexdigest()


def sha256_of(path: str | os.PathLike[str]) -> str:
    """The sha256 in hex of a file that nobody writes to."""
    with open(path, "rb", buffering=0) as file:
        return sha256(file.fileno(), lambda: False)


def _remember(known: Path, digest: str) -> None:
    draft = known.with_name(f".{known.name}.{os.getpid()}")
    try:
        known.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(digest, "ascii")
        os.replace(draft, known)
    except OSError:
        pass  # without a cache every run hashes anew
