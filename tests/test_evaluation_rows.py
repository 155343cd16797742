"""Rows as files and as columns: logs of TOFU, rows of other programs, and every way in which such a file can be wrong."""

import json
from pathlib import Path

import numpy as np
import pytest

from editkit.errors import EditError
from editkit.evaluation.rows import columns, read_rows, to_line

LOGS = Path(__file__).parents[2] / "shared" / "data" / "tofu_logs"


@pytest.fixture
def written(tmp_path):
    def write(*rows, name="rows.jsonl"):
        path = tmp_path / name
        path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), "utf-8")
        return path

    return write


def refused(path):
    with pytest.raises(EditError) as caught:
        read_rows(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_set_and_a_loss_are_enough_and_the_rest_is_counted(written):
    rows = read_rows(written({"set": "forget", "nll": 1.5}, {"set": "retain", "nll": 2}, {"set": "forget", "nll": 0.5}))
    assert [(row["model"], row["role"], row["set"], row["index"], row["nll"]) for row in rows] == [
        ("rows", "model", "forget", 0, 1.5),
        ("rows", "model", "retain", 0, 2),
        ("rows", "model", "forget", 1, 0.5),
    ]


def test_models_of_one_file_are_counted_apart_and_keep_their_roles(written):
    rows = read_rows(
        written(
            {"set": "forget", "model": "a"},
            {"set": "forget", "model": "b", "role": "reference"},
            {"set": "forget", "model": "b", "role": "reference"},
        )
    )
    assert [(row["model"], row["role"], row["index"]) for row in rows] == [
        ("a", "model", 0),
        ("b", "reference", 0),
        ("b", "reference", 1),
    ]


def test_keys_of_the_log_of_tofu_are_ours_under_other_names(tmp_path):
    row = {"avg_gt_loss": 0.5, "num_token_gt": 7, "avg_paraphrased_loss": 0.7, "average_perturb_loss": [1.0, 2.0],
           "rougeL_recall": 0.9, "rouge1_recall": 1, "generated": "so", "truth": "thus"}  # fmt: skip
    path = tmp_path / "model_a.json"
    path.write_text(json.dumps({"forget": [row, row], "retain": [row]}))
    rows = read_rows(path)
    assert [(one["set"], one["index"], one["model"]) for one in rows] == [
        ("forget", 0, "model_a"),
        ("forget", 1, "model_a"),
        ("retain", 0, "model_a"),
    ]
    assert {key: rows[2][key] for key in rows[2] if key not in ("set", "index", "model", "role")} == {
        "nll": 0.5, "num_tokens": 7, "paraphrased_nll": 0.7, "perturbed_nll": [1.0, 2.0],
        "rougeL_recall": 0.9, "rouge1_recall": 1, "generation": "so", "answer": "thus",
    }  # fmt: skip


def test_a_folder_stands_for_its_rows(written, tmp_path):
    written({"set": "forget", "nll": 1, "model": "m"}, name="examples.jsonl")
    assert read_rows(tmp_path) == read_rows(str(tmp_path / "examples.jsonl"))


def test_what_is_no_number_is_unknown_whether_null_nan_or_infinite(written):
    path = written(
        '{"set": "forget", "nll": NaN, "ma": null, "kl": 1}',
        '{"set": "forget", "nll": Infinity, "ma": 0.5, "kl": -Infinity}',
        '{"set": "forget", "nll": 1, "kl": 3}',
    )
    data = columns(read_rows(path))["forget"]
    np.testing.assert_array_equal(data["nll"], [np.nan, np.nan, 1])
    np.testing.assert_array_equal(data["ma"], [np.nan, 0.5, np.nan])
    np.testing.assert_array_equal(data["kl"], [1, np.nan, 3])


def test_a_list_with_an_unknown_number_is_read_again_as_it_was_written(written):
    row = {"set": "forget", "index": 0, "model": "m", "role": "model", "perturbed_nll": [1.0, float("inf")]}
    line = to_line(row)
    assert json.loads(line)["perturbed_nll"] == [1.0, None]
    data = columns(read_rows(written(line.rstrip())))["forget"]
    np.testing.assert_array_equal(data["perturbed_nll"][0], [1.0, np.nan])


def test_rows_come_in_the_order_of_their_index_and_lists_stay_ragged():
    data = columns(
        [
            {"set": "b", "index": 7, "nll": 0.7, "perturbed_nll": [7.0]},
            {"set": "a", "index": 1, "nll": 1},
            {"set": "b", "index": 3, "ma": 0.25},
            {"set": "b", "index": 5, "nll": 0.5, "perturbed_nll": [5.0, 5.5], "prompt": "?", "strange": {}},
        ]
    )
    assert set(data["a"]) == {"index", "texts", "nll"} and set(data["b"]) == {
        "index",
        "texts",
        "nll",
        "ma",
        "perturbed_nll",
    }
    assert data["b"]["index"].tolist() == [3, 5, 7]
    np.testing.assert_array_equal(data["b"]["nll"], [np.nan, 0.5, 0.7])
    assert [one.tolist() for one in data["b"]["perturbed_nll"]] == [[], [5.0, 5.5], [7.0]]


@pytest.mark.parametrize(
    "text", ["a\u2028b\u2029c\x85d\x0be\x1cf\rg", "\x00\x1b[2J", "naïve 日本語 \U0001f600", "\ud83d"]
)
def test_a_row_is_one_line_whatever_its_text(tmp_path, text):
    row = {
        "set": "forget",
        "index": 0,
        "model": "m",
        "role": "model",
        "generation": text,
        "rougeL_recall": 0.5,
        "answer": text,
    }
    line = to_line(row)
    assert line.count("\n") == 1
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"".join(to_line({**row, "index": at}).encode("utf-8", "backslashreplace") for at in (0, 1)))
    assert read_rows(path) == [row, {**row, "index": 1}]


