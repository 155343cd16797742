"""The parts of one `unlearn`: what is measured before, the run itself with and without controls, and the output."""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from editkit import __version__
from editkit.checkpoint import disk, provenance
from editkit.checkpoint.blocks import Progress
from editkit.checkpoint.provenance import public_name
from editkit.checkpoint.reader import Checkpoint
from editkit.diffing.rendering import plain, to_json
from editkit.errors import EditError, NothingChanged
from editkit.evaluation.sets import common, described
from editkit.evaluation.subject import Subject, opened
from editkit.evaluation.suites import FORGET, RETAIN, UNSEEN
from editkit.localization.localize import localize
from editkit.masks.mask import Mask
from editkit.training.data import Examples
from editkit.training.devices import precision
from editkit.unlearning.processes import Processes
from editkit.unlearning.report import SCHEMA, below_floor, over_forgotten, result_rows, warnings
from editkit.unlearning.run import LOOKED, Done, Run, tasks_of
from editkit.unlearning.saving import EDITED, Saved, save
from editkit.unlearning.settings import Settings
from editkit.unlearning.sharding import gather
from editkit.unlearning.watch import ASSUMED, Columns, Level, Watch

Source = str | os.PathLike[str]
Stage = Callable[[str], AbstractContextManager[Progress | None]]
MEASURED = 200
"""Examples of a set that are measured before and after; on the way it is LOOKED."""
FOLDER = "unlearning"
"""In the output: the report, the log, and a localization that was made for the run."""
REPORT, LOG = "unlearn.json", "train_log.jsonl"
LOCALIZED = 200
"""Examples of each set that a method localizes with."""
LOCALIZATION, CONTROL = "localization", "control"


