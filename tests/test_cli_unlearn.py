"""`editkit unlearn`: the table, progress with losses and looks, what it warns of, and what it leaves where it ends early."""

import inspect
import json
import re
import shutil
import subprocess
import sys

import click
import pytest
import torch
from click.testing import CliRunner
from editkit_cli.main import main
from editkit_cli.progress import progress
from editkit_cli.unlearn import FORGET_LOSSES, RETAIN_LOSSES, Shown, command
from localized import one_thread, write  # noqa: F401
from safetensors.torch import save_file
from tiny_models import save_llama

import editkit
from editkit.unlearning.objectives import FORGET, RETAIN
from editkit.unlearning.step import Stepper

F, R, CPU = ["--forget", "forget.jsonl"], ["--retain", "retain.jsonl"], ["--device", "cpu"]
SHORT = [*CPU, "--steps", "4", "--eval-every", "2"]
NEVER = ["--stop", "ma(forget) < 0"]


def made(letters):
    return [{"prompt": one * 2, "completion": f" Ada {one}x"} for one in letters]


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    sets = {"forget": "abcdef", "retain": "ijklmn", "second": "opq", "both": "abcdefijklmnopq"}
    for name, letters in sets.items():
        write(folder / f"{name}.jsonl", made(letters))
    save_llama(folder / "start")
    settings = {"steps": 60, "lr": 2e-2, "device": "cpu"}
    editkit.finetune(folder / "start", folder / "both.jsonl", folder / "model", **settings)
    editkit.finetune(folder / "start", folder / "retain.jsonl", folder / "never", **settings)
    return folder


@pytest.fixture
def workplace(tmp_path, monkeypatch, originals):
    shutil.copytree(originals, tmp_path / "w")
    monkeypatch.chdir(tmp_path / "w")
    monkeypatch.setattr("editkit.unlearning.rendering.write_pictures", lambda report, folder: None)
    monkeypatch.setattr("editkit.unlearning.saving.write_report", lambda report, folder: None)
    return tmp_path / "w"


def run(*arguments):
    return CliRunner().invoke(main, ["unlearn", *map(str, arguments)], prog_name="editkit")