def test_rouge_is_worked_out_where_a_row_has_texts_and_lacks_it(tmp_path):
    texts = {"set": "forget", "answer": "Ada wrote novels", "generation": "She wrote many novels"}
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(texts) + "\n" + json.dumps({**texts, "rougeL_recall": 0.25}))
    first, second = read_rows(path)
    assert first["rougeL_recall"] == pytest.approx(2 / 3) and first["rougeL_f1"] == pytest.approx(4 / 7)
    assert second["rougeL_recall"] == 0.25 and "rougeL_f1" not in second


def test_values_that_no_such_number_can_have_are_refused(tmp_path):
    path = tmp_path / "rows.jsonl"
    wrong = {"nll": -3.0, "token_accuracy": 37, "rougeL_recall": -0.1, "entails_truth": 3, "perturbed_nll": [1, -2]}
    path.write_text("\n".join(json.dumps({"set": "forget", key: value}) for key, value in wrong.items()))
    with pytest.raises(EditError) as refused:
        read_rows(path)
    assert all(f"line {at} with a {key!r}" in str(refused.value) for at, key in enumerate(wrong, 1))


def test_blank_lines_a_byte_order_mark_and_windows_ends_do_no_harm(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"set": "forget", "nll": 1}\r\n\r\n{"set": "forget", "nll": 2}')
    assert [row["nll"] for row in read_rows(path)] == [1, 2]


def test_all_broken_lines_are_named_at_once(written):
    path = written({"set": "forget"}, "{", {"set": "retain"}, '{"set": "forget"} {"set": "forget"}', "[" * 100_000)
    assert "rows.jsonl: line 2, 4, 5 cannot be read as JSON" in refused(path)


