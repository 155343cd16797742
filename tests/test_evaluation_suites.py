"""Every metric on hand-made rows against a computation of its own, and what is said where a metric cannot be had."""

import re
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from editkit.errors import EditError
from editkit.evaluation.aggregate import aggregate, aligned, distribution
from editkit.evaluation.evaluate import evaluate_rows
from editkit.evaluation.rows import columns
from editkit.evaluation.suites import METRICS, REFERENCE, chosen, columns_of, metric

LOGS = Path(__file__).parents[2] / "shared" / "data" / "tofu_logs"
SIZES = {"forget": 9, "retain": 7, "real_authors": 6, "world_facts": 5, "unseen": 8}


def made(seed, sizes=SIZES):
    """Rows with every column, no two values alike."""
    draw = np.random.default_rng(seed).uniform
    return [
        {
            "set": name, "index": index, "nll": draw(0.2, 3), "num_tokens": int(draw(3, 30)), "token_accuracy": draw(0, 1),
            "paraphrased_nll": draw(0.5, 3), "perturbed_nll": list(draw(0.5, 4, size=int(draw(2, 6)))),
            "rougeL_recall": draw(0, 1), "rouge1_recall": draw(0, 1), "rougeL_f1": draw(0, 1), "token_entropy": draw(0.2, 1),
            "repetition": draw(0, 1), "distinct_2": draw(0, 1), "generation_base_nll": draw(0.5, 5), "cosine": draw(0, 1),
            "entails_truth": float(draw() > 0.4), "entailed_by_truth": float(draw() > 0.4), "ma": draw(0, 1),
            "extraction_strength": draw(0, 1), "el_10": draw(0, 1), "kl": draw(0, 1),
        }
        for name, size in sizes.items()
        for index in range(size)
    ]  # fmt: skip


ROWS, REFERENCE_ROWS, BASE_ROWS = made(0), made(1), made(2)


def results(rows=ROWS, metrics=METRICS, reference=REFERENCE_ROWS, base=BASE_ROWS):
    """(metric, set, bucket) -> result."""
    other = {"reference": reference and columns(reference), "base": base and columns(base)}
    found = aggregate({"m": columns(rows)}, metrics, **other)
    return {(one["metric"], one["set"], one["bucket"]): one for one in found}


ALL = results()


def values(name, key, rows=ROWS):
    return np.array([row[key] for row in rows if row["set"] == name])


def lists(name, rows=ROWS):
    return [np.array(row["perturbed_nll"]) for row in rows if row["set"] == name]


def probability(name):
    if name in ("real_authors", "world_facts"):
        return np.array(
            [
                np.exp(-true) / (np.exp(-true) + np.exp(-wrong).sum())
                for true, wrong in zip(values(name, "nll"), lists(name), strict=True)
            ]
        )
    return np.exp(-values(name, "nll"))


def ratio(name, form, rows=ROWS):
    right = np.exp(-values(name, "paraphrased_nll", rows))
    if form == "arithmetic":
        return np.array([np.exp(-wrong).mean() for wrong in lists(name, rows)]) / right
    return np.array([stats.gmean(np.exp(-wrong)) for wrong in lists(name, rows)]) / right


def truth_ratio(name, form="arithmetic"):
    found = ratio(name, form)
    return np.minimum(found, 1 / found) if name in ("forget", "unseen") else np.maximum(0, 1 - found)


def entailment(name, forward):
    said = values(name, "entails_truth" if forward else "entailed_by_truth")
    return said * (values(name, "rougeL_recall") >= 0.1)


def towards_truth(name):
    return name in ("forget", "unseen")


def rank(name):
    unseen = values("unseen", "nll")
    return np.array([np.log2(len(unseen) + 1) - np.log2(1 + (unseen < one).sum()) for one in values(name, "nll")])


EACH = {
    "tofu/probability": probability,
    "tofu/truth_ratio": truth_ratio,
    "tofu/truth_ratio_geometric": lambda name: truth_ratio(name, "geometric"),
    "closer_look/entailment": lambda name: entailment(name, towards_truth(name)),
    "closer_look/entailment_reverse": lambda name: entailment(name, not towards_truth(name)),
    "memorization/forgotten": lambda name: values(name, "ma") <= values("unseen", "ma").mean(),
    "knowundo/unlearn_success": lambda name: 100 - 100 * values(name, "token_accuracy"),
    "knowundo/retention_success": lambda name: 100 * values(name, "token_accuracy"),
    "exposure/gen_exposure": lambda name: values(name, "nll", REFERENCE_ROWS) - values(name, "nll"),
    "exposure/rank_exposure": rank,
    **{
        name: lambda name, key=key: values(name, key)
        for name, key in {
            "tofu/rougeL_recall": "rougeL_recall", "closer_look/token_entropy": "token_entropy",
            "closer_look/cosine_similarity": "cosine", "memorization/ma": "ma", "memorization/el_10": "el_10",
            "memorization/extraction_strength": "extraction_strength", "knowundo/rougeL": "rougeL_f1",
            "general/token_accuracy": "token_accuracy", "general/nll": "nll", "general/kl_to_base": "kl",
            "general/repetition": "repetition", "general/distinct_2": "distinct_2",
        }.items()
    },
}  # fmt: skip
EXPONENTIATED = {"knowundo/perplexity": "nll", "general/generation_perplexity": "generation_base_nll"}
WHERE = {
    "memorization/el_10": ["forget", "unseen"],
    "knowundo/retention_success": ["retain"],
    "memorization/forgotten": ["forget"],
    "knowundo/unlearn_success": ["forget"],
    "exposure/gen_exposure": ["forget"],
    "exposure/rank_exposure": ["forget"],
}


