"""Membership inference against scikit-learn, and relearning curves against the loop they are part of."""

import numpy as np
import pytest
import torch
from localized import one_thread, write  # noqa: F401
from sklearn.metrics import roc_auc_score, roc_curve
from tiny_models import save_llama

from editkit.attacks.membership import infer, scores, tell_themselves_apart
from editkit.attacks.relearning import back_at, points, relearn, split
from editkit.checkpoint.reader import open_checkpoint
from editkit.errors import EditError
from editkit.evaluation.measuring import measure, prepare
from editkit.evaluation.subject import opened
from editkit.localization.examples import encoded
from editkit.training.data import read_examples
from editkit.training.loading import load_model, load_tokenizer
from editkit.training.trainer import train

DRAWS = np.random.default_rng(11)


def rows(shift, n):
    made = []
    for _ in range(n):
        nll, tokens = float(np.exp(DRAWS.normal())) + shift, int(DRAWS.integers(5, 30))
        made.append({"nll": nll, "num_tokens": tokens, "zlib_bytes": int(DRAWS.integers(10, 90)), "min_k": -2 * nll + DRAWS.normal(), "min_k_plus_plus": DRAWS.normal() - shift})  # fmt: skip
    return made


ROWS = {
    "model": {"forget": rows(0.0, 60), "unseen": rows(0.4, 120)},
    "base": {"forget": rows(-0.5, 60), "unseen": rows(0.5, 120)},
    "reference": {"forget": rows(0.4, 60), "unseen": rows(0.4, 120)},
}


def expected(role, score):
    """Scores by their definitions, members first."""
    both = [*ROWS[role]["forget"], *ROWS[role]["unseen"]]
    other = [*ROWS["reference"]["forget"], *ROWS["reference"]["unseen"]]
    return np.array([
        {
            "loss": -row["nll"],
            "zlib": -row["nll"] * row["num_tokens"] / row["zlib_bytes"],
            "reference": theirs["nll"] - row["nll"],
            "min_k": row["min_k"],
            "min_k_plus_plus": row["min_k_plus_plus"],
        }[score]
        for row, theirs in zip(both, other, strict=True)
    ])  # fmt: skip


def test_auc_and_tpr_of_every_score_and_model_are_those_of_scikit_learn():
    truth = [1] * 60 + [0] * 120
    for one in infer(ROWS):
        assert set(one["roles"]) == ({"model", "base"} if one["score"] == "reference" else set(ROWS))
        for role, found in one["roles"].items():
            values = expected(role, one["score"])
            area = roc_auc_score(truth, values)
            assert found["auc"]["value"] == pytest.approx(area, abs=1e-12)
            assert found["two_sided_auc"]["value"] == pytest.approx(max(area, 1 - area), abs=1e-12)
            fpr, tpr, _ = roc_curve(truth, values, drop_intermediate=False)
            assert found["tpr_at_fpr"]["value"] == pytest.approx(tpr[fpr <= 0.01].max(), abs=1e-12)
            assert found["auc"]["ci_low"] <= area <= found["auc"]["ci_high"]


def test_priv_leak_and_the_distance_are_from_the_measured_reference():
    for one in infer(ROWS):
        if one["score"] == "reference":
            assert one["priv_leak"] is None and one["target"] == "0.5"
            continue
        edited, control = (one["roles"][role]["auc"]["value"] for role in ("model", "reference"))
        assert one["priv_leak"]["value"] == pytest.approx((edited - control) / control)
        assert one["distance"]["value"] == pytest.approx(edited - control) and one["target"] == "reference"


def test_without_a_reference_the_target_is_a_half_and_its_score_is_unknown():
    found = {one["score"]: one for one in infer({"model": ROWS["model"]})}
    assert found["reference"]["verdict"] == "unknown: give --reference, a model that never saw the forget set"
    assert found["reference"]["roles"] == {} and "distance" not in found["reference"]
    area = found["loss"]["roles"]["model"]["auc"]["value"]
    assert found["loss"]["distance"]["value"] == pytest.approx(area - 0.5) and found["loss"]["priv_leak"] is None
    assert "reference" not in scores(ROWS["model"]["forget"])


def test_few_unseen_texts_cannot_tell_low_false_positive_rates():
    few = {"model": {"forget": rows(0, 10), "unseen": rows(0, 20)}}
    assert {one["fpr_resolution"] for one in infer(few) if "fpr" in one} == {0.05}
    assert {one["fpr_resolution"] for one in infer(ROWS)} == {0.01}