WRONG = [
    ({"nll": 1}, "line 2 without 'set'"),
    ({"set": ""}, "'set' that is not a name"),
    ({"set": 3}, "'set' that is not a name"),
    ({"set": "a\ud83d"}, "'set' that is not a name"),
    ({"set": "forget", "model": ""}, "'model' that is not a name"),
    ({"set": "forget", "role": "teacher"}, "'role' that is not one of model, base, reference"),
    ({"set": "forget", "index": -1}, "'index' that is not a number from 0"),
    ({"set": "forget", "index": 1.0}, "'index' that is not a number from 0"),
    ({"set": "forget", "index": True}, "'index' that is not a number from 0"),
    ({"set": "forget", "nll": "1.5"}, "'nll' that is not a number"),
    ({"set": "forget", "nll": True}, "'nll' that is not a number"),
    ({"set": "forget", "nll": [1]}, "'nll' that is not a number"),
    ({"set": "forget", "avg_gt_loss": "1.5"}, "'nll' that is not a number"),
    ({"set": "forget", "perturbed_nll": 1.5}, "'perturbed_nll' that is not a list of numbers"),
    ({"set": "forget", "perturbed_nll": ["1.5"]}, "'perturbed_nll' that is not a list of numbers"),
    ({"set": "forget", "generation": 5}, "'generation' that is not text"),
    ([1], "line 2 no JSON object"),
    ("3", "line 2 no JSON object"),
]


@pytest.mark.parametrize(("row", "message"), WRONG)
def test_values_of_the_wrong_kind_are_named_with_their_lines(written, row, message):
    said = refused(written({"set": "forget"}, row))
    assert message in said and "line 2" in said and "docs/formats.md" in said


def test_all_faults_of_a_file_are_in_one_sentence(written):
    said = refused(written({"nll": 1}, {"set": "forget", "nll": "x"}, {"nll": 2}))
    assert "line 1, 3 without 'set'" in said and "line 2 with a 'nll'" in said


def test_an_example_that_comes_twice_is_refused(written):
    row = {"set": "forget", "index": 4, "nll": 1}
    assert "twice in it: forget 4 of rows: give each model its own name" in refused(written(row, row))
    assert len(read_rows(written(row, {**row, "model": "other"}))) == 2
    assert len(read_rows(written(row, {**row, "set": "retain"}))) == 2


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("rows.jsonl", "", "has no rows"),
        ("rows.jsonl", "\n \n", "has no rows"),
        ("log.json", "{", "is broken JSON"),
        ("log.json", "[" * 100_000, "is broken JSON"),
        ("log.json", "[]", "is no log of TOFU's evaluation"),
        ("log.json", "{}", "is no log of TOFU's evaluation"),
        ("results.json", '{"schema": "editkit.evaluation/1", "results": []}', "is no log of TOFU's evaluation"),
        ("log.json", '{"forget": []}', "has no rows"),
        ("log.json", '{"forget": [3]}', "no JSON object"),
    ],
)
def test_files_that_hold_no_rows_are_refused(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    assert message in refused(tmp_path / name)


def test_files_that_cannot_be_read_are_refused(tmp_path):
    assert "nowhere.jsonl cannot be read (No such file or directory)" in refused(tmp_path / "nowhere.jsonl")
    (tmp_path / "empty").mkdir()
    assert "empty cannot be read (No such file or directory)" in refused(tmp_path / "empty")
    (tmp_path / "latin.jsonl").write_bytes('{"set": "façade"}'.encode("latin-1"))
    assert "latin.jsonl is not UTF-8" in refused(tmp_path / "latin.jsonl")


@pytest.mark.skipif(not LOGS.exists(), reason="needs ../shared/data/tofu_logs")
def test_the_real_logs_are_read_whole():
    data = columns(read_rows(LOGS / "llama2_7b_full.json"))
    assert {name: len(one["nll"]) for name, one in data.items()} == {
        "retain": 300, "real_authors": 100, "world_facts": 117, "forget": 300,
    }  # fmt: skip
    found = json.loads((LOGS / "llama2_7b_full.json").read_text())["forget"][17]
    assert data["forget"]["nll"][17] == found["avg_gt_loss"]
    assert data["forget"]["perturbed_nll"][17].tolist() == found["average_perturb_loss"]
