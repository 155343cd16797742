"""Where a run stops and what it keeps, with one number for a model: 10 at the start, and 1 more at every step."""

import json
from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from editkit.errors import EditError
from editkit.training.encoding import Tokens
from editkit.unlearning.course import Course, Pool, Progressed
from editkit.unlearning.methods import Phase, method
from editkit.unlearning.rules import DEFAULT_RULE, parse

PLAIN = (Phase("unlearn", "ga"),)


class Walker:
    """A course whose looks give what a script says, or a function `of` the weight; `weights` are the parameters at each look, `taken` all batches."""

    def __init__(self, script=(), of=None, phases=PLAIN, mas=None, losses=lambda step: (1.0, 2.0), rows=4, **settings):
        self.w = torch.nn.Parameter(torch.tensor([10.0]))
        self.script, self.of, self.mas, self.losses = list(script), of, mas, losses
        self.weights, self.taken, self.moved, self.saves, self.said, self.steppers = [], [], [], [], [], []
        self.looks, self.remedy = 0, "--lr"
        pool = [Tokens([place], [place]) for place in range(rows)]
        self.settings = {
            "phases": phases, "steppers": self.stepper, "parameters": {"w": self.w}, "look": self.look,
            "pools": {"forget": Pool(pool, [], lambda some: f"f.jsonl: lines {some}"), "retain": Pool(pool[:3], [], lambda some: f"r.jsonl: lines {some}")},
            "start": {"ma(forget)": 1.0, "ma(retain)": 0.8}, "level": 0.3, "rules": [parse(DEFAULT_RULE)], "by_default": True, "floor": 0.9, "most": 20,
            "every": 2, "rests": False, "batch_size": 2, "seed": 0, "alpha": 1.0, "original": None, "say": lambda *told: self.said.append(told), "save": self.save,
        } | settings  # fmt: skip

    def run(self, at=None, weights=None):
        self.result = Course(**self.settings).run(at or Progressed(), weights or {})
        return self.result

    def stepper(self, phase):
        self.steppers.append(phase.name)
        self.terms = [SimpleNamespace(role="forget")] + ([] if phase.negated else [SimpleNamespace(role="retain")])
        return self

    def take(self, step, batches):
        self.moved.append((step, self.w.item()))
        self.taken.append({role: [row.ids[0] for row in batch.rows] for role, batch in batches.items()})
        self.w.data += 1
        losses = zip(("forget", "retain"), self.losses(len(self.taken)), strict=True)
        return {f"{role}_loss": loss for role, loss in losses if role in batches}

    def state(self):
        return {"exp_avg": {"w": torch.zeros(1)}}

    def restore(self, state, steps):
        assert "exp_avg" in state

    def look(self):
        self.weights.append(self.w.item())
        ma, retention = self.of(self.w.item()) if self.of else self.script[min(self.looks, len(self.script) - 1)]
        each = np.array(self.mas[min(self.looks, len(self.mas) - 1)]) if self.mas else np.full(4, ma)
        self.looks += 1
        return {"forget": {"ma": each}}, {"ma(forget)": ma, "ma(retain)": retention * 0.8}

    def save(self, at, tensors):
        kept = {}
        for name, one in tensors.items():
            kind, _, of = name.partition("/")
            kept.setdefault(kind, {})[of] = one.clone()
        self.saves.append((json.loads(json.dumps(asdict(at))), kept, self.looks, len(self.taken)))


@pytest.fixture
def no_way_back(monkeypatch):
    """Between two points nothing is looked for."""
    monkeypatch.setattr("editkit.unlearning.course.HALVINGS", 0)


def test_a_run_ends_at_the_first_point_where_the_rule_and_the_floor_hold(no_way_back):
    """MA is at the level at step 4 already, and retention still below its floor."""
    walker = Walker([(1, 1), (0.6, 0.95), (0.25, 0.85), (0.2, 0.92), (0.0, 1)])
    found = walker.run()
    assert (found.outcome, found.ended, found.step, found.best) == ("reached", DEFAULT_RULE, 6, 3)
    assert [point["step"] for point in found.points] == [0, 2, 4, 6]
    assert walker.w.item() == 16 and walker.weights == [10, 12, 14, 16]
    assert [point["values"]["retention"] for point in found.points] == pytest.approx([1, 0.95, 0.85, 0.92])
    assert found.ends == [{"name": "unlearn", "steps": 6, "ended": DEFAULT_RULE}]


