"""What the report warns of: where a run ended, why, and which step is kept."""

import pytest

from editkit.unlearning.report import below_floor, over_forgotten, warnings
from editkit.unlearning.rules import parse
from editkit.unlearning.watch import Level


def task(outcome, chosen, *points, ended="40 steps"):
    """points: (MA of the forget set, retention), ten steps apart."""
    rows = [
        {"step": 10 * place, "values": {"ma(forget)": ma, "retention": kept}} for place, (ma, kept) in enumerate(points)
    ]
    return {"set": "forget", "outcome": outcome, "ended": ended, "chosen": chosen, "points": rows}


RULE = [parse("ma(forget) <= level")]
ABOVE = task("not reached", 2, (0.9, 1.0), (0.8, 0.99), (0.7, 0.98))
NEARER = task("not reached", 1, (0.9, 1.0), (0.7, 0.99), (0.8, 0.98))
BELOW = task("not reached", 1, (0.9, 1.0), (0.8, 0.99), (0.7, 0.93), (0.6, 0.91))
UNKNOWN = task("not reached", 1, (None, None), (None, None))
SAID = [
    ([], ABOVE, None),
    (RULE, ABOVE, "the stop rule never held in 20 steps; step 20 is kept, with MA 0.70: give more --steps, or another --lr"),
    (RULE, NEARER, "the stop rule never held in 20 steps; step 10 is kept, with MA 0.70: give more --steps, or another --lr"),
    (RULE, UNKNOWN, "the stop rule never held in 10 steps; step 10 is kept, with MA unknown: give more --steps, or another --lr"),
    (RULE, BELOW, "from step 20 on retention was below its floor of 0.95; step 10 is kept, with MA 0.80: give a lower --lr, or another --floor"),
    ([], BELOW, "from step 20 on retention was below its floor of 0.95; step 10 is kept, with MA 0.80: give a lower --lr, or another --floor"),
    (RULE, {**BELOW, "outcome": "collapsed", "ended": "retention 0.910 is below"}, "retention 0.910 is below; step 10 is kept, with MA 0.80"),
    (RULE, {**BELOW, "outcome": "stopped", "ended": "ma(forget) < 0.65"}, "ma(forget) < 0.65 held at step 30, with retention 0.91 below its floor of 0.95; step 10 is kept, with MA 0.80"),
    (RULE, {**ABOVE, "outcome": "reached"}, None),
]  # fmt: skip


@pytest.mark.parametrize(("rules", "one", "said"), SAID)
def test_a_warning_says_where_a_run_ended_why_and_what_is_kept(rules, one, said):
    assert warnings([one], rules, "unseen", True, 0.95) == ([] if said is None else [f"forget: {said}"])


def test_what_ends_below_the_measured_level_of_never_seen_text_is_over_forgotten():
    row = {"quantity": "ma", "after": {"value": 0.10, "n": 5}}
    result = [{**row, "set": "one"}, {**row, "set": "two"}, {**row, "set": "retain"}]
    levels = {"one": Level(0.16, 8, 0.1, "reference"), "two": Level(0.14, 8, 0.1, "unseen")}  # 0.06 and 0.04 above
    assert over_forgotten(result, levels) == [
        "one is over-forgotten: MA 0.10 (n = 5), and 0.16 (n = 8) where it was never seen; that can be told from outside"
    ]
    assert over_forgotten(result, {"one": Level(0.33, 8, None, "assumed")}) == []


def test_files_that_keep_less_than_the_floor_are_warned_of():
    """0.75 of 0.8 is 0.9375."""
    rows = [
        {"set": name, "quantity": quantity, "before": {"value": 0.8, "n": 40}, "after": {"value": 0.75, "n": 40}}
        for name in ("forget", "retain")
        for quantity in ("ma", "accuracy")
    ]
    [said] = below_floor(rows, 0.95)
    assert said.startswith(
        "the files that were written keep 0.938 of the MA on the retain set (n = 40), and the floor is 0.95"
    )
    assert below_floor(rows, 0.93) == []


def test_what_nobody_measured_is_warned_of():
    level, kept = warnings([{**ABOVE, "outcome": "reached"}], RULE, "assumed", False, 0.95)
    assert "is assumed (MA 0.33): give --reference or --unseen" in level and "without a retain set" in kept
    assert warnings([{**ABOVE, "outcome": "reached"}], [parse("ma(forget) <= 0.3")], "assumed", True, 0.95) == []
