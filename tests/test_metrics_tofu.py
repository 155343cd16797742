"""TOFU's metrics: the figures of its own aggregation on the logs of real models, scipy's KS test, and values worked by hand."""

import json
import math
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from editkit.errors import EditError
from editkit.evaluation.metrics import closer_look, tofu
from editkit.evaluation.metrics.rouge import rouge
from editkit.evaluation.metrics.statistics import bootstrap

LOGS = Path(__file__).parents[2] / "shared" / "data" / "tofu_logs"
needs_logs = pytest.mark.skipif(not LOGS.exists(), reason="no folder ../shared/data/tofu_logs")
KEPT = ("real_authors", "world_facts", "retain")
SETS = (*KEPT, "forget")


@pytest.fixture(scope="module")
def logs():
    return {
        name: json.loads((LOGS / f"llama2_7b_{name}.json").read_text()) for name in ("full", "retain90", "retain95")
    }


def columns(log):
    """Per set the rows of ROUGE, Probability and Truth ratio, [n, 3]."""
    found = {}
    for name in SETS:
        nll, paraphrased, perturbed, recall = (
            [row[key] for row in log[name]]
            for key in ("avg_gt_loss", "avg_paraphrased_loss", "average_perturb_loss", "rougeL_recall")
        )
        ours = name in ("retain", "forget")
        probability = tofu.probability(nll) if ours else tofu.choice_probability(nll, perturbed)
        ratio = tofu.truth_ratio_arithmetic(paraphrased, perturbed)
        aggregated = tofu.forget_truth_ratio(ratio) if name == "forget" else tofu.kept_truth_ratio(ratio)
        found[name] = np.stack([recall, probability, aggregated], 1)
    return found


def ratios(log):
    rows = log["forget"]
    return tofu.truth_ratio(
        [row["avg_paraphrased_loss"] for row in rows], [row["average_perturb_loss"] for row in rows]
    )


@needs_logs
def test_the_three_metrics_of_the_real_full_model_are_tofus_to_all_digits(logs):
    means = np.stack([rows.mean(0) for name, rows in columns(logs["full"]).items()], 1)
    shown = [[f"{value:.4f}"[1:] for value in row] for row in means]
    assert shown == [
        [".9330", ".8825", ".9857", ".9854"],
        [".4555", ".4186", ".9895", ".9909"],
        [".5052", ".4231", ".4539", ".5304"],
    ]


@needs_logs
@pytest.mark.parametrize(("name", "figure"), [("full", ".585886"), ("retain90", ".575240")])
def test_the_model_utility_of_the_real_models_is_tofus_to_all_digits(logs, name, figure):
    found = {kept: columns(logs[name])[kept] for kept in KEPT}
    assert f"{tofu.model_utility(found):.6f}"[1:] == figure
    assert float(tofu.model_utility(found)) == pytest.approx(
        stats.hmean(np.concatenate([v.mean(0) for v in found.values()]))
    )
    low, high = bootstrap(tofu.model_utility, found, seed=0)
    assert low < float(figure) < high < low + 0.1


@needs_logs
def test_the_forget_quality_of_the_real_models_is_tofus_to_all_digits(logs):
    reference = ratios(logs["retain90"])
    full = tofu.forget_quality(ratios(logs["full"]), reference)
    assert full is not None
    assert f"{full.p:.3e}" == "1.834e-21" and f"{full.statistic:.6f}" == "0.396667" and (full.n, full.m) == (300, 300)
    assert full.log10_p == pytest.approx(math.log10(full.p))
    other = tofu.forget_quality(ratios(logs["retain95"]), reference)
    assert other is not None
    assert (
        f"{other.p:.6f}" == "0.988066" and other.statistic == pytest.approx(0.04) and (other.n, other.m) == (200, 300)
    )
    same = tofu.forget_quality(reference, reference[::-1])
    assert same is not None and same[:3] == (0.0, 1.0, 0.0)


@needs_logs
def test_rouge_of_the_texts_in_the_logs_is_that_in_the_logs(logs):
    for name in SETS:
        for row in logs["full"][name]:
            found = rouge(row["generated"], row["truth"])
            assert (found["rougeL_recall"], found["rouge1_recall"]) == (row["rougeL_recall"], row["rouge1_recall"])


def test_truth_ratios_are_quotients_of_probabilities():
    right, wrong = np.array([0.5, 0.1]), [[0.25, 0.0625], [0.2, 0.4, 0.1]]
    nlls = [[-math.log(p) for p in row] for row in wrong]
    assert tofu.truth_ratio(-np.log(right), nlls) == pytest.approx([0.125 / 0.5, 0.2 / 0.1])
    assert tofu.truth_ratio_arithmetic(-np.log(right), nlls) == pytest.approx([0.15625 / 0.5, (0.7 / 3) / 0.1])
    assert tofu.choice_probability(-np.log(right), nlls) == pytest.approx([0.5 / 0.8125, 0.1 / 0.8])
    assert tofu.forget_truth_ratio([0.25, 2.0, 1.0, 0.0, math.inf]).tolist() == [0.25, 0.5, 1.0, 0.0, 0.0]
    assert tofu.kept_truth_ratio([0.25, 2.0, math.inf]).tolist() == [0.75, 0.0, 0.0]
    assert closer_look.truth_ratio_star([0.25, 2.0]).tolist() == [0.75, 0.5]


