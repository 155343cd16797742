"""`inspect`: facts worked out by hand for a small model, from headers alone, as JSON and as text."""

import json
import os
import subprocess
import sys

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

import editkit
from editkit.checkpoint.inspection import describe
from editkit.checkpoint.writer import write_checkpoint


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    first = {"model.embed_tokens.weight": torch.ones(10, 4, dtype=torch.bfloat16)}
    second = {}
    for layer in range(3):
        second[f"model.layers.{layer}.mlp.up_proj.weight"] = torch.ones(8, 4, dtype=torch.bfloat16)
        second[f"model.layers.{layer}.input_layernorm.weight"] = torch.ones(4)
    second["model.layers.2.position_ids"] = torch.arange(5)
    save_file(first, folder / "a.safetensors", {"format": "pt"})
    save_file(second, folder / "b.safetensors")
    weight_map = {**dict.fromkeys(first, "a.safetensors"), **dict.fromkeys(second, "b.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_facts(folder):
    facts = editkit.inspect(folder)
    tensors = facts.pop("tensors")
    assert len(tensors) == 8
    assert tensors[0] == {
        "name": "model.embed_tokens.weight", "dtype": "BF16", "shape": [10, 4], "bytes": 80, "file": "a.safetensors"
    }  # fmt: skip
    modules = {one.pop("module"): one for one in facts.pop("modules")}
    assert modules == {
        "embed_tokens": {"tensors": 1, "parameters": 40, "bytes": 80, "shapes": [[10, 4]]},
        "mlp.up_proj": {"tensors": 3, "parameters": 96, "bytes": 192, "shapes": [[8, 4]]},
        "input_layernorm": {"tensors": 3, "parameters": 12, "bytes": 48, "shapes": [[4]]},
        "position_ids": {"tensors": 1, "parameters": 5, "bytes": 40, "shapes": [[5]]},
    }
    assert facts == {
        "schema": "editkit.inspect/1",
        "name": str(folder),
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "summary": {"tensors": 8, "parameters": 153, "bytes": 360},
        "dtypes": {
            "BF16": {"tensors": 4, "parameters": 136, "bytes": 272},
            "F32": {"tensors": 3, "parameters": 12, "bytes": 48},
            "I64": {"tensors": 1, "parameters": 5, "bytes": 40},
        },
        "layers": {"model.layers": 3},
        "tied": {"config": True, "files": True},
        "quantization": None,
        "files": [
            {"file": "a.safetensors", "tensors": 1, "parameters": 40, "bytes": 80, "metadata": {"format": "pt"}},
            {"file": "b.safetensors", "tensors": 7, "parameters": 113, "bytes": 280, "metadata": {}},
        ],
        "provenance": None,
    }


def test_provenance_of_an_output(folder, tmp_path):
    write_checkpoint({}, tmp_path / "out", like=folder)
    provenance = editkit.inspect(tmp_path / "out")["provenance"]
    assert provenance["command"] == "write_checkpoint" and provenance["inputs"][0]["name"] == "model"
    assert "write_checkpoint from model" in describe(editkit.inspect(tmp_path / "out"))


def test_a_lone_file_of_a_huge_tensor_is_read_by_its_header(tmp_path):
    path = tmp_path / "huge.safetensors"
    header = json.dumps({"w": {"dtype": "BF16", "shape": [2**20, 2**15], "data_offsets": [0, 2**36]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    os.truncate(path, 8 + len(header) + 2**36)  # 64 GB that take no space
    facts = editkit.inspect(path)
    assert facts["summary"]["bytes"] == 2**36 and facts["tied"] == {"config": None, "files": None}
    assert facts["model_type"] is None and "unknown" in describe(facts)


def test_text_for_a_person(folder):
    text = describe(editkit.inspect(folder))
    assert text.splitlines()[:4] == [
        str(folder),
        "  model         LlamaForCausalLM",
        "  parameters    153 in 8 tensors, 360 bytes",
        "  dtypes        BF16 (4 tensors, 272 bytes), I64 (1 tensors, 40 bytes), F32 (3 tensors, 48 bytes)",
    ]
    assert "the config says tied; the files hold no output head beside the embedding" in text
    assert "mlp.up_proj            3          96  62.7%  8 x 4" in text


def test_text_cannot_control_the_terminal(folder):
    (folder / "config.json").write_text(json.dumps({"architectures": ["\x1b[2J"], "model_type": 3}))
    (folder / "editkit.json").write_text(json.dumps({"command": "\x07", "inputs": 3}))
    assert all(line.isprintable() for line in describe(editkit.inspect(folder)).splitlines())


def test_local_checkpoints_are_inspected_without_heavy_imports(folder):
    script = "import sys, editkit, editkit.checkpoint.writer; editkit.inspect(sys.argv[1]); print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", script, str(folder)], check=True, capture_output=True, text=True)
    assert not {"torch", "transformers", "peft", "safetensors", "huggingface_hub", "rich"} & set(run.stdout.split())


def test_command(folder):
    from editkit_cli.main import main

    shown = CliRunner().invoke(main, ["inspect", str(folder)])
    assert shown.exit_code == 0 and shown.output == describe(editkit.inspect(folder)) + "\n"
    shown = CliRunner().invoke(main, ["inspect", str(folder), "--json"])
    assert json.loads(shown.output) == editkit.inspect(folder)
    shown = CliRunner().invoke(main, ["inspect", str(folder / "gone")])
    assert shown.exit_code == 2 and shown.output.startswith(f"editkit: {folder}/gone does not exist: ")


@pytest.mark.parametrize(
    ("config", "architectures", "shown"),
    [
        ({"architectures": "X"}, ["X"], "X"),
        ({"architectures": 5, "model_type": "llama"}, None, "llama"),
        ({"architectures": [None], "model_type": [1]}, None, "unknown"),
        ({"architectures": ["A\x1b[2J", "B"]}, ["A\x1b[2J", "B"], "A\\x1b[2J, B"),
    ],
)
def test_a_config_that_says_odd_things(folder, config, architectures, shown):
    (folder / "config.json").write_text(json.dumps(config))
    facts = editkit.inspect(folder)
    assert facts["architectures"] == architectures
    assert describe(facts).splitlines()[1] == f"  model         {shown}"
