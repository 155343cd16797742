"""A whole attack on a tiny model that learned two sets and had one of them half subtracted again."""

import json
import shutil

import numpy as np
import pytest
import torch
from localized import one_thread, write  # noqa: F401
from safetensors.torch import load_file, save_file
from tiny_models import save_llama

from editkit.attacks.attack import attack
from editkit.attacks.subject import opened_whole
from editkit.checkpoint.reader import open_checkpoint
from editkit.checkpoint.writer import write_checkpoint
from editkit.errors import EditError
from editkit.evaluation.measuring import measure, prepare
from editkit.evaluation.subject import opened
from editkit.training.data import read_examples
from editkit.training.finetune import finetune
from editkit.training.loading import load_model

CPU = {"device": "cpu"}


def made(letters, tail):
    return [{"prompt": letter * 2, "completion": f" Ada {tail}{letter}"} for letter in letters]


FORGET = [{**row, "paraphrased_question": row["prompt"][0]} for row in made("abcdefgh", "x")]
del FORGET[3]["paraphrased_question"]
RETAIN, UNSEEN = made("ijklmnop", "y"), made("qrstuvwxyz", "x")


def build(folder):
    """model (full), never (retain only), edited (half way from the one to the other), lora on model, and the sets."""
    for name, rows in (("forget", FORGET), ("retain", RETAIN), ("unseen", UNSEEN), ("both", FORGET + RETAIN)):
        write(folder / f"{name}.jsonl", rows)
    save_llama(folder / "start")
    training = {"lr": 2e-2, "batch_size": 16, **CPU}
    finetune(folder / "start", folder / "both.jsonl", folder / "model", steps=120, **training)
    finetune(folder / "start", folder / "retain.jsonl", folder / "never", steps=60, **training)
    finetune(folder / "model", folder / "retain.jsonl", folder / "lora", lora=2, steps=3, lr=5e-2, device="cpu")
    with open_checkpoint(folder / "model") as full, open_checkpoint(folder / "never") as never:
        mixed = {name: 0.5 * (full[name] + never[name]) for name in full}
    write_checkpoint(mixed, folder / "edited", like=folder / "model")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return build(tmp_path_factory.mktemp("attacked"))


def inputs(folder, *names):
    """Of an attack, by name: the sets and models that are asked for."""
    models = {"base": folder / "model", "reference": folder / "never"}
    return {name: models.get(name, folder / f"{name}.jsonl") for name in ("forget", *names)}


EVERYTHING = ("retain", "unseen", "base", "reference")


@pytest.fixture(scope="module")
def attacked(folder):
    """The report of every attack, in `out`."""
    return attack(folder / "edited", folder / "out", **inputs(folder, *EVERYTHING), kinds=("all",), steps=6, max_new_tokens=6, **CPU)  # fmt: skip


def rows_of(folder):
    return [json.loads(line) for line in (folder / "out" / "examples.jsonl").read_text().splitlines()]


def accuracies(net, asked):
    """Share of right tokens of each answer, by transformers alone; `asked`: (prompt, answer)."""
    from tiny_models import tokenizer

    found = []
    for prompt, answer in asked:
        ids = [0, *tokenizer()(prompt + answer)["input_ids"], 1]
        first = 1 + len(tokenizer()(prompt)["input_ids"])
        with torch.no_grad():
            best = net(torch.tensor([ids])).logits[0].argmax(-1).tolist()
        found.append(np.mean([best[place - 1] == ids[place] for place in range(first, len(ids))]))
    return found


def loaded(folder):
    with open_checkpoint(folder) as base:
        return load_model(base).eval()


PAIRS = [(row["prompt"], row["completion"]) for row in FORGET]


