"""`editkit attack` as a user runs it."""

import json

import pytest
from click.testing import CliRunner
from editkit_cli.main import main
from localized import one_thread  # noqa: F401
from test_attacks_attack import build

CPU = ["--device", "cpu"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return build(tmp_path_factory.mktemp("models"))


@pytest.fixture
def workplace(models, tmp_path, monkeypatch):
    for path in models.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(main, ["attack", *arguments])


def refused(workplace, *arguments):
    """The one line on stderr of a run that ends with exit code 2 and leaves nothing behind."""
    before = sorted(path.name for path in workplace.iterdir())
    ran = run(*arguments)
    assert ran.exit_code == 2 and ran.stdout == "", ran.output
    assert ran.stderr.startswith("editkit: ") and ran.stderr.count("\n") == 1, ran.output
    assert sorted(path.name for path in workplace.iterdir()) == before
    return ran.stderr


FULL = ["--forget", "forget.jsonl", "--base", "model", "--reference", "never"]


def test_the_summary_has_a_line_for_every_attack_and_warnings_go_to_stderr(workplace):
    ran = run("edited", "quantize", "paraphrase", *FULL, "--retain", "retain.jsonl", "-o", "out", *CPU)
    assert ran.exit_code == 0, ran.output
    report = json.loads((workplace / "out" / "attack.json").read_text())
    assert [one["attack"] for one in report["verdicts"]] == ["int8", "int4", "int4-128", "int4-32", "nf4", "paraphrased", "few-shot"]  # fmt: skip
    for one in report["verdicts"]:
        assert any(line.strip().startswith(one["label"]) for line in ran.stdout.splitlines())
    assert ran.stdout.endswith("out written, with report.html\n")
    assert ran.stderr == "".join(f"editkit: warning: {text}\n" for text in report["warnings"])


def test_json_is_what_is_in_the_file_and_quiet_says_nothing(workplace):
    ran = run("edited", "quantize", *FULL, "-o", "out", "--json", "-q", *CPU)
    assert ran.exit_code == 0 and json.loads(ran.stdout) == json.loads((workplace / "out" / "attack.json").read_text())
    ran = run("edited", "quantize", *FULL, "-o", "again", "-q", *CPU)
    assert ran.exit_code == 0 and ran.output == ""


def test_every_option_arrives(workplace):
    ran = run(
        "edited", "all", *FULL, "--retain", "retain.jsonl", "--unseen", "unseen.jsonl", "--max-examples", "4", "--batch-size", "3",
        "--max-new-tokens", "2", "--steps", "2", "--seed", "5", "--dtype", "float32", "--prompt-template", "{question}\\n{answer}",
        "-o", "out", "--json", *CPU,
    )  # fmt: skip
    assert ran.exit_code == 0, ran.output
    settings = json.loads(ran.stdout)["settings"]
    expected = {"kinds": ["quantize", "relearn", "membership", "paraphrase"], "max_examples": 4, "batch_size": 3, "max_new_tokens": 2, "steps": 2, "seed": 5, "dtype": "float32", "prompt_template": "{question}\n{answer}", "device": "cpu"}  # fmt: skip
    assert expected.items() <= settings.items()
    assert {one["examples"] for one in json.loads(ran.stdout)["sets"]} == {4}


def test_bad_input_is_one_line_and_exit_code_2(workplace):
    assert "--forget" in refused(workplace, "edited", "-o", "out")
    assert "'bite' is not one of" in refused(workplace, "edited", "bite", *FULL, "-o", "out")
    assert "membership needs --unseen" in refused(workplace, "edited", "membership", *FULL, "-o", "out")
    assert "quantize is given twice" in refused(workplace, "edited", "quantize", "quantize", *FULL, "-o", "out")
    assert "--steps" in refused(workplace, "edited", *FULL, "--steps", "0", "-o", "out")
    assert "nowhere" in refused(workplace, "nowhere", *FULL, "-o", "out", *CPU)
    assert "is the model itself" in refused(workplace, "never", *FULL, "-o", "out", *CPU)
    assert "examples are in forget.jsonl too" in refused(workplace, "edited", *FULL, "--unseen", "both.jsonl", "-o", "out")  # fmt: skip
    assert "lies inside the input" in refused(workplace, "edited", *FULL, "-o", "model/out", *CPU)


def test_the_help_names_every_kind_and_an_example():
    ran = run("--help")
    for said in ("quantize", "relearn", "membership", "paraphrase", "all", "--reference", "editkit attack edited"):
        assert said in ran.stdout
