"""Renderings of handmade reports as text: table, JSON, CSV, Markdown, sentences, and the folder they are written to."""

import csv
import io
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from reports import llama, report, tensor

from editkit.diffing.measures import MEASURES, count, share
from editkit.diffing.rendering import check_folder, render, write_report
from editkit.diffing.rendering.wording import headline, missed, structure, survival_text, warnings
from editkit.errors import EditError

Q = "model.layers.0.self_attn.q_proj.weight"
EVIL = "a|b`c\x1b[31m\u202e\n<b>*_"


def small():
    """Two layers and a head: 12 of 96 elements changed."""
    place = {"stack": "model.layers", "module": "self_attn.q_proj"}
    return report(
        [
            tensor(Q, layer=0, changed=8, l2=0.3, max_abs=0.25, sign_flips=1, crossed_int8=6, crossed_int4=1, **place),
            tensor(
                Q.replace("0", "1"), layer=1, changed=4, l2=0.4, max_abs=0.5, crossed_int8=3, crossed_int4=0, **place
            ),
            tensor("lm_head.weight"),
        ]
    )


def test_the_headline_counts():
    assert headline(small()) == (
        "Of 96 parameters in 3 tensors, 12.5 % changed (12, in 2 tensors). "
        "The change measures 2.89 % of the base, and is largest in layer 1 (4.00 %)."  # 0.5 / (10 * sqrt(3)); 0.4 / 10
    )
    one = report([tensor("w", shape=(), changed=1, l2=1.0)])
    assert (
        headline(one)
        == "Of 1 parameter in 1 tensor, 100 % changed (1, in 1 tensor). The change measures 10.0 % of the base."
    )
    assert headline(report([tensor("w")])) == "Nothing changed: all 32 parameters in 1 tensor are equal bit for bit."
    assert headline(report([])).startswith("Nothing to compare")
    integers = report([tensor("w", dtype="I64", changed=16)])
    assert headline(integers) == "Of 32 parameters in 1 tensor, 50.0 % changed (16, in 1 tensor)."


def test_survival_and_structure_in_words():
    assert survival_text(small()) == (
        "Of the 12 changed elements would still differ: 75.0 % after quantization to 8 bits and 8.33 % after quantization "
        "to 4 bits (round to nearest). The rest is lost."  # 9 of 12, 1 of 12
    )
    assert survival_text(report([tensor("w")])) == ""
    made = report([], removed=[{"name": "a", "dtype": "F32", "shape": []}], added=[{"name": n} for n in "bc"])
    assert structure(made) == {"added": "2 tensors were added", "removed": "1 tensor was removed"}


def test_what_must_not_be_overlooked_is_said():
    assert warnings(small()) == []
    made = report([tensor("a", changed=3, nan_after=2, inf_after=1), tensor("b", nan_before=5, nan_after=5)])
    nan, inf = warnings(made)
    assert nan.startswith("NaN: 5 elements before, 7 after the edit (in a, b).")
    assert inf.startswith("Inf: 0 elements before, 1 after the edit (in a).")
    edit = {
        "command": "negate",
        "alpha": 2.0,
        "projection": -1.9,
        "expected_projection": -2.0,
        "lost_to_rounding": 0.25,
    }
    [text] = warnings(report([tensor("a", changed=1)], edit=edit))
    assert "projects -1.90 on the task vector instead of -2.00" in text and "lost 25.0 %" in text
    assert warnings(report([tensor("a", changed=1)], edit=edit | {"projection": -1.99})) == []
    assert not missed(-0.5, None) and missed(-0.98, -1.0) and not missed(-0.995, -1.0)


def test_the_table_is_plain_text_and_coloured_on_request_only():
    text = render(small())
    assert "\x1b" not in text
    lines = [line.split() for line in text.splitlines()]
    assert ["model.layers.0", "32", "25.0", "%", "3.00", "%", "██████", "0.250", "1", "75.0", "%", "12.5", "%"] in lines
    assert ["model.layers.1", "32", "12.5", "%", "4.00", "%", "████████", "0.500", "0", "75.0", "%", "0", "%"] in lines
    assert "1 more without any change." in text and "lm_head" not in text
    assert Q in render(small(), by="tensor") and "self_attn.q_proj" in render(small(), by="module")
    assert "\x1b[" in render(small(), color=True)


def test_names_cannot_reach_the_terminal_or_break_markdown():
    made = report([tensor(EVIL, changed=1, l2=0.1, nan_after=1), tensor("[red]x[/red]", changed=1)])
    text = render(made, by="tensor")
    assert not re.search(r"[\x00-\x09\x0b-\x1f\u202e]", text) and "[red]x[/red]" in text
    table = [line for line in render(made, "md", "tensor").splitlines() if line.startswith("| ")]
    assert len(table) == 4 and {len(re.split(r"(?<!\\)\|", line)) for line in table} == {10}
    assert "``" in table[2]  # the fence is longer than the backtick inside
    [warning] = [line for line in render(made, "md").splitlines() if line.startswith("> ")]
    assert "\\<b\\>" in warning


def test_markdown_lists_what_was_not_compared():
    made = report([tensor("a", changed=1)], reshaped=[{"name": "b", "base_shape": [2], "edited_shape": [3]}])
    assert "1 tensor was reshaped: `b`" in render(made, "md")


def test_csv_has_every_row_and_every_digit():
    made = small()
    made["tensors"].append(tensor("=evil()", dtype="I64", shape=(), changed=1))
    rows = list(csv.DictReader(io.StringIO(render(made, "csv", "tensor"))))
    assert [row["name"] for row in rows] == [Q, Q.replace("0", "1"), "lm_head.weight", "'=evil()"]
    assert rows[0]["shape"] == "4x8" and float(rows[0]["rel_l2"]) == made["tensors"][0]["rel_l2"]
    assert rows[3]["rel_l2"] == "" and rows[3]["changed"] == "1"
    assert set(MEASURES) <= set(rows[0])
    by_layer = list(csv.DictReader(io.StringIO(render(made, "csv", "layer"))))
    assert [(row["stack"], row["layer"]) for row in by_layer] == [
        ("model.layers", "0"),
        ("model.layers", "1"),
        ("", ""),
    ]


