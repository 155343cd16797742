"""A folder that is there whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from editkit.checkpoint import disk


@contextmanager
def staged(output: Path) -> Iterator[Path]:
    """A new folder beside `output`, renamed to it when the block ends well and removed otherwise.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as home:
    ...     with staged(Path(home) / "new") as folder:
    ...         _ = (folder / "file").write_text("text")
    ...     (Path(home) / "new" / "file").read_text()
    'text'

    What a killed run left for the same output is removed first.
    """
    output = output.expanduser().resolve()
    output.parent.mkdir(parents=True, exist_ok=True)
    disk.remove_stale(output)
    folder = disk.staging_folder(output)
    folder.mkdir()
    guard = disk.lock(folder, needed=False)
    try:
        yield folder
        os.rename(folder, output)
    except BaseException:
        disk.remove_staged(folder)
        raise
    finally:
        os.close(guard)
