"""Table, page and picture of unlearning: they say what the report says, need no network, and show strangers' names as text."""

import base64
import copy
import hashlib
import io
import json
import re

import pytest
from PIL import Image
from test_diffing_page import EVIL, Page
from unlearning_reports import continual, one, result, tau

from editkit.errors import printable
from editkit.evaluation.rendering.charts import LEFT, WIDTH
from editkit.unlearning.rendering import to_html, to_png, to_table, wording, write_pictures
from editkit.unlearning.rendering.charts import charts
from editkit.unlearning.rendering.marks import beside, exposed, losses, memorized, parts, starts

ALL = {"one": one(), "tau": tau(), "continual": continual(), "bare": one(reference=False, retain=False, controls=False)}


def cells(text, name, after=""):
    """The cells of the row `name` below the line that begins with `after`."""
    lines = text[text.index(f"\n{after}") :].splitlines()
    return re.split(r"\s{2,}", next(line for line in lines if line.strip().startswith(name)).strip())


def drawn(report, title):
    return next((one for one in charts(report) if one["title"] == title), None)


def test_the_table_has_before_after_reference_and_controls():
    text = to_table(ALL["one"])
    assert cells(text, "before") == ["before", "after", "reference", "random mask"]
    assert cells(text, "MA", "forget, n = 200") == [
        "MA",
        "1.000 ± 0.020",
        "0.213 ± 0.020",
        "0.240 ± 0.020",
        "0.612 ± 0.020",
    ]
    assert cells(text, "p95", "forget, n") == [
        "p95 / max",
        "1.000 / 1.000",
        "0.413 / 0.613",
        "0.440 / 0.640",
        "0.812 / 1.000",
    ]
    assert cells(text, "NLL", "retain, n = 400") == [
        "NLL, nats/token",
        "0.030 ± 0.020",
        "0.060 ± 0.020",
        "0.045 ± 0.020",
        "–",
    ]
    assert "full, unlearned by ME+GD (arXiv 2410.08109): L = 0.1 L_ME(F) + L_GD(R)" in text
    assert "Reached, step 60. MA: forget 1.000 → 0.213 (never-seen text 0.240); retain 0.990 → 0.980." in text
    assert "Level of never-seen text: MA 0.240 (of never-saw, the reference, sd 0.150 over examples, n = 200)." in text
    assert "forget: reached after 60 steps in 80.2 s; ma(forget) <= level holds." in text
    assert "Control, random mask: 60 steps, not reached." in text
    assert "12,345 elements changed, 61.7 % of the 20,000 that could move." in text
    assert "look here" not in text  # warnings are said once, by the command line
    assert "\x1b" not in text and "\x1b" in to_table(ALL["one"], color=True)


@pytest.mark.parametrize("name", ALL)
def test_the_table_is_short_and_fits_100_columns(name):
    lines = to_table(ALL[name]).splitlines()
    assert max(map(len, lines)) <= 100 and len(lines) <= 30
    assert not any("…" in line for line in lines)


def test_a_table_with_two_controls_fits_100_columns():
    report = one()
    rows = result("forget", 1.0, 0.5) + result("retain", 0.99, 0.9)
    report["controls"] = [
        {"name": name, "steps": 60, "outcome": "reached", "result": rows} for name in ("random mask", "all parameters")
    ]
    text = to_table(report)
    assert max(map(len, text.splitlines())) <= 100
    assert cells(text, "MA", "retain")[1:] == [f"{value:.3f} ± 0.020" for value in (0.99, 0.98, 0.985, 0.9, 0.9)]


def test_where_two_phases_end_and_what_is_kept_is_said():
    text = " ".join(to_table(ALL["tau"]).split())
    assert "Reached, step 60 is kept." in text
    assert (
        "forget: reached after 70 steps in 80.2 s, step 60 is kept; ascend 30 steps, ascend is over; learn 40 steps, learn is over; "
        "ma(forget) <= level holds." in text
    )  # fmt: skip