def test_a_rule_that_was_asked_for_holds_below_the_floor_too_and_what_is_kept_is_above_it():
    walker = Walker([(1, 1), (0.6, 0.95), (0.25, 0.5)], rules=[parse("ma(forget) <= 30 %")], by_default=False)
    found = walker.run()
    assert (found.outcome, found.ended, found.step) == ("stopped", "ma(forget) <= 30 %", 4)
    assert found.best == 1 and walker.w.item() == 12


def test_any_rule_ends_a_run():
    rules = [parse("ma(forget) <= level"), parse("ma(retain) < 0.97x")]
    found = Walker([(1, 1), (0.9, 0.98), (0.8, 0.96)], rules=rules, by_default=False).run()
    assert (found.ended, found.step) == ("ma(retain) < 0.97x", 4)


def test_a_model_that_is_at_the_level_already_takes_no_step():
    walker = Walker([(0.29, 1), (0.05, 1)])
    found = walker.run()
    assert (found.step, found.outcome, found.best, walker.w.item()) == (0, "reached", 0, 10)
    assert found.ends == [{"name": "unlearn", "steps": 0, "ended": f"{DEFAULT_RULE} before the first step"}]


def test_where_the_first_phase_reaches_the_level_the_second_takes_no_step(no_way_back):
    walker = Walker([(1, 1), (0.2, 1)], phases=TAU)
    found = walker.run()
    assert [(one["name"], one["steps"]) for one in found.ends] == [("ascend", 2)]
    assert (found.outcome, found.best, walker.w.item()) == ("reached", 1, 12)


def test_rules_that_were_asked_for_end_a_run_in_every_phase():
    rules = [parse("ma(forget) <= 0.7")]
    found = Walker([(1, 1), (0.65, 1), (0.4, 1)], phases=TAU, rules=rules, by_default=False).run()
    assert (found.outcome, found.ended, found.step) == ("reached", "ma(forget) <= 0.7", 2)


def test_a_level_passed_below_the_floor_is_landed_on_when_retention_is_back():
    """Nothing on the way to w = 12 keeps enough; once 14 does, half of the way to it is tried, then a quarter, then three eighths."""
    seen = set()

    def of(w):
        seen.add(w)
        return max(0.9 - 0.4 * (w - 10), 0.1), 1 if w == 10 or 14 in seen else 0.5

    walker = Walker(of=of)
    found = walker.run()
    assert (found.outcome, found.step, found.points[-1]["mix"], walker.w.item()) == ("reached", 4, 0.375, 11.5)
    assert [point["mix"] for point in found.points] == [None, None, None, 0.375]


@pytest.mark.parametrize(
    ("rule", "start"), [("ma(forget) <= 0.5 and ma(retain) >= 0.9x", 1.0), ("ma(forget) < 0.625x", 0.8)]
)
def test_a_rule_that_was_asked_for_is_landed_on_too(rule, start):
    """MA 1, 0.8 at w = 12, 0.2 at w = 14, and 0.5 half of the way between them."""
    of = lambda w: (1 - 0.1 * (w - 10) if w <= 12 else 0.8 - 0.3 * (w - 12) - 1e-9, 1.0)  # noqa: E731
    walker = Walker(
        of=of,
        rules=[parse("ma(retain) < 0.5"), parse(rule)],
        by_default=False,
        start={"ma(forget)": start, "ma(retain)": 0.8},
    )
    found = walker.run()
    assert (found.outcome, found.ended, found.points[-1]["mix"], walker.w.item()) == ("reached", rule, 0.5, 13)


def test_a_rule_about_something_else_is_not_landed_on():
    walker = Walker([(1, 1), (0.2, 1)], rules=[parse("ma_max(forget) <= 0.5")], by_default=False)
    assert [point["mix"] for point in walker.run().points] == [None] * 11


def test_forget_sets_draw_batches_of_their_own():
    one, other = (Walker([(1, 1)], rows=40, most=6, name=name) for name in ("forget 1", "forget 2"))
    one.run(), other.run()
    assert [batch["forget"] for batch in one.taken] != [batch["forget"] for batch in other.taken]


