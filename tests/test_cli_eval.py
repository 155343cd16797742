"""`editkit eval`: the table, JSON, warnings, and one line with exit code 2 for what is wrong."""

import json
import shutil

import pytest
from click.testing import CliRunner
from editkit_cli.main import main
from test_evaluation_evaluate import FORGET, everything, lines, originals, place  # noqa: F401

from editkit.evaluation import gathering

F, R, CPU = ["--forget", "forget.jsonl"], ["--retain", "retain.jsonl"], ["--device", "cpu", "--max-new-tokens", "3"]


@pytest.fixture
def workplace(place):  # noqa: F811
    return place


def run(*arguments):
    return CliRunner().invoke(main, ["eval", *map(str, arguments)])


def refused(workplace, *arguments):
    """The one line on stderr of a run that ends with exit code 2 and leaves nothing behind."""
    before = everything(workplace)
    ran = run(*arguments)
    assert ran.exit_code == 2, ran.output
    assert ran.stderr.startswith("editkit: ") and ran.stderr.count("\n") == 1 and ran.stdout == "", ran.output
    assert everything(workplace) == before
    return ran.stderr


def test_the_table_has_a_column_for_each_model_and_says_where_the_rest_is(workplace):
    ran = run("edited", "second", "--base", "base", *F, *R, *CPU, "-o", "out")
    assert ran.exit_code == 0 and ran.stderr == "", ran.output
    assert ran.stdout.endswith("out written, with report.html\n")
    report = json.loads((workplace / "out" / "results.json").read_text())
    assert all(one in ran.stdout for one in ("base", "edited", "second", "Probability", "forget", "retain"))
    for model in ("edited", "second"):
        value = next(one["value"] for one in report["results"]
                     if (one["model"], one["metric"], one["set"]) == (model, "general/nll@1", "forget"))  # fmt: skip
        assert f"{value:.3f} ±" in ran.stdout


def test_the_page_is_written_where_nothing_keeps_it(workplace, monkeypatch):
    monkeypatch.undo()
    monkeypatch.chdir(workplace)
    assert run("edited", *F, *R, *CPU, "-o", "out", "-q").exit_code == 0
    assert everything(workplace / "out") == ["examples.jsonl", "report.html", "report.png", "results.json"]
    assert "<html" in (workplace / "out" / "report.html").read_text("utf-8")


def test_json_is_what_the_folder_holds(workplace):
    ran = run("edited", *F, *R, *CPU, "-o", "out", "--json", "--suite", "tofu", "--suite", "knowundo", "--metrics", "general/n*")  # fmt: skip
    report = json.loads(ran.stdout, parse_constant=lambda name: pytest.fail(name))
    assert report == json.loads((workplace / "out" / "results.json").read_text())
    assert {one["id"].split("/")[0] for one in report["metrics"]} == {"tofu", "knowundo", "general"}
    assert [one["id"] for one in report["metrics"] if one["id"].startswith("general")] == ["general/nll@1"]
    assert report["settings"]["suites"] == ["tofu", "knowundo"] and report["settings"]["metrics"] == ["general/n*"]


def test_quiet_is_silent_but_for_warnings(workplace):
    ran = run("edited", *F, *R, *CPU, "-o", "out", "-q")
    assert (ran.exit_code, ran.stdout, ran.stderr) == (0, "", "")
    lines(workplace / "forget.jsonl", [*FORGET, json.loads((workplace / "retain.jsonl").read_text().splitlines()[0])])
    ran = run("edited", *F, *R, *CPU, "-o", "two", "-q")
    assert (
        ran.exit_code == 0
        and ran.stdout == ""
        and ran.stderr
        == (
            "editkit: warning: 1 of the examples to forget are in the retain set too: forgetting them costs retention\n"
        )
    )


def test_all_options_are_taken(workplace):
    ran = run(
        "base+lora", "--base", "base", "--reference", "never", *F, *R, "--set", "unseen=other.jsonl", "--set", "my set=other.jsonl",
        "--max-examples", 2, "--batch-size", 1, *CPU, "--prompt-template", r"{question}\n{answer}", "--dtype", "bfloat16",
        "--resume", "-o", "out", "--json",
    )  # fmt: skip
    assert ran.exit_code == 0, ran.output
    report = json.loads(ran.stdout)
    assert [one["set"] for one in report["sets"]] == ["forget", "retain", "unseen", "my set"]
    assert [one["label"] for one in report["models"]] == ["base", "base+lora", "never"]
    said = report["settings"]
    assert (said["max_examples"], said["batch_size"], said["dtype"], said["device"]) == (2, 1, "bfloat16", "cpu")
    assert said["prompt_template"] == "{question}\n{answer}" and said["max_new_tokens"] == 3
    assert report["distribution"] is not None and {one["n"] for one in report["results"]} >= {2}