def test_sets_that_a_model_which_saw_neither_tells_apart_are_noticed():
    assert tell_themselves_apart(infer(ROWS)) == []
    unlike = {role: {"forget": rows(0, 60), "unseen": rows(3, 60)} for role in ("model", "reference")}
    assert {"loss", "Min-K%"} <= set(tell_themselves_apart(infer(unlike)))
    assert tell_themselves_apart(infer({"model": ROWS["model"]})) == []


def test_points_are_powers_of_two_up_to_the_last_step():
    assert points(1) == [0, 1] and points(2) == [0, 1, 2]
    assert points(64) == [0, 1, 2, 4, 8, 16, 32, 64] and points(48) == [0, 1, 2, 4, 8, 16, 32, 48]


def test_a_part_is_trained_on_and_the_rest_is_held_out():
    for n in (2, 3, 7, 200):
        part, rest = split(n, seed=4)
        assert sorted(part + rest) == list(range(n)) and len(part) == max(1, round(0.3 * n)) and rest
    assert split(50, seed=1) == split(50, seed=1) != split(50, seed=2)


def test_back_is_where_nine_tenths_of_the_original_are_reached():
    curve = {0: [0.1, 0.3], 1: [0.6, 0.8], 2: [0.7, 0.75], 4: [0.9, 0.9]}
    assert back_at(curve, 0.8) == 2 and back_at(curve, 0.2) == 0 and back_at(curve, 1.0) == 4
    assert back_at({0: [0.1]}, 1.0) is None


FORGET = [{"prompt": "b" * (index + 1), "completion": " Ada" + "cdefgh"[index]} for index in range(6)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("relearning")
    save_llama(place / "model")
    write(place / "forget.jsonl", FORGET)
    return place


def training(folder):
    with open_checkpoint(folder / "model") as base:
        net, tokenizer = load_model(base), load_tokenizer(base)
    examples = read_examples(folder / "forget.jsonl")
    asked = {"context": 48, "vocabulary": net.config.vocab_size, "max_length": None, "prompt_template": None}
    rows = encoded("forget", examples, tokenizer, **asked).rows
    return net, rows, {"steps": 5, "lr": 5e-3, "batch_size": 4, "seed": 3, "device": "cpu"}


def test_observing_a_training_sees_every_step_and_changes_nothing(folder):
    net, rows, settings = training(folder)
    losses = train(net, rows, **settings)
    looked, states = training(folder)[0], {}

    def observe(step):
        assert looked.training or step == 0
        states[step] = looked.lm_head.weight.detach().clone()
        looked.eval()
        looked(torch.tensor([[1, 2, 3]]))
        looked.train()

    assert train(looked, rows, **settings, observe=observe) == losses
    assert list(states) == [0, 1, 2, 3, 4, 5]
    assert states[0].equal(training(folder)[0].lm_head.weight) and states[5].equal(net.lm_head.weight)
    assert not states[1].equal(states[0])
    assert all(one.equal(other) for one, other in zip(net.parameters(), looked.parameters(), strict=True))


def test_a_curve_begins_with_the_model_as_it_is_and_ends_with_the_trained_one(folder):
    examples = read_examples(folder / "forget.jsonl")
    settings = {"steps": 5, "batch_size": 4, "seed": 3, "dtype": None, "device": "cpu", "prompt_template": None}
    curve = relearn(folder / "model", examples, examples, **settings, progress=None)
    assert list(curve) == [0, 1, 2, 4, 5]
    net, rows, made = training(folder)
    assert made["lr"] == 0.08 / 16  # the default rate of a model 16 wide
    train(net, rows, **made)
    with opened(folder / "model", device="cpu") as subject:
        asked = prepare(examples, "forget", subject, ("nll", "token_accuracy"))
        assert measure(subject, asked, batch_size=4) == curve[0]
        subject.net.load_state_dict(net.state_dict())
        assert measure(subject, asked, batch_size=4) == curve[5] != curve[0]


def test_a_loss_that_is_no_number_says_so(folder, monkeypatch):
    monkeypatch.setattr("editkit.attacks.relearning.learning_rate", lambda subject: 1e30)
    examples = read_examples(folder / "forget.jsonl")
    settings = {"steps": 5, "batch_size": 4, "seed": 3, "dtype": None, "device": "cpu", "prompt_template": None}
    with pytest.raises(EditError):
        relearn(folder / "model", examples, examples, **settings, progress=None)