@pytest.mark.parametrize("name", EACH)
def test_the_mean_of_a_metric_is_that_of_its_definition(name):
    found = {key[1]: one for key, one in ALL.items() if key[0] == f"{name}@1" and key[2] is None}
    assert list(found) == WHERE.get(name, list(SIZES))
    for where, one in found.items():
        wanted = EACH[name](where).astype(float)
        assert one["status"] == "ok" and one["n"] == SIZES[where] == len(wanted)
        assert one["value"] == pytest.approx(wanted.mean(), abs=1e-12)
        assert one["sd"] == pytest.approx(wanted.std(ddof=1), abs=1e-12)
        assert one["median"] == pytest.approx(np.median(wanted)) and one["max"] == pytest.approx(wanted.max())
        assert one["p95"] == pytest.approx(np.quantile(wanted, 0.95))
        # the percentile bootstrap of a mean, drawn anew by scipy, lies where ours lies but for the noise of resamples, and steps of 1/n
        low, high = stats.bootstrap([wanted], np.mean, method="percentile", rng=3, n_resamples=4000).confidence_interval
        width = wanted.std() / len(wanted) ** 0.5 + 2 / len(wanted)
        assert abs(one["ci_low"] - low) < 0.5 * width and abs(one["ci_high"] - high) < 0.5 * width


@pytest.mark.parametrize("name", EXPONENTIATED)
def test_a_perplexity_is_the_exponential_of_the_mean_loss_with_its_interval(name):
    for where in SIZES:
        one, losses = ALL[f"{name}@1", where, None], values(where, EXPONENTIATED[name])
        assert one["value"] == pytest.approx(np.exp(losses.mean())) and one["n"] == SIZES[where] and one["sd"] is None
        assert one["max"] == pytest.approx(np.exp(losses.max()))
        assert one["median"] == pytest.approx(np.exp(np.median(losses)))
        assert one["ci_low"] < one["value"] < one["ci_high"]


def test_the_two_utilities_are_harmonic_means_of_nine_and_of_eighteen_means():
    kept = ("retain", "real_authors", "world_facts")
    nine = [
        part(name).mean() for name in kept for part in (lambda n: values(n, "rougeL_recall"), probability, truth_ratio)
    ]
    one = ALL["tofu/model_utility@1", None, None]
    assert one["value"] == pytest.approx(stats.hmean(nine), abs=1e-12) and one["n"] == 7 + 6 + 5
    assert one["ci_low"] < one["value"] < one["ci_high"]
    more = [
        part(name).mean()
        for name in kept
        for part in (
            lambda n: values(n, "token_entropy"),
            lambda n: values(n, "cosine"),
            lambda n: entailment(n, False),
        )
    ]
    eighteen = ALL["closer_look/model_utility_18@1", None, None]
    assert eighteen["value"] == pytest.approx(stats.hmean(nine + more), abs=1e-12) and len(nine + more) == 18


def test_forget_efficacy_is_one_minus_the_mean_of_five():
    found = ratio("forget", "arithmetic")
    five = [
        values("forget", "rougeL_recall").mean(),
        np.exp(-values("forget", "nll")).mean(),
        1 - np.minimum(found, 1 / found).mean(),
        values("forget", "cosine").mean(),
        entailment("forget", True).mean(),
    ]
    one = ALL["closer_look/forget_efficacy@1", "forget", None]
    assert one["value"] == pytest.approx(1 - sum(five) / 5, abs=1e-12) and one["n"] == 9
    assert one["ci_low"] < one["value"] < one["ci_high"]