@dataclass(frozen=True)
class Job:
    """reference: names and hashes, None where there is none. work: a folder beside the output for what is not finished."""

    model: Source
    base: Checkpoint
    settings: Settings
    sets: Mapping[str, Examples]
    templates: Sequence[str]
    reference: Mapping[str, Any] | None
    only: Sequence[str]
    processes: Processes
    work: Path
    stage: Stage
    observe: Callable[[Mapping[str, Any]], None]

    @property
    def tasks(self) -> list[str]:
        """The forget sets, in order."""
        return tasks_of(self.sets)

    def localization(self, forget: Source, retain: Source | None, control: bool) -> Path:
        """The folder of the mask of a method that localizes; made once, and gone on with, where a run goes on."""
        place = self.work / LOCALIZATION
        if self.processes.main and not place.exists():
            with self.stage("localize"):
                localize(
                    self.model, place, forget=forget, retain=retain, method=self.settings.method.name, only=self.only, control=control,
                    granularity="tensor" if self.settings.lora else None, budget=self.settings.method.budget, max_examples=LOCALIZED,
                    seed=self.settings.seed, max_length=self.settings.max_length, prompt_template=self.settings.prompt_template,
                    dtype=self.settings.dtype, device=self.settings.device, resume=True,
                )  # fmt: skip
        self.processes.wait()
        return place

    @property
    def steps(self) -> int:
        """Most steps of a phase, of the largest forget set."""
        return self.settings.most(max(len(self.sets[name]) for name in self.tasks))

    def levels(self, reference: Source | None) -> tuple[dict[str, Columns], dict[str, Level]]:
        """Columns of the reference by forget set, and the level of each forget set; without a reference or unseen text it is assumed."""
        return self.processes.same(self._levels(reference) if self.processes.main else ({}, {}))

    def _levels(self, reference: Source | None) -> tuple[dict[str, Columns], dict[str, Level]]:
        names = self.tasks
        if reference is not None:
            with self.stage("reference") as progress, self._opened(reference) as subject:
                known = self._watch(subject, names).look(progress=progress)
            return known, {name: Level.measured(known[name]["ma"], "reference") for name in names}
        if UNSEEN in self.sets:
            with self.stage("unseen") as progress, self._opened(self.model) as subject:
                level = Level.measured(self._watch(subject, [UNSEEN]).look(progress=progress)[UNSEEN]["ma"], "unseen")
        else:
            level = Level(ASSUMED, 0, None, "assumed")
        return {}, dict.fromkeys(names, level)

    def run(
        self, mask: Mask | None, levels: Mapping[str, Level], reference: Mapping[str, Columns]
    ) -> tuple[Done, Saved | None]:
        """Unlearn, and write the result into `work`; what is done can be gone on with. Only the main process writes."""
        settings = self.settings
        with self._running("unlearn", mask, levels, reference, self.work) as run:
            done = run.go()
            if self.processes.sharded:
                gather(run.subject.net, self.processes.main)
            _refuse_idle(done)
            if not self.processes.main:
                return done, None
            with disk.writing(self.work.name):
                saved = save(
                    run.subject.net, self.base, mask, self.work, kind=settings.save, lora=bool(settings.lora),
                    record=self._record(mask, done.lr), model=os.fspath(self.model),
                )  # fmt: skip
            return done, saved

    def control(
        self, name: str, mask: Mask | None, levels: Mapping[str, Level], reference: Mapping[str, Columns]
    ) -> dict[str, Any]:
        """The same run with another mask, measured in memory; one that fails has diverged and says how, and the edit stays."""
        try:
            with self._running(name, mask, levels, reference, None) as run:
                done = run.go()
                after = self._watch(run.subject, list(self.sets)).look()
        except EditError as error:
            return {"name": name, "steps": None, "outcome": "diverged", "ended": str(error), "result": []}
        return {
            "name": name,
            "steps": sum(phase["steps"] for task in done.tasks for phase in task["phases"]),
            "outcome": done.tasks[-1]["outcome"],
            "ended": done.tasks[-1]["ended"],
            "result": result_rows(done.before, after, reference, self.settings.seed),
        }

    @contextmanager
    def _running(
        self,
        name: str,
        mask: Mask | None,
        levels: Mapping[str, Level],
        reference: Mapping[str, Columns],
        folder: Path | None,
    ) -> Iterator[Run]:
        settings = self.settings
        place = self.processes.place
        dtype = settings.dtype or precision(self.base, place)
        with (
            self.stage(name) as progress,
            opened(
                self.model,
                dtype=dtype if settings.lora else "float32",
                device="cpu" if self.processes.sharded else place,
            ) as subject,
        ):

            def say(line: Mapping[str, Any], step: int, most: int) -> None:
                if self.processes.main:
                    self.observe(line)
                    if progress:
                        progress(step, most)

            yield Run(
                subject, self.base, settings, self.sets, MEASURED, self.templates, levels, reference, mask, self.only, self.processes, dtype,
                folder, say,
            )  # fmt: skip

    def measured(self, saved: Saved) -> dict[str, Columns]:
        """The columns of every set, of the files that were written."""
        with self.stage("measure") as progress, self._opened(saved.source) as subject:
            return self._watch(subject, list(self.sets)).look(progress=progress)

    def report(
        self,
        done: Done,
        saved: Saved,
        after: Mapping[str, Columns],
        levels: Mapping[str, Level],
        reference: Mapping[str, Columns],
        mask: Mask | None,
    ) -> dict[str, Any]:
        """unlearn.json, without controls."""
        settings = self.settings
        method = settings.method
        first = self.tasks[0]
        result = result_rows(done.before, after, reference, settings.seed)
        return {
            "schema": SCHEMA,
            "editkit": __version__,
            "model": {"name": public_name(self.base), "sha256": self.base.sha256()},
            "reference": self.reference,
            "method": {
                **{key: getattr(method, key) for key in ("name", "label", "source")},
                "formula": settings.formula,
            },
            "sets": described(self.sets),
            "settings": {
                **settings.described(),
                "mask": public_name(mask.file) if mask else None,
                "only": list(self.only),
                "lr": done.lr,
                "steps": self.steps,
                "measured": MEASURED,
                "looked_at": LOOKED,
            },
            "level": levels[first].described(),
            "tasks": done.tasks,
            "trajectory": done.trajectory if len(done.tasks) > 1 else None,
            "result": result,
            "controls": [],
            "changed": {"elements": saved.elements, "share": saved.elements / saved.of, "of": saved.of},
            "warnings": [
                *warnings(done.tasks, settings.rules, levels[first].origin, RETAIN in self.sets, settings.floor),
                *over_forgotten(result, levels),
                *below_floor(result, settings.floor),
                *self._overlaps(),
            ],
        }

    def _overlaps(self) -> list[str]:
        """What is said of examples that are to be forgotten and kept."""
        kept = {RETAIN: self.sets[RETAIN]} if RETAIN in self.sets else {}
        shared = {name: common({FORGET: self.sets[name], **kept}) for name in self.tasks}
        return [
            f"{name}: {count} of {len(self.sets[name])} examples are in the retain set too: one loss undoes the other"
            for name, count in shared.items()
            if count
        ]

    def finish(self, report: Mapping[str, Any], done: Done, output: Path) -> None:
        """Put report and log beside the weights, and all of it to where it was asked for."""
        from editkit.unlearning.rendering import write_pictures

        edited = self.work / EDITED
        own = edited / FOLDER
        with disk.writing(str(output)):
            own.mkdir()
            (own / REPORT).write_text(to_json(report), "utf-8")
            (own / LOG).write_text("".join(json.dumps(plain(line)) + "\n" for line in done.lines), "utf-8")
            write_pictures(report, own)
            if (self.work / LOCALIZATION).exists():
                shutil.copytree(self.work / LOCALIZATION, own / LOCALIZATION)
            edited.replace(output.expanduser().resolve())

    def _watch(self, subject: Subject, names: Sequence[str]) -> Watch:
        return Watch(
            subject, {name: self.sets[name] for name in names}, limit=MEASURED, batch_size=self.settings.batch_size,
            prompt_template=self.settings.prompt_template, max_length=self.settings.max_length, ratios=True,
        )  # fmt: skip

    def _opened(self, source: Source, dtype: str = "float32") -> AbstractContextManager[Subject]:
        return opened(source, dtype=dtype, device=self.settings.device)

    def _record(self, mask: Mask | None, lr: float) -> dict[str, Any]:
        settings = {key: value for key, value in self.settings.described().items() if key not in ("seed", "save")}
        settings |= {
            "lr": lr,
            "steps": self.steps,
            "only": list(self.only),
            "reference": self.reference,
            "refusals": self._refusals(),
        }
        files = {name: one.sha256 for name, one in self.sets.items()}
        inputs = {"base": self.base, **({"mask": mask.file} if mask else {})}
        return provenance.record("unlearn", inputs, seed=self.settings.seed, data_hash=files[self.tasks[0]] if len(self.tasks) == 1 else None,
                                 method=self.settings.method.name, sets=files, **settings)  # fmt: skip

    def _refusals(self) -> str | None:
        """Their sha256, None where none are used."""
        used = any(one.refusals for one in self.settings.objectives)
        return sha256("\n".join(self.templates).encode()).hexdigest() if used else None


def _refuse_idle(done: Done) -> None:
    """Raise NothingChanged where every run ended where it began, or went back there."""
    if not any(phase["steps"] for task in done.tasks for phase in task["phases"]):
        raise NothingChanged(f"there is nothing to unlearn: {done.tasks[-1]['ended']}")
    if all(task["chosen"] == 0 for task in done.tasks):
        raise NothingChanged(
            f"no step was worth keeping ({done.tasks[-1]['ended']}): lower --lr or --floor, or give a retain set and a retain loss"
        )
