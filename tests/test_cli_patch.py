"""`editkit patch ...` and `editkit verify` as commands: what they print, and their exit codes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
import torch
from click.testing import CliRunner
from editkit_cli.main import main
from safetensors.torch import save_file
from test_checkpoint_writer import model, tree
from test_patching_patch import kept, tuned


def run(*arguments, cwd):
    with chdir(cwd):
        return CliRunner().invoke(main, [str(one) for one in arguments])


@contextmanager
def chdir(folder):
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Base, edit by `negate --patch`, and what it printed."""
    folder = tmp_path_factory.mktemp("patch")
    base = model(folder / "base", dtype=torch.bfloat16)
    tuned(base, folder / "tuned")
    done = run("negate", "base", "tuned", "--alpha", 1, "--patch", "edit.editpatch", "-o", "edited", cwd=folder)
    assert done.exit_code == 0, done.stderr
    return folder


def test_undo_and_apply(place, tmp_path):
    done = run("patch", "undo", "edited", "edit.editpatch", "-o", tmp_path / "back", cwd=place)
    assert (done.exit_code, done.stdout) == (0, f"{tmp_path / 'back'} written: the base, bit for bit\n")
    assert tree(tmp_path / "back") == tree(place / "base")
    done = run("patch", "apply", "base", "edit.editpatch", "-o", tmp_path / "there", "-q", cwd=place)
    assert (done.exit_code, done.stdout, done.stderr) == (0, "", "")
    assert kept(tmp_path / "there") == kept(place / "edited")


def test_create_gives_the_same_patch_as_the_edit(place, tmp_path):
    done = run("patch", "create", "base", "edited", "-o", tmp_path / "p.editpatch", cwd=place)
    assert done.exit_code == 0 and "of 9,000 elements changed, in 6 of 6 tensors" in done.stdout
    assert (tmp_path / "p.editpatch").read_bytes() == (place / "edit.editpatch").read_bytes()


def test_info(place):
    done = run("patch", "info", "edit.editpatch", cwd=place)
    assert "editkit.json: added" in done.stdout and "model.layers.0.w  BF16" in done.stdout
    assert "of 9,000 elements changed, in 6 of 6 tensors" in done.stdout.splitlines()[0]
    found = json.loads(run("patch", "info", "edit.editpatch", "--json", cwd=place).stdout)
    assert found["schema"] == "editkit.patch/1" and found["base"]["name"] == "base"


def test_info_of_many_tensors_shows_twenty(tmp_path):
    for name, value in (("base", 0.0), ("edited", 1.0)):
        save_file({f"w{number:02}": torch.full((2,), value) for number in range(23)}, tmp_path / f"{name}.safetensors")
    run("patch", "create", "base.safetensors", "edited.safetensors", "-o", "p.editpatch", cwd=tmp_path)
    lines = run("patch", "info", "p.editpatch", cwd=tmp_path).stdout.splitlines()
    assert lines[0].startswith("46 of 46 elements changed, in 23 of 23 tensors")
    assert [line.split()[0] for line in lines[2:22]] == [f"w{number:02}" for number in range(20)]
    assert lines[22] == "and 3 more tensors: see --json"
    assert len(json.loads(run("patch", "info", "p.editpatch", "--json", cwd=tmp_path).stdout)["tensors"]) == 23


def test_verify_of_a_patch(place):
    done = run("patch", "verify", "edit.editpatch", "edited", cwd=place)
    assert done.exit_code == 0 and "edited: the edited side, bit for bit" in done.stdout
    done = run("patch", "verify", "edit.editpatch", "tuned", cwd=place)
    assert done.exit_code == 1 and "neither side" in done.stdout
    found = json.loads(run("patch", "verify", "edit.editpatch", "base", "--json", cwd=place).stdout)
    assert found["side"] == "base"


def test_a_patch_applied_twice_is_bad_input(place, tmp_path):
    done = run("patch", "apply", "edited", "edit.editpatch", "-o", tmp_path / "out", cwd=place)
    assert done.exit_code == 2 and done.stdout == ""
    assert done.stderr == "editkit: edited is the edited side of edit.editpatch already: there is nothing to apply\n"
    done = run("patch", "create", "base", "base", "-o", tmp_path / "p.editpatch", cwd=place)
    assert done.exit_code == 1 and "the same weights" in done.stderr
    assert not list(tmp_path.iterdir())


def test_patch_alone_says_what_there_is(place):
    done = run("patch", cwd=place)
    assert done.exit_code == 2
    for name in ("create", "apply", "undo", "verify", "info"):
        assert f"patch {name}" in done.stderr


def test_verify(place, tmp_path):
    done = run("verify", "edited", "--recompute", "--input", "base=base", cwd=place)
    assert done.exit_code == 0 and done.stdout.endswith("edited, made by editkit negate: ok\n")
    assert "ok       recompute negate" in done.stdout
    record = json.loads((place / "edited/editkit.json").read_text())
    shutil.copytree(place / "edited", tmp_path / "trained")
    (tmp_path / "trained/editkit.json").write_text(json.dumps({**record, "command": "finetune"}))
    done = run("verify", tmp_path / "trained", "--recompute", cwd=place)
    why = "finetune is not done again: what comes out depends on the machine too"
    said = f"{tmp_path / 'trained'}, made by editkit finetune: unknown; not recomputed: {why}"
    assert (done.exit_code, done.stdout.splitlines()[-1]) == (1, said)
    done = run("verify", "edited", "--input", "tofu/full", cwd=place)
    assert done.exit_code == 2 and "'tofu/full' is not NAME=PATH, such as base=model or 'vector 1=tuned'" in done.stderr
    done = run("verify", "base", cwd=place)
    assert done.exit_code == 2 and "base has no editkit.json" in done.stderr
    broken = tmp_path / "broken"
    run("patch", "apply", "base", "edit.editpatch", "-o", broken, cwd=place)
    (broken / "config.json").write_text("{}")
    done = run("verify", broken, "--json", cwd=place)
    assert done.exit_code == 1 and json.loads(done.stdout)["verdict"] == "differs"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_apply_leaves_nothing_that_loads(tmp_path, number):
    big = {"w": torch.zeros(1 << 24, dtype=torch.bfloat16)}
    for name, value in (("base", 0.0), ("edited", 1.0)):
        (tmp_path / name).mkdir()
        save_file({"w": big["w"] + value}, tmp_path / name / "model.safetensors")
    assert run("patch", "create", "base", "edited", "-o", "p.editpatch", cwd=tmp_path).exit_code == 0
    process = subprocess.Popen(
        [sys.executable, "-m", "editkit_cli", "patch", "undo", "edited", "p.editpatch", "-o", "out", "--threads", "1"],
        cwd=tmp_path,
    )
    while not (staged := list(tmp_path.glob(".out.partial-*"))) and process.poll() is None:
        time.sleep(0.001)
    assert staged, "it was done before it could be stopped"
    os.kill(process.pid, number)
    process.wait()
    assert not (tmp_path / "out").exists() and not list(tmp_path.rglob(".out.*/*.safetensors"))
    assert number == signal.SIGKILL or not list(tmp_path.glob(".out*"))
    assert run("patch", "undo", "edited", "p.editpatch", "-o", "out", cwd=tmp_path).exit_code == 0
    assert not list(tmp_path.glob(".out*"))