def test_forget_quality_is_scipys_test_on_the_geometric_truth_ratios():
    wanted = stats.ks_2samp(ratio("forget", "geometric"), ratio("forget", "geometric", REFERENCE_ROWS))
    found = ALL
    assert found["tofu/ks_statistic@1", "forget", None]["value"] == pytest.approx(wanted.statistic, abs=1e-12)
    assert found["tofu/forget_quality@1", "forget", None]["value"] == pytest.approx(wanted.pvalue, rel=1e-12)
    logarithm = found["tofu/log10_forget_quality@1", "forget", None]
    assert logarithm["value"] == pytest.approx(np.log10(wanted.pvalue), rel=1e-12) and logarithm["n"] == 9
    one = found["tofu/ks_statistic@1", "forget", None]
    assert one["ci_low"] <= one["value"] <= one["ci_high"]
    assert results(rows=REFERENCE_ROWS)["tofu/forget_quality@1", "forget", None]["value"] == 1


def test_outliers_are_counted_on_both_sides():
    levels = [0.0, 0.15, 0.1501, 0.5999, 0.6, 1.0, None]
    rows = [{"set": "forget", "index": at, "ma": level} for at, level in enumerate(levels)]
    one = results(rows)["memorization/outliers@1", "forget", None]
    assert one["value"] == 4 and one["n"] == 6 and 0 <= one["ci_low"] <= 4 <= one["ci_high"] <= 6


def test_exposure_comes_in_thirds_by_difficulty_and_by_memorization():
    hard = values("forget", "nll", REFERENCE_ROWS)
    learnt = (hard - values("forget", "nll", BASE_ROWS)) * values("forget", "num_tokens", BASE_ROWS)
    exposed = hard - values("forget", "nll")
    found = ALL
    for kind, proxy in (("difficulty", hard), ("memorization", learnt)):
        for third, members in enumerate(np.array_split(np.argsort(proxy), 3), 1):
            one = found["exposure/gen_exposure@1", "forget", f"{kind} {third}/3"]
            assert one["n"] == 3 and one["value"] == pytest.approx(exposed[members].mean(), abs=1e-12)
    without = results(base=None)
    assert [key[2] for key in without if key[2]] == [f"difficulty {third}/3" for third in (1, 2, 3)]


def test_ids_are_versioned_and_unique_and_every_metric_says_what_it_is():
    ids = [one.id for one in METRICS]
    assert len(set(ids)) == len(ids) and all(re.fullmatch(r"[a-z_0-9]+/[a-zA-Z_0-9]+@\d+", one) for one in ids)
    assert {"tofu/model_utility@1", "tofu/forget_quality@1", "tofu/ks_statistic@1"} <= set(ids)
    labels = [one.label for one in METRICS]
    assert len(set(labels)) == len(labels)
    for one in METRICS:
        assert one.meaning.endswith(".") and one.better in ("higher", "lower", None) and one.needs
    tested = {*EACH, *EXPONENTIATED, "tofu/model_utility", "closer_look/model_utility_18", "closer_look/forget_efficacy",
              "tofu/forget_quality", "tofu/log10_forget_quality", "tofu/ks_statistic", "memorization/outliers"}  # fmt: skip
    assert {one.id.partition("@")[0] for one in METRICS} == tested


def test_suites_and_globs_choose_metrics():
    assert chosen(["all"]) == list(METRICS)
    assert [one.id for one in METRICS if one not in chosen()] == ["memorization/el_10@1"]
    assert {one.id.split("/")[0] for one in chosen(["closer-look"])} == {"closer_look"}
    assert [one.id for one in chosen([], ["tofu/ks_statistic"])] == ["tofu/ks_statistic@1"]
    assert [one.id for one in chosen([], ["*/nll@1", "memorization/m*"])] == ["memorization/ma@1", "general/nll@1"]
    assert len(chosen(["knowundo"], ["tofu/ks_statistic"])) == len(chosen(["knowundo"])) + 1
    for bad in ((["tofuu"], []), ([], ["tofu/nothing"]), ([], ["tofu/*", "nll"]), ([], ["TOFU/*"])):
        with pytest.raises(EditError, match=r"no such suite: tofuu|names no metric"):
            chosen(*bad)
    with pytest.raises(EditError, match="no metric 'tofu/probability'"):
        metric("tofu/probability")


def test_a_set_is_measured_only_in_what_some_metric_needs():
    assert columns_of(chosen(["tofu"]), "retain") == {"nll", "rougeL_recall", "paraphrased_nll", "perturbed_nll"}
    assert columns_of([metric("tofu/probability@1")], "retain") == {"nll"}
    assert columns_of([metric("tofu/probability@1")], "world_facts") == {"nll", "perturbed_nll"}
    assert columns_of([metric("memorization/forgotten@1")], "unseen") == {"ma"}
    assert columns_of([metric("memorization/forgotten@1")], "retain") == set()
    assert columns_of(METRICS, "retain") >= {"kl", "cosine"} and "el_10" not in columns_of(METRICS, "retain")
    assert set(REFERENCE) >= columns_of(
        [one for one in METRICS if one.id.startswith(("exposure", "tofu/ks"))], "forget"
    )


