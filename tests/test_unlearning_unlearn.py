"""`unlearn` from end to end: what is written, that it is what the report says, and what is refused."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from memorised import memorised, rows_of, write
from safetensors.torch import load_file, save_file
from test_masks_mask import packed, save_mask
from test_training_finetune import tensors
from test_training_masking import bits, moved, scattered
from test_unlearning_origin import log_probs_alone  # noqa: F401
from tiny_models import save_gpt2

import editkit
from editkit.checkpoint.reader import open_checkpoint
from editkit.errors import EditError
from editkit.training.data import read_examples
from editkit.training.encoding import encode
from editkit.training.loading import load_tokenizer
from editkit.unlearning import step as unlearn_room
from editkit.unlearning.step import Stepper
from editkit.unlearning.unlearn import unlearn

PLACE = memorised


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """Drawing them takes longer than all the rest."""
    monkeypatch.setattr("editkit.unlearning.rendering.write_pictures", lambda report, folder: None)
    monkeypatch.setattr("editkit.unlearning.saving.write_report", lambda report, folder: folder.mkdir())


FAST = {"device": "cpu", "steps": 12, "eval_every": 4, "lr": 5e-3, "stop": ["ma(forget) < 0"], "floor": 0.01}
"""Twelve steps, whatever happens: no rule holds."""


AT_ONCE = {"steps": 4, "eval_every": 4, "stop": ["nll(forget) > 0"]}
"""Four steps, and what comes of them is kept."""


def run(tmp_path, name="out", model=None, **settings):
    place = PLACE()
    given = {"forget": place / "forget.jsonl", "retain": place / "retain.jsonl", "method": "me+gd", **FAST, **settings}
    return unlearn(
        model or place / "model", tmp_path / name, **{key: one for key, one in given.items() if one is not None}
    )


def columns_of(folder, data):
    """NLL and MA of every example by transformers, one text at a time, in float32."""
    from transformers import AutoModelForCausalLM

    net = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return scored(net, data)


def scored(net, data):
    tokenizer = load_tokenizer(open_checkpoint(PLACE() / "model"))
    nll, ma = [], []
    for row in encode(read_examples(data), tokenizer).rows:
        with torch.no_grad():
            logits = net(torch.tensor([row.ids])).logits[0].float()
        answer = [place for place, label in enumerate(row.labels) if label != -100]
        tokens = torch.tensor([row.ids[place] for place in answer])
        at = logits[[place - 1 for place in answer]]
        nll.append(torch.nn.functional.cross_entropy(at, tokens).item())
        ma.append((at.argmax(-1) == tokens)[:-1].float().mean().item())  # without the end of text
    return np.array(nll), np.array(ma)


def after(report, name, quantity):
    return next(row for row in report["result"] if (row["set"], row["quantity"]) == (name, quantity))


@pytest.mark.parametrize(
    ("dtype", "method"), [(torch.float32, "ga+gd"), (torch.bfloat16, "npo+kl"), (torch.bfloat16, "tau")]
)
def test_off_mask_every_byte_stays_with_momentum_and_weight_decay(tmp_path, dtype, method):
    """A quarter of the elements of every second tensor may move; the base has zeros of both signs."""
    base = tmp_path / "base"
    shutil.copytree(PLACE() / "model", base)
    values = {name: one.to(dtype) for name, one in tensors(base).items()}
    for one in values.values():
        one.view(-1)[::9] = -0.0
    save_file(values, base / "model.safetensors", {"format": "pt"})
    chosen = scattered(base)
    save_mask(tmp_path / "mask.safetensors", "element", {name: packed(one) for name, one in chosen.items()})
    report = run(tmp_path, model=base, method=method, mask=tmp_path / "mask.safetensors", weight_decay=0.1, lr=3e-2)
    there = moved(base, tmp_path / "out")
    assert {name: one.dtype for name, one in tensors(tmp_path / "out").items()} == dict.fromkeys(values, dtype)
    for name, changed in there.items():
        assert not (changed & ~chosen.get(name, torch.tensor(False))).any(), name
    count = sum(int(one.sum()) for one in chosen.values())
    assert report["changed"]["of"] == count
    assert report["changed"]["elements"] == sum(int(one.sum()) for one in there.values()) > count / 4


def test_the_report_says_what_an_evaluation_of_the_saved_files_says(tmp_path):
    report = run(tmp_path)
    for name, data in (("forget", "forget.jsonl"), ("retain", "retain.jsonl")):
        for when, folder in (("before", PLACE() / "model"), ("after", tmp_path / "out")):
            nll, ma = columns_of(folder, PLACE() / data)
            assert after(report, name, "nll")[when]["value"] == pytest.approx(nll.mean(), abs=1e-5)
            found = after(report, name, "ma")[when]
            assert (found["value"], found["max"], found["n"]) == pytest.approx((ma.mean(), ma.max(), 8))
            assert after(report, name, "probability")[when]["value"] == pytest.approx(np.exp(-nll).mean(), abs=1e-5)
    assert (
        after(report, "forget", "ma")["after"]["value"] < 0.7 < 0.9 < after(report, "forget", "ma")["before"]["value"]
    )


def test_the_chosen_point_is_what_was_saved(tmp_path):
    report = run(tmp_path)
    task = report["tasks"][0]
    point = task["points"][task["chosen"]]
    assert point["values"]["ma(forget)"] == pytest.approx(after(report, "forget", "ma")["after"]["value"], abs=1e-6)
    assert point["values"]["nll(retain)"] == pytest.approx(after(report, "retain", "nll")["after"]["value"], abs=1e-5)


def test_an_output_has_its_diff_its_report_its_log_and_where_it_comes_from(tmp_path):
    report = run(tmp_path)
    out = tmp_path / "out"
    assert json.loads((out / "unlearning" / "unlearn.json").read_text()) == json.loads(json.dumps(report))
    lines = [json.loads(line) for line in (out / "unlearning" / "train_log.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if "forget_loss" in line]
    assert steps == list(range(1, 13)) and {line["task"] for line in lines} == {"forget"}
    assert [line["step"] for line in lines if "values" in line] == [0, 4, 8, 12]
    assert (out / "diff").is_dir()
    record = json.loads((out / "editkit.json").read_text())
    text = json.dumps(record)
    assert "unlearn" in text and "me+gd" in text and read_examples(PLACE() / "forget.jsonl").sha256 in text
    assert not list(tmp_path.glob(".*")), "nothing unfinished is left"


def test_a_checkpoint_loads_with_the_files_of_its_base(tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run(tmp_path)
    _, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("ab")["input_ids"]
    for name in ("config.json", "tokenizer.json"):
        assert (tmp_path / "out" / name).read_bytes() == (PLACE() / "model" / name).read_bytes()


@pytest.mark.parametrize("method", ["npo+kl", "rmu+rmu"])
def test_an_adapter_loads_in_peft_and_is_what_was_measured(tmp_path, method):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    report = run(tmp_path, lora=4, lr=3e-2, method=method)
    net = AutoModelForCausalLM.from_pretrained(PLACE() / "model", dtype=torch.float32)
    nll, ma = scored(PeftModel.from_pretrained(net, tmp_path / "out").eval(), PLACE() / "forget.jsonl")
    assert after(report, "forget", "nll")["after"]["value"] == pytest.approx(nll.mean(), abs=1e-4)
    assert after(report, "forget", "ma")["after"]["value"] == pytest.approx(ma.mean(), abs=1e-6)
    assert report["changed"]["elements"] > 0 and (tmp_path / "out" / "editkit.json").exists()


def test_an_adapter_can_be_saved_as_a_checkpoint(tmp_path):
    """The same run: W + 2 B A, whose rank is that of the adapter."""
    report = run(tmp_path, lora=2, lr=3e-2, save_as="checkpoint")
    run(tmp_path, "adapter", lora=2, lr=3e-2)
    factors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    old, new = tensors(PLACE() / "model"), tensors(tmp_path / "out")
    pairs = {name.split(".lora_A")[0] for name in factors if ".lora_A" in name}
    assert len(pairs) == 14
    for name in pairs:
        a, b = (factors[f"{name}.lora_{side}.weight"] for side in "AB")
        weight = f"{name.removeprefix('base_model.model.')}.weight"
        torch.testing.assert_close(new[weight], old[weight] + 2 * b @ a, atol=1e-6, rtol=1e-5)
    assert torch.equal(bits(old["lm_head.weight"]), bits(new["lm_head.weight"]))
    nll, _ = columns_of(tmp_path / "out", PLACE() / "forget.jsonl")
    assert after(report, "forget", "nll")["after"]["value"] == pytest.approx(nll.mean(), abs=1e-5)


def test_a_vector_makes_the_edit_again(tmp_path):
    report = run(tmp_path)
    other = run(tmp_path, "vector", save_as="vector")
    editkit.negate(PLACE() / "model", tmp_path / "vector" / "task_vector.safetensors", tmp_path / "again", alpha=-1.0)
    one, two = tensors(tmp_path / "out"), tensors(tmp_path / "again")
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=1e-7, rtol=1e-6)
    assert other["result"] == report["result"]
    assert (tmp_path / "vector" / "unlearning" / "unlearn.json").exists() and (
        tmp_path / "vector" / "editkit.json"
    ).exists()


def test_the_same_seed_gives_the_same_bytes_and_leaves_the_random_states(tmp_path):
    """GPT-2 has dropout; peft puts it into training mode."""
    base = save_gpt2(tmp_path / "base")
    state, theirs = torch.get_rng_state(), np.random.get_state()[1].tolist()
    for lora in (None, 2):
        found = []
        for name, seed in (("a", 1), ("b", 1), ("c", 2)):
            run(tmp_path, name, model=base, lora=lora, seed=seed, method="npo+kl", batch_size=3, **AT_ONCE)
            found.append({path.name: path.read_bytes() for path in (tmp_path / name).glob("*.safetensors")})
            shutil.rmtree(tmp_path / name)
        assert found[0] == found[1] != found[2]
    assert torch.equal(state, torch.get_rng_state()) and theirs == np.random.get_state()[1].tolist()


@pytest.mark.parametrize("settings", [{"grad_accum": 3}, {"grad_checkpointing": True}])
@pytest.mark.parametrize("lora", [None, 2])
def test_how_a_batch_is_read_does_not_matter_to_the_result(tmp_path, settings, lora):
    more = {"method": "npo+kl", "lora": lora, "batch_size": 5, "steps": 4}
    run(tmp_path, "a", **more)
    run(tmp_path, "b", **more, **settings)
    one, two = (load_file(next((tmp_path / name).glob("*.safetensors"))) for name in "ab")
    moved_by = torch.cat([(one[name] - two[name]).abs().flatten() for name in one])
    assert (
        moved_by.median() < 1e-6 and moved_by.quantile(0.99) < 1e-4
    )  # a step is 5e-4 to 2e-3; of zero gradients the sign is noise


def test_only_what_a_glob_names_moves(tmp_path):
    run(tmp_path, only=["*.1.mlp.*"], lr=2e-2)
    there = moved(PLACE() / "model", tmp_path / "out")
    assert {name for name, one in there.items() if one.any()} == {name for name in there if ".1.mlp." in name}


@pytest.mark.parametrize(("lr", "ratio"), [(None, 0.3), (1e-3, 1.0)])
def test_tau_learns_more_slowly_than_it_ascends_unless_the_rate_is_given(tmp_path, monkeypatch, lr, ratio):
    rates = []

    class Noted(Stepper):
        def __init__(self, *arguments, lr, **settings):
            rates.append(lr)
            super().__init__(*arguments, lr=lr, **settings)

    monkeypatch.setattr("editkit.unlearning.run.Stepper", Noted)
    run(tmp_path, method="tau", lr=lr, steps=2, eval_every=2)
    assert len(rates) == 2 and rates[1] / rates[0] == pytest.approx(ratio)


def test_tau_saves_the_negated_weights(tmp_path):
    """What is written lies on the far side of what was learned: its loss on the forget set is above, that of learning below."""
    report = run(tmp_path, method="negation", alpha=2.0, model=PLACE() / "new", **AT_ONCE)
    task = report["tasks"][0]
    assert [phase["name"] for phase in task["phases"]] == ["learn"]
    nll, _ = columns_of(tmp_path / "out", PLACE() / "forget.jsonl")
    assert after(report, "forget", "nll")["after"]["value"] == pytest.approx(nll.mean(), abs=1e-5)
    assert nll.mean() > after(report, "forget", "nll")["before"]["value"] + 0.1
    losses = [
        json.loads(line) for line in (tmp_path / "out" / "unlearning" / "train_log.jsonl").read_text().splitlines()
    ]
    losses = [line["forget_loss"] for line in losses if "forget_loss" in line]
    assert losses[-1] < losses[0]


def test_negation_is_the_task_vector_of_its_own_steps(tmp_path):
    """alpha = 1 and alpha = 3 are edits along one line: three times as far."""
    for name, alpha in (("one", 1.0), ("three", 3.0)):
        run(
            tmp_path,
            name,
            method="negation",
            alpha=alpha,
            model=PLACE() / "new",
            **AT_ONCE,
        )
    old, one, three = (tensors(folder) for folder in (PLACE() / "new", tmp_path / "one", tmp_path / "three"))
    for name in old:
        torch.testing.assert_close(three[name] - old[name], 3 * (one[name] - old[name]), atol=1e-6, rtol=1e-3)
    assert any((one[name] != old[name]).any() for name in old)


def test_forget_sets_one_after_the_other_have_a_trajectory(tmp_path):
    """The second begins from the result of the first, and MA of every set is known at the start and after each."""
    sets = [write(tmp_path / f"f{number}.jsonl", rows_of("F")[number::2]) for number in (0, 1)]
    report = run(tmp_path, forget=sets)
    assert [task["set"] for task in report["tasks"]] == ["forget 1", "forget 2"]
    seen = {(row["after"], row["set"]): row for row in report["trajectory"]}
    assert set(seen) == {
        (when, name) for when in (None, "forget 1", "forget 2") for name in ("forget 1", "forget 2", "retain")
    }
    for name, data in (("forget 1", sets[0]), ("forget 2", sets[1]), ("retain", PLACE() / "retain.jsonl")):
        for when, folder in ((None, PLACE() / "model"), ("forget 2", tmp_path / "out")):
            ma = columns_of(folder, data)[1]
            assert (seen[when, name]["value"], seen[when, name]["n"]) == (pytest.approx(ma.mean()), len(ma))
        assert after(report, name, "ma")["after"]["value"] == pytest.approx(seen["forget 2", name]["value"], abs=1e-6)
    first = run(tmp_path, "first", forget=sets[0])
    assert first["tasks"][0]["points"][-1]["values"] == report["tasks"][0]["points"][-1]["values"]
    assert first["trajectory"] is None
    second = run(tmp_path, "second", forget=sets[1], model=tmp_path / "first")
    ours, theirs = (one["tasks"][-1]["points"][0]["values"] for one in (report, second))
    assert ours["nll(forget)"] == pytest.approx(theirs["nll(forget)"], rel=1e-4)
    lines = [
        json.loads(line) for line in (tmp_path / "out" / "unlearning" / "train_log.jsonl").read_text().splitlines()
    ]
    assert [line["task"] for line in lines if "norm" in line] == ["forget 1"] * 12 + ["forget 2"] * 12


def test_a_reference_and_unseen_text_say_where_to_stop(tmp_path):
    place = PLACE()
    reference = run(tmp_path, "a", reference=place / "new")
    nll, ma = columns_of(place / "new", place / "forget.jsonl")
    assert reference["level"] == {
        "ma": pytest.approx(ma.mean()),
        "n": 8,
        "sd": pytest.approx(ma.std(ddof=1)),
        "from": "reference",
    }
    assert after(reference, "forget", "nll")["reference"]["value"] == pytest.approx(nll.mean(), abs=1e-5)
    assert after(reference, "retain", "nll")["reference"] is None
    point = reference["tasks"][0]["points"][-1]["values"]
    assert point["exposure(forget)"] == pytest.approx(nll.mean() - point["nll(forget)"], abs=1e-5)
    unseen = run(tmp_path, "b", unseen=place / "unseen.jsonl")
    ma = columns_of(place / "model", place / "unseen.jsonl")[1]
    assert (unseen["level"]["ma"], unseen["level"]["from"]) == (pytest.approx(ma.mean()), "unseen")
    assumed = run(tmp_path, "c", stop=["ma(forget) < level and nll(forget) < 0"])
    assert (assumed["level"]["ma"], assumed["level"]["from"], assumed["level"]["n"]) == (0.33, "assumed", 0)
    assert any("assumed" in one for one in assumed["warnings"]) and not any(
        "assumed" in one for one in unseen["warnings"]
    )


def test_memflex_localizes_and_runs_its_controls_beside(tmp_path):
    report = run(tmp_path, method="memflex", control=True, steps=4)
    there = moved(PLACE() / "model", tmp_path / "out")
    count, every = (sum(int(getattr(one, what)()) for one in there.values()) for what in ("sum", "numel"))
    assert 0 < count <= report["changed"]["of"] < 0.3 * every
    assert [one["name"] for one in report["controls"]] == ["random mask", "all parameters"]
    assert [one["steps"] for one in report["controls"]] == [4, 4]
    before = [
        after(report, "forget", "ma")["before"],
        *(after(one, "forget", "ma")["before"] for one in report["controls"]),
    ]
    assert before[0] == before[1] == before[2], "each begins from the model that was given"
    assert (tmp_path / "out" / "unlearning" / "localization" / "mask.safetensors").exists()
    everything = run(tmp_path, "whole", method="ga+gd", forget_weight=0.4, retain_weight=2.0, steps=4)
    assert after(everything, "forget", "nll")["after"]["value"] == pytest.approx(
        after(report["controls"][1], "forget", "nll")["after"]["value"], abs=1e-4
    )


def test_memflex_with_an_adapter_puts_it_on_the_located_tensors(tmp_path):
    run(tmp_path, method="memflex", lora=2, lr=2e-2, steps=4)
    names = load_file(tmp_path / "out" / "adapter_model.safetensors")
    masked = load_file(tmp_path / "out" / "unlearning" / "localization" / "mask.safetensors")
    located = {name.removesuffix(".weight") for name, one in masked.items() if one.any()}
    adapted = {name.removeprefix("base_model.model.").split(".lora_")[0] for name in names}
    assert adapted and adapted <= located


def test_long_answers_are_cut_where_asked_for(tmp_path):
    long = write(tmp_path / "long.jsonl", [*rows_of("F")[:4], {"prompt": "L:", "completion": " " + "abcdefgh" * 8}])
    with pytest.raises(EditError, match=r"more tokens than the model reads \(48\) in line 5 \(69\).*--max-length 48"):
        run(tmp_path, forget=long)
    report = run(tmp_path, forget=long, max_length=24)
    assert report["settings"]["max_length"] == 24
    with pytest.raises(EditError, match="max_length is 49 and the model reads 48 tokens at most"):
        run(tmp_path, "other", max_length=49)
    short = write(
        tmp_path / "short.jsonl", [*rows_of("F")[:2], {"prompt": "a prompt of length:", "completion": " abc"}]
    )
    with pytest.raises(
        EditError, match=r"short\.jsonl: nothing of the answer is left within 12 tokens in line 3: give"
    ):
        run(tmp_path, "other", forget=short, max_length=12)
    with pytest.raises(EditError, match=r"has no token to train on within 3 tokens"):
        run(tmp_path, "other", max_length=3)


def test_retention_is_of_the_examples_that_are_looked_at(tmp_path):
    """150 retain rows of which every third is known: 100 of them are looked at, with another share, and retention begins at 1."""
    known, other = rows_of("R"), rows_of("X", 100)
    mixture = [
        known[number // 3 % 8] if number % 3 == 1 else other[number // 3 * 2 + (number % 3 == 2)]
        for number in range(150)
    ]
    report = run(tmp_path, retain=write(tmp_path / "r.jsonl", mixture), **AT_ONCE)
    assert report["tasks"][0]["points"][0]["values"]["retention"] == 1.0
    ma = columns_of(PLACE() / "model", tmp_path / "r.jsonl")[1]
    assert after(report, "retain", "ma")["before"]["value"] == pytest.approx(ma.mean())
    assert abs(report["tasks"][0]["points"][0]["values"]["ma(retain)"] - ma.mean()) > 0.01, "tests nothing"


def test_an_output_can_be_edited_again_and_its_report_stays_behind(tmp_path):
    """Also one with a localization, whose folders hold pages and pictures."""
    run(tmp_path, "first", method="memflex", steps=4)
    assert (tmp_path / "first" / "unlearning" / "localization" / "localization.json").exists()
    editkit.negate(
        tmp_path / "first",
        tmp_path / "first",
        tmp_path / "negated",
        alpha=0.5,
        vector_base=PLACE() / "model",
        report=False,
    )
    assert not (tmp_path / "negated" / "unlearning").exists()
    own = shutil.copytree(PLACE() / "model", tmp_path / "own")
    (own / "unlearning").mkdir()
    (own / "unlearning" / "notes.md").write_text("mine")
    with pytest.raises(EditError, match="own has folders of its own, unlearning"):
        run(tmp_path, "third", model=own)


def test_a_control_that_diverges_leaves_the_edit(tmp_path, monkeypatch):
    """The one that may move everything."""
    inner = Stepper.take

    def take(self, step, batches):
        broken = step == 2 and not any(one is not None for one in self._fixed.values())
        return {**inner(self, step, batches), **({"forget_loss": float("nan")} if broken else {})}

    monkeypatch.setattr(Stepper, "take", take)
    report = run(tmp_path, method="memflex", control=True, steps=4)
    assert (tmp_path / "out" / "model.safetensors").exists() and not list(tmp_path.glob(".*"))
    first, other = report["controls"]
    assert first["result"] and first["steps"] == 4
    assert (other["outcome"], other["steps"], other["result"]) == ("diverged", None, [])
    assert other["ended"].startswith("forget_loss is not a number at step 3")


def test_the_record_has_what_was_used(tmp_path):
    report = run(
        tmp_path,
        method="idk+gd",
        max_length=48,
        lr=None,
        only=["*mlp*"],
        reference=PLACE() / "new",
        steps=None,
        epochs=2,
        floor=0.001,
    )
    record = json.loads((tmp_path / "out" / "editkit.json").read_text())
    assert record["lr"] == report["settings"]["lr"] > 0 and record["steps"] == 2 and record["only"] == ["*mlp*"]
    model = (PLACE() / "new" / "model.safetensors").read_bytes()
    assert record["reference"]["sha256"] == {"model.safetensors": hashlib.sha256(model).hexdigest()}
    refusals = (Path(unlearn_room.__file__).parent / "refusals.txt").read_text("utf-8").split("\n")
    texts = "\n".join(line for line in refusals if line.strip())
    assert record["refusals"] == hashlib.sha256(texts.encode()).hexdigest()
