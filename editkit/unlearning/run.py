"""A run: the forget sets one after the other, each from the last result, in one model in memory."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from editkit.checkpoint.adapter import base_reference
from editkit.checkpoint.reader import Checkpoint
from editkit.errors import listed
from editkit.evaluation.metrics.statistics import summary
from editkit.evaluation.subject import Subject
from editkit.evaluation.suites import FORGET, RETAIN
from editkit.localization.examples import encoded
from editkit.masks.mask import Mask
from editkit.training.data import Examples
from editkit.training.lora import save_adapter
from editkit.training.masking import fixing
from editkit.unlearning import state
from editkit.unlearning.course import Course, Pool, Progressed
from editkit.unlearning.learner import Learner
from editkit.unlearning.methods import Phase
from editkit.unlearning.objectives import FORGET as FORGET_LOSSES
from editkit.unlearning.objectives import RETAIN as RETAIN_LOSSES
from editkit.unlearning.objectives import Objective
from editkit.unlearning.origin import Origin
from editkit.unlearning.processes import Processes
from editkit.unlearning.refusals import refused
from editkit.unlearning.saving import BEGUN
from editkit.unlearning.settings import Settings
from editkit.unlearning.sharding import shard
from editkit.unlearning.step import Stepper, Term
from editkit.unlearning.trainable import adapted, checkpointed, copied, movable, put
from editkit.unlearning.watch import Columns, Level, Values, Watch, values

if TYPE_CHECKING:
    import torch

    from editkit.unlearning.trainable import Weights

Say = Callable[[Mapping[str, Any], int, int], None]
SAVING = 0.05
"""Share of the time that saves of the state may take."""
LOOKED = 100
"""Examples of a set that are measured on the way; of a forget set that is selected from, all."""


@dataclass
class Run:
    """What does not change from task to task. sets: by name. measured: examples of each before the first step and after every task. levels: of each forget set. reference: its columns, by forget set.

    save: where a state is kept, None for nowhere. say: told each line of the log, and which step of how many that is.
    """

    subject: Subject
    base: Checkpoint
    settings: Settings
    sets: Mapping[str, Examples]
    measured: int
    templates: Sequence[str]
    levels: Mapping[str, Level]
    reference: Mapping[str, Columns]
    mask: Mask | None
    only: Sequence[str]
    processes: Processes
    dtype: str
    folder: Path | None
    say: Say
    _saved: tuple[float, float] = (0.0, 0.0)

    @property
    def tasks(self) -> list[str]:
        """The forget sets, in order."""
        return tasks_of(self.sets)

    def go(self) -> "Done":
        """Unlearn one set after the other; the net of the subject is then the result."""
        settings = self.settings
        if settings.lora:
            targets = self.mask.names if self.mask else self.only
            net = adapted(self.subject.net, self.base, settings.lora, targets, base_reference(self.base), settings.seed)
            self.subject = replace(self.subject, net=net)
            if self.folder and self.processes.main:
                (self.folder / BEGUN).mkdir(exist_ok=True)
                save_adapter(net, self.folder / BEGUN)
            fixed: dict[str, Any] = {name: None for name, one in net.named_parameters() if one.requires_grad}
        else:
            net = self.subject.net.requires_grad_(True)
            fixed = movable(net, self.base, self.mask, self.only)
        if settings.grad_checkpointing:
            checkpointed(net)
        with ExitStack() as stack:
            stack.enter_context(fixing(net, fixed))
            if self.processes.sharded:
                shard(net, self.subject.core, self.processes.place)
            parameters = {name: one for name, one in net.named_parameters() if one.requires_grad}
            return replace(self._through(parameters, fixed), lr=self.rate(parameters, fixed))

    def _through(self, parameters: "Mapping[str, torch.nn.Parameter]", fixed: Mapping[str, Any]) -> "Done":
        every = Watch(self.subject, self.sets, limit=self.measured, **self._watching())
        saved = state.load(self.folder) if self.folder else None
        info, tensors = saved or ({}, {})
        weights: dict[str, Weights] = {}
        for name, tensor in tensors.items():
            kind, _, of = name.partition("/")
            weights.setdefault(kind, {})[of] = tensor
        before, start = (
            self.processes.same(one.look())
            for one in (every, Watch(self.subject, self.sets, limit=LOOKED, whole=self._selects, **self._watching()))
        )
        done = Done(
            before,
            start,
            info.get("tasks", []),
            info.get("trajectory") or self._seen(None, before),
            info.get("lines", []),
        )
        for place, name in list(enumerate(self.tasks))[len(done.tasks) :]:
            if "task" in weights:
                put(weights["task"], parameters)
            at = Progressed(**info["at"]) if weights else Progressed()
            begun = copied(parameters, "cpu") if place else None
            self._one(name, at, weights, parameters, fixed, done, begun)
            weights = {}
            if len(self.tasks) > 1:
                done.trajectory += self._seen(name, every.look())
        return done

    def _one(
        self, name: str, at: Progressed, weights: "dict[str, Weights]", parameters: "Mapping[str, torch.nn.Parameter]",
        fixed: Mapping[str, Any], done: "Done", begun: "Weights | None",
    ) -> None:  # fmt: skip
        settings = self.settings
        objectives = settings.objectives
        whole = any(one.needs == "whole" for one in objectives)
        # Only before the first set is the model without its adapter what it was.
        origin = Origin(self.subject.net, lora=bool(settings.lora) and begun is None, whole=whole)
        learner = Learner(self.subject.net, origin, dtype=self.dtype, seed=settings.seed)
        pools = {FORGET: self._pool(FORGET, self.sets[name])}
        if settings.method.retain != "none":
            pools[RETAIN] = self._pool(RETAIN, self.sets[RETAIN])
        for role, one in self._roles():
            if one.needs == "log_probs":
                texts = [*pools[role].rows, *(row for copy in pools[role].refused for row in copy if one.refusals)]
                origin.remember(texts, settings.batch_size)
        watched = {FORGET: self.sets[name], **{other: one for other, one in self.sets.items() if other == RETAIN}}
        watch = Watch(
            self.subject,
            watched,
            limit=LOOKED,
            **self._watching(),
            whole=self._selects,
        )
        reference = {FORGET: self.reference[name]} if name in self.reference else {}
        start = {key: one for key, one in done.start.items() if key == RETAIN} | {FORGET: done.start[name]}

        def look() -> tuple[Mapping[str, Columns], Values]:
            data = self.processes.same(watch.look())
            return data, values(data, reference)

        def save(now: Progressed, tensors: "dict[str, torch.Tensor]") -> None:
            if self._due():
                began = time.monotonic()
                info = {"at": asdict(now), "tasks": done.tasks, "trajectory": done.trajectory, "lines": done.lines}
                own = {f"task/{key}": one for key, one in (begun or {}).items()}
                assert self.folder is not None
                state.save(self.folder, info, {**tensors, **own})
                self._saved = (time.monotonic(), time.monotonic() - began)

        course = Course(
            phases=settings.method.phases, steppers=partial(self._stepper, learner, parameters, fixed), parameters=parameters,
            pools=pools, look=look, start=values(start, reference),
            level=self.levels[name].ma, rules=settings.rules, by_default=settings.by_default, floor=settings.floor, rests=settings.preset is None,
            most=settings.most(len(self.sets[name])), every=settings.eval_every, batch_size=settings.batch_size, seed=settings.seed,
            alpha=settings.alpha, original=copied(parameters) if settings.anchor == "original" else None, say=lambda line, step, most: self.say({"task": name, **line}, step, most), save=save, name=name if begun else "", measured=self.levels[name].origin != "assumed",
        )  # fmt: skip
        found = course.run(at, weights)
        done.lines += [{"task": name, **line} for line in found.lines]
        done.tasks.append(
            {
                "set": name,
                "level": self.levels[name].described(),
                "seconds": round(found.seconds, 3),
                "phases": found.ends,
                "points": found.points,
                "chosen": found.best,
                "outcome": found.outcome,
                "ended": found.ended,
            }
        )

    @property
    def _selects(self) -> bool:
        return any(phase.selective for phase in self.settings.method.phases)

    def _due(self) -> bool:
        """Whether this process saves, and saves have taken less than SAVING of the time."""
        at, cost = self._saved
        return (
            self.folder is not None
            and self.processes.main
            and not self.processes.sharded
            and time.monotonic() - at >= cost / SAVING
        )

    def _roles(self) -> list[tuple[str, Any]]:
        kept = RETAIN_LOSSES[self.settings.method.retain]
        found = [(FORGET, FORGET_LOSSES[phase.forget]) for phase in self.settings.method.phases]
        return [*found, *([(RETAIN, kept)] if kept else [])]

    def _stepper(self, learner: Learner, parameters: Any, fixed: Any, phase: Phase) -> Stepper:
        settings = self.settings
        terms = [self._term(FORGET, FORGET_LOSSES[phase.forget], settings.forget_weight)]
        if (kept := RETAIN_LOSSES[settings.method.retain]) and not phase.negated:
            terms.append(self._term(RETAIN, kept, settings.retain_weight))
        pace = phase.pace if settings.lr is None else 1.0
        return Stepper(
            learner, parameters, fixed, terms, lr=pace * self.rate(parameters, fixed), weight_decay=settings.weight_decay,
            grad_accum=settings.grad_accum, rectify=settings.rectify, processes=self.processes,
        )  # fmt: skip

    def rate(self, parameters: "Mapping[str, torch.nn.Parameter]", fixed: Mapping[str, Any]) -> float:
        """The learning rate; of fewer elements each moves further, so that a step is as long as it would be of all."""
        settings, width = self.settings, self.subject.core.config.get_text_config().hidden_size
        if settings.lora:
            return settings.rate(width, 1.0)
        moving = sum(
            one.numel() - (0 if fixed[name] is None else int(fixed[name].sum())) for name, one in parameters.items()
        )
        return settings.rate(width, moving / sum(one.numel() for one in self.subject.net.parameters()))

    def _term(self, role: str, objective: Objective, weight: float) -> Term:
        return Term(role, objective, weight, (self.settings.beta or objective.beta or 0.0) if objective.beta else 0.0)

    def _pool(self, role: str, examples: Examples) -> Pool:
        into = partial(
            encoded, role, tokenizer=self.subject.tokenizer, context=self.subject.context, vocabulary=self.subject.vocabulary,
            max_length=self.settings.max_length, prompt_template=self.settings.prompt_template, can_cut=True,
        )  # fmt: skip
        copies = []
        if any(one.refusals for of, one in self._roles() if of == role):
            for one in refused(examples, self.templates, self.settings.seed):
                copies.append(into(replace(one, label=f"{one.label} with refusals for answers")).rows)
        own = into(examples)

        def where(chosen: Sequence[int]) -> str:
            return f"{own.shown}: {own.unit} {listed(own.numbers[one] for one in chosen)}"

        return Pool(own.rows, copies, where)

    def _watching(self) -> dict[str, Any]:
        asked = [name for rule in self.settings.rules for name in rule.names]
        return {
            "batch_size": self.settings.batch_size,
            "prompt_template": self.settings.prompt_template,
            "max_length": self.settings.max_length,
            "ratios": any(name.startswith(("ks(", "log10_p(")) for name in asked),
        }

    def _seen(self, after: str | None, data: Mapping[str, Columns]) -> list[dict[str, Any]]:
        """Rows of the trajectory: MA of every set."""
        found = []
        for name, one in data.items():
            what = summary(one["ma"], seed=self.settings.seed)
            keys = ("value", "n", "sd", "ci_low", "ci_high")
            found.append({"after": after, "set": name, **{key: getattr(what, key) for key in keys}})
        return found


@dataclass
class Done:
    """before: the columns of every set before the first step. start: those of the examples that are looked at on the way. lines: of the log."""

    before: Mapping[str, Columns]
    start: Mapping[str, Columns]
    tasks: list[dict[str, Any]]
    trajectory: list[dict[str, Any]]
    lines: list[dict[str, Any]]
    lr: float = 0.0


def tasks_of(sets: Mapping[str, Examples]) -> list[str]:
    """The names of the forget sets, in order."""
    return [name for name in sets if name.startswith(FORGET)]
