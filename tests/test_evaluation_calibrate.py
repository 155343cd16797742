"""Mixing weights until a score is at a target: the search by hand, and the mix against one made by torch."""

from statistics import fmean

import pytest
import torch
from localized import RETAIN, one_thread, write  # noqa: F401
from safetensors.torch import load_file
from tiny_models import save_llama

import editkit
from editkit.errors import EditError
from editkit.evaluation.calibrate import calibrated, search
from editkit.evaluation.measuring import measure, prepare
from editkit.evaluation.subject import opened
from editkit.training.data import read_examples
from editkit.training.finetune import finetune

MODEL = "model.safetensors"


def test_the_crossing_is_found_to_one_part_in_256():
    found = search(lambda mix: 1 - mix, 0.6)  # crosses at 0.4 = 102.4 / 256
    assert found.mix == 102 / 256 and found.score == 1 - 102 / 256 and found.score >= found.target == 0.6
    assert found.reached and (found.original, found.edited) == (1.0, 0.0)


def test_the_end_that_keeps_the_target_is_taken_and_every_score_is_looked_at_once():
    asked = []
    found = search(lambda mix: asked.append(mix) or float(mix < 0.3), 0.5)  # a step
    assert found.mix == 76 / 256 < 0.3 <= 77 / 256 and found.score == 1
    assert len(asked) == len(set(asked)) == found.evaluations == 2 + 3 + 5


def test_of_several_crossings_the_first_counts():
    """Below the target from 0.3 to 0.45, and again from 0.7 on."""
    found = search(lambda mix: 0.0 if 0.3 < mix < 0.45 or mix > 0.7 else 1.0, 0.95)
    assert found.mix == 76 / 256 and found.reached


def test_an_edited_model_above_the_target_is_taken_as_it_is():
    found = search(lambda mix: 1 - 0.02 * mix, 0.95)
    assert (found.mix, found.score, found.reached, found.evaluations) == (1.0, 0.98, False, 2)


def test_an_original_that_scores_nothing_is_refused():
    with pytest.raises(EditError, match="the original scores 0"):
        search(lambda mix: 0.0, 0.95)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A model that knows the retain set, one whose weights are some way off, and an adapter."""
    folder = tmp_path_factory.mktemp("models")
    save_llama(folder / "base")
    data = write(folder / "retain.jsonl", RETAIN)
    finetune(folder / "base", data, folder / "original", steps=50, lr=2e-2, batch_size=7, device="cpu")
    finetune(folder / "original", data, folder / "lora", lora=2, steps=3, lr=1e-2, batch_size=7, device="cpu")
    draws = torch.Generator().manual_seed(2)
    moved = {
        name: one + 0.2 * torch.randn(one.shape, generator=draws)
        for name, one in load_file(folder / "original" / MODEL).items()
    }
    editkit.write_checkpoint(moved, folder / "edited", like=folder / "original")
    return folder


def score(subject, prepared):
    return fmean(row["token_accuracy"] for row in measure(subject, prepared))


def test_the_model_is_the_mix_inside_and_the_original_outside(models, tmp_path):
    with opened(models / "original", device="cpu") as subject:
        retain = prepare(read_examples(models / "retain.jsonl"), "retain", subject, {"token_accuracy"})
        before = {name: one.clone() for name, one in subject.net.state_dict().items()}
        alone = score(subject, retain)
        with calibrated(subject, models / "edited", retain, kept=0.8) as found:
            inside = {name: one.clone() for name, one in subject.net.state_dict().items()}
            assert score(subject, retain) == found.score >= found.target == pytest.approx(0.8 * alone)
        assert all(torch.equal(one, before[name]) for name, one in subject.net.state_dict().items())
        with pytest.raises(KeyError), calibrated(subject, models / "edited", retain, kept=0.8):
            raise KeyError
        assert all(torch.equal(one, before[name]) for name, one in subject.net.state_dict().items())
    assert 0 < found.mix < 1 and found.reached and found.n == len(RETAIN) and found.original == alone
    one, other = (load_file(models / name / MODEL) for name in ("original", "edited"))
    for name in one:
        assert torch.equal(
            inside[name], (one[name].double() + found.mix * (other[name].double() - one[name].double())).float()
        ), name
    # one step of the search further, the target is missed
    further = {
        name: (one[name].double() + (found.mix + 1 / 256) * (other[name].double() - one[name].double())).float()
        for name in one
    }
    editkit.write_checkpoint(further, tmp_path / "further", like=models / "original")
    with opened(tmp_path / "further", device="cpu") as subject:
        assert score(subject, retain) < found.target


def test_an_adapter_on_the_original_can_be_mixed_and_one_on_another_model_cannot(models, tmp_path):
    with opened(models / "original", device="cpu") as subject:
        retain = prepare(read_examples(models / "retain.jsonl"), "retain", subject, {"token_accuracy"})
        with calibrated(subject, f"{models / 'original'}+{models / 'lora'}", retain) as found:
            assert found.mix == 1 or found.reached
            moved = subject.net.state_dict()["model.layers.0.self_attn.q_proj.weight"].clone()
        assert not torch.equal(moved, subject.net.state_dict()["model.layers.0.self_attn.q_proj.weight"])
        said = r"edited has other weights than .*original, so the mix is not on the way"
        other = f"{models / 'edited'}+{models / 'lora'}"
        with pytest.raises(EditError, match=said), calibrated(subject, other, retain):
            pass


def test_what_does_not_fit_is_refused(models, tmp_path):
    save_llama(tmp_path / "tied", tied=True)
    with opened(models / "original", device="cpu") as subject:
        retain = prepare(read_examples(models / "retain.jsonl"), "retain", subject, {"token_accuracy"})
        for kept in (0, 1.5, float("nan")):
            with (
                pytest.raises(EditError, match="give a share of the original's"),
                calibrated(subject, models / "edited", retain, kept=kept),
            ):
                pass
        with (
            pytest.raises(EditError, match=r"lacks 1 of the tensors of .*lm_head.weight"),
            calibrated(subject, tmp_path / "tied", retain),
        ):
            pass
    both = f"{models / 'original'}+{models / 'lora'}"
    said = "has an adapter: give the whole model"
    with opened(both, device="cpu") as subject, pytest.raises(EditError, match=said):
        calibrated(subject, models / "edited", retain).__enter__()