def test_json_is_strict_stable_and_complete():
    made = small()
    made["tensors"][0] |= {"cosine": math.nan, "max_abs": math.inf, "changed": np.int64(8), "l2": np.float32(0.5)}
    made["tensors"][1]["shape"] = (4, 8)

    def refuse(token):
        raise AssertionError(token)

    read = json.loads(render(made, "json"), parse_constant=refuse)
    assert read["tensors"][0]["cosine"] is None and read["tensors"][0]["max_abs"] is None
    assert read["tensors"][0]["changed"] == 8 and read["tensors"][0]["l2"] == 0.5
    assert list(read) == list(made) and read["summary"] == made["summary"] and read["tensors"][1]["shape"] == [4, 8]
    assert render(made, "json") == render(made, "json")
    lone = json.loads(render(report([tensor("\ud800 </script>")]), "json"))
    assert lone["tensors"][0]["name"] == "\ud800 </script>"


def test_unknown_formats_and_groups_are_refused():
    with pytest.raises(EditError, match="unknown format 'xml'"):
        render(small(), "xml")
    for form in ("table", "md", "csv"):
        with pytest.raises(EditError, match="cannot group by 'head'"):
            render(small(), form, "head")


@pytest.mark.parametrize("rows", [[], [tensor("w")], [tensor("w", shape=(0, 4))], [tensor("i", dtype="U8", changed=2)]])
@pytest.mark.parametrize("form", ["table", "json", "csv", "md", "html"])
def test_small_and_odd_reports_render(rows, form):
    for by in ("tensor", "module", "layer"):
        assert render(report(rows), form, by)


def test_a_report_is_written_whole_into_a_new_folder(tmp_path):
    made = llama(4)
    for folder in (tmp_path / "deep" / "report", tmp_path / "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        write_report(made, folder)
        assert sorted(path.name for path in folder.iterdir()) == ["layers.png", "report.html", "report.json"]
    assert {path.name: path.read_bytes() for path in (tmp_path / "empty").iterdir()} == {
        path.name: path.read_bytes() for path in (tmp_path / "deep" / "report").iterdir()
    }
    assert json.loads((tmp_path / "empty" / "report.json").read_text("utf-8"))["summary"] == made["summary"]


def test_nothing_is_overwritten_and_nothing_left_behind(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("precious")
    with pytest.raises(EditError, match="is not an empty folder"):
        write_report(small(), tmp_path / "full")
    with pytest.raises(KeyError):
        write_report({"schema": "editkit.diff/1"}, tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["full"] and len(list((tmp_path / "full").iterdir())) == 1


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (999_999, "999,999"),
        (1_000_000, "1.00 M"),
        (999_600_000, "1.00 B"),
        (7_241_732_096, "7.24 B"),
        (7e13, "70.0 T"),
    ],
)
def test_counts(value, text):
    assert count(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0 %"),
        (1.0, "100 %"),
        (0.99951, "> 99.9 %"),
        (0.5, "50.0 %"),
        (0.00123, "0.123 %"),
        (3e-9, "3.00e-7 %"),
        (12.5, "1,250 %"),
    ],
)
def test_shares(value, text):
    assert share(value) == text


def test_a_report_that_was_killed_is_removed_by_the_next_and_a_failed_one_leaves_nothing(tmp_path, monkeypatch):
    stale = tmp_path / ".rep.partial-999999999"
    stale.mkdir()
    (stale / "report.json").write_text("half")
    write_report(small(), tmp_path / "rep")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rep"]

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(EditError, match=r"^no space left for .*/new/sub/rep \(No space left on device\)"):
        write_report(small(), tmp_path / "new" / "sub" / "rep")
    assert [path.name for path in tmp_path.iterdir()] == ["rep"]


def test_the_folder_of_a_report(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_report(small(), Path("~/report"))
    assert (tmp_path / "report" / "report.json").exists()
    (tmp_path / "model").mkdir()
    (tmp_path / "file").write_text("")
    check_folder(tmp_path / "org", ["org/name"])  # a Hub id is no path
    for place, message in [("model/report", "lies inside the input"), ("", "contains the input")]:
        with pytest.raises(EditError, match=message):
            check_folder(tmp_path / place, ["~/model"])
    with pytest.raises(EditError, match=r"^.*/file/sub cannot be written \((?!.*partial).*\): check its folder"):
        write_report(small(), tmp_path / "file" / "sub")


@pytest.mark.parametrize("huge", [math.inf, 1e308, None])
def test_huge_numbers_are_written(tmp_path, huge):
    place = {"stack": "model.layers", "layer": 0}
    edit = {"alpha": 1e20, "requested_l2": huge, "applied_l2": huge, "projection": None, "lost_to_rounding": 0.0}
    row = tensor(Q, changed=8, max_abs=1e308, edit=edit, **place) | {"l2": huge, "rel_l2": huge, "mean": huge}
    made = report([row], edit={"command": "negate", **edit})
    made["summary"] |= {"l2": huge, "rel_l2": huge}
    made["layers"][0] |= {"rel_l2": huge, "edit": edit}
    write_report(made, tmp_path / "report")
    read = json.loads((tmp_path / "report" / "report.json").read_text())
    assert read["summary"]["l2"] == (None if huge == math.inf else huge)
    for form in ("table", "md", "csv"):
        assert render(made, form, "tensor")
