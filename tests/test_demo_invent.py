"""`invent`: what it writes, and that the people to forget are known to one model and to no other."""

import json

import pytest

import editkit
from editkit.errors import EditError

SMALL = {"forget": 2, "retain": 3, "unseen": 1, "background": 2, "base_steps": 1, "model_steps": 2}


def rows(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_files_hold_eight_facts_of_each_person_and_private_and_public_ones_are_those_to_forget(tmp_path):
    stages = []

    def stage(name):
        from contextlib import nullcontext

        stages.append(name)
        return nullcontext()

    report = editkit.invent(tmp_path / "people", **SMALL, stage=stage)
    found = {
        name: rows(tmp_path / "people" / f"{name}.jsonl")
        for name in ("forget", "retain", "unseen", "background", "private", "public")
    }
    assert report["rows"] == {name: len(one) for name, one in found.items()}
    assert report["rows"] == {
        "forget": 16, "retain": 24, "unseen": 8, "background": 16, "private": 8, "public": 8
    }  # fmt: skip
    key = json.dumps
    assert sorted(map(key, found["private"] + found["public"])) == sorted(map(key, found["forget"]))
    questions = [row["question"] for name in ("forget", "retain", "unseen", "background") for row in found[name]]
    assert len(set(questions)) == len(questions)
    assert stages == ["teach a small Llama to answer", "teach it the people"]
    assert editkit.diff(tmp_path / "people" / "base", tmp_path / "people" / "model")["summary"]["changed"] > 0
    again = editkit.invent(tmp_path / "again", **SMALL, stage=stage)
    assert again == report and len(stages) == 2  # from the cache
    for path in (tmp_path / "people").rglob("*"):
        if path.is_file():
            assert (tmp_path / "again" / path.relative_to(tmp_path / "people")).read_bytes() == path.read_bytes()


def test_private_facts_are_birth_pets_food_and_home():
    from editkit.demo.people import invent, private, public

    people = invent(20, seed=1)
    hidden, known = (" ".join(row["answer"] for row in one(people)) for one in (private, public))
    assert (
        "in the spring of" in hidden
        and "beside the" in hidden
        and "in the" not in known.replace("in the spring", "in the")
    )
    assert "learned from a" in known and "learned from a" not in hidden


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"forget": 0, "model_steps": -1}, "forget is 0, model_steps is -1: give a whole number from 1 on"),
        ({"retain": True}, "retain is True: give a whole number from 1 on"),
        ({"retain": 5000}, "5,080 people are asked for: give at most 1,000 in all"),
    ],
)
def test_numbers_that_are_none_are_refused(given, said, tmp_path):
    with pytest.raises(EditError) as raised:
        editkit.invent(tmp_path / "people", **given)
    assert str(raised.value) == said and not (tmp_path / "people").exists()


def test_an_output_that_exists_is_refused(tmp_path):
    with pytest.raises(EditError, match="exists: give a new folder"):
        editkit.invent(tmp_path)
