"""The way of one forget set: steps, a look at every set now and then, and the decision where to stop and what to keep.

A point is a look at the model that would be saved. The run ends at the first point where a stop rule holds; the rule that is there by
default, forget set at the level of never-seen text, holds only where retention is above its floor as well. It ends, too, where
retention stays below the floor and does not rise, since the losses that unlearn have no bottom. Then the best point so far is kept: of those above the
floor the one whose memorization accuracy is closest to the level, for less is not better than never seen.

Where a run passes a measured level, or the number that a rule gives for ma(forget), between two points and ends well below it, or any level without its
retention, it lands: the weights of the best point and those here are mixed, w = (1 - t) w_best + t w_here, with t halved in on the level. That costs up to
four looks.

While retention is below its floor a run with a retain loss takes steps of that loss alone: the forget term rests until the next look. No
paper does so; without it the ascent losses, whose gradient grows as they succeed, outrun every fixed weight.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from math import isfinite
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from editkit.arithmetic.draws import key_of
from editkit.errors import EditError, listed
from editkit.training.encoding import Tokens
from editkit.unlearning.draws import Draws
from editkit.unlearning.learner import Batch
from editkit.unlearning.methods import Phase
from editkit.unlearning.rules import Rule, parse
from editkit.unlearning.selection import memorised
from editkit.unlearning.step import Stepper
from editkit.unlearning.trainable import copied, mixed, negated, put
from editkit.unlearning.watch import Columns, Values

if TYPE_CHECKING:
    import torch

    from editkit.unlearning.trainable import Weights

PATIENCE = 3
"""Points in a row below the floor after which a run ends, if retention has not risen from the first of them to the last."""
NEAR = 0.05
"""Memorization accuracy by which the level may be undercut."""
HALVINGS = 4


class Diverged(EditError):
    """A loss is not a number: what was done before is not kept, since a run that goes on would meet the same."""


class Pool(NamedTuple):
    """The examples of one role. refused: copies of them with refusals for answers. where: what to call an example in an error."""

    rows: list[Tokens]
    refused: list[list[Tokens]]
    where: Callable[[Sequence[int]], str]

    def batch(self, chosen: Sequence[int], step: int, seed: int) -> Batch:
        """These examples, each with one of its refusals."""
        if not self.refused:
            return Batch([self.rows[one] for one in chosen], [])
        first = key_of(seed, f"refusal {step}")
        copies = (self.refused[(first + one) % len(self.refused)] for one in chosen)
        return Batch([self.rows[one] for one in chosen], [copy[one] for copy, one in zip(copies, chosen, strict=True)])


@dataclass
class Progressed:
    """Where a course is: all that is needed to go on."""

    phase: int = 0
    step: int = 0
    in_phase: int = 0
    points: list[dict[str, Any]] = field(default_factory=list)
    lines: list[dict[str, Any]] = field(default_factory=list)
    ends: list[dict[str, Any]] = field(default_factory=list)
    best: int | None = None
    selected: list[int] | None = None
    since: int = 0
    resting: bool = False
    outcome: str | None = None
    ended: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Course:
    """steppers: one maker per phase. look: measures all sets with the weights as they are. original: the weights of the run's start, or None to anchor at the phase's.

    level: memorization accuracy of never-seen text. start: what was measured before the first step of the run. most: steps of a phase.
    name: of the forget set; another one draws other batches. measured: whether the level is that of real text, so that less is too little.
    """

    phases: Sequence[Phase]
    steppers: Callable[[Phase], Stepper]
    parameters: "Mapping[str, torch.nn.Parameter]"
    pools: Mapping[str, Pool]
    look: Callable[[], tuple[Mapping[str, Columns], Values]]
    start: Values
    level: float
    rules: Sequence[Rule]
    by_default: bool
    floor: float
    rests: bool
    most: int
    every: int
    batch_size: int
    seed: int
    alpha: float
    original: "Weights | None"
    say: Callable[[Mapping[str, Any], int, int], None]
    save: "Callable[[Progressed, dict[str, torch.Tensor]], None]"
    name: str = ""
    measured: bool = True

    def run(self, at: Progressed, weights: "dict[str, Weights]") -> Progressed:
        """Go on from `at` to the end; the parameters are then those of the chosen point. weights: what `save` was given last, by kind."""
        best = weights.get("best")
        while at.phase < len(self.phases) and at.outcome is None:
            phase = self.phases[at.phase]
            stepper = self.steppers(phase)
            start = weights.get("start") or (copied(self.parameters) if phase.negated else None)
            if "now" in weights:
                put(weights["now"], self.parameters)
                stepper.restore(weights, at.in_phase)
            if not at.points:
                best, ended = self._point(at, phase, start, best, [])
                if ended:
                    at.ends.append({"name": phase.name, "steps": 0, "ended": f"{ended} before the first step"})
                    break
            weights = {}
            losses: list[dict[str, float]] = []
            while at.outcome is None:
                began = time.monotonic()
                losses.append(self._step(at, phase, stepper))
                over = at.in_phase == self.most
                if at.in_phase % self.every and not over:
                    at.seconds += time.monotonic() - began
                    continue
                best, ended = self._point(at, phase, start, best, losses)
                losses = []
                at.seconds += time.monotonic() - began
                if ended or over:
                    at.ends.append({"name": phase.name, "steps": at.in_phase, "ended": ended or f"{self.most} steps"})
                    break
                self.save(at, self._weights(stepper, start, best))
            at.phase, at.in_phase, at.selected, at.since = at.phase + 1, 0, None, 0
            at.resting = False
        at.outcome = at.outcome or "not reached"
        at.ended = at.ends[-1]["ended"]
        if best is not None:
            put(best, self.parameters)
        return at

    def _step(self, at: Progressed, phase: Phase, stepper: Stepper) -> dict[str, float]:
        batches, chosen = {}, {}
        for role in [term.role for term in stepper.terms if not (at.resting and term.role == "forget")]:
            pool = self.pools[role]
            some = at.selected if role == "forget" and at.selected is not None else range(len(pool.rows))
            first = at.since if role == "forget" else 0
            draws = Draws(len(some), self.batch_size, self.seed, f"{self.name} {role} {at.phase} {first}")
            chosen[role] = [some[one] for one in draws.at(at.in_phase - first)]
            batches[role] = pool.batch(chosen[role], at.step, self.seed)
        found = stepper.take(at.in_phase, batches)
        at.step, at.in_phase = at.step + 1, at.in_phase + 1
        if bad := [name for name, value in found.items() if not isfinite(value)]:
            texts = "; ".join(self.pools[role].where(some) for role, some in chosen.items())
            raise Diverged(
                f"{listed(bad)} {'is' if len(bad) == 1 else 'are'} not a number at step {at.step} ({phase.name}; {texts}): lower {stepper.remedy}"
            )
        at.lines.append({"phase": phase.name, "step": at.step, **found})
        self.say(at.lines[-1], at.in_phase, self.most)
        return found

    def _point(
        self,
        at: Progressed,
        phase: Phase,
        start: "Weights | None",
        best: "Weights | None",
        losses: Sequence[Mapping[str, float]],
    ) -> "tuple[Weights | None, str]":
        """Look, and remember the weights if none were better. Returns them, and why the phase ends here, "" if it does not."""
        with self._edited(phase, start):
            data, values = self._look()
            if phase.selective:
                at.selected, at.since = memorised(np.nan_to_num(data["forget"]["ma"])), at.in_phase
            at.resting = self.rests and len(self.pools) > 1 and not phase.negated and not self._kept(values)
            self._noted(at, values, losses)
            ended = self._ended(at, phase)
            aim = self._aim(phase)
            if aim and best is not None and self._crossed(at, aim) and (landed := self._landed(best, aim)):
                mix, values = landed
                self._noted(at, values, [], mix)
                held = self._held(values)
                at.outcome = "reached" if held else None
                ended = (held or aim).text
            reached = at.outcome == "reached" and self._kept(values)
            if reached or at.best is None or self._order(values) <= self._order(at.points[at.best]["values"]):
                at.best, best = len(at.points) - 1, copied(self.parameters, "cpu")
        return best, ended

    def _look(self) -> tuple[Mapping[str, Columns], Values]:
        data, values = self.look()
        values["retention"] = _ratio(values.get("ma(retain)"), self.start.get("ma(retain)"))
        return data, values

    def _noted(
        self, at: Progressed, values: Values, losses: Sequence[Mapping[str, float]], mix: float | None = None
    ) -> None:
        """Add a point. losses: of the steps since the last one."""
        means = {
            name: float(np.mean([one[name] for one in losses if name in one]))
            if any(name in one for one in losses)
            else None
            for name in ("forget_loss", "retain_loss")
        }
        selected = len(at.selected) if at.selected is not None else None
        at.points.append(
            {
                "phase": at.phase,
                "step": at.step,
                "mix": mix,
                **means,
                "selected": selected,
                "resting": at.resting,
                "values": values,
            }
        )
        at.lines.append({"phase": self.phases[at.phase].name, "step": at.step, "mix": mix, "values": values})
        self.say(at.lines[-1], at.in_phase, self.most)

    def _aim(self, phase: Phase) -> Rule | None:
        """The rule that says how far to forget: that of the phase, or, if that is met first, the run's."""
        aims = [rule for rule in (self._goal(), self._until(phase) if self.rests else None) if rule]
        return max(aims, key=self._target, default=None)

    def _goal(self) -> Rule | None:
        """The first rule of the run that begins with ma(forget) below a number."""
        below = (
            rule for rule in self.rules if rule.terms[0].name == "ma(forget)" and rule.terms[0].relation in ("<", "<=")
        )
        return next(below, None)

    def _until(self, phase: Phase) -> Rule | None:
        """The rule that ends a phase before the run's own: so much of the way from the start is left to where the run ends."""
        if phase.left is None:
            return None
        goal = self._goal()
        end = self.level if goal is None else self._target(goal)
        return parse(f"ma(forget) <= {end + phase.left * max(_number(self.start.get('ma(forget)')) - end, 0):.2f}")

    def _target(self, rule: Rule) -> float:
        """The memorization accuracy that a rule asks for."""
        term = rule.terms[0]
        return term.number * {"": 1.0, "x": _number(self.start.get("ma(forget)")), "level": self.level}[term.unit]

    def _crossed(self, at: Progressed, rule: Rule) -> bool:
        """Whether the target was passed since the last point, and not kept to, or not with what else the rule asks for."""
        if len(at.points) < 2 or at.best is None:
            return False
        now, target = at.points[-1]["values"], self._target(rule)
        last, best, this = (
            _number(one["ma(forget)"]) for one in (at.points[-2]["values"], at.points[at.best]["values"], now)
        )
        over = this < target - NEAR and (self.measured or rule.terms[0].unit != "level")
        done = self._kept(now) and rule.holds(now, self.start, self.level)
        return best > target >= this and (over if done else last > target)

    def _landed(self, best: "Weights", rule: Rule) -> tuple[float, Values] | None:
        """The smallest share of the way from the best point to here at which the rule holds, and what was measured there.

        The parameters are then those of that point; None, and they are as before, where there is no such point.
        """
        target = self._target(rule)
        now, low, high, found = copied(self.parameters, "cpu"), 0.0, 1.0, None
        for _ in range(HALVINGS):
            mix = (low + high) / 2
            put(mixed(best, now, mix), self.parameters)
            values = self._look()[1]
            if rule.holds(values, self.start, self.level):
                high = mix
                found = (mix, values) if self._kept(values) else found
                if found and target - _number(values["ma(forget)"]) <= NEAR:
                    break
            else:
                low = mix
        put(mixed(best, now, found[0]) if found else now, self.parameters)
        return found

    def _edited(self, phase: Phase, start: "Weights | None") -> AbstractContextManager[None]:
        if start is None:
            return nullcontext()
        return negated(self.parameters, start, self.original or start, self.alpha)

    def _order(self, values: Values) -> tuple[bool, float]:
        """Smaller is better: above the floor, and close to the level, or to the start where that is lower; without a rule the later, the better."""
        if not self.rules:
            return not self._kept(values), 0.0
        goal = min(self.level, _number(self.start.get("ma(forget)")))
        return not self._kept(values), abs(_number(values["ma(forget)"]) - goal)

    def _kept(self, values: Values) -> bool:
        retention = values["retention"]
        return retention is None or retention >= self.floor

    def _held(self, values: Values) -> Rule | None:
        """The first rule of the run that holds there."""
        return next((rule for rule in self.rules if rule.holds(values, self.start, self.level)), None)

    def _ended(self, at: Progressed, phase: Phase) -> str:
        """Why the phase ends at the last point, in words; "" if it does not. Sets the outcome where the course ends."""
        values = at.points[-1]["values"]
        kept = self._kept(values)
        # Ours says what a model should be like, before any step too; those that were asked for say what steps should do.
        asked = kept if self.by_default else at.in_phase
        if asked and (held := self._held(values)):
            at.outcome = "reached" if kept else "stopped"
            return held.text
        if not at.in_phase:
            return ""
        until = self._until(phase)
        if until and until.holds(values, self.start, self.level) and (kept or not self.rests):
            return until.text
        recent = [point["values"] for point in at.points[-PATIENCE:] if point["phase"] == at.phase]
        if (
            len(recent) == PATIENCE
            and not any(map(self._kept, recent))
            and recent[-1]["retention"] <= recent[0]["retention"]
        ):
            at.outcome = "collapsed"
            return f"retention {recent[-1]['retention']:.3f} is below its floor of {self.floor:g} and does not rise"
        return ""

    def _weights(self, stepper: Stepper, start: "Weights | None", best: "Weights | None") -> "dict[str, torch.Tensor]":
        kinds = {"now": copied(self.parameters), "start": start, "best": best, **stepper.state()}
        return {f"{kind}/{name}": one for kind, weights in kinds.items() if weights for name, one in weights.items()}


def _number(value: float | None) -> float:
    return 1.0 if value is None else value


def _ratio(value: float | None, start: float | None) -> float | None:
    return value / start if value is not None and start else None