def test_without_the_rule_ever_holding_the_point_closest_to_the_level_is_kept():
    """0.45 is as far from the level as 0.15 would be farther: 0.12 is 0.18 away, 0.45 is 0.15 away."""
    script = [(1, 1), (0.7, 1), (0.45, 0.91), (0.31, 0.89), (0.12, 0.95)]
    rules = [parse("ma(forget) < 0.05")]
    walker = Walker(script, most=8, rules=rules)
    found = walker.run()
    assert (found.outcome, found.ended, found.step) == ("not reached", "8 steps", 8)
    assert found.best == 2 and walker.w.item() == 14


def test_equally_good_points_are_decided_for_the_later_one():
    walker = Walker([(1, 1), (0.5, 1), (0.5, 1), (0.6, 1)], most=6)
    assert walker.run().best == 2 and walker.w.item() == 14


def test_without_a_rule_the_last_point_above_the_floor_is_kept():
    """Refusals do not show in MA, which may rise and fall as it likes."""
    walker = Walker([(1, 1), (0.3, 1), (0.9, 0.95), (0.3, 0.8)], most=6, rules=[])
    found = walker.run()
    assert (found.best, found.outcome, found.ended, walker.w.item()) == (2, "not reached", "6 steps", 14)


def test_a_run_that_stays_below_the_floor_without_rising_ends_and_keeps_the_best_point_above_it():
    script = [(1, 1), (0.8, 0.95), (0.7, 0.8), (0.5, 0.7), (0.4, 0.8), (0.3, 1)]
    walker = Walker(script)
    found = walker.run()
    assert (found.outcome, found.step, found.best) == ("collapsed", 8, 1)
    assert found.ended == found.ends[-1]["ended"] == "retention 0.800 is below its floor of 0.9 and does not rise"
    assert walker.w.item() == 12


def test_a_run_that_recovers_goes_on():
    """Three below the floor that rise; then two below, one above: patience begins anew."""
    script = [(1, 1), (0.8, 0.5), (0.7, 0.6), (0.5, 0.7), (0.45, 0.95), (0.4, 0.8), (0.4, 0.7), (0.3, 0.9)]
    found = Walker(script).run()
    assert (found.outcome, found.step, found.best) == ("reached", 14, 7)


def test_without_a_retain_set_nothing_collapses():
    walker = Walker([(1, 1), (0.8, 1), (0.28, 1)], start={"ma(forget)": 1.0})
    inner = walker.settings["look"]
    walker.settings["look"] = lambda: (inner()[0], {"ma(forget)": walker.script[walker.looks - 1][0]})
    found = walker.run()
    assert found.outcome == "reached" and [point["values"]["retention"] for point in found.points] == [None] * 3


def test_the_last_point_is_where_the_steps_end_not_where_a_look_was_due():
    found = Walker([(1, 1), (0.9, 1)], most=5).run()
    assert [point["step"] for point in found.points] == [0, 2, 4, 5]
    assert found.ends == [{"name": "unlearn", "steps": 5, "ended": "5 steps"}]


def test_losses_of_a_point_are_means_since_the_one_before():
    found = Walker([(1, 1), (0.9, 1)], most=3, losses=lambda step: (float(step), 10.0 * step)).run()
    assert [(one["forget_loss"], one["retain_loss"]) for one in found.points] == [
        (None, None),
        (1.5, 15.0),
        (3.0, 30.0),
    ]


def test_every_step_and_every_point_has_a_line_and_is_told():
    walker = Walker([(1, 1), (0.9, 1)], most=3)
    found = walker.run()
    assert [(line["step"], "values" in line) for line in found.lines] == [
        (0, True), (1, False), (2, False), (2, True), (3, False), (3, True),
    ]  # fmt: skip
    assert [told[0] for told in walker.said] == found.lines
    assert [told[1:] for told in walker.said] == [(line["step"], 3) for line in found.lines]


TAU = (
    Phase("ascend", "ga", selective=True, left=0.25),
    Phase("learn", "learn", negated=True, pace=0.3),
)


def test_the_phases_of_tau_are_those_that_the_procedure_is_tested_with():
    assert method("tau").phases == TAU


