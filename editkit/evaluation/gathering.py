"""The rows of every model and set, measured or taken over from a run that was interrupted."""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from editkit.checkpoint.blocks import Progress
from editkit.checkpoint.unfinished import STATE
from editkit.errors import EditError
from editkit.evaluation import similarity
from editkit.evaluation.lineup import Entry
from editkit.evaluation.measuring import COMPARED, measure, prepare
from editkit.evaluation.rows import Row, to_line
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
        embedding_model: str | None,
        nli_model: str | None,
        device: str,
    ) -> None:
        self._folder, self._examples, self._asked, self._settings = folder, examples, asked, settings
        self._models = {"cosine": embedding_model, "entails_truth": nli_model, "entailed_by_truth": nli_model}
        self._device = device
        self._tokenizer: dict[str, int] | None = None

    def rows(self, entry: Entry, subject: Subject, base: Subject | None, stage: Stage) -> list[Row]:
        self._refuse_other_tokenizer(entry, subject)
        found: list[Row] = []
        for name, examples in self._examples.items():
            columns = columns_of(self._asked, name)
            if entry.role == "reference":
                columns = {*(columns & set(REFERENCE)), "nll"}
            columns = {one for one in columns if self._models.get(one, "") is not None}
            if not columns:
                continue
            path = self._folder / f"{len(found)} {entry.label} {name}.jsonl".replace("/", " ")
            hashes = subject.described()["sha256"]
            if (kept := self._kept(path, hashes)) is None:
                with stage(f"{entry.label}, {name}") as progress:
                    kept = self._measure(
                        subject, examples, name, columns, base if entry.role != "base" else None, progress
                    )
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
        prepared = prepare(
            examples, name, subject, columns,
            prompt_template=self._settings["prompt_template"], max_new_tokens=self._settings["max_new_tokens"],
        )  # fmt: skip
        rows = measure(subject, prepared, batch_size=self._settings["batch_size"], base=base, progress=progress)
        compared = columns & set(COMPARED)
        if compared and not prepared.plain:
            pairs = [[row[key] for row in rows] for key in ("generation", "answer")]
            made: dict[str, Any] = {}
            if "cosine" in compared:
                made["cosine"] = similarity.cosine_similarity(str(self._models["cosine"]), *pairs, device=self._device)
            if "entails_truth" in compared:
                nli = str(self._models["entails_truth"])
                made["entails_truth"] = similarity.entailment(nli, *pairs, device=self._device)
                made["entailed_by_truth"] = similarity.entailment(nli, *reversed(pairs), device=self._device)
            for column, values in made.items():
                for row, value in zip(rows, values.tolist(), strict=True):
                    row[column] = value
        return rows

    def _kept(self, path: Path, hashes: Mapping[str, str]) -> list[Row] | None:
        if not path.exists():
            return None
        first, *lines = path.read_text("utf-8").splitlines()
        if json.loads(first) != hashes:
            raise EditError(
                f"the weights of {path.stem.split(' ')[1]} changed since the run began: begin again without --resume"
            )
        return [json.loads(line) for line in lines]

    def _keep(self, path: Path, hashes: Mapping[str, str], rows: Sequence[Row]) -> None:
        fresh = path.with_suffix(".new")
        fresh.write_text(json.dumps(hashes) + "\n" + "".join(map(to_line, rows)), "utf-8")
        fresh.replace(path)
        (self._folder / STATE).touch()

    def _refuse_other_tokenizer(self, entry: Entry, subject: Subject) -> None:
        vocabulary = subject.tokenizer.get_vocab()
        if self._tokenizer is not None and vocabulary != self._tokenizer:
            raise EditError(
                f"{entry.source} has another tokenizer than the models before it: likelihoods per token cannot be compared, so "
                "evaluate it on its own"
            )
        self._tokenizer = vocabulary
