"""The command: what it prints, its exit codes, and what it says of bad input."""

import json
import subprocess
import sys

import pytest
from click.testing import CliRunner
from editkit_cli.main import main
from editkit_cli.options import Assigned
from tiny_models import save_llama

RECIPE = """# What: look at a model, and at a copy of it that has nothing changed
editkit: 1
title: Look twice
settings:
  model: tiny
  limit: 0
matrix:
  only: ["*.mlp.*", "*.self_attn.*"]
steps:
  seen: {inspect: {source: "${model}"}}
  compared: {diff: {base: "${model}", edited: "${model}", only: "${only}", fail_if: ["changed > ${limit}"]}}
table:
  tensors: "${compared: summary.tensors}"
  parameters: "${seen: summary.parameters}"
"""


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_llama(tmp_path / "tiny")
    (tmp_path / "look.yaml").write_text(RECIPE)
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(main, ["run", *map(str, arguments)])


def refused(workplace, *arguments):
    """The one line on stderr of a run that ends with exit code 2 and leaves nothing behind."""
    before = sorted(workplace.rglob("*"))
    ran = run(*arguments)
    assert ran.exit_code == 2 and ran.stderr.startswith("editkit: ") and ran.stderr.count("\n") == 1, ran.output
    assert sorted(workplace.rglob("*")) == before
    return ran.stderr


def test_a_run_prints_its_table_and_leaves_a_page(workplace):
    ran = run("look.yaml", "-o", "out")
    assert ran.exit_code == 0, ran.output
    lines = ran.stdout.splitlines()
    assert lines[0] == "Look twice" and lines[-1] == "out written, with report.html"
    # two layers: three matrices of an mlp each, four of attention
    assert [line.split()[:2] for line in lines if line.strip().startswith("*.")] == [
        ["*.mlp.*", "6"],
        ["*.self_attn.*", "8"],
    ]
    assert "compared (only *.mlp.*): computed in" in ran.stderr
    assert (workplace / "out" / "report.html").exists()


def test_the_same_run_again_computes_nothing(workplace):
    first, again = run("look.yaml", "--json"), run("look.yaml", "--json")
    assert {one["state"] for one in json.loads(again.stdout)["calls"]} == {"cached"}
    assert json.loads(again.stdout)["table"] == json.loads(first.stdout)["table"]
    assert json.loads((workplace / "look-run" / "run.json").read_text()) == json.loads(again.stdout)


def test_set_replaces_a_setting_and_a_list_of_the_matrix(workplace):
    (workplace / "other").mkdir()
    save_llama(workplace / "other" / "model", tied=True)
    ran = run("look.yaml", "--set", "model=other/model", "--set", "only=*.mlp.*", "--json", "-o", "out")
    found = json.loads(ran.stdout)
    assert found["settings"]["model"] == {"value": "other/model", "given": True} and found["matrix"] == {
        "only": ["*.mlp.*"]
    }
    assert len(found["table"]["rows"]) == 1


@pytest.mark.parametrize(
    "text, value",
    [
        ("0.5", 0.5), ("0,1,2", [0, 1, 2]), ("1e-4", 1e-4), ("null", None), ("true,a", [True, "a"]), ("*.mlp.*", "*.mlp.*"), ("0:2:0.25", "0:2:0.25"),
        ("[0:2, {a: 1}]", ["0:2", {"a": 1}]), ("ma(forget) <= 0.3", "ma(forget) <= 0.3"), ("a=b", "a=b"), ("", ""),
    ],
)  # fmt: skip
def test_values_are_what_they_look_like(text, value):
    assert Assigned("alpha=1").convert(f"key={text}", None, None) == ("key", value)


def test_a_gate_that_fails_ends_with_1_and_is_said(workplace):
    ran = run("look.yaml", "--set", "limit=-1", "-o", "out", "-q")
    assert ran.exit_code == 1 and ran.stdout == ""
    assert ran.stderr.count("editkit: compared (only") == 2 and "changed > -1" in ran.stderr
    assert (workplace / "out" / "report.html").exists()


def test_a_call_that_fails_ends_with_2_and_the_others_go_on(workplace):
    ran = run("look.yaml", "--set", "only=*.mlp.*,*.nothing.*", "-o", "out")
    assert ran.exit_code == 2 and "editkit: compared (only *.nothing.*): " in ran.stderr
    states = {one["label"]: one["state"] for one in json.loads((workplace / "out" / "run.json").read_text())["calls"]}
    assert states == {
        "seen": "computed",
        "compared (only *.mlp.*)": "computed",
        "compared (only *.nothing.*)": "failed",
    }


def test_a_dry_run_writes_nothing(workplace):
    before = sorted(workplace.rglob("*"))
    ran = run("look.yaml", "--dry-run")
    assert ran.exit_code == 0 and "would run" in ran.stdout and ran.stdout.splitlines()[-1].endswith("nothing was run.")
    assert sorted(workplace.rglob("*")) == before


def test_several_jobs_give_the_same_table(workplace):
    one, two = run("look.yaml", "--json", "-o", "one"), run("look.yaml", "--json", "--jobs", "2", "-o", "two")
    assert json.loads(one.stdout)["table"] == json.loads(two.stdout)["table"] and json.loads(two.stdout)["jobs"] == 2


def test_the_schema_is_json():
    ran = run("--schema")
    assert ran.exit_code == 0 and json.loads(ran.stdout)["$schema"].endswith("2020-12/schema")


def test_bad_input_is_one_line(workplace):
    assert "give a RECIPE, or --schema" in refused(workplace)
    assert "nowhere.yaml cannot be read" in refused(workplace, "nowhere.yaml")
    assert "did you mean model?" in refused(workplace, "look.yaml", "--set", "modle=a")
    assert "is not KEY=VALUE" in refused(workplace, "look.yaml", "--set", "model")
    assert "--set model is given more than once" in refused(
        workplace, "look.yaml", "--set", "model=a", "--set", "model=b"
    )
    assert "is no YAML" in refused(workplace, "look.yaml", "--set", "only=[*.mlp.*]")
    assert "is not in the range" in refused(workplace, "look.yaml", "--jobs", "0")
    (workplace / "wrong.yaml").write_text(RECIPE.replace("inspect:", "inspekt:").replace("base:", "bsae:"))
    said = refused(workplace, "wrong.yaml")
    assert (
        "(line 10)" in said and "did you mean inspect?" in said and "(line 11)" in said and "did you mean base?" in said
    )
    (workplace / "full").mkdir()
    (workplace / "full" / "file").touch()
    assert "full is not empty" in refused(workplace, "look.yaml", "-o", "full")


def test_help_imports_nothing_heavy():
    code = "import sys; sys.argv = ['editkit', 'run', '--help']; from editkit_cli.main import main\ntry: main()\n"
    code += "except SystemExit: print('LOADED', *sys.modules)"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    said, loaded = printed.split("LOADED")
    assert "--dry-run" in said and not {"yaml", "numpy", "torch", "rich", "jinja2"} & set(loaded.split())
