"""The evaluation that every point of a sweep gets: sets are read and tokenized once, and measured with whatever weights there are."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from editkit.checkpoint.blocks import Progress
from editkit.errors import EditError, listed
from editkit.evaluation import similarity
from editkit.evaluation.measuring import COMPARED, Prepared, measure, prepare
from editkit.evaluation.rows import columns
from editkit.evaluation.subject import Subject
from editkit.evaluation.suites import FORGET, REFERENCE, RETAIN, Data, Metric, columns_of
from editkit.localization.examples import overlap
from editkit.training.data import Examples, read_examples

Source = str | os.PathLike[str]


@dataclass(frozen=True)
class Evaluation:
    """What is measured on which examples, and how."""

    examples: Mapping[str, Examples]
    metrics: Sequence[Metric]
    batch_size: int
    max_new_tokens: int
    prompt_template: str | None
    embedding_model: str | None
    nli_model: str | None
    device: str

    def prepare(self, subject: Subject, *, as_reference: bool = False) -> list[Prepared]:
        """The sets as tokens. as_reference: for what a reference is asked alone, which is never to write anything."""
        given = {"cosine": self.embedding_model, "entails_truth": self.nli_model, "entailed_by_truth": self.nli_model}
        found = []
        for name, examples in self.examples.items():
            wanted = {column for column in columns_of(self.metrics, name) if given.get(column, "") is not None}
            wanted = wanted & set(REFERENCE) if as_reference else wanted
            template, most = self.prompt_template, self.max_new_tokens
            found.append(prepare(examples, name, subject, wanted, prompt_template=template, max_new_tokens=most))
        return found

    def measure(self, subject: Subject, sets: Sequence[Prepared], progress: Progress | None = None) -> Data:
        """The columns of every set, with the weights that the subject has now. Progress counts examples."""
        found: dict[str, Any] = {}
        sizes = [len(one.examples) for one in sets]
        for place, one in enumerate(sets):

            def advance(done: int, total: int, before: int = sum(sizes[:place]), size: int = sizes[place]) -> None:
                if progress:
                    progress(before + size * done // total, sum(sizes))

            rows = measure(subject, one, batch_size=self.batch_size, progress=advance)
            found |= columns(self._compared(one, rows))
        return found

    def _compared(self, one: Prepared, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Rows with what other models say of the generations."""
        asked = one.columns & set(COMPARED)
        if not asked or one.plain:
            return rows
        written, truths = ([row[key] for row in rows] for key in ("generation", "answer"))
        made: dict[str, Any] = {}
        if "cosine" in asked and self.embedding_model:
            made["cosine"] = similarity.cosine_similarity(self.embedding_model, written, truths, device=self.device)
        if "entails_truth" in asked and self.nli_model:
            made["entails_truth"] = similarity.entailment(self.nli_model, written, truths, device=self.device)
            made["entailed_by_truth"] = similarity.entailment(self.nli_model, truths, written, device=self.device)
        return [{**row, **{key: float(values[at]) for key, values in made.items()}} for at, row in enumerate(rows)]

    def try_out(self) -> None:
        """Refuse models of embeddings and entailment that do not load now, not after hours of writing."""
        needed = {column for one in self.metrics for column in one.needs}
        if self.embedding_model and "cosine" in needed:
            similarity.cosine_similarity(self.embedding_model, ["a"], ["a"], device=self.device)
        if self.nli_model and "entails_truth" in needed:
            similarity.entailment(self.nli_model, ["a"], ["a"], device=self.device)

    def described(self) -> list[dict[str, Any]]:
        """The sets, as in sweep.json."""
        return [
            {"set": name, "name": Path(one.label).name, "sha256": one.sha256, "examples": len(one)}
            for name, one in self.examples.items()
        ]

    @property
    def overlap(self) -> int | None:
        """How many examples of the forget set are in the retain set too; None without one."""
        return overlap({name: self.examples[name] for name in (FORGET, RETAIN)}) if RETAIN in self.examples else None


def read(
    forget: Source, retain: Source | None, sets: Mapping[str, Source], max_examples: int | None
) -> dict[str, Examples]:
    """The first `max_examples` of every file, by the name of the set.

    Raises EditError for names that are taken, and where every example to forget is one to keep.
    """
    if taken := [name for name in sets if name in (FORGET, RETAIN)]:
        raise EditError(f"--set {listed(taken)}: these names are for --forget and --retain: give another name")
    found = {}
    for name, path in {FORGET: forget, RETAIN: retain, **sets}.items():
        if path is not None:
            one = read_examples(path)
            found[name] = replace(one, rows=one.rows[:max_examples], numbers=one.numbers[:max_examples])
    if RETAIN in found and overlap({name: found[name] for name in (FORGET, RETAIN)}) == len(found[FORGET]):
        raise EditError(
            f"all of {found[FORGET].label} is in {found[RETAIN].label} too: nothing tells what to forget from what to keep, so "
            "give a retain set without it"
        )
    return found