@pytest.mark.parametrize(("original", "edited"), [(None, [11.0, 8.0]), (10.0, [7.0, 4.0])])
def test_a_negated_phase_shows_and_saves_its_anchor_minus_alpha_times_what_was_learned(original, edited):
    """Ascent ends at 14. Learning goes to 16 and 18: 14 - 1.5 * 2 = 11 and 14 - 1.5 * 4 = 8; anchored at 10 that is 7 and 4."""
    script = [(1, 1), (0.7, 1), (0.45, 1), (0.4, 1), (0.3, 1)]
    anchor = None if original is None else {"w": torch.tensor([original])}
    walker = Walker(script, phases=TAU, alpha=1.5, original=anchor)
    found = walker.run()
    assert walker.weights == [10, 12, 14, *edited]
    assert [at for _, at in walker.moved] == [10, 11, 12, 13, 14, 15, 16, 17], "learning goes on from what was learned"
    assert [step for step, _ in walker.moved] == [0, 1, 2, 3] * 2, "each phase warms up"
    assert walker.steppers == ["ascend", "learn"]
    assert (found.outcome, found.best, walker.w.item()) == ("reached", 4, edited[1])
    assert [(one["name"], one["steps"]) for one in found.ends] == [("ascend", 4), ("learn", 4)]
    assert [(point["phase"], point["step"]) for point in found.points] == [(0, 0), (0, 2), (0, 4), (1, 6), (1, 8)]


def test_the_learned_weights_come_back_bit_for_bit():
    """0.1 + (w - 0.1) is not w in float32; a copy is."""
    walker = Walker([(1, 1), (0.9, 1)], phases=(TAU[1],), alpha=0.3, every=1, most=3)
    walker.w.data = torch.tensor([0.1])
    seen = []
    inner = walker.settings["look"]

    def look():
        seen.append(walker.w.item())
        return inner()

    walker.settings["look"] = look
    walker.run()
    start = torch.tensor([0.1])
    expected = [start]
    for _ in range(3):
        expected.append(expected[-1] + 1)
    assert [at for _, at in walker.moved] == [one.item() for one in expected[:3]]
    for one, other in zip(seen, expected, strict=True):
        assert one == pytest.approx(0.1 - 0.3 * (other.item() - 0.1), abs=1e-6)


@pytest.mark.parametrize(("end", "first"), [("0.2", "0.40"), ("0.33", "0.50"), ("0.8", "0.85")])
def test_the_first_phase_of_tau_ends_a_quarter_of_the_way_above_the_end_of_the_run(end, first):
    """0.2 + 0.8 / 4; 0.33 + 0.67 / 4 = 0.4975, with an end of 0.33 as in the paper, which says 0.5; 0.8 + 0.2 / 4."""
    script = [(1, 1), (float(first), 1), (0.9, 1), (float(end) - 0.01, 1)]
    found = Walker(script, phases=TAU, rules=[parse(f"ma(forget) < {end}")]).run()
    assert [(one["name"], one["steps"], one["ended"]) for one in found.ends] == [
        ("ascend", 2, f"ma(forget) <= {first}"), ("learn", 4, f"ma(forget) < {end}"),
    ]  # fmt: skip


@pytest.mark.parametrize(("rule", "ended"), [("ma(retain) < 0.99x", True), ("ma(retain) < 0.97x", False)])
def test_a_rule_that_holds_where_the_first_phase_lands_ends_the_run(rule, ended):
    """0.3 + 0.7 / 4 = 0.475 is passed from 1 to 0.2; an MA of 0.45 is 11/16 of the way, and 0.9725 of the retain set is left there."""
    walker = Walker(
        of=lambda w: (1 - 0.4 * (w - 10), 1 - 0.02 * (w - 10)), phases=TAU, rests=True, rules=[parse(rule)],
        by_default=False, most=2,
    )  # fmt: skip
    found = walker.run()
    assert (found.points[2]["mix"], found.points[2]["values"]["ma(forget)"]) == (0.6875, pytest.approx(0.45))
    assert (found.outcome == "reached", len(found.ends) == 1) == (ended, ended)
    assert found.ends[0]["ended"] == (rule if ended else "ma(forget) <= 0.47")