def test_answers_so_unlikely_that_their_probability_is_zero_keep_their_ratio():
    assert tofu.truth_ratio_arithmetic([1000.0], [[1000.0, 1000.0]]).tolist() == [1.0]
    assert tofu.choice_probability([1000.0], [[1000.0, 1000.0, 1000.0]]).tolist() == [0.25]
    assert tofu.forget_truth_ratio(tofu.truth_ratio([5000.0, 0.0], [[0.0], [5000.0]])).tolist() == [0.0, 0.0]


def test_unknown_losses_and_rows_without_wrong_answers_are_unknown():
    for measure in (tofu.truth_ratio, tofu.truth_ratio_arithmetic, tofu.choice_probability):
        found = measure([math.nan, 1.0, 1.0], [[1.0], [], [1.0]])
        assert np.isnan(found).tolist() == [True, True, False]
        assert measure([], []).shape == (0,)


@given(st.lists(st.integers(0, 8), min_size=1, max_size=30), st.lists(st.integers(0, 8), min_size=1, max_size=30))
@settings(deadline=None)
def test_forget_quality_is_the_ks_test_of_scipy_also_with_ties_and_unequal_sizes(one, other):
    ours = tofu.forget_quality(one, other)
    assert ours is not None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = stats.ks_2samp(one, other)
    assert ours.statistic == pytest.approx(theirs.statistic, abs=1e-12) and ours.p == theirs.pvalue


@pytest.mark.parametrize(("n", "m", "shift"), [(300, 300, 0.8), (400, 117, 0.0), (97, 61, 2.5), (1, 50, 1.0)])
def test_forget_quality_is_the_ks_test_of_scipy_in_the_tail_too(n, m, shift):
    rng = np.random.default_rng(n)
    one, other = rng.normal(size=n), rng.normal(shift, size=m)
    ours, theirs = tofu.forget_quality(one, other), stats.ks_2samp(one, other)
    assert ours is not None and ours.p == pytest.approx(theirs.pvalue, rel=1e-8)
    assert ours.log10_p == pytest.approx(math.log10(theirs.pvalue), rel=1e-8, abs=1e-8)


def test_log10_p_stays_finite_where_p_is_zero():
    found = tofu.forget_quality(np.zeros(900), np.ones(900))  # log10 of 2 / (1800 over 900) is -540
    assert found is not None and found.p == 0
    exact = math.log10(2) - (math.lgamma(1801) - 2 * math.lgamma(901)) / math.log(10)
    assert exact == pytest.approx(-540.0, abs=0.5) and found.log10_p == pytest.approx(
        math.log10(2) - 900 / math.log(10)
    )


def test_ks_statistics_of_many_resamples_are_those_of_each():
    rng = np.random.default_rng(3)
    ones, others = rng.integers(0, 30, (40, 25)), rng.integers(0, 30, (40, 17))
    each = [stats.ks_2samp(one, other).statistic for one, other in zip(ones, others, strict=True)]
    assert tofu.ks_statistic(ones, others) == pytest.approx(each)


def test_no_forget_quality_without_known_ratios():
    assert tofu.forget_quality([], [1.0]) is None and tofu.forget_quality([1.0], [math.nan]) is None
    assert tofu.forget_quality([1.0, math.nan, 2.0], [1.0, 2.0]) == tofu.forget_quality([1.0, 2.0], [1.0, 2.0])


def test_the_harmonic_mean_is_zero_with_a_zero_and_unknown_with_an_unknown():
    values = np.random.default_rng(0).random((5, 9))
    assert tofu.harmonic_mean(values) == pytest.approx(stats.hmean(values, axis=1))
    assert tofu.harmonic_mean(values, axis=0) == pytest.approx(stats.hmean(values, axis=0))
    assert tofu.harmonic_mean([0.0, 0.0]) == 0 and tofu.harmonic_mean([0.0, 0.5, 1.0]) == 0
    assert np.isnan(tofu.harmonic_mean([0.0, math.nan])) and np.isnan(tofu.harmonic_mean([]))
    with pytest.raises(EditError, match=r"-0\.5 has no harmonic mean"):
        tofu.harmonic_mean([0.5, -0.5])


def test_an_unknown_row_is_left_out_of_model_utility_and_an_unknown_column_makes_it_unknown():
    rows = np.array([[0.2, 0.4], [0.6, math.nan]])
    assert float(tofu.model_utility({"retain": rows})) == pytest.approx(0.4)  # of .4 and .4
    assert np.isnan(tofu.model_utility({"retain": rows, "facts": [[math.nan]]}))
    assert tofu.model_utility({"retain": rows, "facts": [[0.0], [0.0]]}) == 0
    assert bootstrap(tofu.model_utility, {"retain": np.zeros((5, 3))}, seed=0) == (0, 0)