def everything(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def refused(workplace, *arguments, code=2):
    """The one line on stderr of a run that leaves nothing behind."""
    before = everything(workplace)
    ran = run(*arguments, "-q")
    assert ran.exit_code == code, ran.output
    assert ran.stderr.startswith("editkit: ") and ran.stderr.count("\n") == 1 and ran.stdout == "", ran.output
    assert everything(workplace) == before
    return ran.stderr


def saved(folder):
    return json.loads((folder / "unlearning" / "unlearn.json").read_text("utf-8"))


def test_the_summary_says_what_was_done_and_a_line_tells_of_every_look(workplace):
    ran = run("model", *F, *R, "--reference", "never", "--lr", 0.01, *SHORT, "-o", "out")
    assert ran.exit_code == 0, ran.output
    report = saved(workplace / "out")
    assert ran.stdout.startswith("model, unlearned by NPO+GD")
    assert ran.stdout.endswith("out written, with unlearning/report.html\n")
    [task] = report["tasks"]
    looks = [line for line in ran.stderr.splitlines() if line.startswith("unlearn, step ")]
    assert len(looks) == len(task["points"]) >= 2 and "loss" not in looks[0]
    for line, point in zip(looks, task["points"], strict=True):
        values = point["values"]
        told = f"MA {values['ma(forget)']:.3f}, retention {values['retention']:.3f}"
        assert line.startswith(f"unlearn, step {point['step']}: ") and line.endswith(told)
    log = [json.loads(line) for line in (workplace / "out" / "unlearning" / "train_log.jsonl").read_text().splitlines()]
    [last] = [line for line in log if line["step"] == 2 and "values" not in line]
    assert f"loss: forget {last['forget_loss']:.3f}, retain {last['retain_loss']:.3f}; MA" in looks[1]


def test_json_is_what_the_folder_holds_and_warnings_go_to_stderr(workplace):
    ran = run("model", *F, *R, *SHORT, *NEVER, "-o", "out", "--json", "-q")
    assert ran.exit_code == 0, ran.output
    report = json.loads(ran.stdout, parse_constant=lambda name: pytest.fail(name))
    assert report == saved(workplace / "out") and report["tasks"][0]["outcome"] == "not reached"
    assert ran.stderr.splitlines() == [f"editkit: warning: {text}" for text in report["warnings"]]
    assert "forget: the stop rule never held in 4 steps" in ran.stderr


def test_quiet_is_silent_where_nothing_is_to_be_warned_of(workplace):
    stop = ["--stop", "ma(forget) <= 1", "--lr", 0.01]
    ran = run("model", *F, *R, "--reference", "never", *SHORT, *stop, "-o", "out", "-q")
    assert (ran.exit_code, ran.stdout, ran.stderr) == (0, "", "")
    assert "model.safetensors" in everything(workplace / "out")


@pytest.mark.parametrize(
    ("arguments", "files"),
    [
        (["--method", "me+gd", "--lora", 2, "--lr", 0.1], ["adapter_config.json", "adapter_model.safetensors"]),
        (["--method", "tau", "--save", "vector", "--lr", 0.05], ["editkit.json", "task_vector.safetensors"]),
        (
            ["--forget-loss", "idk", "--retain-loss", "ap", "--refusals", "no.txt", "--lr", 0.05],
            ["config.json", "model.safetensors"],
        ),
    ],
)
def test_what_is_saved_is_as_asked(workplace, arguments, files):
    (workplace / "no.txt").write_text("No.\nWho?\n")
    ran = run("model", *F, *R, *SHORT, "--floor", 0.01, *arguments, "-o", "out", "-q")
    assert ran.exit_code == 0, ran.output
    assert {*files, "unlearning/unlearn.json"} <= {*everything(workplace / "out")}


def test_several_forget_sets_are_unlearned_in_their_order(workplace):
    ran = run("model", *F, "--forget", "second.jsonl", *R, *SHORT, "--lr", 0.01, "--floor", 0.01, "-o", "out")
    assert ran.exit_code == 0, ran.output
    names = {one["set"]: one["name"] for one in saved(workplace / "out")["sets"]}
    assert names == {"forget 1": "forget.jsonl", "forget 2": "second.jsonl", "retain": "retain.jsonl"}
    assert ran.stderr.count("unlearn, step 0: MA ") == 2, "no loss of the set before is told of the next one"


def test_a_run_that_changes_nothing_has_a_code_of_its_own_and_no_output(workplace):
    still = [*CPU, "--steps", 1, "--lr", 1e-30]
    assert "changed no weight" in refused(workplace, "model", *F, *R, *still, "-o", "deep/out", code=1)


REFUSED = [
    (R, "Missing option '--forget'"),
    ([*F, "--method", "npo+gd"], "there is no retain set, give --retain or --retain-loss none"),
    ([*F, *R, "--method", "me+dg"], "there is no method 'me+dg' (did you mean me+gd?)"),
    ([*F, *R, "--method", "me+gd", "--forget-loss", "ga"], "--method me+gd and --forget-loss ga both say what to do"),
    ([*F, *R, "--forget-loss", "learn"], "'learn' is not one of"),
    ([*F, *R, "--retain-loss", "npo"], "'npo' is not one of"),
    ([*F, *R, "--preset", "papers"], "'papers' is not 'paper'"),
    ([*F, *R, "--lr", 0], "lr is 0.0, must be a finite number above 0"),
    ([*F, *R, "--floor", 2, "--forget-weight", -1], "forget_weight is -1.0, must be a finite number of at least 0, floor is 2.0"),
    ([*F, *R, "--steps", 0], "--steps"),
    ([*F, *R, "--steps", 2, "--epochs", 2], "epochs and steps are both given"),
    ([*F, *R, "--stop", "ma(forget) = 1"], "--stop 'ma(forget) = 1' is no rule: write"),
    ([*F, *R, "--save", "adapter"], "save is adapter, and without lora there is none"),
    ([*F, *R, "--control"], "control compares a mask with a random one"),
    ([*F, *R, "--method", "idk+gd", "--refusals", "nowhere.txt"], "nowhere.txt cannot be read"),
    ([*F, "--retain", "forget.jsonl"], "all of forget.jsonl (forget) is in forget.jsonl (retain)"),
    ([*F, *R, "--mask", "nowhere"], "nowhere"),
    (["--forget", "nowhere.jsonl", *R], "nowhere.jsonl cannot be read"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "message"), REFUSED)
def test_bad_input_is_one_line_and_leaves_nothing(workplace, arguments, message):
    assert message in refused(workplace, "model", *arguments, "-o", "deep/out", *CPU)


def test_controls_of_a_mask_without_one_are_missed_before_the_run(workplace):
    save_file({"model.norm.weight": torch.ones(16, dtype=torch.bool)}, "mask.safetensors")
    said = refused(workplace, "model", *F, *R, *CPU, "--mask", "mask.safetensors", "--control", "-o", "out")
    assert "mask.safetensors has no random mask of its size: localize with --control" in said


def test_an_output_must_be_new(workplace):
    (workplace / "out").mkdir()
    (workplace / "out" / "notes.txt").write_text("mine")
    assert "out is not empty" in refused(workplace, "model", *F, *R, "-o", "out", *CPU)


def test_ctrl_c_says_how_to_go_on(workplace, monkeypatch):
    take, steps = Stepper.take, []

    def stopped(self, *arguments):
        steps.append(1)
        if len(steps) == 3:
            raise KeyboardInterrupt
        return take(self, *arguments)

    arguments = ["model", *F, *R, *SHORT, *NEVER, "--lr", 0.01, "--floor", 0.01]
    with monkeypatch.context() as patched:
        patched.setattr(Stepper, "take", stopped)
        ran = run(*arguments, "-o", "out", "-q")
    said = "editkit: interrupted: go on with --resume (what was done is in .out.unfinished beside out)"
    assert (ran.exit_code, ran.stderr.strip()) == (130, said)
    assert "out was begun and not finished: go on with --resume" in refused(workplace, *arguments, "-o", "out")
    assert run(*arguments, "-o", "out", "-q", "--resume").exit_code == 0
    assert run(*arguments, "-o", "whole", "-q").exit_code == 0
    weights = [(workplace / name / "model.safetensors").read_bytes() for name in ("out", "whole")]
    assert weights[0] == weights[1] and ".out.unfinished" not in everything(workplace)


def test_ctrl_c_before_the_first_look_is_saved_leaves_nothing(workplace, monkeypatch):
    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Stepper, "take", stopped)
    before = everything(workplace)
    ran = run("model", *F, *R, *SHORT, "-o", "deep/out", "-q")
    assert ran.exit_code == 130 and "resume" not in ran.output and everything(workplace) == before


