"""Questions in other words and after solved examples."""

import pytest
from tiny_models import tokenizer

from editkit.attacks.prompts import few_shot, paraphrased
from editkit.attacks.sets import read, shared
from editkit.errors import EditError
from editkit.training.data import Examples
from editkit.training.encoding import encode


def made(rows, format="question/answer", label="f.jsonl"):
    return Examples(label, format, rows, list(range(1, len(rows) + 1)), "line")


ASKED = made(
    [
        {"question": "Who?", "answer": "Ada.", "paraphrased_question": "By whom?"},
        {"question": "Where?", "answer": "Rome."},
        {"question": "When {answer}?", "answer": "In {question} 1901.", "paraphrased_question": "What year?"},
    ]
)
SOLVED = made([{"prompt": letter, "completion": f" {letter * 2}"} for letter in "abcd"], "prompt/completion", "r.jsonl")


def test_only_rows_with_another_wording_are_asked_in_it_and_keep_their_places():
    found = paraphrased(ASKED)
    assert found.indices == [0, 2] and found.examples.numbers == [1, 3] and found.template is None
    assert [row["question"] for row in found.examples.rows] == ["By whom?", "What year?"]
    assert ASKED.rows[0]["question"] == "Who?"


def test_why_nothing_can_be_asked_in_other_words():
    assert paraphrased(ASKED.subset([0, 1])) == "skipped: 1 of 2 examples have the key 'paraphrased_question'"
    assert paraphrased(made([{"text": "x"}], "text")) == "skipped: f.jsonl is plain text, which has no prompts"
    assert "messages" in paraphrased(made([{"messages": []}], "messages"))


def test_another_wording_that_is_no_text_is_refused_with_its_lines():
    rows = [{"question": "a", "answer": "b", "paraphrased_question": wrong} for wrong in ("a", 3, ["b"])]
    with pytest.raises(EditError, match=r"f.jsonl: line 2, 3: paraphrased_question must be text"):
        paraphrased(made(rows))


def test_three_solved_examples_stand_before_every_question_in_the_templates_of_their_own_formats():
    found = few_shot(ASKED, SOLVED, seed=0)
    assert found.indices == [0, 1, 2]
    for row, asked in zip(found.examples.rows, ASKED.rows, strict=True):
        *shots, question = row["question"].split("\n\n")
        assert len(set(shots)) == 3 and set(shots) <= {f"{letter} {letter * 2}" for letter in "abcd"}
        assert question == f"Question: {asked['question']}\nAnswer:" and row["answer"] == f" {asked['answer']}"


def test_the_same_seed_draws_the_same_examples_and_another_draws_others():
    def prompts(seed):
        return [row["question"] for row in few_shot(ASKED, SOLVED, seed=seed).examples.rows]

    assert prompts(1) == prompts(1) and len({tuple(prompts(seed)) for seed in range(5)}) > 1


def test_the_answers_tokens_are_those_of_the_plain_prompt():
    found = few_shot(ASKED, SOLVED, seed=0)
    plain = encode(ASKED, tokenizer()).rows
    asked = encode(found.examples, tokenizer(), prompt_template=found.template).rows
    for one, other in zip(plain, asked, strict=True):
        assert [label for label in one.labels if label != -100] == [label for label in other.labels if label != -100]
        assert other.ids[-len(one.ids) + 1 :] == one.ids[1:]  # but for the begin of text


def test_a_template_of_the_user_writes_both():
    row = few_shot(ASKED.subset([0, 1]), SOLVED, "Q {question} A {answer}!", seed=0).examples.rows[0]
    assert row["question"].endswith("\n\nQ Who? A") and row["answer"] == " Ada.!"
    assert row["question"].count("!\n\n") == 3


def test_prompts_that_do_not_fit_are_left_out():
    found = few_shot(ASKED, SOLVED, seed=0, fits=lambda text: "Where" not in text)
    assert found.indices == [0, 2]
    assert few_shot(ASKED, SOLVED, seed=0, fits=lambda text: "Where" in text).startswith("skipped: 1 of 3 prompts")
    assert few_shot(ASKED, SOLVED.subset([0, 1]), seed=0) == "skipped: 2 examples to show, 3 needed"


def write(path, rows):
    path.write_text("".join(f'{{"prompt": "{a}", "completion": "{b}"}}\n' for a, b in rows))
    return path


def test_sets_are_read_up_to_the_number_asked_for(tmp_path):
    forget = write(tmp_path / "f.jsonl", [("a", "b"), ("c", "d"), ("e", "f")])
    unseen = write(tmp_path / "u.jsonl", [("g", "h"), ("i", "j"), ("a", "b")])
    sets = read(forget, None, unseen, 2)
    assert {name: len(one) for name, one in sets.items()} == {"forget": 2, "unseen": 2}
    with pytest.raises(EditError, match=r"u.jsonl: 1 of 3 examples are in .*f.jsonl too, so a model has seen them"):
        read(forget, None, unseen, None)


def test_one_example_is_too_few_and_equal_sets_tell_nothing(tmp_path):
    one = write(tmp_path / "one.jsonl", [("a", "b")])
    two = write(tmp_path / "two.jsonl", [("a", "b"), ("c", "d")])
    with pytest.raises(EditError, match=r"one.jsonl: one example has no spread.*give at least 2"):
        read(two, None, one, None)
    with pytest.raises(EditError, match="nothing tells what to forget"):
        read(two, two, None, None)


def test_what_two_sets_share_is_found_by_its_texts():
    ones = made([{"question": "a", "answer": "b"}, {"question": "c", "answer": "d"}])
    others = made([{"prompt": "c", "completion": "d"}, {"prompt": "a", "completion": "x"}], "prompt/completion")
    assert shared(ones, others) == {1} and shared(others, ones) == {0}