def test_of_many_forget_sets_the_table_has_ma_alone_and_the_headline_its_range():
    text = to_table(ALL["continual"])
    assert "NLL" not in text and "Other quantities are in report.html." in " ".join(text.split())
    assert [cells(text, "MA", f"forget {place}, n = 50")[2] for place in (1, 2, 3, 4)] == [
        f"{value:.3f} ± 0.020" for value in (0.37, 0.33, 0.29, 0.25)
    ]
    assert wording.headline(ALL["continual"]) == (
        "4 forget sets: 3 reached, 1 not reached. MA: forget sets 1.000 → 0.250 to 0.370 (never-seen text 0.240); retain 0.990 → 0.950."
    )
    assert "forget 1 1.000 → 0.290, forget 2 1.000 → 0.250" in wording.headline(continual(2))


def test_what_was_not_measured_is_neither_zero_nor_there():
    text = to_table(ALL["bare"])
    assert cells(text, "before") == ["before", "after"] and "retain" not in text.partition("±")[0]
    assert "Level of never-seen text: MA 0.210 (assumed)." in text
    report = one()
    report["level"] = None
    report["changed"] = {"elements": 3, "share": 0.5, "of": 6}
    report["tasks"][0] |= {"chosen": None, "outcome": "collapsed", "seconds": None}
    report["result"][0]["after"] = None
    text = to_table(report)
    assert "Collapsed. MA: forget 1.000 → –; retain" in text and "Level" not in text
    assert "3 elements changed, 50.0 % of the 6 that could move.\n" in text and "in an unknown time" in text
    assert not re.search(r">\s*(nan|None)\b", to_html(report)) and to_png(report)[:4] == b"\x89PNG"


def test_steps_count_through_all_forget_sets_and_phases():
    assert starts(ALL["tau"]) == [0, 70] and parts(ALL["tau"]) == [(0, "ascend"), (30, "learn")]
    assert starts(ALL["continual"]) == [0, 30, 60, 90, 120]
    assert parts(ALL["continual"]) == [(0, "forget 1"), (30, "forget 2"), (60, "forget 3"), (90, "forget 4")]
    assert parts(ALL["one"]) == []
    line = next(line for line in memorized(ALL["continual"]) if line.name == "forget, mean (forget 2)")
    assert [(mark.x, mark.y, mark.chosen) for mark in line.marks] == [(30, 1.0, False), (40, 0.7, False), (50, 0.4, False), (60, 0.25, True)]  # fmt: skip


def test_values_of_a_numbered_forget_set_may_be_kept_under_forget():
    report = continual()
    expected = memorized(report)
    for task in report["tasks"]:
        for point in task["points"]:
            point["values"] = {
                name.replace(f"({task['set']})", "(forget)"): value for name, value in point["values"].items()
            }
    assert memorized(report) == expected


def test_the_floor_is_a_share_of_retain_at_the_start():
    assert beside(ALL["one"]) == {
        "never-seen text, 0.240": ("reference", [(0, 0.24), (60, 0.24)]),
        "retain floor, 0.891": ("base", [(0, pytest.approx(0.891)), (60, pytest.approx(0.891))]),
    }
    assert beside(ALL["bare"]) == {"never-seen text, 0.210": ("reference", [(0, 0.21), (60, 0.21)])}


def test_curves_lie_where_their_values_are():
    chart = drawn(ALL["one"], "Memorization")["chart"]
    dots = [(one["x"], one["y"]) for one in chart["points"] if one["style"].split()[0] == "m0"]
    across, down = zip(*dots, strict=True)
    assert [round((x - across[0]) / (across[-1] - across[0]), 2) for x in across] == [0, 0.2, 0.4, 0.6, 0.8, 1]
    scale = (down[-1] - down[0]) / (1 - 0.213)  # pixels of an MA of 1, from 1.000 to 0.213
    for y, value in zip(down, (1.0, 0.92, 0.71, 0.45, 0.28, 0.213), strict=True):
        assert y == pytest.approx(down[0] + scale * (1 - value), abs=0.2)
    [level] = [line for line in chart["lines"] if line["style"] == "reference"]
    ends = re.findall(r"[\d.]+", level["path"])
    assert float(ends[1]) == float(ends[3]) == pytest.approx(down[0] + scale * (1 - 0.24), abs=0.2)
    assert not [dot for dot in chart["points"] if dot["style"] in ("reference", "base")]
    assert [(dot["x"], dot["y"]) for dot in chart["points"] if "m0 kept" in dot["style"]] == [dots[-1]]
    assert chart["points"][-1]["tip"] == "forget, mean\nstep 60: 0.213, sd 0.150 over examples"


