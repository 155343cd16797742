"""Rows of several files as one, or dealt into parts."""

import json

import pytest

from editkit.errors import EditError
from editkit.training.data import read_examples
from editkit.training.gather import gather


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, numbers in {"a": range(5), "b": range(5, 7)}.items():
        rows = [{"question": f"Who is {number}?", "answer": f"Ada {number}.", "more": [number]} for number in numbers]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def numbers(path):
    return [row["more"][0] for row in read_examples(path).rows]


def test_files_are_joined_in_their_order_with_all_their_keys(files):
    report = gather(["b.jsonl", "a.jsonl"], "all")
    assert numbers("all/1.jsonl") == [5, 6, 0, 1, 2, 3, 4]
    assert report["rows"] == {"1.jsonl": 7} and report["files"] == ["b.jsonl", "a.jsonl"]


def test_parts_differ_by_one_row_at_most(files):
    assert gather("a.jsonl", "some", parts=3)["rows"] == {"1.jsonl": 2, "2.jsonl": 2, "3.jsonl": 1}
    assert [numbers(f"some/{part}.jsonl") for part in (1, 2, 3)] == [[0, 1], [2, 3], [4]]
    assert sorted(path.name for path in (files / "some").iterdir()) == ["1.jsonl", "2.jsonl", "3.jsonl"]


def test_only_the_first_rows_of_each_file(files):
    gather(["a.jsonl", "b.jsonl"], "some", first=3)
    assert numbers("some/1.jsonl") == [0, 1, 2, 5, 6]


def test_bad_input_leaves_nothing_behind(files):
    (files / "text.csv").write_text("text\nOnce.\n")
    before = sorted(files.rglob("*"))
    for data, parts, said in (
        ("a.jsonl", 6, "give 1 to 5"),
        ("a.jsonl", 0, "0 parts"),
        ([], 1, "no files to gather"),
        (["a.jsonl", "text.csv"], 1, "a.jsonl has question and answer, text.csv has text"),
        ("none.jsonl", 1, "cannot be read"),
    ):
        with pytest.raises(EditError, match=said):
            gather(data, "out", parts=parts)
    with pytest.raises(EditError, match="the first 0 rows"):
        gather("a.jsonl", "out", first=0)
    with pytest.raises(EditError, match=r"a\.jsonl exists"):
        gather("b.jsonl", "a.jsonl")
    assert sorted(files.rglob("*")) == before