def test_a_collapse_in_the_first_phase_ends_the_run():
    walker = Walker([(1, 1), (0.9, 0.5), (0.8, 0.4), (0.7, 0.3)], phases=TAU)
    found = walker.run()
    assert (found.outcome, [one["name"] for one in found.ends], walker.w.item()) == ("collapsed", ["ascend"], 10)


def test_examples_are_selected_anew_at_every_look():
    """MA >= 0.7 or the most memorised; a batch of two of them, every one of which comes in its turn."""
    mas = [[0.9, 0.1, 0.7, 0.8], [0.9, 0.1, 0.69, 0.2], [0.2, 0.3, 0.1, 0.1]]
    walker = Walker([(1, 1)], phases=method("sga").phases, mas=mas, every=3, most=9)
    found = walker.run()
    drawn = [batch["forget"] for batch in walker.taken]
    assert (
        sorted(drawn[0] + drawn[1] + drawn[2]) == [0, 0, 2, 2, 3, 3]
        and drawn[3:6] == [[0]] * 3
        and drawn[6:] == [[1]] * 3
    )
    assert [point["selected"] for point in found.points] == [3, 1, 1, 1]
    assert all(set(batch["retain"]) <= {0, 1, 2} for batch in walker.taken)


def test_the_phase_after_a_selective_one_takes_all_examples():
    walker = Walker([(1, 1), (0.45, 1), (0.9, 1)], phases=TAU, mas=[[0.9, 0.1, 0.1, 0.1]], most=4)
    found = walker.run()
    drawn = [batch["forget"] for batch in walker.taken]
    assert drawn[:2] == [[0]] * 2
    assert sorted(drawn[2] + drawn[3]) == sorted(drawn[4] + drawn[5]) == [0, 1, 2, 3]
    assert [point["selected"] for point in found.points] == [1, 1, None, None]


def test_an_example_without_a_memorization_accuracy_is_not_memorised():
    walker = Walker([(1, 1)], phases=method("sga").phases, mas=[[float("nan"), 0.1, float("nan"), 0.2]], most=2)
    walker.run()
    assert [batch["forget"] for batch in walker.taken] == [[3], [3]]


def test_retain_batches_are_not_tied_to_forget_batches():
    """4 forget and 3 retain examples in batches of 2: every pass takes each of them once, in orders of their own."""
    walker = Walker([(1, 1)], most=12)
    walker.run()
    forget = [one for batch in walker.taken for one in batch["forget"]]
    retain = [one for batch in walker.taken for one in batch["retain"]]
    assert all(sorted(forget[at : at + 4]) == [0, 1, 2, 3] for at in range(0, 24, 4))
    assert all(sorted(retain[at : at + 3]) == [0, 1, 2] for at in range(0, 24, 3))
    assert len({tuple(forget[at : at + 4]) for at in range(0, 24, 4)}) > 1


def test_a_loss_that_is_no_number_is_an_error_that_says_where():
    walker = Walker([(1, 1)], losses=lambda step: (float("nan") if step == 3 else 1.0, 2.0))
    with pytest.raises(EditError) as caught:
        walker.run()
    batch = walker.taken[2]
    assert str(caught.value) == (
        f"forget_loss is not a number at step 3 (unlearn; f.jsonl: lines {batch['forget']}; r.jsonl: lines {batch['retain']}): lower --lr"
    )


def test_the_forget_term_rests_from_a_look_below_the_floor_to_the_next_one_above_it():
    walker = Walker([(1, 1), (0.6, 0.8), (0.7, 0.85), (0.5, 0.95), (0.28, 1)], rests=True)
    found = walker.run()
    assert [point["resting"] for point in found.points] == [False, True, True, False, False]
    assert ["forget" in batch for batch in walker.taken] == [True] * 2 + [False] * 4 + [True] * 2
    assert all("retain" in batch for batch in walker.taken)
    assert [point["forget_loss"] for point in found.points] == [None, 1.0, None, None, 1.0]
    assert (found.outcome, found.step) == ("reached", 8)