def test_phases_begin_at_upright_lines():
    chart = drawn(ALL["tau"], "Memorization")["chart"]
    first, last = (next(dot["x"] for dot in chart["points"] if f"step {step}:" in dot["tip"]) for step in (0, 70))
    assert [line["x1"] for line in chart["whiskers"]] == pytest.approx(
        [first, first + 30 / 70 * (last - first)], abs=0.2
    )
    assert [text["text"] for text in chart["texts"]] == ["ascend", "learn"]
    assert all(LEFT <= line["x1"] == line["x2"] <= WIDTH for line in chart["whiskers"])
    other = drawn(ALL["tau"], "Losses")["chart"]  # over the same steps
    assert other["whiskers"] == chart["whiskers"] and other["x"] == chart["x"] and not other["texts"]
    assert [line.name for line in losses(ALL["tau"])] == ["forget loss (ascend)", "forget loss (learn)"]
    assert "ascends on 90 examples" in str(drawn(ALL["tau"], "Memorization"))


def test_the_trajectory_goes_through_exposure_and_retention_in_the_order_of_steps():
    report = one()
    for place, x in enumerate((1.5, 0.2, 0.9, -0.3, 0.4, -0.5)):  # there and back
        report["tasks"][0]["points"][place]["values"]["exposure(forget)"] = x
    [line] = exposed(report)
    assert [(mark.x, round(mark.y, 4)) for mark in line.marks][:3] == [(1.5, 1.0), (0.2, 0.9798), (0.9, 0.9394)]
    chart = drawn(report, "What forgetting costs, step by step")["chart"]
    through = [float(x) for x in re.findall(r"[ML]([\d.]+)", chart["lines"][0]["path"])]
    assert through == [dot["x"] for dot in chart["points"]] and through != sorted(through)
    assert through[1] == pytest.approx(through[0] + (0.2 - 1.5) / (-0.5 - 1.5) * (through[5] - through[0]), abs=0.2)
    assert [text["text"] for text in chart["texts"]] == ["step 0", "step 60"]
    assert drawn(one(reference=False), "What forgetting costs, step by step") is None
    assert drawn(one(retain=False), "What forgetting costs, step by step") is None


def test_of_several_forget_sets_every_one_is_drawn_after_every_one():
    found = drawn(ALL["continual"], "Set after set")
    assert [tick["text"] for tick in found["chart"]["x"]] == ["start", "forget 1", "forget 2", "forget 3", "forget 4"]
    assert found["samples"] == {"forget 1": "m0", "forget 2": "m1", "forget 3": "m2", "forget 4": "m3", "never-seen text, 0.240": "reference"}  # fmt: skip
    tips = [dot["tip"] for dot in found["chart"]["points"] if dot["style"] == "m1"]
    assert tips == [f"forget 2\n{after}: {value}, n = 50" for after, value in (("start", "1.000"), ("forget 1", "1.000"), ("forget 2", "0.250"), ("forget 3", "0.290"), ("forget 4", "0.330"))]  # fmt: skip
    assert len(found["chart"]["bands"]) == 4
    assert drawn(ALL["one"], "Set after set") is None


@pytest.mark.parametrize("name", ALL)
def test_the_page_is_offline_and_only_its_own_script_may_run(name):
    text = to_html(ALL[name])
    page = Page(text)
    assert page.open == []
    assert not re.search(r"https?://|src=|@import|url\((?!#)", text)
    [policy] = [tag[1]["content"] for tag in page.tags if tag[0] == "meta" and "http-equiv" in tag[1]]
    script = text[text.rindex("<script>") + 8 : text.rindex("</script>")]
    assert policy.endswith(f"script-src 'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'")
    assert not re.search(r">\s*(nan|None)\b", text)


def test_the_page_says_what_was_done_and_how():
    page = Page(to_html(ALL["one"]))
    text = " ".join(" ".join(part.split()) for texts in page.texts.values() for part in texts)
    for said in ("look here", "L = 0.1 L_ME(F) + L_GD(R)", "1.000 → 0.213", "95 % interval [0.193, 0.233], n = 200", "0.612", "[0.592, 0.632]", "0.0003125", "retain.jsonl, 400 examples", "ab" * 32, "ef" * 32, "cd" * 32, "ma(forget) <= level holds"):  # fmt: skip
        assert said in text, said