def test_saved_rows_give_the_same_results_without_a_model(workplace, monkeypatch):
    first = json.loads(run("edited", *F, *R, *CPU, "-o", "out", "--json").stdout)
    shutil.rmtree("edited")
    again = run("--from", "out/examples.jsonl", "-o", "again", "--json")
    assert again.exit_code == 0
    for one, other in zip(json.loads(again.stdout)["results"], first["results"], strict=True):
        kind, _, advice = one.pop("status").partition(": ")  # which is another one for rows
        assert other.pop("status").partition(": ")[0] == kind and one == other and "--base" not in advice
    ran = run("--from", "out", "--reference-from", "again", "--suite", "tofu", "-o", "third")
    assert ran.exit_code == 0 and "KS statistic" in ran.stdout
    assert "warning: edited gives every answer of forget the likelihood that the reference gives it" in ran.stderr


USAGE = [
    ([], "give a MODEL, or saved rows with --from"),
    (["edited", "--reference-from", "out"], "--reference-from goes with --from; for models give --reference"),
    (["edited", "--from", "rows.jsonl"], "--from reads saved rows and loads no model: leave out edited"),
    (["--from", "rows.jsonl", *F, "--set", "a=b", "--batch-size", 16], "leave out --forget, --set, --batch-size"),
    (["--from", "rows.jsonl", "--prompt-template", "{answer}", "--resume"], "leave out --prompt-template, --resume"),
    (["edited", *F, "--set", "facts.jsonl"], "'facts.jsonl' is not NAME=FILE, such as world_facts=facts.jsonl"),
    (["edited", *F, "--set", "=facts.jsonl"], "is not NAME=FILE"),
    (["edited", *F, "--set", "facts="], "is not NAME=FILE"),
    (["edited", *F, "--set", "a=x.jsonl", "--set", "a=y.jsonl"], "--set: give each set a name of its own"),
    (["edited", "--set", "forget=forget.jsonl"], "--set forget: these names are for --forget and --retain"),
    (["edited", *F, "--suite", "tofuu"], "'tofuu' is not one of"),
    (["edited", *F, "--metrics", "tofuu/*"], "--metrics 'tofuu/*' names no metric"),
    (["edited", *F, "--max-examples", 0], "--max-examples"),
    (["edited", *F, "--dtype", "int4"], "--dtype"),
    (["edited"], "there is nothing to measure on: give --forget, --retain or --set NAME=FILE"),
    (["edited", *F, "--set", "more=nowhere.jsonl"], "nowhere.jsonl cannot be read"),
    (["edited", *F, "--reference", "edited"], "--reference edited is the model itself"),
    (["edited", *F, "--lm-eval", "arc_easy"], "--lm-eval needs lm-evaluation-harness: pip install"),
    (["--from", "nowhere.jsonl"], "nowhere.jsonl cannot be read"),
]


@pytest.mark.parametrize(("arguments", "message"), USAGE)
def test_bad_input_is_one_line_and_leaves_nothing(workplace, monkeypatch, arguments, message):
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: None)
    assert message in refused(workplace, *arguments, "-o", "deep/out")


def test_an_output_must_be_given_and_new(workplace):
    assert "Missing option '-o'" in refused(workplace, "edited", *F)
    (workplace / "out").mkdir()
    (workplace / "out" / "notes.txt").write_text("mine")
    assert "out exists and is not an empty folder" in refused(workplace, "edited", *F, "-o", "out")


def test_ctrl_c_says_how_to_go_on(workplace, monkeypatch):
    inner, seen = gathering.measure, []

    def measure(*arguments, **settings):
        seen.append(1)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return inner(*arguments, **settings)

    monkeypatch.setattr(gathering, "measure", measure)
    ran = run("edited", *F, *R, *CPU, "-o", "out", "-q")
    assert ran.exit_code == 130 and ran.stderr.startswith(
        "editkit: interrupted: go on with --resume (what was done is in .out.unfinished beside out)"
    )
    assert run("edited", *F, *R, *CPU, "-o", "out", "-q", "--resume").exit_code == 0 and len(seen) == 3


def test_ctrl_c_before_anything_is_done_leaves_nothing(workplace, monkeypatch):
    def measure(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(gathering, "measure", measure)
    before = everything(workplace)
    ran = run("edited", *F, *R, *CPU, "-o", "deep/out", "-q")
    assert ran.exit_code == 130 and "resume" not in ran.output and everything(workplace) == before
