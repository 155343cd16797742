"""The evaluation that every point of a sweep gets: sets are read and tokenized once, and measured with whatever weights there are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from editkit.checkpoint.blocks import Progress
from editkit.evaluation.measuring import Prepared, measure, prepare
from editkit.evaluation.rows import columns
from editkit.evaluation.similarity import Readers
from editkit.evaluation.subject import Subject
from editkit.evaluation.suites import REFERENCE, Data, Metric, columns_of
from editkit.training.data import Examples


@dataclass(frozen=True)
class Evaluation:
    """What is measured on which examples, and how."""

    examples: Mapping[str, Examples]
    metrics: Sequence[Metric]
    batch_size: int
    max_new_tokens: int
    prompt_template: str | None
    readers: Readers

    def prepare(self, subject: Subject, *, as_reference: bool = False) -> list[Prepared]:
        """The sets as tokens. as_reference: for what a reference is asked alone, which is never to write anything."""
        found = []
        for name, examples in self.examples.items():
            wanted = set(filter(self.readers.can, columns_of(self.metrics, name)))
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
            self.readers.add(rows, one.columns)
            found |= columns(rows)
        return found