def test_what_is_reported_is_what_is_in_the_folder(folder, attacked):
    assert json.loads((folder / "out" / "attack.json").read_text()) == json.loads(json.dumps(attacked))
    assert attacked["schema"] == "editkit.attack/1"
    assert sorted(path.name for path in (folder / "out").iterdir()) == ["attack.json", "attack.png", "examples.jsonl", "report.html"]  # fmt: skip
    assert {one["role"]: one["name"] for one in attacked["models"]} == {
        "model": "edited",
        "base": "model",
        "reference": "never",
    }
    assert {one["set"]: one["examples"] for one in attacked["sets"]} == {"forget": 8, "retain": 8, "unseen": 10}
    assert all(len(hash) == 64 for one in attacked["models"] for hash in one["sha256"].values())
    assert [one["attack"] for one in attacked["attacks"]] == [
        "int8", "int4", "int4-128", "int4-32", "nf4", "paraphrased", "few-shot", "relearn-forget", "relearn-retain"
    ]  # fmt: skip
    assert {one["status"] for one in attacked["attacks"]} == {"ok"}


def test_accuracies_without_and_under_int4_are_those_of_the_weights_written_out(folder, attacked):
    assert accuracies(loaded(folder / "model"), PAIRS) == [1.0] * 8
    for name, role in (("edited", "model"), ("never", "reference")):
        net = loaded(folder / name)
        plain = accuracies(net, PAIRS)
        for key, one in net.named_parameters():
            if "_proj" in key:
                weight = one.detach()
                step = weight.abs().amax(1, keepdim=True) / 7
                weight.copy_((weight / step).round() * step)
        coarse = accuracies(net, PAIRS)
        for attacks, expected in (("none", plain), ("int4", coarse)):
            found = {row["index"]: row["token_accuracy"] for row in rows_of(folder) if (row["role"], row["attack"], row["set"]) == (role, attacks, "forget")}  # fmt: skip
            assert [found[index] for index in range(8)] == pytest.approx(expected)


def test_other_words_are_asked_of_the_rows_that_have_them(folder, attacked):
    asked = [(row["paraphrased_question"], row["completion"]) for row in FORGET if "paraphrased_question" in row]
    rows = [row for row in rows_of(folder) if (row["role"], row["attack"]) == ("model", "paraphrased")]
    assert [row["index"] for row in rows] == [0, 1, 2, 4, 5, 6, 7]
    assert [row["token_accuracy"] for row in rows] == pytest.approx(accuracies(loaded(folder / "edited"), asked))
    [said] = [one for one in attacked["verdicts"] if one["attack"] == "paraphrased"]
    before = accuracies(loaded(folder / "edited"), [PAIRS[row["index"]] for row in rows])
    assert said["n"] == 7 and said["edited_before"]["value"] == pytest.approx(np.mean(before))


def test_verdicts_follow_from_the_rows(folder, attacked):
    rows = rows_of(folder)

    def mean(role, name, indices, step=None):
        found = {row["index"]: row["token_accuracy"] for row in rows if (row["role"], row["attack"], row["set"], row.get("step")) == (role, name, "forget", step)}  # fmt: skip
        return np.mean([found[index] for index in indices])

    for said in attacked["verdicts"]:
        name, curve = said["attack"], said["kind"] == "relearn"
        last, first, before = (6, 0, name) if curve else (None, None, "none")
        indices = [row["index"] for row in rows if (row["role"], row["attack"], row["set"], row.get("step")) == ("model", name, "forget", last)]  # fmt: skip
        e, after = mean("model", before, indices, first), mean("model", name, indices, last)
        c, c_after = mean("reference", before, indices, first), mean("reference", name, indices, last)
        o = mean("base", "none", indices)
        assert said["recovered"]["value"] == pytest.approx((after - e) / (o - e))
        assert said["excess"]["value"] == pytest.approx(after - c_after - max(0, e - c))
        assert said["judged"]["value"] == pytest.approx(said["excess"]["value"] / (o - e))
        assert said["original_before"]["value"] == pytest.approx(o) and said["n"] == len(indices)
        assert isinstance(said["original_after"], str) == curve


