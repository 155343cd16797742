"""Runs that are killed go on, and end with the bytes of a run that was not."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from localized import no_pictures, one_thread, sets, write  # noqa: F401
from safetensors.torch import load_file, save_file
from sharded import tree
from tiny_models import save_llama

from editkit.errors import EditError
from editkit.localization.localize import localize

SLOW = """
import sys, time
from transformers import LlamaForCausalLM
forward = LlamaForCausalLM.forward
def slow(*arguments, **settings):
    time.sleep(0.1)
    return forward(*arguments, **settings)
LlamaForCausalLM.forward = slow
from editkit_cli.main import main
sys.argv[0] = "editkit"
main()
"""
"""The command line, with a model that takes its time."""
STATE = ".loc.unfinished/state.json"


@pytest.fixture
def place(tmp_path):
    save_llama(tmp_path / "model")
    sets(tmp_path)
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    save_llama(tmp_path / "base")
    generator = torch.Generator().manual_seed(1)
    moved = {name: one + torch.randn(one.shape, generator=generator) * 0.01 for name, one in tensors.items()}
    save_file(moved, tmp_path / "base" / "model.safetensors", {"format": "pt"})
    return tmp_path


def settings_of(place, method, **more):
    base = {"base": place / "base", "max_examples": 5} if method == "path" else {}
    labels = {"labels": "random:0.4", "draws": 2} if method == "salun" else {}
    files = {"forget": place / "forget.jsonl", "retain": place / "retain.jsonl"}
    return {"method": method, "batch_size": 3, "device": "cpu", "control": True, **base, **labels, **files, **more}


def killed(place, method, saves, number=signal.SIGKILL):
    """Start a run in a process of its own and end it after some saves."""
    flags = []
    for key, value in settings_of(place, method).items():
        flags += [f"--{key.replace('_', '-')}"] + ([] if value is True else [str(value)])
    command = [
        sys.executable,
        "-c",
        SLOW,
        "localize",
        str(place / "model"),
        "-o",
        str(place / "loc"),
        "--quiet",
        *flags,
    ]
    run = subprocess.Popen(
        command,
        cwd=Path(__file__).parent.parent,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    seen, last, deadline = 0, None, time.monotonic() + 60
    while seen < saves:
        assert run.poll() is None, run.stderr.read()
        assert time.monotonic() < deadline
        if (state := place / STATE).exists() and (found := state.stat().st_mtime_ns) != last:
            seen, last = seen + 1, found
        time.sleep(0.01)
    run.send_signal(number)
    run.communicate()
    return run.returncode


def forwards(monkeypatch):
    """A list that grows with every pass through a model."""
    from transformers import LlamaForCausalLM

    passes, inner = [], LlamaForCausalLM.forward
    monkeypatch.setattr(LlamaForCausalLM, "forward", lambda *a, **k: passes.append(1) or inner(*a, **k))
    return passes


@pytest.mark.parametrize("method", ["salun", "path"])
def test_a_run_that_was_killed_goes_on_and_ends_with_the_same_bytes(place, monkeypatch, method):
    assert killed(place, method, saves=2) == -signal.SIGKILL
    left = sorted(path.name for path in place.iterdir())
    assert left == [".loc.unfinished", "base", "forget.jsonl", "model", "retain.jsonl"]
    passes = forwards(monkeypatch)
    localize(place / "model", place / "loc", resume=True, offload="disk", threads=1, **settings_of(place, method))
    resumed = len(passes)
    passes.clear()
    localize(place / "model", place / "whole", **settings_of(place, method))
    assert resumed < len(passes), "nothing was taken up"
    assert tree(place / "loc") == tree(place / "whole")
    assert not (place / ".loc.unfinished").exists()


def test_a_run_ended_by_sigterm_can_go_on_as_well(place):
    assert killed(place, "salun", saves=1, number=signal.SIGTERM) == 143
    assert (place / STATE).exists() and not (place / "loc").exists()
    report = localize(place / "model", place / "loc", resume=True, **settings_of(place, "salun"))
    assert report["forget"]["examples"] == 13 and not (place / ".loc.unfinished").exists()


@pytest.fixture
def begun(place, monkeypatch):
    """A run that an error of the machine ended after its first save."""
    from transformers import LlamaForCausalLM

    with monkeypatch.context() as patched:
        inner, passes = LlamaForCausalLM.forward, []

        def fail(*arguments, **settings):
            passes.append(1)
            if len(passes) > 4:
                raise KeyboardInterrupt
            return inner(*arguments, **settings)

        patched.setattr(LlamaForCausalLM, "forward", fail)
        with pytest.raises(KeyboardInterrupt):
            localize(place / "model", place / "loc", **settings_of(place, "salun"))
    assert (place / STATE).exists()
    return place


def test_a_begun_run_is_not_begun_again_unasked(begun):
    with pytest.raises(EditError, match=r"was begun and not finished: go on with --resume, or remove .loc.unfinished"):
        localize(begun / "model", begun / "loc", **settings_of(begun, "salun"))
    assert (begun / STATE).exists(), "hours of work"


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"batch_size": 4}, "batch_size"),
        ({"draws": 3}, "draws"),
        ({"labels": "true", "draws": 1}, "draws, labels"),
        ({"seed": 1}, "seed"),
        ({"accumulate": "absolute"}, "accumulate"),
        ({"control": False}, "control"),
        ({"only": ["*mlp*"]}, "only"),
        ({"max_examples": 5}, "examples"),
    ],
)
def test_a_run_goes_on_with_its_own_settings_only(begun, more, named):
    with pytest.raises(EditError) as caught:
        localize(begun / "model", begun / "loc", resume=True, **(settings_of(begun, "salun") | more))
    assert f"was begun with other settings ({named})" in str(caught.value)
    assert (begun / STATE).exists(), "hours of work"


def test_a_run_goes_on_with_its_own_model_and_examples_only(begun):
    save_llama(begun / "other")
    tensors = load_file(begun / "other" / "model.safetensors")
    save_file({name: 2 * one for name, one in tensors.items()}, begun / "other" / "model.safetensors", {"format": "pt"})
    with pytest.raises(EditError, match=r"was begun with other settings \(.*model"):
        localize(begun / "other", begun / "loc", resume=True, **settings_of(begun, "salun"))
    write(begun / "forget.jsonl", [{"prompt": "a", "completion": "b"}])
    with pytest.raises(EditError, match=r"was begun with other settings \(examples\)"):
        localize(begun / "model", begun / "loc", resume=True, **settings_of(begun, "salun"))


def test_two_runs_do_not_share_a_folder(begun):
    held = os.open(begun / ".loc.unfinished", os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    try:
        with pytest.raises(EditError, match="is being made by another run: wait for it, or give another output"):
            localize(begun / "model", begun / "loc", resume=True, **settings_of(begun, "salun"))
    finally:
        os.close(held)
    assert (begun / STATE).exists()


def test_resume_without_a_begun_run_begins(place):
    localize(place / "model", place / "loc", resume=True, **settings_of(place, "salun"))
    localize(place / "model", place / "whole", **settings_of(place, "salun"))
    assert tree(place / "loc") == tree(place / "whole")


def test_an_error_in_the_data_leaves_nothing_of_a_run(place):
    """What cannot get better is not kept to go on with."""
    tensors = load_file(place / "model" / "model.safetensors")
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, place / "model" / "model.safetensors", {"format": "pt"})
    before = sorted(path.name for path in place.iterdir())
    with pytest.raises(EditError):
        localize(place / "model", place / "deep" / "loc", **settings_of(place, "salun"))
    assert sorted(path.name for path in place.iterdir()) == before


@pytest.mark.parametrize("config", ["config.json", "generation_config.json"])
def test_a_run_does_not_go_on_with_a_model_that_computes_otherwise(begun, config):
    """What only the config says, such as an epsilon, changes gradients as weights do; how text is generated does not."""
    path = begun / "model" / config
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rms_norm_eps": 0.5}))
    settings = {**settings_of(begun, "salun"), "resume": True}
    if config == "config.json":
        with pytest.raises(EditError, match=r"was begun with other settings \(configs\)"):
            localize(begun / "model", begun / "loc", **settings)
    else:
        assert localize(begun / "model", begun / "loc", **settings)["summary"]["selected"]


@pytest.mark.parametrize("damage", ["settings.json", "state.json", "sums"])
def test_a_damaged_save_is_said_to_be_damaged(begun, damage):
    folder = begun / ".loc.unfinished"
    slot = json.loads((folder / "state.json").read_text())["slot"]
    path = folder / (f"forget.{slot}" if damage == "sums" else damage)
    os.truncate(path, path.stat().st_size - 4)
    with pytest.raises(EditError, match=r"^\.loc\.unfinished is damaged \(.*\): remove it and begin again$"):
        localize(begun / "model", begun / "loc", resume=True, **settings_of(begun, "salun"))


def test_room_for_sums_on_disk_is_taken_before_the_work(place, monkeypatch):
    """A sparse file would end the process with SIGBUS when the disk is full."""
    asked = []
    monkeypatch.setattr(
        "editkit.checkpoint.disk.os.posix_fallocate", lambda *given: asked.append(given[2]), raising=False
    )
    monkeypatch.setattr(
        "editkit.localization.accumulators.np.memmap", lambda *_, shape, **__: np.zeros(shape, np.float32)
    )
    localize(place / "model", place / "loc", offload="disk", **settings_of(place, "salun"))
    numel = sum(one.numel() for one in load_file(place / "model" / "model.safetensors").values())
    assert asked.count(4 * numel) == 3  # forget, retain, half