def test_the_table_of_the_page_has_every_point_and_value():
    data = Page(to_html(ALL["tau"])).data()
    labels = [column[0] for column in data["columns"]]
    rows = [dict(zip(labels, row, strict=True)) for row in data["rows"]]
    assert [row["step"] for row in rows] == [0, 10, 20, 30, 40, 50, 60, 70]
    assert [row["forget set, phase"] for row in rows] == ["forget, ascend"] * 4 + ["forget, learn"] * 4
    assert [row["kept"] for row in rows] == [""] * 6 + ["kept", ""]
    assert rows[0]["forget loss"] is None and rows[1]["forget loss"] == -1.0 and rows[1]["selected"] == 90
    assert [row["ma(forget)"] for row in rows] == [1.0, 0.8, 0.6, 0.48, 0.42, 0.35, 0.3, 0.26]
    assert rows[2]["exposure(forget)"] == pytest.approx(0.6) and {"ma_max(forget)", "ma(retain)", "retention"} <= set(
        labels
    )


@pytest.mark.parametrize("evil", EVIL)
def test_hostile_names_stay_text(evil):
    found = continual()
    found["model"]["name"] = found["reference"]["name"] = found["sets"][0]["name"] = evil
    found["method"] |= {"label": evil, "formula": evil, "source": evil}
    found["settings"]["mask"] = found["level"]["from"] = evil
    found["tasks"][0] |= {"ended": evil}
    found["tasks"][0]["phases"][0] |= {"name": evil, "ended": evil}
    found["warnings"] = [evil]
    found["controls"] = [{"name": evil, "steps": 1, "outcome": evil, "result": []}]
    clean = continual()
    clean["settings"]["mask"] = "a"
    clean["controls"] = [{"name": "a", "steps": 1, "outcome": "a", "result": []}]
    same, dirty = Page(to_html(clean)), Page(to_html(found))
    assert [tag for tag, _ in dirty.tags] == [tag for tag, _ in same.tags]
    text = to_table(found)
    assert all(c.isprintable() for line in text.splitlines() for c in line) and printable(evil)[:5] in text
    assert to_png(found)[:4] == b"\x89PNG"


def test_forget_sets_of_any_name_are_drawn():
    found = json.loads(json.dumps(continual()).replace("forget 1", "forget <b>$x^2$"))
    text = to_html(found)
    assert "<b>$x" not in text.replace(text[text.index('id="data"') : text.index("</script>")], "")
    assert to_png(found)[:4] == b"\x89PNG"


def test_same_report_same_bytes(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_pictures(continual(), tmp_path / name)
    files = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "two")]
    assert files[0] == files[1] and sorted(files[0]) == ["curves.png", "report.html"]


def test_the_picture_grows_with_what_there_is():
    heights = {name: Image.open(io.BytesIO(to_png(report))).height for name, report in ALL.items()}
    assert heights["bare"] < heights["one"] == heights["tau"] < heights["continual"]  # 2, 3, 3 and 4 panels
    report = copy.deepcopy(ALL["bare"])
    report["tasks"][0] |= {"points": [], "chosen": None}
    assert Image.open(io.BytesIO(to_png(report))).width > 1000
    assert "On the way" not in to_html(report)


def test_a_control_that_diverged_has_no_numbers_and_says_why():
    report = copy.deepcopy(ALL["one"])
    report["controls"][0] |= {
        "steps": None,
        "outcome": "diverged",
        "ended": "forget_loss is not a number",
        "result": [],
    }
    said = "Control, random mask: diverged, forget_loss is not a number."
    text = to_table(report)
    assert said in text and cells(text, "MA", "forget, n = 200")[-1] == "–"
    assert said in to_html(report) and to_png(report)


def mixed():
    """Step 60 fell to 0.05, below the level: landed an eighth of the way from step 48 to it."""
    report = one()
    [task] = report["tasks"]
    task["points"][-1]["values"]["ma(forget)"] = 0.05
    task["points"].append(copy.deepcopy(task["points"][-1]) | {"mix": 0.125, "forget_loss": None, "retain_loss": None})
    task["points"][-1]["values"] |= {"ma(forget)": 0.213, "exposure(forget)": 0.1}
    task["points"][2]["resting"] = True
    task["chosen"] = 6
    return report