def test_relearning_measures_what_it_did_not_train_on_and_trains_both_models_alike(folder, attacked):
    by_name = {one["attack"]: one for one in attacked["curves"]}
    assert [by_name["relearn-forget"][key] for key in ("trained_on", "examples", "held_out")] == ["forget", 2, 6]
    assert [by_name["relearn-retain"][key] for key in ("trained_on", "examples", "held_out")] == ["retain", 8, 8]
    for one in by_name.values():
        assert set(one["points"]) == {"edited", "control"}
        assert [point["step"] for point in one["points"]["edited"]] == [0, 1, 2, 4, 6]
        start = {row["index"]: row["token_accuracy"] for row in rows_of(folder) if (row["role"], row["attack"], row.get("step")) == ("model", one["attack"], 0)}  # fmt: skip
        plain = accuracies(loaded(folder / "edited"), PAIRS)
        assert start == pytest.approx({index: plain[index] for index in start}) and len(start) == one["held_out"]


def test_written_answers_are_scored_where_weights_are_not_trained(folder, attacked):
    rows = [row for row in rows_of(folder) if row["role"] == "base" and row["attack"] == "none" and row["set"] == "forget"]  # fmt: skip
    assert [row["generation"] for row in rows] == [row["completion"].strip() for row in FORGET]
    assert {row["rougeL_recall"] for row in rows} == {1.0}
    assert any(one["metric"] == "rougeL_recall" and one["attack"] == "nf4" for one in attacked["results"])
    assert not any("generation" in row for row in rows_of(folder) if "step" in row)


def test_texts_are_kept_once_and_membership_columns_with_them(folder, attacked):
    rows = rows_of(folder)
    with_texts = [(row["role"], row["attack"]) for row in rows if "prompt" in row]
    assert set(with_texts) == {("model", "none")} and len(with_texts) == 26
    assert all("min_k" in row for row in rows if row["attack"] == "none" and row["set"] in ("forget", "unseen"))
    assert {one["score"] for one in attacked["membership"]} == {"loss", "zlib", "reference", "min_k", "min_k_plus_plus"}
    assert any("10 unseen texts" in text for text in attacked["warnings"])


def test_the_same_attack_gives_the_same_bytes_and_leaves_the_models_and_the_random_state_alone(folder, attacked):
    weights = {name: (folder / name / "model.safetensors").read_bytes() for name in ("edited", "model", "never")}
    torch.manual_seed(7)
    state = torch.random.get_rng_state()
    attack(folder / "edited", folder / "again", **inputs(folder, *EVERYTHING), kinds=("all",), steps=6, max_new_tokens=6, **CPU)  # fmt: skip
    assert torch.random.get_rng_state().equal(state)
    for path in (folder / "out").iterdir():
        assert path.read_bytes() == (folder / "again" / path.name).read_bytes(), path.name
    assert weights == {name: (folder / name / "model.safetensors").read_bytes() for name in weights}


def test_what_is_not_given_is_unknown_or_left_out_by_default(folder, tmp_path):
    report = attack(folder / "edited", tmp_path / "out", **inputs(folder), steps=2, **CPU)
    status = {one["attack"]: one["status"] for one in report["attacks"]}
    assert status["few-shot"] == status["relearn-retain"] == "skipped: give --retain"
    assert "membership" not in report["settings"]["kinds"] and report["membership"] == []
    assert any("membership is left out: give --unseen" in text for text in report["warnings"])
    for one in report["verdicts"]:
        assert one["verdict"] == one["recovered"] == one["judged"] == one["original_before"] == "unknown: give --base, the model before the edit"  # fmt: skip
        assert one["excess"] == one["control_after"] == "unknown: give --reference, a model that never saw the forget set"  # fmt: skip
    [curve] = report["curves"]
    assert curve["steps_to_recover"].startswith("unknown: give --base")
    assert curve["apart_at"].startswith("unknown: give --reference")


def test_only_the_kinds_asked_for_are_made(folder, tmp_path):
    report = attack(folder / "edited", tmp_path / "out", **inputs(folder, *EVERYTHING), kinds=["paraphrase"], **CPU)
    assert [one["attack"] for one in report["attacks"]] == ["paraphrased", "few-shot"]
    assert report["curves"] == report["membership"] == [] and report["settings"]["quantized"] is None


