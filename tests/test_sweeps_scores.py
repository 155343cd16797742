"""Forgetting and retention by hand, and their paired intervals."""

import numpy as np
import pytest

from editkit.errors import EditError
from editkit.evaluation.suites import metric
from editkit.sweeps.scores import derived, measured, metrics_for, quantities, refuse_unequipped, stem


def data(**accuracies):
    return {
        name: {"index": np.arange(len(one)), "token_accuracy": np.array(one, float)} for name, one in accuracies.items()
    }


def test_ratios_of_means_by_hand():
    before = data(forget=[1.0, 0.5, 0.5], retain=[0.8, 0.4])
    after = data(forget=[0.2, 0.1, 0.2], retain=[0.9, 0.0])
    found = derived(after, before)
    assert found["forgetting"]["value"] == pytest.approx(1 - 0.5 / 2) and found["forgetting"]["n"] == 3
    assert found["retention"]["value"] == pytest.approx(0.9 / 1.2) and found["retention"]["n"] == 2
    assert found["forgetting"]["status"] == found["retention"]["status"] == "ok"


def test_an_edit_that_does_nothing_has_intervals_without_width():
    one = data(forget=np.linspace(0.1, 1, 40), retain=np.linspace(0, 1, 40))
    found = derived(one, one)
    assert [found["forgetting"][key] for key in ("value", "ci_low", "ci_high")] == [0, 0, 0]
    assert [found["retention"][key] for key in ("value", "ci_low", "ci_high")] == [1, 1, 1]


def test_intervals_are_paired():
    """Every example loses half of what it had: however unlike the examples are, the ratio is always one half."""
    before = np.random.default_rng(0).random(50)
    found = derived(data(forget=before / 2), data(forget=before))["forgetting"]
    assert found["ci_low"] == pytest.approx(0.5) == found["ci_high"]


def test_the_interval_is_that_of_resampled_pairs():
    draws = np.random.default_rng(1)
    before = draws.random(200)
    after = before * draws.random(200)
    found = derived(data(forget=after), data(forget=before))["forgetting"]
    ratios = []
    for _ in range(4000):
        drawn = draws.integers(0, 200, 200)
        ratios.append(1 - after[drawn].mean() / before[drawn].mean())
    low, high = np.percentile(ratios, [2.5, 97.5])
    assert found["ci_low"] == pytest.approx(low, abs=0.006) and found["ci_high"] == pytest.approx(high, abs=0.006)
    assert found == derived(data(forget=after), data(forget=before))["forgetting"]  # the same draws every time


def test_what_cannot_be_known_says_why():
    found = derived(data(forget=[0.0, 0.0]), data(forget=[0.0, 0.0]))
    assert (
        found["forgetting"]["value"] is None and "gets no token of the examples right" in found["forgetting"]["status"]
    )
    assert found["retention"]["value"] is None and found["retention"]["status"] == "unknown: no retain set was given"


def test_metrics_are_called_by_set_and_stem():
    columns = {"forget": {"index": np.arange(2), "nll": np.array([1.0, 3.0])}}
    assert measured(columns, [metric("general/nll@1")])["forget.nll"]["value"] == 2
    found = quantities(
        [metric("general/nll@1"), metric("knowundo/unlearn_success@1"), metric("tofu/model_utility@1")],
        ["forget", "retain"],
    )
    assert list(found) == ["forget.nll", "retain.nll", "forget.unlearn_success", "model_utility"]


def test_a_rule_brings_the_metrics_that_it_names():
    plain = {stem(one) for one in metrics_for((), (), ())}
    assert plain == {"token_accuracy", "nll", "ma"}
    assert {
        stem(one) for one in metrics_for((), (), ["forget_efficacy", "retain.probability", "forgetting"])
    } == plain | {"forget_efficacy", "probability"}
    assert {stem(one) for one in metrics_for((), ["tofu/rouge*"], ())} == plain | {"rougeL_recall"}


def test_forget_efficacy_needs_its_models_and_forgetting_is_pointed_to():
    efficacy, cosine, nll = (
        metric(f"{name}@1") for name in ("closer_look/forget_efficacy", "closer_look/cosine_similarity", "general/nll")
    )
    for given, missing in (
        ((None, None), "--embedding-model, --nli-model"),
        (("e", None), "--nli-model"),
        ((None, "n"), "--embedding-model"),
    ):
        with pytest.raises(EditError, match=f"forget_efficacy compares .*: give {missing}, or a rule with forgetting"):
            refuse_unequipped([efficacy], *given)
    refuse_unequipped([efficacy], "e", "n")
    refuse_unequipped([cosine, nll], "e", None)
