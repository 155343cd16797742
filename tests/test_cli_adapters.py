"""`editkit bake` and `editkit extract-lora` as commands: what they print, write, refuse and never import."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from click.testing import CliRunner
from editkit_cli.main import main
from safetensors.torch import load_file, save_file
from test_vectors_lowrank import LLAMA, llama, train


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    train(llama(folder / "base"), folder / "lora", LLAMA)
    return folder


def run(*arguments: object):
    return CliRunner().invoke(main, [str(one) for one in arguments])


def test_extract_and_bake_lead_from_the_tuned_model_to_itself(place, tmp_path):
    tuned = place / "lora" / "merged"
    found = run("extract-lora", "--base", place / "base", "--tuned", tuned, "--rank", 4, "-o", tmp_path / "out")
    assert found.exit_code == 0, found.output
    table = found.stdout.splitlines()
    assert len(table) == 1 + 6 + 1 and ["model.layers.0.mlp.down_proj", "4"] in [line.split()[:2] for line in table]
    assert (
        "6 modules, residual 0.0000% of the energy of their change; 100.0000% of the energy of the whole" in table[-1]
    )
    baked = run("bake", place / "base", tmp_path / "out", "-o", tmp_path / "baked")
    assert baked.exit_code == 0 and "elements changed" in baked.stdout
    want = load_file(tuned / "model.safetensors")
    for name, tensor in load_file(tmp_path / "baked" / "model.safetensors").items():
        assert (tensor - want[name]).abs().max() < 1e-6


def test_the_table_has_the_modules_that_lose_most_and_the_headline_what_is_kept_in_all(place, tmp_path):
    tuned = tmp_path / "tuned"
    shutil.copytree(place / "base", tuned)
    tensors = load_file(tuned / "model.safetensors")
    draw = torch.Generator().manual_seed(0)
    changed = {name: tensor + 0.02 * torch.randn(tensor.shape, generator=draw) for name, tensor in tensors.items()}
    save_file(changed, tuned / "model.safetensors", {"format": "pt"})
    arguments = ("extract-lora", "--base", place / "base", "--tuned", tuned, "--rank", 4, "--embeddings")
    rows = json.loads(run(*arguments, "--json", "-q", "-o", tmp_path / "a").stdout)["modules"]
    found = run(*arguments, "-o", tmp_path / "b")
    *table, more, last = found.stdout.splitlines()
    most = sorted(rows, key=lambda row: row["residual_energy"], reverse=True)[:12]
    assert len(rows) == 16 and [line.split()[0] for line in table[1:]] == [row["module"] for row in most]
    assert more == "... and 4 more, see --json"
    energy = {name: float((changed[name].double() - tensors[name].double()).square().sum()) for name in tensors}
    kept = sum(energy[row["tensor"]] * (1 - row["residual_energy"]) for row in rows) / sum(energy.values())
    assert f"; {kept:.4%} of the energy of the whole change kept; " in last


def test_json_and_quiet(place, tmp_path):
    tuned = place / "lora" / "merged"
    found = run(
        "extract-lora",
        "--base",
        place / "base",
        "--tuned",
        tuned,
        "--energy",
        0.9,
        "--json",
        "-q",
        "-o",
        tmp_path / "a",
    )
    report = json.loads(found.stdout)
    assert report["energy"] == 0.9 and all(row["residual_energy"] <= 0.1 for row in report["modules"])
    baked = json.loads(
        run("bake", place / "base", place / "lora", "--scale", 0.5, "--json", "-q", "-o", tmp_path / "b").stdout
    )
    assert baked["total"]["alpha"] == -0.5 and baked["output"].endswith("b")
    assert run("bake", place / "base", place / "lora", "-q", "-o", tmp_path / "c").output == ""


def test_dry_run_of_bake_lists_and_writes_nothing(place, tmp_path):
    found = run("bake", place / "base", place / "lora", "--dry-run", "--only", "*.layers.0.*", "-q", "--json")
    assert found.exit_code == 0 and len(json.loads(found.stdout)["alphas"]) == 3
    found = run("bake", place / "base", place / "lora", "--dry-run", "-o", tmp_path / "out")
    assert "6 tensors would be edited; nothing was written." in found.stdout and not (tmp_path / "out").exists()


def test_bad_input_has_exit_code_2_and_nothing_to_do_has_1(place, tmp_path):
    assert run("bake", place / "base", place / "lora").exit_code == 2
    found = run("extract-lora", "--base", place / "base", "--tuned", place / "base", "-o", tmp_path / "out")
    assert found.exit_code == 1 and "in none of the 14 matrices" in found.stderr
    found = run(
        "extract-lora",
        "--base",
        place / "base",
        "--tuned",
        place / "lora" / "merged",
        "--rank",
        25,
        "-o",
        tmp_path / "out",
    )
    assert found.exit_code == 2 and "rank 25 is larger than the matrix" in found.stderr
    found = run("bake", place / "base", place / "lora", "--scale", 0, "-q", "-o", tmp_path / "zero")
    assert found.exit_code == 1 and "nothing changed: scale is 0" in found.stderr


@pytest.mark.parametrize("command", ["bake", "extract-lora", "merge --to adapter"])
def test_torch_transformers_and_peft_are_never_imported(place, tmp_path, command):
    arguments = {
        "bake": [str(place / "base"), str(place / "lora"), "--no-report"],
        "extract-lora": ["--base", str(place / "base"), "--tuned", str(place / "lora" / "merged"), "--rank", "4"],
        "merge --to adapter": ["--vector", f"{place / 'lora'}=0.5"],
    }[command]
    words = [*command.split(), *arguments, "-o", str(tmp_path / "out")]
    code = f"import sys; sys.argv = ['editkit', *{words!r}]\nfrom editkit_cli.main import main\ntry: main()\n"
    code += "except SystemExit as end: print('LOADED', end.code, *sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    code, *loaded = said.split("LOADED")[1].split()
    assert code == "0" and not {"torch", "transformers", "peft", "matplotlib"} & set(loaded)
    assert (tmp_path / "out").is_dir()