def test_the_verdict_on_the_distribution_is_about_the_difficulty_for_the_reference():
    hard = [{"set": "forget", "index": at, "nll": 5 + at} for at in range(20)]
    easy = [{"set": "unseen", "index": at, "nll": 1 + at * 0.1} for at in range(20)]
    found = distribution(columns([*hard, *easy]))
    assert found["verdict"] == "out-of-distribution" and (found["auc"], found["n"], found["controls"]) == (1, 20, 20)
    mixed = [{"set": name, "index": at, "nll": draw} for name, seed in (("forget", 5), ("unseen", 6))
             for at, draw in enumerate(np.random.default_rng(seed).normal(size=150))]  # fmt: skip
    found = distribution(columns(mixed))
    area = roc_auc_score([1] * 150 + [0] * 150, [row["nll"] for row in mixed])
    assert found["auc"] == pytest.approx(area, abs=1e-12) and found["verdict"] == "in-distribution"
    assert 0.3 <= found["ci_low"] < area < found["ci_high"] <= 0.7
    assert distribution(None) is None and distribution(columns(hard)) is None


def test_rows_of_the_reference_are_found_by_their_index():
    mine = columns([{"set": "forget", "index": at, "nll": at} for at in (4, 2, 9)])["forget"]
    theirs = columns([{"set": "forget", "index": at, "nll": 10 * at} for at in (9, 8, 4)])["forget"]
    np.testing.assert_array_equal(aligned(theirs, mine)["nll"], [np.nan, 40, 90])
    rows = [{"set": "forget", "index": at, "nll": 1.0} for at in (4, 2, 9)]
    others = [{"set": "forget", "index": at, "nll": 10.0 * at} for at in (9, 8, 4)]
    one = results(rows, [metric("exposure/gen_exposure@1")], others, None)["exposure/gen_exposure@1", "forget", None]
    assert one["n"] == 2 and one["value"] == pytest.approx((40 + 90) / 2 - 1)


def test_an_example_is_not_compared_with_another_one_of_the_same_number():
    rows = [{"set": "forget", "index": at, "nll": 1.0, "answer": text} for at, text in enumerate("abc")]
    others = [
        {"set": "forget", "index": at, "nll": 2.0 + at, **more}
        for at, more in enumerate(({"answer": "a"}, {"answer": "x"}, {}))
    ]
    one = results(rows, [metric("exposure/gen_exposure@1")], others, None)["exposure/gen_exposure@1", "forget", None]
    assert one["n"] == 2 and one["value"] == (1 + 3) / 2
    others = [{**row, "answer": "x"} for row in others]
    [one] = results(rows, [metric("exposure/gen_exposure@1")], others, None).values()
    assert one["value"] is None and one["status"] == "unknown: the reference has other examples"


SCRIPT = {  # TOFU's own aggregation of its logs, ../shared/reference/metrics.md
    "tofu/rougeL_recall@1": (0.9330, 0.8825, 0.9857, 0.9854),
    "tofu/probability@1": (0.4555, 0.4186, 0.9895, 0.9909),
    "tofu/truth_ratio@1": (0.5052, 0.4231, 0.4539, 0.5304),
}


@pytest.mark.skipif(not LOGS.exists(), reason="needs ../shared/data/tofu_logs")
@pytest.mark.parametrize(
    ("model", "utility", "p", "statistic"),
    [("full", ".585886", "1.834e-21", ".396667"), ("retain90", ".575240", "1", "0"), ("retain95", None, ".988066", ".04")],
)  # fmt: skip
def test_the_figures_of_real_models_are_those_of_tofus_own_script(tmp_path, model, utility, p, statistic):
    report = evaluate_rows(
        LOGS / f"llama2_7b_{model}.json",
        tmp_path / "out",
        reference_from=LOGS / "llama2_7b_retain90.json",
        suites=["tofu"],
    )
    found = {(one["metric"], one["set"]): one for one in report["results"]}
    if model == "full":
        for name, figures in SCRIPT.items():
            for where, figure in zip(("real_authors", "world_facts", "retain", "forget"), figures, strict=True):
                assert round(found[name, where]["value"], 4) == figure
    if utility:
        assert round(found["tofu/model_utility@1", None]["value"], 6) == float(utility)
    quality = found["tofu/forget_quality@1", "forget"]["value"]
    assert float(f"{quality:.3e}") == float(p) if model == "full" else round(quality, 6) == float(p)
    assert round(found["tofu/ks_statistic@1", "forget"]["value"], 6) == float(statistic)
    sizes = {
        "forget": 200 if model == "retain95" else 300,
        "retain": 300,
        "real_authors": 100,
        "world_facts": 117,
        None: 517,
    }
    assert all(one["status"] == "ok" and one["n"] == sizes[one["set"]] for one in report["results"])