def test_a_landed_point_is_said_drawn_and_listed():
    report = mixed()
    said = "landed between step 48 and step 60 (87.5 % / 12.5 %)"
    assert f"Reached, {said}. MA" in " ".join(to_table(report).split()) and said in to_html(report)
    chart = drawn(report, "What forgetting costs, step by step")["chart"]
    assert len(chart["points"]) == 7 and "step 60, landed" in [text["text"] for text in chart["texts"]]
    data = Page(to_html(report)).data()
    rows = [dict(zip([column[0] for column in data["columns"]], row, strict=True)) for row in data["rows"]]
    assert [row["mix"] for row in rows] == [None] * 6 + [0.125]
    assert [row["resting"] for row in rows] == ["", "", "resting", "", "", "", ""]


def test_what_is_mixed_with_is_above_the_floor():
    report = mixed()
    report["tasks"][0]["points"][4]["values"]["retention"] = 0.8
    assert "between step 36 and step 60" in wording.headline(report)


def test_without_a_rule_a_run_takes_all_its_steps_and_a_stopped_one_says_why():
    report = one()
    report["tasks"][0] |= {"outcome": "not reached", "ended": "60 steps"}
    assert wording.headline(report).startswith("Not reached, step 60. MA")
    report["settings"]["stop"] = []
    assert wording.headline(report).startswith("Took all 60 steps. MA")
    assert "forget: took all 60 steps in 80.2 s.\n" in to_table(report)
    report["tasks"][0] |= {"outcome": "stopped", "chosen": 2}
    assert wording.headline(report).startswith("Stopped with retention below its floor, step 24 is kept. MA")


def test_every_forget_set_has_its_own_level():
    report = continual(2)
    for task, ma in zip(report["tasks"], (0.26, 0.21), strict=True):
        task["level"] = {"ma": ma, "n": 50, "sd": 0.1, "from": "reference"}
    text = " ".join(to_table(report).split())
    assert "MA forget 1 0.260 (sd 0.100 over examples, n = 50); forget 2 0.210 (sd" in text
    assert beside(report)["never-seen text, 0.210 to 0.260"] == (
        "reference",
        [(0, 0.26), (30, 0.26), (30, 0.21), (60, 0.21)],
    )
    assert "forget 2 (never-seen text 0.210)" in drawn(report, "Set after set")["samples"] and to_png(report)


def test_a_row_has_one_number_of_decimals_and_is_not_broken():
    report, quantity = one(), {"set": "forget", "label": "Probability", "quantity": "probability", "unit": ""}
    tiny = {"value": 6.05e-5, "n": 200, "ci_low": 0.0, "ci_high": 1.24e-4}
    report["result"].append(quantity | {"before": {"value": 0.999, "n": 200, "ci_low": 0.9985, "ci_high": 0.9995}, "after": tiny, "reference": {"value": None, "n": 0}})  # fmt: skip
    assert cells(to_table(report), "Probability")[1:4] == ["0.99900 ± 0.00050", "0.00006 ± 0.00006", "–"]
    exposure = quantity | {"label": "Exposure", "quantity": "exposure", "unit": "nats/token"}
    report["result"].append(exposure | {"before": {"value": 6.8, "n": 200}, "after": {"value": -2.69, "n": 200}, "reference": None})  # fmt: skip
    assert cells(to_table(report), "Exposure")[:3] == ["Exposure, nats/token", "6.800", "-2.690"]


def test_steps_on_the_axis_are_whole():
    report = one()
    for place, point in enumerate(report["tasks"][0]["points"]):
        point["step"] = 2 * place
    report["tasks"][0]["phases"][0]["steps"] = 10
    assert all(tick["text"].isdigit() for tick in drawn(report, "Losses")["chart"]["x"])


def test_settings_with_nothing_to_act_on_are_left_out():
    report = one(retain=False)
    report["settings"] |= {"alpha": 1.0, "retain_weight": 1.0, "beta": None}
    assert not {"alpha", "retain weight", "floor", "beta"} & set(dict(wording.settings(report)))
    assert dict(wording.settings(one()))["floor"] == "0.9"
