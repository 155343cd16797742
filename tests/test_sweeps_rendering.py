"""Page, picture and table of a sweep say what the report says, are safe against hostile names, and need no network."""

import base64
import hashlib
import io
import json
import re
from itertools import combinations

import pytest
from PIL import Image
from test_diffing_page import EVIL, Page

from editkit.errors import printable
from editkit.sweeps.choice import parse
from editkit.sweeps.rendering import to_table, write_report
from editkit.sweeps.rendering.charts import HEIGHT, LEFT, WIDTH, over_alpha, pareto
from editkit.sweeps.rendering.html import to_html
from editkit.sweeps.rendering.marks import plain
from editkit.sweeps.rendering.picture import to_png
from editkit.sweeps.report import concluded, warnings

POINTS = [  # alpha, choice, forgetting, retention; the unedited model is put before them
    (0.5, 0, 0.2, 0.99),
    (1.0, 0, 0.6, 0.94),
    (2.0, 0, 0.9, 0.40),
    (0.5, 1, 0.1, 0.97),
    (1.0, 1, 0.3, 0.96),
    (2.0, 1, 0.5, 0.93),
]


def score(value, width=0.02):
    limits = (None, None) if value is None else (value - width, value + width)
    return {
        "value": value,
        "n": 200,
        "ci_low": limits[0],
        "ci_high": limits[1],
        "status": "ok" if value is not None else "unknown: so",
    }


def point(alpha, choice, forgetting, retention):
    known = {"forgetting": score(forgetting), "retention": score(retention)}
    accuracies = {f"{name}.token_accuracy": score(0.5 if choice is None else 0.25) for name in ("forget", "retain")}
    arrived = {} if choice is None else {"changed": 123, "lost_to_rounding": 0.25, "through": 1.0 - 0.9 * choice}
    return {"alpha": alpha, "choice": choice, "status": "ok", "values": known | accuracies} | arrived


def report(points=tuple(POINTS), labels=("all", "loc"), choose=None, reference=0.8, **settings):
    """A report of schema editkit.sweep/1, handmade but for what follows from its points."""
    rows = [point(0.0, None, 0.0, None if points[0][3] is None else 1.0), *(point(*one) for one in points)]
    found = {
        "schema": "editkit.sweep/1",
        "editkit": "0",
        "model": {"name": "full", "sha256": {"model.safetensors": "0" * 64}},
        "vector": {"kind": "difference", "tuned": "tau", "base": "before"},
        "reference": None
        if reference is None
        else {"name": "never", "adapter": None, "sha256": {}, "values": {"forgetting": score(reference)}},
        "sets": [
            {"set": name, "name": f"{name}.jsonl", "sha256": "1" * 64, "examples": 200} for name in ("forget", "retain")
        ],
        "settings": {"alphas": sorted({one[0] for one in points}), "choose": choose, "dtype": "float32", **settings},
        "quantities": [
            {"name": name, "label": name, "unit": "", "better": None, "meaning": "as it says", "source": ""}
            for name in ("forgetting", "retention", "forget.token_accuracy", "retain.token_accuracy")
        ],
        "choices": [{"label": one, "mask": None, "only": [], "tensors": 21, "elements": 4096} for one in labels],
        "points": rows,
        **concluded(rows, parse(choose) if choose else None),
        "overlap": 0,
        "command": "editkit negate full tau --alpha 1 -o EDITED",
    }
    return found | {"warnings": warnings(found)}


def test_the_front_the_knee_and_the_chosen_point_by_hand():
    found = report(choose="max forgetting s.t. retention >= 0.95")
    # beaten: 0.1/0.97 by 0.2/0.99, and 0.5/0.93 by 0.6/0.94; the knee is 0.6/0.94, the farthest beyond the line from 0/1 to 0.9/0.4
    assert found["front"] == [0, 1, 5, 2, 3] and found["knee"] == 2 and found["chosen"] == 5


