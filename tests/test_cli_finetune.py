import json

import pytest
import torch
from click.testing import CliRunner
from editkit_cli.main import main
from safetensors.torch import save_file
from tiny_models import save_llama

import editkit
from editkit.checkpoint.reader import open_checkpoint


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_llama(tmp_path / "base")
    rows = [{"question": "Q", "answer": "b"}, {"question": "Q" * 60, "answer": "b"}]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(main, ["finetune", *arguments])


def test_the_summary_says_what_was_read_cut_and_done(workplace):
    ran = run("base", "--data", "data.jsonl", "-o", "tuned", "--steps", "2", "--device", "cpu")
    assert ran.exit_code == 0
    assert "2 examples of question/answer, 1 of them truncated, 1 dropped because" in ran.stdout
    assert "2 steps of 8 at 0.005 on cpu" in ran.stdout and "tuned written" in ran.stdout
    assert list(open_checkpoint("tuned")) == list(open_checkpoint("base"))


def test_json_has_every_setting_that_was_decided(workplace):
    ran = run("base", "--data", "data.jsonl", "-o", "lora", "--lora", "2", "--epochs", "3", "--device", "cpu", "--json")
    found = json.loads(ran.stdout)
    assert found["output"] == "lora"
    assert (found["kind"], found["steps"], found["truncated"], found["dropped"]) == ("lora", 3, 1, 1)
    assert found["lr"] == pytest.approx(0.8 / 16)


def test_a_template_is_taken_with_its_line_breaks(workplace):
    ran = run(
        "base",
        "--data",
        "data.jsonl",
        "-o",
        "a",
        "--steps",
        "1",
        "--prompt-template",
        r"{question}\n{answer}",
        "--json",
    )
    # <s> Q newline b </s>: of the short example two tokens are in the loss, and nothing of the long one.
    assert json.loads(ran.stdout)["trained_tokens"] == 2


def test_bad_input_is_one_line_and_leaves_nothing(workplace):
    (workplace / "data.jsonl").write_text('{"question": "Q"}\n')
    ran = run("base", "--data", "data.jsonl", "-o", "tuned")
    assert ran.exit_code == 2
    assert (
        ran.stderr.startswith("editkit: data.jsonl has the keys 'question': it needs") and ran.stderr.count("\n") == 1
    )
    assert sorted(path.name for path in workplace.iterdir()) == ["base", "data.jsonl"]


def test_a_mask_is_shown_kept_to_and_audited(workplace):
    save_file({"model.norm.weight": torch.arange(16) < 5}, "mask.safetensors")
    ran = run(
        "base", "--data", "data.jsonl", "--mask", "mask.safetensors", "-o", "tuned", "--steps", "4", "--device", "cpu"
    )
    assert ran.exit_code == 0 and "tokens in the loss; 5 elements selected by the mask; 4 steps" in ran.stdout
    audit = CliRunner().invoke(main, ["diff", "base", "tuned", "--mask", "mask.safetensors"])
    assert audit.exit_code == 0 and "elements changed. Inside: 5 of 5." in audit.stdout
    found = editkit.diff("base", "tuned", mask="mask.safetensors")
    assert found["summary"]["changed"] == found["mask"]["changed_inside"] == 5


def test_a_mask_does_not_go_with_lora(workplace):
    ran = run("base", "--data", "data.jsonl", "--mask", "m.safetensors", "--lora", "2", "-o", "tuned")
    assert ran.exit_code == 2 and ran.stderr.count("\n") == 1
    assert "lora and mask are both given" in ran.stderr and not (workplace / "tuned").exists()


def test_forgetting_with_a_mask_edits_its_selection_only(workplace):
    entry = {"model.layers.0.mlp.up_proj.weight": torch.arange(24) % 2 == 0}
    record = {"format": "editkit.mask/1", "granularity": "row", "base": "base"}
    record["base_sha256"] = open_checkpoint("base").sha256()
    save_file(entry, "mask.safetensors", {"editkit": json.dumps(record)})
    earlier = {name: tensor * 1.01 for name, tensor in open_checkpoint("base").items()}
    editkit.write_checkpoint(earlier, "earlier", like="base")

    def forget(model, vector_base, *more):
        options = [
            "--alpha",
            "1",
            "--mask",
            "mask.safetensors",
            "--steps",
            "3",
            "--lr",
            "0.01",
            "--device",
            "cpu",
            "-q",
        ]
        asked = ["negate", model, "--forget", "data.jsonl", "--vector-base", vector_base, *options, *more]
        return CliRunner().invoke(main, asked)

    assert forget("base", "earlier", "-o", "out").exit_code == 0
    found = editkit.diff("base", "out", mask="mask.safetensors")["mask"]
    assert (found["outside"], found["changed_inside"] > 150, found["selected"]) == ([], True, 192)
    # The mask must fit what is edited, not what the vector comes from.
    refused = forget("earlier", "base", "-o", "other")
    assert refused.exit_code == 2 and "was made for base, and earlier has other weights (sha256)" in refused.stderr
    assert forget("earlier", "base", "-o", "other", "--allow-other-base").exit_code == 0
    idle = ["negate", "base", "--forget", "data.jsonl", "--alpha", "1", "--allow-other-base", "-o", "a"]
    assert "--allow-other-base goes with a VECTOR or a --mask" in CliRunner().invoke(main, idle).stderr
