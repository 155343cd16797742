"""Membership scores, AUC and exposure: against scikit-learn, torch, and values worked by hand."""

import math
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score, roc_curve

from editkit.evaluation.metrics import exposure, membership
from editkit.evaluation.metrics.statistics import bootstrap

few = st.lists(st.integers(0, 9).map(lambda value: value / 4), min_size=1, max_size=20)


def labelled(members, others):
    return [1] * len(members) + [0] * len(others), [*members, *others]


@given(few, few)
def test_auc_is_that_of_scikit_learn_also_with_ties(members, others):
    area = roc_auc_score(*labelled(members, others))
    assert float(membership.auc(members, others)) == pytest.approx(area, abs=1e-12)
    assert float(membership.two_sided(area)) == max(area, 1 - area)


@given(few, few, st.sampled_from([0.0, 0.01, 0.1, 0.5, 1.0]))
def test_tpr_at_an_fpr_is_the_best_point_of_the_curve_of_scikit_learn(members, others, fpr):
    alarms, hits, _ = roc_curve(*labelled(members, others), drop_intermediate=False)
    expected = hits[alarms <= fpr + 1e-12].max()
    assert float(membership.tpr_at_fpr(members, others, fpr)) == pytest.approx(expected, abs=1e-12)


def test_auc_and_tpr_of_many_resamples_are_those_of_each():
    rng = np.random.default_rng(0)
    members, others = rng.integers(0, 40, (30, 25)) + 5.0, rng.integers(0, 40, (30, 120)) + 0.0
    for area, rate, one, other in zip(
        membership.auc(members, others), membership.tpr_at_fpr(members, others), members, others, strict=True
    ):
        assert area == pytest.approx(roc_auc_score(*labelled(one, other)))
        alarms, hits, _ = roc_curve(*labelled(one, other), drop_intermediate=False)
        assert rate == pytest.approx(hits[alarms <= 0.01].max())


def test_the_interval_of_auc_is_that_of_resampling_with_scikit_learn():
    rng = np.random.default_rng(1)
    members, others = rng.normal(0.7, 1, 60), rng.normal(0, 1, 80)
    areas = []
    for _ in range(2000):
        one, other = rng.choice(members, 60), rng.choice(others, 80)
        areas.append(roc_auc_score(*labelled(one, other)))
    ours = bootstrap(lambda d: membership.auc(d["m"], d["o"]), {"m": members, "o": others}, seed=0, resamples=4000)
    assert ours == pytest.approx(tuple(np.percentile(areas, [2.5, 97.5])), abs=0.012)


def test_auc_and_tpr_are_unknown_without_texts():
    assert np.isnan(membership.auc([], [1.0])) and np.isnan(membership.auc([1.0], []))
    assert np.isnan(membership.tpr_at_fpr([], [1.0])) and np.isnan(membership.tpr_at_fpr([1.0], []))


def test_all_scores_are_higher_for_what_looks_like_a_member():
    compressed = len(zlib.compress(b"Ada wrote novels."))
    assert membership.loss_score([0.5, math.nan]).tolist()[0] == -0.5
    assert membership.zlib_score([0.5], [8], [compressed]).tolist() == [-4 / compressed]
    assert membership.reference_score([0.5, 2.0], [1.5, 1.5]).tolist() == [1.0, -0.5]


def test_min_k_is_the_mean_of_the_lowest_share():
    log_probs = [-0.1, -5.0, -0.2, -3.0, -0.3]
    assert membership.min_k(log_probs) == -4.0
    assert membership.min_k(log_probs, k=1.0) == pytest.approx(-1.72)
    assert membership.min_k([-7.0, -1.0]) == -7.0  # 40 % of two tokens is less than one: at least one
    assert membership.min_k([]) is None and membership.min_k_plus_plus([], [], []) is None


