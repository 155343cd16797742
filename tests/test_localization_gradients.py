"""Gradients of a localization against a loop over single, unpadded examples in float64 that knows nothing of editkit."""

import numpy as np
import pytest
import torch
from localized import (  # noqa: F401
    FORGET,
    RETAIN,
    direct,
    each_gradient,
    loaded,
    loss,
    means,
    near,
    no_pictures,
    one_thread,
    scores,
    sequence,
    sets,
    write,
)
from safetensors.torch import load_file
from test_training_finetune import gpt2_without_prefix, mixtral
from tiny_models import save_gpt2, save_llama, save_qwen2, save_tied_twice, tokenizer

from editkit.errors import EditError
from editkit.localization import gradients as module
from editkit.localization.localize import localize


@pytest.fixture
def data(tmp_path):
    return sets(tmp_path)


MODELS = {
    "llama": save_llama,
    "tied": lambda folder: save_llama(folder, tied=True),
    "tied twice": save_tied_twice,
    "gpt2": save_gpt2,
    "gpt2 of the Hub": gpt2_without_prefix,
    "qwen2": save_qwen2,
    "mixtral": mixtral,
}


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_gradients_are_those_of_single_examples_whatever_the_batch_size(tmp_path, data, make):
    base = make(tmp_path / "base")
    buffer_or_copy = {gpt2_without_prefix: "h.0.attn.bias", save_tied_twice: "lm_head.weight"}
    names = load_file(base / "model.safetensors").keys() - {buffer_or_copy.get(make)}
    forget, retain = direct(base, FORGET), direct(base, RETAIN)
    modes = [("signed", 1), ("signed", 4), ("signed", 16), ("absolute", 4), ("squared", 4)]
    for mode, size in modes:
        place = tmp_path / f"{mode}{size}"
        report = localize(base, place, method="salun", accumulate=mode, batch_size=size, device="cpu", **data)
        found = scores(place)
        assert found.keys() == names
        for name, values in found.items():
            assert near(values, forget[mode][name].abs()), (mode, size, name)
        assert report["forget"]["examples"] == 13
        assert report["forget"]["tokens"] == sum(len(ids) - first for ids, first in map(sequence, FORGET))
        for row in report["tensors"]:
            f, r = (one[mode][row["name"]].flatten() for one in (forget, retain))
            root = mode == "squared"  # whose mean is shown as its root
            for key, values in (("mean_abs_forget", f), ("mean_abs_retain", r)):
                wanted = float(values.abs().mean().sqrt() if root else values.abs().mean())
                assert row[key] == pytest.approx(wanted, rel=1e-4, abs=1e-12), (mode, size, row["name"])
            if mode != "signed":
                assert row["cosine"] is None
            elif float(f.norm()) > 1e-9 and float(r.norm()) > 1e-9:
                cosine = float(f @ r / (f.norm() * r.norm()))
                assert row["cosine"] == pytest.approx(cosine, abs=2e-5), (size, row["name"])


def test_the_loss_of_the_report_is_that_of_the_model_on_the_examples(tmp_path, data):
    base = save_llama(tmp_path / "base")
    report = localize(base, tmp_path / "loc", method="salun", device="cpu", **data)
    model = loaded(base)
    for label, rows in (("forget", FORGET), ("retain", RETAIN)):
        losses = [float(loss(model, *sequence(row)).detach()) for row in rows]
        assert report[label]["loss"] == pytest.approx(np.mean(losses), rel=1e-6)
        assert report[label]["loss_sd"] == pytest.approx(np.std(losses, ddof=1), rel=1e-4)


def test_random_labels_average_over_draws_of_their_own(tmp_path, data, monkeypatch):
    """The gradient is the mean over all draws and examples, of examples with other tokens in input and labels."""
    base, drawn = save_llama(tmp_path / "base"), []
    inner = module.randomized

    def record(row, *arguments, **settings):
        drawn.append((row, inner(row, *arguments, **settings)))
        return drawn[-1][1]

    monkeypatch.setattr(module, "randomized", record)
    report = localize(
        base, tmp_path / "loc", method="salun", labels="random:0.4", draws=3, device="cpu", forget=data["forget"]
    )
    assert len(drawn) == 3 * len(FORGET)
    assert len({tuple(after.ids) for _, after in drawn}) > 2.5 * len(FORGET)
    for before, after in drawn:
        first = next(index for index, label in enumerate(before.labels) if label >= 0)
        assert after.ids[:first] == before.ids[:first] and after.labels[:first] == before.labels[:first]
        assert after.ids[first:] == after.labels[first:] != before.ids[first:]
    examples = [(after.ids, next(i for i, label in enumerate(after.labels) if label >= 0)) for _, after in drawn]
    model = loaded(base)
    wanted = means(each_gradient(model, examples))["signed"]
    for name, values in scores(tmp_path / "loc").items():
        assert near(values, wanted[name].abs()), name
    losses = [float(loss(model, *example).detach()) for example in examples]
    assert report["forget"]["loss"] == pytest.approx(np.mean(losses), rel=1e-5), "with the labels that were taken"


def test_only_leaves_other_tensors_out_and_changes_nothing_in_those_it_names(tmp_path, data):
    base = save_llama(tmp_path / "base")
    whole = direct(base, FORGET)["signed"]
    report = localize(
        base, tmp_path / "loc", method="salun", only=["*.mlp.*"], device="cpu", forget=data["forget"], budget="10%"
    )
    found = scores(tmp_path / "loc")
    assert (
        sorted(found)
        == sorted(name for name in whole if ".mlp." in name)
        == [row["name"] for row in sorted(report["tensors"], key=lambda row: row["name"])]
    )
    assert all(near(values, whole[name].abs()) for name, values in found.items())
    assert report["summary"]["selected"] == sum(value.numel() for value in found.values()) // 10


def test_half_precision_weights_are_taken_in_float32(tmp_path, data):
    base = save_llama(tmp_path / "base", torch.bfloat16)
    localize(base, tmp_path / "loc", method="salun", device="cpu", forget=data["forget"])
    wanted = direct(base, FORGET)["signed"]
    assert all(near(values, wanted[name].abs()) for name, values in scores(tmp_path / "loc").items())


@pytest.mark.parametrize("saving", [1e-9, float("inf")])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("mode", ["signed", "squared"])
def test_a_gradient_that_is_no_number_is_traced_to_its_example(tmp_path, data, monkeypatch, bad, mode, saving):
    """With a save after the first batch alone, and after every one. Only the letter q has a broken embedding, so that only the example with it, on line 6, is to blame."""
    from safetensors.torch import save_file

    monkeypatch.setattr(module, "SAVING", saving)
    base = save_llama(tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    tensors["model.embed_tokens.weight"][tokenizer()("q")["input_ids"][0], 3] = bad
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    write(data["forget"], [*FORGET[:5], {"prompt": "q", "completion": " Ada"}, *FORGET[5:]])
    with pytest.raises(EditError) as caught:
        localize(base, tmp_path / "loc", method="salun", accumulate=mode, device="cpu", **data)
    message = str(caught.value)
    assert "forget.jsonl: line 6 has a gradient with NaN or Inf in" in message and "model." in message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "forget.jsonl", "retain.jsonl"]
