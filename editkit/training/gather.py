"""`gather`: the rows of example files as one file, or dealt into several, for recipes and for what comes in parts."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from editkit.checkpoint import disk
from editkit.errors import EditError, listed
from editkit.training.data import read_examples

Source = str | os.PathLike[str]


def gather(
    data: Source | Sequence[Source], output: Source, *, first: int | None = None, parts: int = 1
) -> dict[str, Any]:
    """Write the rows of `data`, in their order, to the folder `output` as 1.jsonl, 2.jsonl and so on.

    >>> gather(["forget.jsonl", "retain.jsonl"], "all")["rows"]  # doctest: +SKIP
    {'1.jsonl': 264}

    data: an example file of any type, or several that have the same keys, see `training/data.py`. first: take only so many rows of each.
    parts: how many files to make, whose numbers of rows differ by one at most; the first ones are the longer. Raises EditError for more
    parts than rows, files of different formats, and an output that exists.
    """
    sources = [data] if isinstance(data, str | os.PathLike) else list(data)
    if not sources:
        raise EditError("there are no files to gather: give one or more")
    if first is not None and first < 1:
        raise EditError(f"the first {first} rows are asked for: give 1 or more")
    read = [read_examples(path).first(first) for path in sources]
    if len({one.format for one in read}) > 1:
        said = (f"{one.label} has {' and '.join(one.keys)}" for one in read)
        raise EditError(f"{listed(said)}: give files that have the same keys")
    rows = [row for one in read for row in one.rows]
    if not 1 <= parts <= len(rows):
        raise EditError(f"{parts} parts are asked for: give 1 to {len(rows):,}, which is the number of rows")
    place = Path(output).expanduser().resolve()
    if place.exists():
        raise EditError(f"{os.fspath(output)} exists: give a new folder")
    some, longer = divmod(len(rows), parts)
    counts = {f"{number + 1}.jsonl": some + (number < longer) for number in range(parts)}
    waiting = iter(rows)
    with disk.writing(os.fspath(output)), disk.staged(place) as folder:
        for name, count in counts.items():
            lines = (json.dumps(next(waiting), ensure_ascii=False) + "\n" for _ in range(count))
            (folder / name).write_text("".join(lines), "utf-8")
        folder.replace(place)
    return {"rows": counts, "files": [Path(one.label).name for one in read], "sha256": [one.sha256 for one in read]}
