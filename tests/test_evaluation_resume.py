"""Evaluations that are interrupted go on with --resume, and end with the bytes of one that was not."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from test_evaluation_evaluate import FORGET, SETTINGS, everything, found, lines, originals, place, refused  # noqa: F401

from editkit.errors import EditError
from editkit.evaluation import gathering
from editkit.evaluation.evaluate import evaluate

MODELS = {"models": ["edited", "second"], "base": "base", "reference": "never"}
SLOW = """
import sys, time
from editkit.evaluation import gathering
measure = gathering.measure
def slow(*arguments, **settings):
    time.sleep(0.3)
    return measure(*arguments, **settings)
gathering.measure = slow
from editkit_cli.main import main
sys.argv[0] = "editkit"
main()
"""


def measured(monkeypatch, fail_at=None, error=KeyboardInterrupt):
    """(model, set) of everything that is measured from now on; at `fail_at` an error comes instead."""
    inner, seen = gathering.measure, []

    def measure(subject, prepared, **settings):
        seen.append((subject.label, prepared.name))
        if len(seen) == fail_at:
            raise error
        return inner(subject, prepared, **settings)

    monkeypatch.setattr(gathering, "measure", measure)
    return seen


@pytest.fixture
def begun(place, monkeypatch):  # noqa: F811
    """A run of eight parts that was interrupted in the fifth."""
    with monkeypatch.context() as patched:
        measured(patched, fail_at=5)
        with pytest.raises(KeyboardInterrupt):
            evaluate(**MODELS, output="out", **SETTINGS)
    assert (place / ".out.unfinished").exists() and not (place / "out").exists()
    return place


def folder_bytes(folder):
    return {name: (folder / name).read_bytes() for name in everything(folder)}


def test_what_is_finished_is_not_measured_again_and_nothing_differs(begun, monkeypatch):
    seen = measured(monkeypatch)
    evaluate(**MODELS, output="out", resume=True, **SETTINGS)
    assert seen == [("second", "forget"), ("second", "retain"), ("never", "forget"), ("never", "retain")]
    evaluate(**MODELS, output="whole", **SETTINGS)
    assert len(seen) == 12 and folder_bytes(begun / "out") == folder_bytes(begun / "whole")
    assert not (begun / ".out.unfinished").exists()


def test_a_run_that_was_killed_goes_on_to_the_same_bytes(place, monkeypatch):  # noqa: F811
    flags = ["--base", "base", "--forget", "forget.jsonl", "--retain", "retain.jsonl", "--device", "cpu", "--max-new-tokens", "3", "-q"]  # fmt: skip
    command = [sys.executable, "-c", SLOW, "eval", "edited", "second", "-o", "out", *flags]
    paths = os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    run = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (place / ".out.unfinished" / "2.jsonl").exists():
        assert run.poll() is None, run.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    run.send_signal(signal.SIGKILL)
    run.communicate()
    assert run.returncode == -signal.SIGKILL and not (place / "out").exists()
    seen = measured(monkeypatch)
    evaluate(["edited", "second"], "out", base="base", resume=True, **SETTINGS)
    assert ("base", "forget") not in seen and ("second", "retain") in seen
    evaluate(["edited", "second"], "whole", base="base", **SETTINGS)
    assert folder_bytes(place / "out") == folder_bytes(place / "whole") and not (place / ".out.unfinished").exists()


def refuses(place, monkeypatch, **settings):  # noqa: F811
    """What is said, and that nothing was measured or lost for it."""
    seen = measured(monkeypatch)
    said = refused(place, **{**MODELS, "output": "out", **settings})
    assert not seen
    return said


def test_a_run_that_was_begun_asks_for_resume(begun, monkeypatch):
    assert "out was begun and not finished: go on with --resume, or remove .out.unfinished beside it" in refuses(begun, monkeypatch)  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"max_new_tokens": 4, "batch_size": 2}, "batch_size, max_new_tokens"),
        ({"suites": ["tofu"]}, "suites"),
        ({"prompt_template": "{question} {answer}"}, "prompt_template"),
        ({"models": ["edited"]}, "models"),
        ({"models": ["base", "edited", "second"], "base": None}, "models"),
        ({"models": ["edited", "second", "never"]}, "models"),
        ({"retain": None}, "content, sets"),
        ({"max_examples": 2}, "content, max_examples, sets"),
    ],
)
def test_other_settings_do_not_go_on(begun, monkeypatch, settings, key):
    assert f"out was begun with other settings ({key})" in refuses(begun, monkeypatch, resume=True, **settings)


@pytest.mark.parametrize("change", [{"completion": " Eve"}, {"perturbed_answer": [" z"]}, {"paraphrased_answer": " z"}])
def test_changed_examples_do_not_go_on(begun, monkeypatch, change):
    lines(begun / "forget.jsonl", [*FORGET[:3], FORGET[3] | change])
    assert "out was begun with other settings (content" in refuses(begun, monkeypatch, resume=True)


def test_changed_weights_do_not_go_on(begun, monkeypatch):
    tensors = load_file("edited/model.safetensors")
    tensors["model.norm.weight"][0] += 1
    save_file(tensors, "edited/model.safetensors", {"format": "pt"})
    said = refuses(begun, monkeypatch, resume=True)
    assert "the weights of edited changed since the run began: remove .out.unfinished beside the output and begin again" in said  # fmt: skip


def test_a_broken_model_is_named_with_its_weight_and_the_columns_before_it_are_kept(place, monkeypatch):  # noqa: F811
    whole = (place / "second" / "model.safetensors").read_bytes()
    tensors = load_file("second/model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 2] = float("nan")
    save_file(tensors, "second/model.safetensors", {"format": "pt"})
    with pytest.raises(EditError) as caught:
        evaluate(**MODELS, output="out", **SETTINGS)
    said = str(caught.value)
    assert re.match(r"second: forget\.jsonl: line \d: the model's output is NaN, since 1 weights hold NaN or Inf", said)
    assert "model.layers.1.mlp.up_proj.weight" in said and "what was measured before is kept for --resume" in said
    (place / "second" / "model.safetensors").write_bytes(whole)
    seen = measured(monkeypatch)
    report = evaluate(**MODELS, output="out", resume=True, **SETTINGS)
    assert seen[0] == ("second", "forget") and found(report)["edited", "general/nll", "forget"]["n"] == 4


def test_a_first_model_that_is_broken_leaves_nothing(place):  # noqa: F811
    tensors = load_file("edited/model.safetensors")
    tensors["model.norm.weight"][0] = float("nan")
    save_file(tensors, "edited/model.safetensors", {"format": "pt"})
    assert "the first model.norm.weight" in refused(place, ["edited"])


def test_what_was_measured_outlives_a_page_that_cannot_be_written(place, monkeypatch):  # noqa: F811
    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("editkit.evaluation.rendering.write_pages", full)
        with pytest.raises(EditError, match=r"no space left for out.*kept for --resume"):
            evaluate("edited", "out", **SETTINGS)
    assert not (place / "out").exists()
    seen = measured(monkeypatch)
    evaluate("edited", "out", resume=True, **SETTINGS)
    assert seen == [] and everything(place / "out") == ["examples.jsonl", "results.json"]


def test_text_with_all_kinds_of_line_ends_is_taken_up_whole(place, monkeypatch):  # noqa: F811
    strange = [{**row, "completion": " A\u2028d\x85a\x0b\x1c\r"} for row in FORGET]
    lines(place / "forget.jsonl", strange)
    with monkeypatch.context() as patched:
        measured(patched, fail_at=2)
        with pytest.raises(KeyboardInterrupt):
            evaluate("edited", "out", **SETTINGS)
    evaluate("edited", "out", resume=True, **SETTINGS)
    evaluate("edited", "whole", **SETTINGS)
    assert folder_bytes(place / "out") == folder_bytes(place / "whole")
    rows = [json.loads(line) for line in (place / "out" / "examples.jsonl").read_text("utf-8").split("\n")[:-1]]
    assert rows[0]["answer"] == strange[0]["completion"] and len(rows) == 7


def test_resume_without_a_run_begun_begins_one(place):  # noqa: F811
    assert evaluate("edited", "out", resume=True, **SETTINGS)["results"]
