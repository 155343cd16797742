import json
import os
import re
import shutil

import pytest
import torch
from click.testing import CliRunner
from editkit_cli.main import main
from localized import FORGET, RETAIN, one_thread, sets, write  # noqa: F401
from safetensors.torch import load_file, save_file
from tiny_models import save_gpt2, save_llama, tokenizer

from editkit.training.finetune import finetune

F, R = ["--forget", "forget.jsonl"], ["--retain", "retain.jsonl"]
CPU = ["--device", "cpu"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    save_llama(folder / "model")
    save_gpt2(folder / "gpt2")
    data = sets(folder)
    finetune(folder / "model", data["forget"], folder / "lora", lora=2, steps=2, lr=5e-2, device="cpu")
    return folder


@pytest.fixture
def workplace(tmp_path, monkeypatch, models):
    monkeypatch.chdir(tmp_path)
    for name in ("model", "gpt2", "lora"):
        shutil.copytree(models / name, tmp_path / name)
    sets(tmp_path)
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(main, ["localize", *map(str, arguments)])


def everything(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def refused(workplace, *arguments):
    """The one line on stderr of a run that ends with exit code 2 and leaves nothing behind."""
    before = everything(workplace)
    ran = run(*arguments)
    assert ran.exit_code == 2, ran.output
    assert ran.stderr.startswith("editkit: ") and ran.stderr.count("\n") == 1 and ran.stdout == "", ran.output
    assert everything(workplace) == before
    return ran.stderr


def test_the_summary_says_what_was_found_and_where_it_is(workplace):
    ran = run("model", *F, *R, "-o", "loc", *CPU, "--control")
    assert ran.exit_code == 0, ran.output
    report = json.loads((workplace / "loc" / "localization.json").read_text())
    assert f"{report['summary']['selected']:,}" in ran.stdout and ran.stdout.endswith(
        "loc written, with localization.html\n"
    )
    assert ran.stderr == ""
    best = max(report["modules"], key=lambda row: row["selected"])
    assert best["module"] in ran.stdout
    files = ["control", "control/mask.safetensors", "localization.html", "localization.json", "localization.png"]
    assert everything(workplace / "loc") == [*files, "mask.safetensors", "scores.safetensors"]
    assert (workplace / "loc" / "localization.png").read_bytes().startswith(b"\x89PNG")
    assert "<html" in (workplace / "loc" / "localization.html").read_text()


def test_json_is_the_report_of_the_folder(workplace):
    ran = run(
        "model",
        *F,
        "--method",
        "salun",
        "-o",
        "loc",
        *CPU,
        "--budget",
        "10%",
        "--granularity",
        "row",
        "--json",
        "--seed",
        3,
    )
    assert json.loads(ran.stdout) == json.loads((workplace / "loc" / "localization.json").read_text())
    said = json.loads(ran.stdout)["settings"]
    assert (said["method"], said["budget"], said["granularity"], said["seed"]) == ("salun", "10%", "row", 3)


def test_quiet_says_nothing_and_warnings_go_to_stderr(workplace):
    write(workplace / "retain.jsonl", [*RETAIN, FORGET[0]])
    ran = run("model", *F, *R, "--method", "fisher", "-o", "loc", *CPU, "--quiet")
    assert ran.exit_code == 0 and ran.stdout == ""
    assert ran.stderr == (
        "editkit: warning: 1 of the examples to forget are in the retain set too: what they have in common counts for both\n"
    )


def test_all_options_of_gradients_are_taken(workplace):
    ran = run(
        "model+lora", *F, *R, "-o", "loc", *CPU, "--labels", "random:0.5", "--draws", 2, "--batch-size", 2, "--max-examples", 4,
        "--max-length", 12, "--prompt-template", r"{question}\n{answer}", "--dtype", "float32", "--offload", "disk", "--only", "*lora_B*",
        "--per-layer-budget", "--threads", 1, "--json",
    )  # fmt: skip
    assert ran.exit_code == 0, ran.output
    report = json.loads(ran.stdout)
    assert report["forget"]["examples"] == report["retain"]["examples"] == 4
    said = report["settings"]
    assert (said["labels"], said["draws"], said["only"], said["per_layer_budget"]) == (
        "random:0.5",
        2,
        ["*lora_B*"],
        True,
    )
    assert all("lora_B" in row["name"] for row in report["tensors"]) and report["adapter"]["name"] == "lora"


def test_compare_shows_layers_modules_and_chance(workplace):
    for seed in (0, 1):
        assert run("model", "--method", "random", "-o", f"loc{seed}", "--budget", "50%", "--seed", seed).exit_code == 0
    ran = run("compare", "loc0", "loc1")
    assert ran.exit_code == 0, ran.output
    rows = [line.split() for line in ran.stdout.splitlines() if line.strip()]
    [total] = [row for row in rows if row[0] == "all"]
    numel = sum(one.numel() for one in load_file("model/model.safetensors").values())
    assert total[1:3] == [f"{numel // 2:,}"] * 2
    assert float(total[4]) == pytest.approx(1 / 3, abs=0.02) and float(total[5]) == pytest.approx(1 / 3, abs=0.01)
    assert any(row[0] == "model.layers.1" for row in rows) and any(row[0] == "mlp.up_proj" for row in rows)
    found = json.loads(run("compare", "loc0", "loc1", "--json").stdout)
    assert f"{found['all']['both']:,}" == total[3]
    assert run("compare", "loc0", "loc1", "--by", "tensor").stdout.count(".weight") == 21
    assert refused(workplace, "compare", "loc0", "model") == (
        "editkit: model is no localization (localization.json cannot be read): give folders of editkit localize\n"
    )


REFUSED = [
    # arguments after MODEL, what the message says
    (["--method", "salun"], "salun needs examples to forget (--forget)"),
    (F, "fisher compares with examples to keep, give --retain"),
    ([*F, "--retain", "forget.jsonl"], "forget.jsonl and forget.jsonl hold the same examples"),
    ([*F, *R, "--budget", "0%"], "budget 0% selects nothing: give more than 0% and less than 100%"),
    ([*F, *R, "--budget", "100%"], "budget 100% selects everything"),
    ([*F, *R, "--budget", "abc"], "budget 'abc' is neither a share such as 5% nor a whole number"),
    ([*F, *R, "--budget", "0.0001%"], "budget 0.0001% of 12,304 parameters is 0.012 of one element: give at least 0.0089%"),
    ([*F, *R, "--granularity", "tensor", "--budget", 21], "budget 21 selects everything: there are 21 tensors in all"),
    ([*F, *R, "--budget", 12304], "budget 12304 selects everything: there are 12,304 elements in all"),
    ([*F, *R, "--mu", 0.9], "--mu goes with --method wagle, or with --sigma and --method memflex"),
    ([*F, *R, "--sigma", 0.9], "--sigma goes with --mu and --method memflex"),
    ([*F, *R, "--labels", "maybe"], "labels 'maybe' are unknown"),
    ([*F, "--method", "path"], "path follows the way from a base checkpoint, give --base"),
    ([*F, "--method", "path", "--base", "gpt2"], "gpt2 lacks"),
    (["--method", "magnitude", "--base", "gpt2"], "gpt2 lacks"),
    ([*F, "--method", "path", "--base", "wide"], "wide lacks"),
    (["--method", "magnitude", "--base", "wide"], "wide lacks"),
    (["--method", "magnitude", "--base", "model"], "model has the weights of model, so nothing moved on the way"),
    ([*F, "--method", "path", "--base", "model"], "model has the weights of model, so nothing moved on the way"),
    ([*F, "--method", "path", "--base", "nowhere"], "nowhere"),
    ([*F, "--method", "gradcam"], "'gradcam' is not one of"),
    ([*F, *R, "--only", "*.layers.7.*"], "matches none of the 21 tensors"),
    ([*F, *R, "--only", "*.mlp.*", "--granularity", "head"], "none of the 6 tensors has attention heads"),
    ([*F, *R, "--max-length", 100], "max_length is 100 and the model reads 48 tokens at most"),
    ([*F, *R, "--max-length", 5], "nothing of the answer is left within 5 tokens"),
    ([*F, *R, "--draws", 0], "--draws"),
    (["--forget", "nowhere.jsonl", *R], "nowhere.jsonl cannot be read"),
    (["--forget", "empty.jsonl", *R], "empty.jsonl has no examples"),
    (["--forget", "broken.jsonl", *R], "broken.jsonl"),
    (["--forget", "long.jsonl", *R], "long.jsonl: more tokens than the model reads (48) in line 2 (64), 4 (84): shorten these examples, or cut all with --max-length 48"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "message"), REFUSED)
def test_bad_input_is_one_line_and_leaves_nothing(workplace, arguments, message):
    write(workplace / "empty.jsonl", [])
    (workplace / "broken.jsonl").write_text("{\n")
    rows = [{"prompt": "b" * count, "completion": "c"} for count in (3, 61, 4, 81)]
    write(workplace / "long.jsonl", rows)
    shutil.copytree("model", "wide")
    wide = load_file("model/model.safetensors")
    save_file(wide | {"lm_head.weight": torch.zeros(300, 16)}, "wide/model.safetensors")
    assert message in refused(workplace, "model", *arguments, "-o", "deep/loc", *CPU)


@pytest.mark.parametrize(
    ("model", "arguments", "message"),
    [
        ("lora", [*F, *R], "lora is an adapter: give MODEL+lora"),
        ("lora", ["--method", "random"], "lora is an adapter: give MODEL+lora"),
        ("nowhere", [*F, *R], "nowhere"),
        ("model+nowhere", [*F, *R], "nowhere"),
        ("model+gpt2", [*F, *R], "gpt2"),
        ("gpt2+lora", [*F, *R], "lora"),
        ("model+lora", [*F, "--method", "path", "--base", "gpt2"], "leave it out for an adapter"),
        ("quantized", [*F, *R], "quantized: quantized (gptq)"),
        ("model/model.safetensors", [*F, *R], "config.json"),
    ],
)
def test_models_that_cannot_be_localized_are_refused(workplace, model, arguments, message):
    shutil.copytree("model", "quantized")
    config = json.loads((workplace / "model" / "config.json").read_text())
    (workplace / "quantized" / "config.json").write_text(
        json.dumps(config | {"quantization_config": {"quant_method": "gptq", "bits": 4}})
    )
    assert message in refused(workplace, model, *arguments, "-o", "loc", *CPU)


def test_an_output_that_exists_is_left_alone(workplace):
    (workplace / "loc").mkdir()
    (workplace / "loc" / "notes.txt").write_text("mine")
    assert "editkit: loc exists and is not an empty folder" in refused(workplace, "model", *F, *R, "-o", "loc", *CPU)
    assert "loc exists" not in refused(workplace, "model", *F, *R, "-o", "model/loc", *CPU)
    assert "is an input as well" in refused(workplace, "model", *F, *R, "-o", "forget.jsonl", *CPU)


def test_thresholds_that_select_nothing_suggest_some_that_do(workplace):
    ran = run("model", *F, *R, "-o", "loc", *CPU, "--mu", 0.01, "--sigma", 7)
    message = ran.stderr
    assert ran.exit_code == 2 and message.count("\n") == 1 and not (workplace / "loc").exists()
    mu, sigma = re.search(r"--mu (\S+) --sigma (\S+) would select some", message).groups()
    assert "select none of 21 tensors: their cosines are" in message and "5 % to 95 %" in message
    ran = run("model", *F, *R, "-o", "loc", *CPU, "--mu", mu, "--sigma", sigma, "--json", "--resume")
    assert ran.exit_code == 0 and 0 < json.loads(ran.stdout)["summary"]["units_selected"] < 21


def test_gradients_outlive_a_budget_that_selects_nothing(workplace, monkeypatch):
    """Another budget goes on from the sums of the first run: no example is run again."""
    arguments = ["model", *F, *R, "-o", "loc", *CPU, "--granularity", "tensor"]
    ran = run(*arguments, "--budget", "0.1%")
    assert ran.exit_code == 2 and "budget 0.1% is 12 parameters and selects nothing: a tensor of" in ran.stderr
    assert "the gradients are kept for --resume" in ran.stderr and not (workplace / "loc").exists()
    monkeypatch.setattr("editkit.localization.gradients.Gradients._add", lambda *_: pytest.fail("ran an example"))
    assert run(*arguments, "--budget", "40%", "--resume").exit_code == 0
    assert not (workplace / ".loc.unfinished").exists()


def test_a_gradient_that_is_no_number_is_traced_to_its_line(workplace, monkeypatch):
    monkeypatch.setattr("editkit.localization.gradients.SAVING", 1e-9)
    tensors = load_file("model/model.safetensors")
    tensors["model.embed_tokens.weight"][tokenizer()("q")["input_ids"][0]] = float("nan")
    save_file(tensors, "model/model.safetensors", {"format": "pt"})
    write(workplace / "forget.jsonl", [*FORGET, {"prompt": "q", "completion": " Ada"}])
    message = refused(workplace, "model", *F, *R, "-o", "loc", *CPU, "--batch-size", 3, "--labels", "true")
    assert "editkit: forget.jsonl: line 14 has a gradient with NaN or Inf in" in message


def test_weights_that_are_no_numbers_are_named_without_gradients_too(workplace):
    tensors = load_file("model/model.safetensors")
    tensors["model.norm.weight"][0] = float("inf")
    save_file(tensors, "model/model.safetensors", {"format": "pt"})
    message = refused(workplace, "model", "--method", "magnitude", "-o", "loc")
    assert "model.norm.weight gets scores that are NaN or Inf" in message


def test_a_begun_run_asks_for_resume_and_is_kept(workplace, monkeypatch):
    from transformers import LlamaForCausalLM

    inner, passes = LlamaForCausalLM.forward, []

    def stop(*arguments, **settings):
        passes.append(1)
        if len(passes) == 3:
            raise KeyboardInterrupt
        return inner(*arguments, **settings)

    with monkeypatch.context() as patched:
        patched.setattr(LlamaForCausalLM, "forward", stop)
        assert run("model", *F, *R, "-o", "loc", *CPU, "--batch-size", 2).exit_code == 130
    assert ".loc.unfinished" in os.listdir() and "loc" not in os.listdir()
    arguments = ["model", *F, *R, "-o", "loc", *CPU, "--batch-size", 2]
    assert "loc was begun and not finished: go on with --resume, or remove .loc.unfinished beside it" in refused(
        workplace, *arguments
    )
    assert "loc was begun with other settings (seed)" in refused(workplace, *arguments, "--seed", 1, "--resume")
    ran = run(*arguments, "--resume")
    assert ran.exit_code == 0, ran.output
    assert ".loc.unfinished" not in os.listdir() and "loc" in os.listdir()