def test_points_lie_where_their_values_are():
    chart = pareto(report())
    placed = {one["tip"].split("\n")[0]: (one["x"], one["y"]) for one in chart["points"]}
    names = ["unedited", "alpha 0.5 (all)", "alpha 1 (all)", "alpha 2 (all)"]
    across, up = zip(*(placed[name] for name in names), strict=True)
    assert list(across) == sorted(across) and list(up) == sorted(up)  # y grows downwards: retention falls
    scale = (across[3] - across[0]) / 0.9
    assert across[1] == pytest.approx(across[0] + 0.2 * scale, abs=0.2) and across[2] == pytest.approx(
        across[0] + 0.6 * scale, abs=0.2
    )
    [line] = chart["upright"]
    assert line["at"] == pytest.approx(across[0] + 0.8 * scale, abs=0.2) and line["text"] == "reference 0.800"
    assert all(LEFT <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in placed.values())
    across_ends = [one for one in chart["whiskers"] if one["y1"] == one["y2"] == placed[names[2]][1]]
    assert [round((one["x2"] - one["x1"]) / scale, 3) for one in across_ends] == [0.04]


def test_beaten_points_are_faint_and_special_ones_have_a_ring_and_a_label():
    chart = pareto(report(choose="max forgetting s.t. retention >= 0.95"))
    kinds = {one["tip"].split("\n")[0]: (one["kind"], one["ring"]) for one in chart["points"]}
    assert kinds["alpha 0.5 (loc)"][0] == kinds["alpha 2 (loc)"][0] == "faint" and kinds["alpha 1 (all)"] == (
        "",
        "knee",
    )
    assert kinds["alpha 1 (loc)"] == ("", "chosen")
    strong = {text["text"] for text in chart["texts"] if text["kind"] == "strong"}
    assert strong == {"unedited", "knee 1", "chosen 1"}
    assert [line["text"] for line in chart["level"]] == ["retention >= 0.95"]
    both = pareto(report(choose="max forgetting s.t. retention >= 0.9"))
    assert "chosen, knee 1" in {text["text"] for text in both["texts"]}


def test_labels_do_not_lie_on_each_other_however_many_points_there_are():
    points = [
        (index / 10, choice, 0.9 * (index / 30) ** 2, 1 - 0.5 * (index / 30) ** (3 + choice))
        for choice in (0, 1)
        for index in range(1, 31)
    ]
    texts = pareto(report(points))["texts"]
    boxes = [(one["x"], one["y"] - 12, one["x"] + 6.5 * len(one["text"]), one["y"] + 2) for one in texts]
    assert len(boxes) > 20
    for one, other in combinations(boxes, 2):
        assert one[2] < other[0] or other[2] < one[0] or one[3] < other[1] or other[3] < one[1], (one, other)


def test_curves_over_alpha_begin_at_the_unedited_model():
    found = dict(over_alpha(report()))
    assert list(found) == ["forgetting", "retention"]
    for chart in found.values():
        assert len(chart["points"]) == 2 * 4 and len(chart["lines"]) == 2  # the unedited model is on both lines
    assert found["forgetting"]["names"] == ("alpha", "forgetting")


def test_the_table_is_the_points_in_order():
    text = to_table(report(choose="max forgetting s.t. retention >= 0.95"))
    lines = [re.split(r"\s{2,}", line.strip()) for line in text.splitlines()]
    assert lines[0] == ["full - alpha * (tau - before)"]
    assert lines[1] == ["Chosen: alpha 1 (loc), forgetting 0.300 [0.280, 0.320] and retention 0.960 [0.940, 0.980]."]
    assert ["alpha", "tensors", "forgetting", "retention"] in lines
    assert ["1", "all", "0.600 ± 0.020", "0.940 ± 0.020", "front, knee"] in lines
    assert ["2", "loc", "0.500 ± 0.020", "0.930 ± 0.020"] in lines
    assert "±: half the width of the 95 % interval" in text
    assert "A model that never saw the forget set (never) is at forgetting 0.800." in text
    assert "\x1b" not in text and "\x1b" in to_table(report(), color=True)


