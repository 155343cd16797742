"""Means, spreads and bootstrap intervals, against numpy, scipy and resampling spelled out."""

import math
import time
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from editkit.evaluation.metrics import statistics
from editkit.evaluation.metrics.statistics import bootstrap, mean, roc, summary
from editkit.evaluation.metrics.tofu import model_utility


def the_mean(drawn):
    return drawn["values"].mean(-1)


def test_a_summary_has_the_figures_of_numpy_and_leaves_unknown_values_out():
    values = np.random.default_rng(1).gamma(2, size=83)
    found = summary(np.concatenate([values, [np.nan] * 5]), seed=3)
    assert found.n == 83
    assert found.value == pytest.approx(values.mean()) and found.sd == pytest.approx(np.std(values, ddof=1))
    assert found.median == np.median(values) and found.max == values.max()
    assert found.p95 == pytest.approx(np.percentile(values, 95))
    assert found.ci_low < found.value < found.ci_high
    assert found == summary(values, seed=3) != summary(values, seed=4)


def test_what_is_not_defined_for_few_values_is_none():
    assert summary([], seed=0) == summary([math.nan], seed=0) == (None, 0, *[None] * 6)
    assert summary([2.0], seed=0) == (2.0, 1, None, 2.0, 2.0, 2.0, None, None)
    assert summary([None, 1.0, 3.0], seed=0)[:2] == (2.0, 2)


def test_infinite_values_have_a_mean_and_no_spread():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = summary([1.0, math.inf, 2.0, 3.0], seed=0)
    assert found.value == found.max == math.inf and found.sd is None and found.n == 4


def test_the_interval_is_that_of_scipy_but_for_the_draws():
    values = np.random.default_rng(5).exponential(size=120)
    theirs = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=20_000, rng=np.random.default_rng(0))
    ours = bootstrap(the_mean, {"values": values}, seed=0, resamples=20_000)
    assert ours == pytest.approx(tuple(theirs.confidence_interval), abs=0.05 * values.std() / np.sqrt(120))


def test_the_interval_of_a_difference_of_sets_is_that_of_scipy_too():
    rng = np.random.default_rng(6)
    one, other = rng.normal(0, 1, 90), rng.normal(1, 2, 60)
    theirs = stats.bootstrap(
        (one, other),
        lambda a, b, axis: a.mean(axis) - b.mean(axis),
        method="percentile",
        n_resamples=20_000,
        rng=np.random.default_rng(0),
    )
    ours = bootstrap(
        lambda d: d["one"].mean(-1) - d["two"].mean(-1), {"one": one, "two": other}, seed=0, resamples=20_000
    )
    assert ours == pytest.approx(
        tuple(theirs.confidence_interval), abs=0.12 * np.sqrt(one.var() / 90 + other.var() / 60)
    )


def test_95_of_100_intervals_hold_the_mean_of_a_normal_distribution():
    rng = np.random.default_rng(7)
    held = 0
    for seed in range(600):
        low, high = bootstrap(the_mean, {"values": rng.normal(3, 2, 60)}, seed=seed, resamples=400)
        held += low <= 3 <= high
    assert 0.92 < held / 600 < 0.97  # a percentile interval of 60 examples holds it a little less often than 95 %


def test_rows_are_drawn_whole():
    values = np.random.default_rng(8).normal(size=50)
    rows = np.stack([values, -values], 1)
    low, high = bootstrap(lambda drawn: np.abs(drawn["rows"].sum(-1)).max(-1), {"rows": rows}, seed=0)
    assert low == high == 0


def test_the_interval_does_not_depend_on_how_many_resamples_are_drawn_at_a_time(monkeypatch):
    values = {"values": np.random.default_rng(9).normal(size=41), "other": np.zeros(7)}
    whole = bootstrap(the_mean, values, seed=2)
    monkeypatch.setattr(statistics, "BLOCK", 97)
    assert bootstrap(the_mean, values, seed=2) == whole


def test_no_interval_for_one_example_or_an_undefined_statistic():
    assert bootstrap(the_mean, {"values": [1.0]}, seed=0) == (None, None)
    assert bootstrap(the_mean, {"values": []}, seed=0) == (None, None)
    assert bootstrap(lambda drawn: mean(drawn["values"]) * math.nan, {"values": [1.0, 2.0]}, seed=0) == (None, None)


def test_global_generators_are_left_alone():
    np.random.seed(1)
    before = np.random.get_state()[1].copy()
    summary([1.0, 2.0, 3.0], seed=0)
    assert (np.random.get_state()[1] == before).all()


def test_large_sets_and_a_harmonic_mean_of_18_take_a_fraction_of_a_second():
    rng = np.random.default_rng(0)
    sets = {name: rng.random((400, 6)) for name in ("retain", "real_authors", "world_facts")}

    def seconds(work):
        started = time.perf_counter()
        work()
        return time.perf_counter() - started

    assert min(seconds(lambda: bootstrap(model_utility, sets, seed=0)) for _ in range(3)) < 0.2
    assert min(seconds(lambda: summary(rng.random(5000), seed=0)) for _ in range(3)) < 0.2


def test_a_mean_of_known_values_is_that_of_numpy():
    values = np.array([[1.0, np.nan, 4.0], [2.0, 5.0, np.nan]])
    assert mean(values).tolist() == np.nanmean(values, -1).tolist()
    assert mean(values, axis=0).tolist() == np.nanmean(values, 0).tolist()
    assert np.isnan(mean([np.nan])) and np.isnan(mean([]))


few = st.lists(st.integers(0, 6).map(float), min_size=1, max_size=12)


@given(few, few)
def test_the_curve_counts_what_is_at_or_above_each_value(ups, downs):
    hits, alarms = roc(ups, downs)
    points = {(sum(x >= cut for x in ups), sum(x >= cut for x in downs)) for cut in [*ups, *downs, math.inf]}
    assert set(zip(hits.tolist(), alarms.tolist(), strict=True)) == points
    assert (np.diff(hits) >= 0).all() and (np.diff(alarms) >= 0).all()
