"""The rows of every model and set, measured or taken over from a run that was interrupted."""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import count
from pathlib import Path
from typing import Any

from editkit.checkpoint.blocks import Progress
from editkit.checkpoint.unfinished import STATE
from editkit.errors import EditError
from editkit.evaluation.lineup import Entry
from editkit.evaluation.measuring import measure, prepare
from editkit.evaluation.rows import Row, to_line
from editkit.evaluation.similarity import Readers
from editkit.evaluation.subject import Subject
from editkit.evaluation.suites import REFERENCE, Metric, columns_of
from editkit.training.data import Examples

Stage = Callable[[str], AbstractContextManager[Progress | None]]


class Gathering:
    """The rows of every column and set; what is finished is kept in `folder`."""

    def __init__(
        self,
        folder: Path,
        examples: Mapping[str, Examples],
        asked: Sequence[Metric],
        settings: Mapping[str, Any],
        readers: Readers,
    ) -> None:
        self._folder, self._examples, self._asked, self._settings = folder, examples, asked, settings
        self._readers = readers
        self._numbers = count()

    def rows(
        self, entry: Entry, subject: Subject, hashes: Mapping[str, str], base: Subject | None, stage: Stage
    ) -> list[Row]:
        """Of all sets. hashes: of the model's files."""
        found: list[Row] = []
        for name, examples in self._examples.items():
            columns = columns_of(self._asked, name)
            if not entry.whole:
                columns = {*(columns & set(REFERENCE)), "nll"}
            columns = set(filter(self._readers.can, columns))
            if not columns:
                continue
            path = self._folder / f"{next(self._numbers)}.jsonl"
            if (kept := self._kept(path, hashes, entry)) is None:
                with stage(f"{entry.label}, {name}") as progress:
                    other = base if entry.role != "base" else None
                    try:
                        kept = self._measure(subject, examples, name, columns, other, progress)
                    except EditError as error:
                        raise EditError(f"{entry.label}: {error}") from error
                place = {"model": entry.label, "role": entry.role}
                kept = [{**place, **row} for row in kept]
                self._keep(path, hashes, kept)
            found += kept
        return found

    def _measure(
        self,
        subject: Subject,
        examples: Examples,
        name: str,
        columns: set[str],
        base: Subject | None,
        progress: Progress | None,
    ) -> list[Row]:
        template, most = self._settings["prompt_template"], self._settings["max_new_tokens"]
        prepared = prepare(examples, name, subject, columns, prompt_template=template, max_new_tokens=most)
        rows = measure(subject, prepared, batch_size=self._settings["batch_size"], base=base, progress=progress)
        self._readers.add(rows, columns)
        return rows

    def _kept(self, path: Path, hashes: Mapping[str, str], entry: Entry) -> list[Row] | None:
        if not path.exists():
            return None
        first, *lines = path.read_text("utf-8").split("\n")[:-1]
        if json.loads(first) != hashes:
            raise EditError(
                f"the weights of {entry.label} changed since the run began: remove {self._folder.name} beside the output and begin again"
            )
        return [json.loads(line) for line in lines]

    def _keep(self, path: Path, hashes: Mapping[str, str], rows: Sequence[Row]) -> None:
        fresh = path.with_suffix(".new")
        lines = "".join([json.dumps(hashes) + "\n", *map(to_line, rows)])
        fresh.write_bytes(lines.encode("utf-8", "backslashreplace"))
        fresh.replace(path)
        (self._folder / STATE).touch()