@pytest.mark.parametrize("color", [False, True])
def test_the_table_is_80_columns_wide_and_no_alpha_is_cut(color, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    labels = ("all", "loc-0.02-of-the-largest-gradients, *.mlp.*, *.self_attn.*, model.norm.weight")
    points = [(one[0] + 0.12345, *one[1:]) for one in POINTS]
    text = to_table(report(points, labels, choose="max forgetting"), color=color)
    plainly = re.sub(r"\x1b\[[\d;]*m", "", text).splitlines()
    start = next(place for place, line in enumerate(plainly) if line.strip().startswith("alpha"))
    table = plainly[start : plainly.index("", start)]
    assert max(map(len, table)) <= 80 and not any("…" in line for line in table)
    assert {line.split()[0] for line in table} >= {"0", "0.62345", "1.12345", "2.12345"}
    monkeypatch.setenv("COLUMNS", "40")
    narrow = re.sub(r"\x1b\[[\d;]*m", "", to_table(report(points, labels), color=True))
    assert all(f" {alpha} " in narrow for alpha in ("0.62345", "1.12345", "2.12345"))


def test_with_one_choice_it_is_not_named():
    text = to_table(report(POINTS[:3], labels=("all",)))
    assert "The knee: alpha 1, forgetting" in text and "tensors" not in text.splitlines()[4]


def test_many_points_are_cut_to_the_front():
    points = [(index / 100, 0, 0.5 if index else 0.6, 0.5) for index in range(100)]
    text = to_table(report(points, labels=("all",)))
    assert "99 more points that are not on the front, see sweep.json." in text


def test_no_knee_and_no_point_for_a_rule_are_said():
    straight = report([(1.0, 0, 0.5, 0.5), (2.0, 0, 1.0, 0.0)], labels=("all",))
    assert "No knee: the front of 3 points has none beyond the line between its ends." in to_table(straight)
    none = report(choose="max forgetting s.t. retention >= 2")
    assert "No point of the sweep has retention >= 2; the closest is alpha 0.5 (all) with retention 0.99" in to_table(
        none
    )


def test_the_page_is_offline_and_only_its_own_script_may_run():
    text = to_html(report())
    page = Page(text)
    assert page.open == []
    assert not re.search(r"https?://|src=|@import|url\((?!#)", text)
    [policy] = [tag[1]["content"] for tag in page.tags if tag[0] == "meta" and "http-equiv" in tag[1]]
    script = text[text.rindex("<script>") + 8 : text.rindex("</script>")]
    assert policy.endswith(f"script-src 'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'")


@pytest.mark.parametrize("evil", EVIL)
def test_hostile_names_stay_text(evil):
    found = report(labels=(evil, "loc"))
    found["model"]["name"] = found["vector"]["tuned"] = found["reference"]["name"] = found["sets"][0]["name"] = found[
        "command"
    ] = evil
    found["warnings"] = [evil]
    found["points"][1]["status"] = f"broken: {evil}"
    clean, dirty = Page(to_html(report())), Page(to_html(found))
    assert [tag for tag, _ in dirty.tags if tag != "p"] == [tag for tag, _ in clean.tags if tag != "p"]
    assert any(printable(evil) in line for line in to_table(found).splitlines())
    assert to_png(found)[:4] == b"\x89PNG"


def test_the_table_of_the_page_has_every_point_and_quantity():
    found = report(choose="max forgetting s.t. retention >= 0.95")
    data = json.loads(Page(to_html(found)).texts["script"][0])
    labels = [column[0] for column in data["columns"]]
    assert data["columns"][1][:2] == ["alpha", "text"]  # so that the page writes 8 and 0.25, not 8.00 and 0.250
    rows = [dict(zip(labels, row, strict=True)) for row in data["rows"]]
    assert [row["alpha"] for row in rows] == [0, 0.5, 1, 2, 0.5, 1, 2]
    assert [row["point"] for row in rows][:3] == ["unedited", "alpha 0.5 (all)", "alpha 1 (all)"] and len(rows) == 7
    assert (
        rows[2]["forgetting"] == 0.6
        and rows[2]["forgetting from"] == pytest.approx(0.58)
        and rows[2]["retention to"] == pytest.approx(0.96)
    )
    assert [row["front"] for row in rows] == ["on it", "on it", "on it, knee", "on it", "", "on it, chosen", ""]
    assert (
        rows[1]["elements changed"] == 123
        and rows[0]["elements changed"] is None
        and rows[1]["lost to rounding"] == 0.25
    )


def test_without_retention_there_are_curves_and_no_picture(tmp_path):
    found = report([(1.0, 0, 0.5, None), (2.0, 0, 0.7, None)], labels=("all",))
    assert pareto(found) is None and [name for name, _ in over_alpha(found)] == ["forgetting"]
    write_report(found, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["sweep.html", "sweep.json"]
    assert "No front: without a retain set" in (tmp_path / "out" / "sweep.html").read_text()
    assert "–" in to_table(found)


def test_a_broken_point_is_in_the_table_and_not_in_the_chart():
    found = report()
    found["points"][6] |= {"status": "broken: NaN", "values": {}}
    assert len(pareto(found)["points"]) == 6
    assert "broken" in to_table(found) and "NaN" in to_html(found)
    assert "1 of 6 points cannot be measured (alpha 2: NaN)" in warnings(found)[0]


def test_warnings_of_overlap_and_of_a_reference_that_knows_the_set():
    assert warnings(report(reference=-0.1) | {"overlap": 3}) == [
        "3 of the examples to forget are in the retain set too: forgetting them costs retention",
        "the reference gets as many tokens of the forget set right as the unedited model: there is nothing to forget, or it saw the set",
    ]


def test_forgetting_more_than_who_never_knew_is_warned_of():
    """Of the points 0.6 is the knee, and 0.3 the one that the rule chooses; intervals are 0.02 to each side."""
    rule = "max forgetting s.t. retention >= 0.95"
    assert warnings(report(choose=rule, reference=0.267)) == [
        "the chosen point forgets more (0.300) than a model that never saw the forget set (0.267), which shows too: add "
        "'and forgetting <= 0.267' to the rule"
    ]
    assert warnings(report(choose=rule, reference=0.285)) == []  # 0.300 - 0.020 does not lie above it
    assert warnings(report(choose="max forgetting", reference=0.5))[0].endswith(
        "add 's.t. forgetting <= 0.500' to the rule"
    )
    assert warnings(report(reference=0.5)) == [
        "the knee forgets more (0.600) than a model that never saw the forget set (0.500), which shows too: give a rule, --choose "
        "'max forgetting s.t. forgetting <= 0.500'"
    ]
    assert warnings(report(choose="max forgetting s.t. retention >= 2", reference=0.1)) == []  # nothing was chosen
    assert warnings(report(reference=None)) == []
    assert parse(f"{rule} and forgetting <= 0.267").terms[1].number == 0.267


def test_what_equals_the_unedited_model_is_not_on_the_front():
    found = report([(4.0, 0, 0.0, 1.0), (2.0, 0, 0.5, 0.9), (1.0, 0, 0.5, 0.9), (-0.5, 0, 0.0, 1.0)], labels=("all",))
    assert found["front"] == [0, 3]


def test_same_report_same_bytes(tmp_path):
    for name in ("one", "two"):
        write_report(report(), tmp_path / name)
    files = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "two")]
    assert files[0] == files[1] and sorted(files[0]) == ["pareto.png", "sweep.html", "sweep.json"]
    picture = Image.open(io.BytesIO(files[0]["pareto.png"]))
    assert picture.width > 1000 and json.loads(files[0]["sweep.json"])["schema"] == "editkit.sweep/1"


def test_numbers_have_three_decimals_and_zero_no_sign():
    assert [plain(one) for one in (0.12345, -0.0001, 0, -0.5, 1234.5)] == [
        "0.123",
        "0.000",
        "0.000",
        "-0.500",
        "1.23e+03",
    ]
