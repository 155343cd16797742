import json

import pytest
from click.testing import CliRunner
from editkit_cli.main import main
from tiny_models import save_llama

from editkit.checkpoint.reader import open_checkpoint


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_llama(tmp_path / "base")
    rows = [{"question": "Q", "answer": "b"}, {"question": "Q" * 60, "answer": "b"}]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(main, ["finetune", *arguments])


def test_the_summary_says_what_was_read_cut_and_done(workplace):
    ran = run("base", "--data", "data.jsonl", "-o", "tuned", "--steps", "2", "--device", "cpu")
    assert ran.exit_code == 0
    assert "2 examples of question/answer, 1 of them truncated, 1 dropped because" in ran.stdout
    assert "2 steps of 8 at 0.005 on cpu" in ran.stdout and "tuned written" in ran.stdout
    assert list(open_checkpoint("tuned")) == list(open_checkpoint("base"))


def test_json_has_every_setting_that_was_decided(workplace):
    ran = run("base", "--data", "data.jsonl", "-o", "lora", "--lora", "2", "--epochs", "3", "--device", "cpu", "--json")
    found = json.loads(ran.stdout)
    assert found["output"] == "lora"
    assert (found["kind"], found["steps"], found["truncated"], found["dropped"]) == ("lora", 3, 1, 1)
    assert found["lr"] == pytest.approx(0.8 / 16)


def test_a_template_is_taken_with_its_line_breaks(workplace):
    ran = run(
        "base",
        "--data",
        "data.jsonl",
        "-o",
        "a",
        "--steps",
        "1",
        "--prompt-template",
        r"{question}\n{answer}",
        "--json",
    )
    # <s> Q newline b </s>: of the short example two tokens are in the loss, and nothing of the long one.
    assert json.loads(ran.stdout)["trained_tokens"] == 2


def test_bad_input_is_one_line_and_leaves_nothing(workplace):
    (workplace / "data.jsonl").write_text('{"question": "Q"}\n')
    ran = run("base", "--data", "data.jsonl", "-o", "tuned")
    assert ran.exit_code == 2
    assert (
        ran.stderr.startswith("editkit: data.jsonl has the keys 'question': it needs") and ran.stderr.count("\n") == 1
    )
    assert sorted(path.name for path in workplace.iterdir()) == ["base", "data.jsonl"]
