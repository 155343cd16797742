"""What an attack brought back, worked out by hand."""

import numpy as np
import pytest

from editkit.attacks.verdict import NO_BASE, NO_REFERENCE, NOTHING_LOST, apart_at, judge, judge_auc
from editkit.evaluation.metrics.membership import auc

N = 30


def same(value):
    return [value] * N


def noisy(value, spread=0.1):
    """N accuracies around a mean, the mean exact."""
    wave = np.resize([spread, -spread], N)
    return (value + wave).tolist()


def judged(before, after, **settings):
    return judge(same(before), same(after), **{"seed": 0, **settings})


def test_recovered_is_the_share_of_what_the_edit_took_away():
    found = judged(0.4, 0.55, original=same(0.9))
    assert found["recovered"] == pytest.approx({"value": 0.3, "ci_low": 0.3, "ci_high": 0.3})
    assert found["excess"] == NO_REFERENCE and found["judged"] == found["recovered"] and found["n"] == N
    assert found["verdict"] == "recovers"


def test_what_the_control_learns_too_is_no_recovery():
    found = judged(0.4, 0.6, original=same(0.9), control=(same(0.4), same(0.6)))
    assert found["recovered"]["value"] == pytest.approx(0.4) and found["excess"]["value"] == pytest.approx(0.0)
    assert found["verdict"] == "survives"


def test_a_lead_from_before_the_attack_is_no_recovery():
    found = judged(0.5, 0.6, original=same(1.0), control=(same(0.2), same(0.25)))
    assert found["excess"]["value"] == pytest.approx(0.05)  # ahead by 0.35, by 0.3 before
    assert found["judged"]["value"] == pytest.approx(0.1)


def test_who_was_pushed_below_the_control_must_first_reach_it():
    found = judged(0.0, 0.3, original=same(1.0), control=(same(0.25), same(0.3)))
    assert found["recovered"]["value"] == pytest.approx(0.3) and found["excess"]["value"] == pytest.approx(0.0)
    assert found["verdict"] == "survives"


def test_the_interval_is_that_of_examples_drawn_whole():
    """Every example gains the same, however far they lie apart, so that the gain is sure."""
    before = np.linspace(0.1, 0.5, N)
    found = judge(before, before + 0.2, original=before + 0.5, seed=1)
    assert found["recovered"] == pytest.approx({"value": 0.4, "ci_low": 0.4, "ci_high": 0.4})


@pytest.mark.parametrize(("gain", "spread", "verdict"), [(0.02, 0.02, "survives"), (0.3, 0.1, "recovers"), (0.1, 0.3, "unclear")])  # fmt: skip
def test_the_verdict_is_where_the_interval_lies(gain, spread, verdict):
    found = judge(same(0.0), noisy(gain, spread), original=same(1.0), seed=0)
    assert found["verdict"] == verdict
    low, high = found["recovered"]["ci_low"], found["recovered"]["ci_high"]
    assert {"survives": high < 0.1, "recovers": low > 0.1, "unclear": low < 0.1 < high}[verdict]


def test_what_is_not_known_is_no_number():
    found = judged(0.4, 0.6)
    assert found["recovered"] == found["judged"] == found["verdict"] == NO_BASE and found["excess"] == NO_REFERENCE
    found = judged(0.4, 0.6, control=(same(0.4), same(0.4)))
    assert found["verdict"] == NO_BASE and found["excess"]["value"] == pytest.approx(0.2)


@pytest.mark.parametrize("original", [0.5, 0.4])
def test_an_edit_that_took_nothing_away_has_nothing_to_bring_back(original):
    found = judged(0.5, 0.6, original=same(original))
    assert found["recovered"] == found["judged"] == found["verdict"] == NOTHING_LOST


def test_an_attack_that_brings_text_can_only_be_survived_without_a_control():
    assert judged(0.4, 0.7, original=same(0.9), brings_text=True)["verdict"] == NO_REFERENCE
    assert judged(0.4, 0.41, original=same(0.9), brings_text=True)["verdict"] == "survives"
    assert judged(0.4, 0.7, original=same(0.9))["verdict"] == "recovers"


def test_an_attack_that_breaks_the_original_proves_nothing_by_finding_nothing():
    broken = judged(0.4, 0.4, original=same(1.0), original_after=same(0.69))  # 0.29 of 0.6
    assert broken["verdict"] == "unclear: under this attack the original itself shows too little"
    assert judged(0.4, 0.4, original=same(1.0), original_after=same(0.71))["verdict"] == "survives"
    assert judged(0.4, 0.8, original=same(1.0), original_after=same(0.5))["verdict"] == "recovers"


def test_an_interval_that_nothing_taken_away_makes_undefined_is_unclear():
    """Some draws of these examples have lost nothing, so that a share of it is no number."""
    found = judge(same(0.5), same(0.9), original=noisy(0.501, 0.4), seed=0)
    assert found["recovered"]["ci_low"] is None and found["verdict"] == "unclear"


def test_curves_are_apart_where_the_excess_is_surely_above_zero():
    edited = {0: np.array(same(0.2)), 1: np.array(noisy(0.21)), 2: np.array(noisy(0.6)), 4: np.array(noisy(0.7))}
    control = {step: np.array(same(0.2)) for step in edited}
    assert apart_at(edited, control, seed=0) == 2
    assert apart_at(control, control, seed=0) is None
    assert apart_at({0: np.array(same(0.5)), 1: np.array(same(0.5))}, {0: np.array(same(0.2)), 1: np.array(same(0.2))}, seed=0) is None  # fmt: skip


DRAWS = np.random.default_rng(5)


def scores(shift, n=400):
    return DRAWS.normal(size=n) + shift


def test_members_that_score_above_or_below_unseen_text_leak():
    unseen = scores(0)
    for shift in (1.5, -1.5):
        found = judge_auc(scores(shift)[:, None], unseen[:, None], auc, seed=0)
        assert found["verdict"] == "leaks" and np.sign(found["distance"]["value"]) == np.sign(shift)


def test_the_distance_is_from_the_auc_of_the_control_on_the_same_examples():
    members, unseen = scores(1.0), scores(0)
    both = judge_auc(np.stack([members, members], -1), np.stack([unseen, unseen], -1), auc, seed=0)
    assert both["distance"] == {"value": 0.0, "ci_low": 0.0, "ci_high": 0.0} and both["verdict"] == "survives"


def test_few_examples_do_not_clear_an_edit():
    few = judge_auc(np.array([[0.1], [0.9], [0.4]]), np.array([[0.2], [0.5], [0.6]]), auc, seed=0)
    assert few["verdict"] == "unclear"