def test_an_adapter_is_merged_and_attacked_as_a_whole(folder, tmp_path):
    with opened(f"{folder / 'model'}+{folder / 'lora'}", device="cpu") as subject:
        asked = prepare(read_examples(folder / "forget.jsonl"), "forget", subject, {"nll"})
        apart = [row["nll"] for row in measure(subject, asked)]
    with opened_whole(f"{folder / 'model'}+{folder / 'lora'}", dtype=None, device="cpu") as subject:
        assert not any("lora" in name for name, _ in subject.net.named_parameters())
        merged = [row["nll"] for row in measure(subject, asked)]
    assert merged == pytest.approx(apart, rel=1e-4)
    source = f"{folder / 'model'}+{folder / 'lora'}"
    report = attack(source, tmp_path / "out", **inputs(folder, "base", "reference"), kinds=["quantize", "relearn"], steps=2, **CPU)  # fmt: skip
    assert report["models"][0]["adapter"] == "lora"
    plain = [one for one in report["results"] if (one["attack"], one["role"], one["metric"]) == ("none", "model", "nll")]  # fmt: skip
    assert plain[0]["value"] == pytest.approx(np.mean(apart), rel=1e-4)


def test_a_model_that_was_not_edited_is_said_to_be_so(folder, tmp_path):
    shutil.copytree(folder / "model", tmp_path / "copy")
    report = attack(tmp_path / "copy", tmp_path / "out", **inputs(folder, "base"), kinds=["quantize"], **CPU)
    assert any("nothing was edited" in text for text in report["warnings"])
    assert {one["verdict"] for one in report["verdicts"]} == {"unknown: the edit took nothing away"}


def test_examples_in_both_sets_are_not_trained_on_nor_shown(folder, tmp_path, monkeypatch):
    mixed = write(tmp_path / "mixed.jsonl", [*FORGET[:2], *RETAIN])
    seen = []
    monkeypatch.setattr("editkit.attacks.gathering.relearn", lambda source, trained, *_, **__: seen.append(trained) or {})  # fmt: skip
    monkeypatch.setattr("editkit.attacks.attack.conclude", lambda *_: {"noticed": []})
    monkeypatch.setattr("editkit.attacks.rendering.write_pictures", lambda *_: None)
    report = attack(folder / "edited", tmp_path / "out", forget=folder / "forget.jsonl", retain=mixed, **CPU)
    assert any("2 of 10 examples of the retain set are in the forget set too" in text for text in report["warnings"])
    assert seen[-1].rows == RETAIN
    rows = [json.loads(line) for line in (tmp_path / "out" / "examples.jsonl").read_text().splitlines()]
    assert sum(row["set"] == "retain" and row["attack"] == "none" for row in rows) == 10


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"kinds": ["quantize", "quantize"]}, "quantize is given twice"),
        ({"kinds": ["bite"]}, "no such attack as 'bite', there are quantize, relearn, membership, paraphrase and all"),
        ({"kinds": ["all", "relearn"]}, "all is given with others"),
        ({"kinds": ["membership"]}, "membership needs --unseen"),
        ({"steps": 0}, "steps is 0, must be at least 1"),
        ({"batch_size": 0, "max_examples": 1, "seed": -1}, "max_examples is 1.*seed is -1.*batch_size is 0"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"dtype": "int4", "device": "tpu"}, "dtype is 'int4'.*device is 'tpu'"),
    ],
)
def test_settings_that_are_no_attack_are_refused_before_anything_is_read(tmp_path, settings, said):
    with pytest.raises(EditError, match=said):
        attack("nowhere", tmp_path / "out", forget="nothing.jsonl", **settings)


def refused(folder, tmp_path, said, model=None, **settings):
    with pytest.raises(EditError, match=said):
        attack(model or folder / "edited", tmp_path / "out", **{**inputs(folder), **CPU, **settings})
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