def test_a_level_that_was_passed_by_is_looked_for_between_the_best_point_and_this_one():
    """MA is 0.6 at 14 and 0.2 at 18, far below the level of 0.31: at 16 it is 0.4, at 17 it is 0.3, which is near enough."""
    walker = Walker(of=lambda w: (1 - 0.1 * (w - 10), 1.0), every=4, level=0.31)
    found = walker.run()
    assert walker.weights == [10, 14, 18, 16, 17] and walker.w.item() == 17
    assert (found.outcome, found.ended, found.best, found.step) == ("reached", DEFAULT_RULE, 3, 8)
    assert [(point["step"], point["mix"]) for point in found.points] == [(0, None), (4, None), (8, None), (8, 0.75)]
    assert found.points[3]["values"]["ma(forget)"] == pytest.approx(0.3)


def test_between_two_points_there_may_be_one_that_keeps_what_the_second_lost():
    """0.2 at 18 with retention 0.5: at 16 MA is 0.4, 0.05 below the level; at 15 it is 0.5, above it; at 15.5 it is 0.45."""
    walker = Walker(of=lambda w: (1 - 0.1 * (w - 10), 1.0 if w < 16.6 else 0.5), every=4, level=0.4501)
    found = walker.run()
    assert walker.weights == [10, 14, 18, 16, 15, 15.5] and walker.w.item() == 15.5
    assert (found.outcome, found.points[found.best]["mix"]) == ("reached", 0.375)


def test_where_nothing_between_two_points_will_do_the_run_goes_on_from_the_second():
    """MA falls only where retention is lost; 18 and all between 16.6 and 18 are below the floor."""
    walker = Walker(of=lambda w: (0.8, 1.0) if w < 16.6 else (0.29, 0.5), every=4, most=12)
    found = walker.run()
    assert walker.moved[8] == (8, 18) and found.outcome != "reached" and walker.w.item() == 14
    assert [point["mix"] for point in found.points] == [None] * len(found.points)


def test_a_negated_phase_lands_between_weights_as_they_would_be_saved():
    """Learning goes up from 10 and the edit down: 10, 6, 2, with MA 1, 0.6, 0.2; level 0.31: 4, then 3."""
    walker = Walker(of=lambda w: (0.1 * w, 1.0), phases=(TAU[1],), every=4, level=0.31)
    found = walker.run()
    assert walker.weights == [10, 6, 2, 4, 3] and walker.w.item() == 3 and found.outcome == "reached"


CASES = {
    "resting": {"script": [(1, 1), (0.6, 0.8), (0.7, 0.85), (0.5, 0.95), (0.28, 1)], "rests": True},
    "plain": {"script": [(1, 1), (0.8, 1), (0.35, 1), (0.6, 0.8), (0.5, 0.7), (0.1, 0.6)]},
    "reached": {"script": [(1, 1), (0.8, 1), (0.6, 1), (0.28, 1)]},
    "landed": {"of": lambda w: (1 - 0.1 * (w - 10), 1.0), "every": 4, "level": 0.31},
    "passed": {"of": lambda w: (0.8, 1.0) if w < 16.6 else (0.29, 0.5), "every": 4, "most": 17},
    "tau": {"script": [(1, 1), (0.8, 1), (0.5, 1), (0.6, 1), (0.4, 1), (0.3, 1)], "phases": TAU, "alpha": 1.5},
    "anchored": {"script": [(1, 1), (0.5, 1), (0.6, 1), (0.4, 1), (0.3, 1)], "phases": TAU, "original": {"w": torch.tensor([10.0])}},
    "sga": {"script": [(1, 1)], "phases": TAU[:1], "mas": [[0.9, 0.1, 0.9, 0.8], [0.1, 0.7, 0.9, 0.2], [0.1, 0.3, 0.7, 0.1]], "most": 9},
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_course_goes_on_from_every_state_as_if_it_had_not_been_interrupted(case):
    whole = Walker(**CASES[case])
    found = asdict(whole.run())
    assert whole.saves
    for at, weights, looks, steps in whole.saves:
        again = Walker(**CASES[case])
        again.looks = looks
        again.taken = whole.taken[:steps]
        other = asdict(again.run(Progressed(**at), weights))
        assert {**other, "seconds": 0} == {**found, "seconds": 0}
        assert again.w.item() == whole.w.item() and again.taken == whole.taken
        assert again.moved == whole.moved[steps:] and again.weights == whole.weights[looks:]
