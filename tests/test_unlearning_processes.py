"""Two processes with gloo, as `accelerate launch` starts them, do what one does: with whole weights, and with shares of them."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tiny_models import save_llama

import editkit
from editkit.errors import EditError, NothingChanged
from editkit.unlearning.processes import one_voice
from editkit.unlearning.settings import resolve
from editkit.unlearning.sharding import refuse_unshardable

NEVER = "nll(forget) < 0"
SETTINGS = {"steps": 4, "eval_every": 2, "lr": 2e-3, "floor": 0.01, "stop": NEVER, "device": "cpu"}
RUNS = {
    "whole": {"method": "ga+gd", "rectify": True, "weight_decay": 0.1, "batch_size": 5, "grad_accum": 2},
    "fewer": {"method": "npo+kl", "forget": "one.jsonl", "lora": 2},
    "tau": {"method": "tau", "steps": 2},
    "rmu": {"method": "rmu+rmu", "steps": 2},
    "masked": {"method": "memflex", "control": True, "steps": 2},
    "resumed": {"method": "simnpo+gd", "unseen": "unseen.jsonl"},
}
"""fewer: examples than processes."""
PARALLEL = ("whole", "fewer", "rmu", "masked", "resumed")
SHARDED = ("whole", "fewer", "tau")


def examples(path, letter, count):
    rows = [{"prompt": f"{letter}{place}:", "completion": f" {letter * (place % 5)}{place}."} for place in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def settings_of(folder, name):
    found = {"forget": "forget.jsonl", "retain": "retain.jsonl", **SETTINGS, **RUNS[name]}
    return {key: str(folder / one) if str(one).endswith(".jsonl") else one for key, one in found.items()}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A folder with the model, its example files, and in `one` what one process makes of all RUNS."""
    folder = tmp_path_factory.mktemp("processes")
    save_llama(folder / "model")
    for file, letter, count in (("forget", "f", 7), ("retain", "r", 9), ("unseen", "u", 3), ("one", "o", 1)):
        examples(folder / f"{file}.jsonl", letter, count)
    for name in RUNS:
        editkit.unlearn(folder / "model", folder / "one" / name, **settings_of(folder, name))
    return folder