def test_of_several_processes_the_first_one_speaks(monkeypatch):
    def unlearn(*_, stage, observe, **__):
        with stage("unlearn") as advance:
            observe(
                {
                    "task": "forget",
                    "phase": "unlearn",
                    "step": 0,
                    "mix": None,
                    "values": {"ma(forget)": 1.0, "retention": None},
                }
            )
            assert (advance is None) == (rank == "2")
        return {} if rank == "2" else {"warnings": []}

    monkeypatch.setattr(editkit, "unlearn", unlearn)
    for rank, said in (("0", "unlearn, step 0: MA 1.000\n"), ("2", "")):
        monkeypatch.setenv("RANK", rank)
        ran = run("model", *F, "-o", "out", "--json")
        assert (ran.exit_code, ran.stderr, bool(ran.stdout)) == (0, said, bool(said))


def test_every_option_reaches_the_function_of_its_name(monkeypatch):
    given, parameters = {}, inspect.signature(editkit.unlearn).parameters
    monkeypatch.setattr(editkit, "unlearn", lambda *_, **settings: given.update(settings) or {"warnings": []})
    values = {"prompt_template": r"{question}\n{answer}", "dtype": "bfloat16", "device": "cpu", "method": "me+gd"}
    arguments, expected = [], {"prompt_template": "{question}\n{answer}"}
    options = [one for one in command.params if isinstance(one, click.Option) and one.name not in ("output", "quiet", "as_json")]  # fmt: skip
    for one in options:
        if one.is_flag:
            arguments.append(one.opts[0])
            expected[one.name] = True
            continue
        choices = one.type.choices if isinstance(one.type, click.Choice) else ["7"]
        text = values.get(one.name, choices[-1])
        arguments += [one.opts[0], text]
        value = one.type.convert(text, one, None)
        expected.setdefault(one.name, (value,) if one.multiple else value)
    ran = run("model", *arguments, "-o", "out", "--json")
    assert ran.exit_code == 0, ran.output
    assert {key: value for key, value in given.items() if key not in ("stage", "observe")} == expected
    assert {"model", "output", *given} == {*parameters}