def test_min_k_plus_plus_is_its_definition_in_torch():
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(25, 50, generator=generator, dtype=torch.float64)
    targets = torch.randint(50, (25,), generator=generator)
    log_p = torch.distributions.Categorical(logits=logits).logits  # normalised
    mu = -torch.distributions.Categorical(logits=logits).entropy()
    sigma = torch.stack([((row - m).square() * row.exp()).sum().sqrt() for row, m in zip(log_p, mu, strict=True)])
    chosen = log_p[torch.arange(25), targets]
    expected = ((chosen - mu) / sigma).topk(10, largest=False).values.mean()
    found = membership.min_k_plus_plus(chosen.numpy(), mu.numpy(), sigma.numpy())
    assert found == pytest.approx(float(expected))


def test_a_certain_model_scores_zero_where_it_is_right_and_minus_infinity_where_it_is_wrong():
    assert membership.min_k_plus_plus([0.0, 0.0], [0.0, 0.0], [0.0, 0.0]) == 0
    assert membership.min_k_plus_plus([0.0, -math.inf], [0.0, 0.0], [0.0, 0.0]) == -math.inf


def test_privleak_is_relative_to_a_measured_reference():
    assert float(membership.priv_leak(0.6, 0.5)) == pytest.approx(0.2)
    assert membership.priv_leak([0.4, 0.3], [0.5, 0.0])[0] == pytest.approx(-0.2)
    assert np.isnan(membership.priv_leak(0.3, 0.0))


def test_exposure_against_a_reference_has_a_sign():
    assert exposure.gen_exposure([0.5, 3.0, 2.0], [2.0, 2.0, 2.0]).tolist() == [1.5, -1.0, 0.0]
    assert exposure.memorization_proxy([0.5, 2.0], [2.0, 2.0], [10, 10]).tolist() == [15.0, 0.0]


@given(few, few)
def test_rank_exposure_counts_the_controls_above(values, controls):
    for value, found in zip(values, exposure.rank_exposure(values, controls), strict=True):
        rank = 1 + sum(c > value for c in controls) + sum(c == value for c in controls) / 2
        assert found == pytest.approx(math.log2((len(controls) + 1) / rank))


def test_rank_exposure_of_text_like_the_controls_is_as_said():
    rng = np.random.default_rng(0)
    found = [exposure.rank_exposure(rng.normal(size=1), rng.normal(size=400))[0] for _ in range(4000)]
    assert np.mean(found) == pytest.approx(math.log2(math.e), abs=0.07)


def test_rank_exposure_is_unknown_without_controls_or_likelihood():
    assert (
        np.isnan(exposure.rank_exposure([1.0], [])).all() and np.isnan(exposure.rank_exposure([math.nan], [1.0])).all()
    )


def test_thirds_are_of_one_size_and_keep_equal_values_together():
    labels = exposure.thirds(np.random.default_rng(0).permutation(99))
    assert np.bincount(labels).tolist() == [33, 33, 33]
    assert exposure.thirds([1.0, 1.0, 1.0, 2.0, math.nan]).tolist() == [0, 0, 0, 2, -1]
    assert exposure.thirds([4.0, 4.0]).tolist() == [0, 0] and exposure.thirds([]).size == 0
    assert exposure.thirds([math.nan]).tolist() == [-1]


def test_the_verdict_follows_the_interval_of_auc():
    rng = np.random.default_rng(0)

    def verdict(shift, n=200):
        return exposure.distribution_verdict(rng.normal(shift, 1, n), rng.normal(0, 1, n), seed=0)

    same, harder, easier, between = verdict(0), verdict(3), verdict(-3), verdict(0.74)  # AUC .5, .98, .02, .7
    assert same.verdict == "in-distribution" and "few" in same.text and 0.4 < same.auc < 0.6
    assert harder.verdict == easier.verdict == "out-of-distribution" and harder.auc > 0.9 > 0.1 > easier.auc
    assert between.verdict == "unclear" and between.ci_low < 0.7 < between.ci_high
    assert verdict(0, n=3).verdict == "unclear" and (same.n, same.controls) == (200, 200)


def test_one_example_gives_no_verdict_and_none_gives_nothing():
    alone = exposure.distribution_verdict([5.0], [1.0, 2.0], seed=0)
    assert alone is not None and (alone.verdict, alone.auc, alone.ci_low) == ("unclear", 1.0, None)
    assert exposure.distribution_verdict([math.nan], [1.0], seed=0) is None
