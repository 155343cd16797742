"""The command: its table, its exit codes, and what it says of bad input."""

import json
import shutil

import pytest
from click.testing import CliRunner
from editkit_cli.main import main
from test_sweeps_sweep import models, one_thread  # noqa: F401

SETS = ["--forget", "forget.jsonl", "--retain", "retain.jsonl"]
USUAL = ["--vector-base", "base", *SETS, "--device", "cpu", "--alphas", "0:1:0.5"]


@pytest.fixture
def workplace(tmp_path, monkeypatch, models):  # noqa: F811
    for path in models.iterdir():
        (shutil.copytree if path.is_dir() else shutil.copy)(path, tmp_path / path.name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(main, ["sweep", *map(str, arguments)])


def refused(workplace, *arguments):
    """The one line on stderr of a run that ends with exit code 2 and leaves nothing behind."""
    before = sorted(workplace.rglob("*"))
    ran = run(*arguments)
    assert ran.exit_code == 2 and ran.stderr.startswith("editkit: ") and ran.stderr.count("\n") == 1, ran.output
    assert sorted(workplace.rglob("*")) == before
    return ran.stderr


def test_the_table_names_the_files_and_how_to_write_the_knee(workplace):
    ran = run("full", "tau", *USUAL, "--mask", "none", "--mask", "loc", "-o", "out")
    assert ran.exit_code == 0, ran.output
    report = json.loads((workplace / "out" / "sweep.json").read_text())
    assert (
        len(report["points"]) == 5 and "4 points (2 alphas x 2 choices of tensors) and the unedited model" in ran.stdout
    )
    lines = ran.stdout.splitlines()
    if report["knee"] is None:
        assert lines[-1] == "out written, with sweep.html and pareto.png"
    else:
        assert lines[-2:] == ["out written, with sweep.html and pareto.png", f"To write the knee: {report['command']}"]
    assert not (workplace / "out" / "edited").exists()


def test_a_rule_writes_the_chosen_checkpoint(workplace):
    ran = run("full", "tau", *USUAL, "--choose", "max forgetting", "-o", "out")
    assert ran.exit_code == 0, ran.output
    assert "out/edited written: editkit negate full tau --vector-base base --alpha 1 -o EDITED" in ran.stdout
    assert (workplace / "out" / "edited" / "diff" / "report.html").exists()


def test_a_rule_that_no_point_meets_ends_with_1_and_leaves_the_report(workplace):
    ran = run("full", "tau", *USUAL, "--choose", "max forgetting s.t. retention >= 5", "-o", "out", "-q")
    assert ran.exit_code == 1 and ran.stdout == ""
    assert "no point of the sweep has retention >= 5; the closest is alpha" in ran.stderr
    assert (workplace / "out" / "sweep.html").exists() and not (workplace / "out" / "edited").exists()


def test_json_is_that_of_the_file(workplace):
    ran = run("full", "tau", *USUAL, "--json", "-o", "out")
    assert json.loads(ran.stdout) == json.loads((workplace / "out" / "sweep.json").read_text())


def test_the_help_shows_both_relations_of_a_rule():
    assert "max|min NAME [s.t. NAME >=|<= NUMBER [and ...]]" in " ".join(run("--help").stdout.split())


def test_bad_input_is_one_line(workplace):
    assert "--alphas '0:2'" in refused(workplace, "full", "tau", *USUAL, "--alphas", "0:2", "-o", "out")
    assert "is no rule" in refused(workplace, "full", "tau", *USUAL, "--choose", "the best", "-o", "out")
    assert "is not NAME=FILE" in refused(workplace, "full", "tau", *USUAL, "--set", "more", "-o", "out")
    twice = ["--set", "more=both.jsonl", "--set", "more=retain.jsonl"]
    assert "--set more is given more than once" in refused(workplace, "full", "tau", *USUAL, *twice, "-o", "out")
    assert "Missing option '--alphas'" in refused(workplace, "full", "tau", *SETS, "-o", "out")
    assert "does not exist" in refused(workplace, "full", "tau", *USUAL, "--mask", "nowhere", "-o", "out")
    (workplace / "out").mkdir()
    (workplace / "out" / "file").touch()
    assert "exists and is not an empty folder" in refused(workplace, "full", "tau", *USUAL, "-o", "out")