def test_losses_of_the_help_are_those_that_there_are():
    assert {*FORGET_LOSSES} == {*FORGET, "sga"} - {"learn"} and len(FORGET_LOSSES) == len(FORGET)
    assert tuple(RETAIN) == RETAIN_LOSSES


def test_help_imports_nothing_heavy():
    code = "import sys; from editkit_cli.main import main\ntry: main(['unlearn', '--help'])\n"
    code += "except SystemExit: print('LOADED', *sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--forget-loss" in ran.stdout and not {"torch", "numpy"} & {*ran.stdout.split("LOADED")[1].split()}


LOOK = {"task": "forget", "phase": "unlearn", "mix": None}


@pytest.mark.parametrize(
    ("stage", "told", "where"),
    [
        ("unlearn", {}, "unlearn, step 4"),
        ("unlearn", {"phase": "ascend", "mix": 0.75}, "ascend, step 4, landed"),
        ("unlearn", {"task": "forget 2"}, "forget 2, unlearn, step 4"),
        ("random mask", {}, "random mask, unlearn, step 4"),
    ],
)
def test_a_look_says_of_what_it_is(capsys, stage, told, where):
    shown = Shown(quiet=False)
    with shown.stage(stage):
        shown.observe({**LOOK, **told, "step": 4, "values": {"ma(forget)": 0.5, "retention": 0.875}})
    assert f"{where}: MA 0.500, retention 0.875" in capsys.readouterr().err


def test_a_bar_shows_losses_and_the_last_look(monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    shown, states = Shown(quiet=False), []
    monkeypatch.setattr("rich.progress.Progress.update", lambda self, task, state, **_: states.append(state))
    with shown.stage("unlearn") as advance:
        shown.observe({**LOOK, "step": 0, "values": {"ma(forget)": 1.0, "retention": None}})
        advance(0, 8)
        shown.observe({"step": 1, "forget_loss": 2.25, "retain_loss": 0.5, "norm": 3.0})
        advance(1, 8)
        shown.observe({"step": 2, "retain_loss": 0.25, "norm": 3.0})
        shown.observe({**LOOK, "step": 2, "values": {"ma(forget)": 0.5, "retention": 0.875}})
        advance(2, 8)
    assert [re.sub(r", \S+ steps/s", "", state) for state in states] == [
        "0 steps of 8 steps\nMA 1.000",
        "1 steps of 8 steps\nloss: forget 2.250, retain 0.500; MA 1.000",
        "2 steps of 8 steps\nloss: retain 0.250; MA 0.500, retention 0.875",
    ]


def test_lines_between_the_looks_have_the_losses(capsys, monkeypatch):
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    with progress("unlearn", unit="steps", text=lambda: "loss: forget 2.250") as advance:
        now = 110.0
        advance(20, 40)
    assert capsys.readouterr().err == "unlearn: 50% of 40 steps, 2 steps/s, 10 s left; loss: forget 2.250\n"