def test_inputs_that_do_not_fit_together_are_refused_and_nothing_is_left(folder, tmp_path):
    refused(folder, tmp_path, "nothing.jsonl cannot be read", forget="nothing.jsonl")
    refused(folder, tmp_path, "nothing tells what to forget from what to keep", retain=folder / "forget.jsonl")
    refused(folder, tmp_path, r"8 of 16 examples are in .*forget.jsonl too", unseen=folder / "both.jsonl")
    refused(folder, tmp_path, "one example has no spread", forget=write(tmp_path / "one.jsonl", FORGET[:1]))
    refused(folder, tmp_path, "nowhere", model=tmp_path / "nowhere")
    refused(folder, tmp_path, "--reference .*edited is the model itself", reference=folder / "edited")
    refused(folder, tmp_path, "--reference .*model is the --base", base=folder / "model", reference=folder / "model")
    plain = write(tmp_path / "plain.jsonl", [{"prompt": row["prompt"], "completion": row["completion"]} for row in FORGET])  # fmt: skip
    refused(folder, tmp_path, "paraphrase: 0 of 8 examples have the key", forget=plain, kinds=["paraphrase"])


def test_an_output_that_is_not_empty_or_holds_an_input_is_refused(folder, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    for place in (tmp_path / "full", folder, folder / "edited" / "inside"):
        with pytest.raises(EditError, match=r"not an empty folder|contains the input|lies inside the input"):
            attack(folder / "edited", place, **inputs(folder), **CPU)


def test_a_reference_that_reads_other_tokens_is_refused(folder, tmp_path):
    shutil.copytree(folder / "never", tmp_path / "other")
    path = tmp_path / "other" / "tokenizer.json"
    found = json.loads(path.read_text())
    words = found["model"]["vocab"]
    words["a"], words["b"] = words["b"], words["a"]
    path.write_text(json.dumps(found))
    refused(folder, tmp_path, "--reference .*other has another tokenizer or vocabulary than", reference=tmp_path / "other")  # fmt: skip


def test_an_adapter_of_another_model_is_refused(folder, tmp_path):
    shutil.copytree(folder / "lora", tmp_path / "lora")
    weights = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    wide = {name: torch.cat([one, one], 1) if "lora_A" in name else one for name, one in weights.items()}
    save_file(wide, tmp_path / "lora" / "adapter_model.safetensors")
    refused(folder, tmp_path, "shape|fit", model=f"{folder / 'model'}+{tmp_path / 'lora'}")


def test_a_broken_model_says_where_it_breaks(folder, tmp_path):
    shutil.copytree(folder / "edited", tmp_path / "broken")
    weights = load_file(tmp_path / "broken" / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][0, 0] = torch.nan
    save_file(weights, tmp_path / "broken" / "model.safetensors", {"format": "pt"})
    refused(folder, tmp_path, "NaN.*model.layers.1.mlp.up_proj.weight", model=tmp_path / "broken")


def test_a_crash_on_the_way_leaves_nothing(folder, tmp_path, monkeypatch):
    def crash(*_):
        raise KeyError("pen broke")

    monkeypatch.setattr("editkit.attacks.rendering.write_pictures", crash)
    with pytest.raises(KeyError):
        attack(folder / "edited", tmp_path / "out", **inputs(folder), kinds=["paraphrase"], retain=folder / "retain.jsonl", **CPU)  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_each_model_is_opened_once_for_looking_and_the_original_is_never_trained(folder, tmp_path, monkeypatch):
    stages = []

    def stage(name):
        from contextlib import nullcontext

        stages.append(name)
        return nullcontext()

    attack(folder / "edited", tmp_path / "out", **inputs(folder, *EVERYTHING), steps=1, stage=stage, **CPU)
    assert stages == [
        "edited: measured", "original: measured", "control: measured",
        "edited: relearned on part of forget", "control: relearned on part of forget",
        "edited: relearned on retain", "control: relearned on retain",
    ]  # fmt: skip