def launched(folder, runs, *flags):
    """What each of two processes says of `runs`, the last of which fails, and what they write to stderr."""
    script = Path(__file__).with_name("launched_unlearning.py")
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes=2", "--num_machines=1", *flags]
    command += ["--main_process_port=0", "--mixed_precision=no", "--dynamo_backend=no"]
    done = subprocess.run(
        [*command, script, folder, json.dumps(runs)], capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    said = re.findall(r"process (\d): (.*)", done.stdout)
    assert said, done.stderr
    return [[text for rank, text in said if rank == one] for one in "01"], done.stderr


@pytest.fixture(scope="module")
def parallel(alone):
    def stop(line):
        if line["step"] == 3:
            raise KeyboardInterrupt

    (alone / "parallel").mkdir()
    with pytest.raises(KeyboardInterrupt):  # one process begins, two go on
        editkit.unlearn(alone / "model", alone / "parallel" / "resumed", observe=stop, **settings_of(alone, "resumed"))
    runs = {f"parallel/{name}": {**settings_of(alone, name), "resume": name == "resumed"} for name in PARALLEL}
    broken = {"parallel/broken": {**settings_of(alone, "whole"), "breaks": "1"}}
    return launched(alone, {**runs, **broken}, "--multi_gpu")


@pytest.fixture(scope="module")
def sharded(alone):
    runs = {f"sharded/{name}": settings_of(alone, name) for name in SHARDED}
    refused = {"sharded/refused": {**settings_of(alone, "whole"), "retain_loss": "kl", "resume": True}}
    return launched(alone, {**runs, **refused}, "--use_fsdp", "--fsdp_version=2")


def assert_alike(one, other):
    """Weights and losses within 1e-5, relative; the rest of the log is the same."""
    files = {path.name for path in one.glob("*.safetensors")}
    assert files and files == {path.name for path in other.glob("*.safetensors")}
    for file in files:
        weights, found = load_file(one / file), load_file(other / file)
        assert weights.keys() == found.keys()
        for name, values in weights.items():
            assert (found[name] - values).norm() <= 1e-5 * values.norm(), name
    logs = [
        [json.loads(line) for line in (place / "unlearning" / "train_log.jsonl").read_text().splitlines()]
        for place in (one, other)
    ]
    assert len(logs[0]) == len(logs[1])
    for line, found in zip(*logs, strict=True):
        assert (line["step"], line["phase"], line.keys()) == (found["step"], found["phase"], found.keys())
        for key in {"forget_loss", "retain_loss", "norm", "cosine"} & line.keys():
            assert found[key] == pytest.approx(line[key], rel=1e-5, abs=1e-6), (line["step"], key)


@pytest.mark.parametrize("name", PARALLEL)
def test_two_processes_make_of_it_what_one_makes(alone, parallel, name):
    assert_alike(alone / "one" / name, alone / "parallel" / name)


@pytest.mark.parametrize("name", SHARDED)
def test_shares_of_weights_become_what_whole_weights_become(alone, sharded, name):
    assert_alike(alone / "one" / name, alone / "sharded" / name)


def test_controls_are_run_by_all_processes_and_are_those_of_one(alone, parallel):
    one, other = (
        json.loads((alone / kind / "masked" / "unlearning" / "unlearn.json").read_text())["controls"]
        for kind in ("one", "parallel")
    )
    assert [control["name"] for control in other] == ["random mask", "all parameters"]
    for control, found in zip(one, other, strict=True):
        for row, again in zip(control["result"], found["result"], strict=True):
            assert again["after"]["value"] == pytest.approx(row["after"]["value"], rel=1e-4), row["quantity"]


def test_only_the_first_process_speaks_measures_and_returns_a_report(parallel, sharded):
    for (first, second), _ in (parallel, sharded):
        ended = [text.replace("a report", "nothing") for text in first if text.startswith("ended")]
        assert ended and second[: len(ended)] == ended
        assert "observed" in first and "stage measure" in first
    assert {"stage localize", "stage unseen", "stage random mask", "stage all parameters"} <= set(parallel[0][0])


def test_an_error_of_one_process_ends_both_with_one_sentence(alone, parallel):
    (first, second), _ = parallel
    failed = [text for text in first + second if text.startswith("failed")]
    assert len(failed) == 1 and failed[0].startswith("failed, this process has had enough")
    assert (alone / "parallel" / ".broken.unfinished" / "state.json").exists()
    assert not (alone / "parallel" / "broken").exists()


def test_what_shares_of_weights_cannot_do_is_refused_before_any_work(alone, sharded):
    failed = [text for text in sharded[0][0] + sharded[0][1] if text.startswith("failed")]
    assert len(failed) == 1
    assert "--resume" in failed[0] and "KL" in failed[0] and "--mask" not in failed[0]
    assert sorted(path.name for path in (alone / "sharded").iterdir()) == sorted(SHARDED)


def test_all_that_shares_of_weights_cannot_do_is_said_at_once(monkeypatch):
    monkeypatch.setenv("FSDP_VERSION", "1")
    monkeypatch.setenv("FSDP_OFFLOAD_PARAMS", "true")
    with pytest.raises(EditError, match=r"fsdp_version 2; .*offload.*; .*--resume; .*mask.*; .*UNDIAL.*--lora"):
        refuse_unshardable(_settings("undial+gd"), mask=True, resume=True)
    monkeypatch.setenv("FSDP_VERSION", "2")
    monkeypatch.setenv("FSDP_OFFLOAD_PARAMS", "false")
    refuse_unshardable(_settings("undial+gd", lora=4), mask=False, resume=False)
    refuse_unshardable(_settings("memflex", lora=4), mask=False, resume=False)
    with pytest.raises(EditError, match="mask"):
        refuse_unshardable(_settings("memflex"), mask=False, resume=False)


def _settings(name, **given):
    return resolve(
        name=name, forget_loss=None, retain_loss=None, preset=None, stop=[], retain=True, mask=False, tasks=1, control=False,
        given=given,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("rank", "raised", "expected"),
    [(None, EditError("why"), EditError), ("0", EditError("why"), EditError), ("0", ValueError("a bug"), ValueError)],
)
def test_the_first_process_says_what_went_wrong(monkeypatch, rank, raised, expected):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("LOCAL_RANK", rank)
    with pytest.raises(expected) as found, one_voice():
        raise raised
    assert found.value is raised


@pytest.mark.parametrize(("raised", "code"), [(EditError("why"), 2), (NothingChanged("why"), 1), (ValueError("a"), 1)])
def test_another_process_exits_with_the_same_code_and_no_word(monkeypatch, raised, code):
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(SystemExit) as found, one_voice():
        raise raised
    assert found.value.code == code


def test_a_process_that_is_left_says_that_another_was_lost(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(EditError, match="another of the processes ended without a word"), one_voice():
        raise RuntimeError("[pair.cc:553] Connection closed by peer [127.0.0.1]:12422")
    with pytest.raises(RuntimeError, match="shape"), one_voice():
        raise RuntimeError("shape mismatch")
