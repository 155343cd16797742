"""Renderings of evaluations, from handmade reports of schema editkit.evaluation/1: page, picture and table."""

import base64
import hashlib
import math
import re
import time

import numpy as np
import pytest
from evaluation_reports import COLUMNS, MODELS, ROWS, hostile, report, result, rows, several
from scipy.stats import ks_2samp
from test_diffing_page import EVIL, Page, colors

from editkit.diffing.rendering.heatmap import Scale
from editkit.errors import printable
from editkit.evaluation.rendering import to_table, write_pages
from editkit.evaluation.rendering.charts import Gap, Point, curves, ecdf, histograms, scatter, strips, styles
from editkit.evaluation.rendering.html import to_html
from editkit.evaluation.rendering.picture import to_png
from editkit.evaluation.rendering.rows import BINS, Rows, gap, lines, to_reference
from editkit.evaluation.rendering.texts import FIRST, MOST, texts

LOOKS = styles(MODELS)


def page(made=None, some=ROWS):
    return Page(to_html(made or report(some), Rows(some)))


def said(read):
    return " ".join(text for texts in read.texts.values() for text in texts)


def narrowed(some, *keys):
    return [{key: row[key] for key in ("model", "role", "set", "index", *keys) if key in row} for row in some]


def test_the_page_is_offline_and_only_its_own_script_may_run():
    text = to_html(report(ROWS), Rows(ROWS))
    read = Page(text)
    assert read.open == []
    for tag, attrs in read.tags:
        assert tag not in ("link", "iframe", "img", "object", "base", "form")
        assert not set(attrs) & {"src", "action", "srcset", "data", "style"}
        assert not [name for name in attrs if name.startswith("on")]
        assert attrs.get("href", "#").startswith("#")
    assert not re.search(r"https?:|@import|url\((?!#)|//[a-z]+\.", text)
    _, script = read.texts["script"]
    policy = next(attrs["content"] for tag, attrs in read.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    ids = [attrs["id"] for _, attrs in read.tags if "id" in attrs]
    assert len(ids) == len(set(ids)) and {"all", "filter", "marked", "more", "shown", "tip", "data"} <= set(ids)


def test_hostile_texts_stay_text():
    harmless = ["abcdefg"[index] * len(printable(text)) for index, text in enumerate(EVIL)]
    evil, good = (page(*hostile(texts)) for texts in (EVIL, harmless))
    assert [tag for tag, _ in evil.tags] == [tag for tag, _ in good.tags]
    assert [sorted(attrs) for _, attrs in evil.tags] == [sorted(attrs) for _, attrs in good.tags]
    assert "<" not in evil.texts["script"][0]
    shown = said(evil)
    assert r"\u2028\x00\x1b[31m\u202e\ud800" in shown and "\u202e" not in shown and "\x00" not in shown
    assert {"<img src=x onerror=alert(1)>", "{{ 7 * 7 }}{% endfor %}"} <= set(evil.texts["dd"])


def test_the_numbers_of_the_page_are_those_of_the_report():
    made = report(ROWS)
    read = page(made)
    columns = [column[0] for column in read.data()["columns"]]
    table = [dict(zip(columns, row, strict=True)) for row in read.data()["rows"]]
    assert len(table) == len(made["results"])
    for one in made["results"]:
        name = " ".join(filter(None, (one["set"] or "over the sets", one["metric"], one["bucket"])))
        [found] = [row for row in table if (row["result"], row["model"]) == (name, one["model"])]
        for key in ("value", "ci_low", "ci_high", "sd", "median", "p95", "max"):
            expected = None if one[key] is None else pytest.approx(one[key], rel=1e-8)
            assert found[key.replace("_", " ")] == expected
        assert found["n"] == one["n"] and found["measured"] == ("yes" if one["status"] == "ok" else "")
        assert found["status"] == ("" if one["status"] == "ok" else one["status"])
    accuracy = [row["token_accuracy"] for row in ROWS if (row["model"], row["set"]) == ("full", "forget")]
    assert f"{np.mean(accuracy):.3f}" in read.texts["b"] and f"{np.mean(accuracy):.3f}" in read.texts["dd"]
    assert "1.83e-21" in read.texts["b"] and "[0.546, 0.626]" in read.texts["span"]  # 0.585886 ± 0.04
    assert {"ab" * 32, "cd" * 32} <= set(read.texts["span"]) and "What MA means." in read.texts["td"]


def test_the_largest_distance_is_marked_where_scipy_finds_it():
    rows_of = Rows(ROWS)
    ratios = {}
    for model in MODELS:
        ratios[model] = [
            math.exp(row["paraphrased_nll"] - np.mean(row["perturbed_nll"]))
            for row in ROWS
            if (row["model"], row["set"]) == (model, "forget")
        ]
    columns = rows_of.columns(report(ROWS), "forget", "truth_ratio")
    assert {model: list(column.values()) for model, column in columns.items()} == {
        model: pytest.approx(values) for model, values in ratios.items()
    }
    found = to_reference(report(ROWS), columns)
    assert set(found) == {"base", "full"}
    for model, (x, one, other) in found.items():
        expected = ks_2samp(ratios[model], ratios["retain"])
        assert abs(one - other) == pytest.approx(expected.statistic, abs=1e-12)
        assert x == pytest.approx(expected.statistic_location)
        assert one == np.mean(np.array(ratios[model]) <= x) and other == np.mean(np.array(ratios["retain"]) <= x)
    assert f"KS {abs(found['full'][1] - found['full'][2]):.3f}" in page().texts["text"]
    assert gap([1, 2, 2, 3], [2]) == (1, 0.25, 0) and gap([1], [1]) == (1, 1, 1)


def test_a_gap_lies_between_its_curves():
    drawn = ecdf({"full": [0.0, 1.0], "retain": [3.0, 4.0]}, LOOKS, "R", gaps={"full": Gap(1.0, 1.0, 0.0, "KS 1.000")})
    [mark] = drawn["gaps"]
    zero, one = (tick["at"] for tick in (drawn["y"][0], drawn["y"][-1]))
    assert (mark["y1"], mark["y2"], mark["style"]) == (one, zero, "m0")
    assert mark["x"] == next(tick["at"] for tick in drawn["x"] if tick["text"] == "1")
    assert [text["text"] for text in drawn["texts"]] == ["KS 1.000"]


def test_distribution_functions_of_many_examples_keep_their_ends_and_stay_short():
    dice = np.random.default_rng(0)
    values = dice.normal(size=20_000).tolist()
    drawn = ecdf({"full": values}, LOOKS, "x")
    path = drawn["lines"][0]["path"]
    assert path.count("V") == 400 and len(path) < 8000 and "n = 20,000 examples" in drawn["lines"][0]["tip"]
    steps = [(float(x), float(y)) for x, y in re.findall(r"H([\d.]+)V([\d.]+)", path)]
    assert steps[-1][1] == drawn["y"][-1]["at"] and steps == sorted(steps, key=lambda step: (step[0], -step[1]))


def test_strips_have_a_point_for_each_example_or_say_how_many():
    column = {index: float(index) for index in range(1000)}
    drawn = strips({"full": column, "base": {0: 5.0}, "retain": {}}, LOOKS, "NLL", scale=Scale(0.0, 999.0, False))
    full, base = drawn["rows"]
    assert (drawn["most"], drawn["drawn"]) == (1000, 400) and len(full["points"]) == 400 and len(base["points"]) == 1
    assert full["points"][0]["tip"] == "example 0: 0" and full["points"][-1]["tip"] == "example 999: 999"
    assert full["text"] == "median 500, n = 1,000" and full["style"] == "m0" and base["style"] == "base"
    middle = (full["points"][0]["x"] + full["points"][-1]["x"]) / 2
    assert full["box"]["median"] == pytest.approx(middle, abs=0.11)
    assert full["box"]["width"] == pytest.approx((full["points"][-1]["x"] - full["points"][0]["x"]) / 2, abs=0.11)
    few = strips({"full": {0: 1.0}}, LOOKS, "NLL")
    assert few["drawn"] == few["most"] == 1
    assert strips({"full": {}}, LOOKS, "NLL") is None


def test_what_lies_on_the_edge_of_a_zone_is_drawn_within_it():
    values = [0.15, 0.15 + 1e-9, 0.6, 0.6 - 1e-9, 0.0, 1.0]
    drawn = histograms({"full": values}, LOOKS, "MA", BINS, zones=((0.0, 0.15), (0.6, 1.0)))
    low, high = drawn["zones"]
    inside = [bar for bar in drawn["rows"][0]["bars"] for zone in (low, high)
              if zone["x"] - 0.2 <= bar["x"] and bar["x"] + bar["width"] <= zone["x"] + zone["width"] + 0.2]  # fmt: skip
    counted = [int(bar["tip"].split("\n")[1].split()[0]) for bar in inside]
    assert sum(counted) == 4 and len(drawn["rows"][0]["bars"]) == 6
    some = narrowed([row for row in ROWS if row["model"] == "full"], "ma")
    for row, value in zip(some, values, strict=False):
        row["ma"] = value
    shown = page(report(ROWS, {"full": "model"}), some[:6]).texts["text"]
    assert any(text.startswith("2 low + 2 high of 6") for text in shown)


def test_curves_have_bands_where_the_intervals_are_known():
    points = [Point(0, 1.0, 0.5, 1.5), Point(1, 2.0, 1.0, 3.0)]
    drawn = curves(
        {"full": points, "base": [Point(0, 0.0), Point(1, 0.0)]}, LOOKS, ("by", "nats"), texts=("1/2", "2/2")
    )
    [band] = drawn["bands"]
    corners = [tuple(map(float, corner.split(","))) for corner in band["corners"].split(" ")]
    assert len(corners) == 4 and band["style"] == "m0" and len(drawn["lines"]) == 2 and len(drawn["points"]) == 4
    heights = {tick["text"]: tick["at"] for tick in drawn["y"]}
    assert [y for _, y in corners] == pytest.approx(
        [heights["0"] + (heights["1"] - heights["0"]) * value for value in (0.5, 1.0, 3.0, 1.5)], abs=0.2
    )
    assert [tick["text"] for tick in drawn["x"]] == ["1/2", "2/2"] and drawn["x"][0]["at"] == corners[0][0]
    zero = curves({"full": points[:1]}, LOOKS, ("x", "y"), zero=True)
    assert zero["y"][0]["text"] == "0" and curves({"full": points[:1]}, LOOKS, ("x", "y"))["y"][0]["text"] != "0"
    assert curves({"full": []}, LOOKS, ("x", "y")) is None and scatter({}, LOOKS, ("x", "y")) is None


def test_shares_are_drawn_from_0_to_1():
    [across, up] = (
        [
            tick["text"]
            for tick in scatter({"full": Point(0.9, 0.99)}, LOOKS, ("x", "y"), scale=Scale(0.0, 1.0, False))[axis]
        ]
        for axis in "xy"
    )
    assert across == up == ["0", "0.2", "0.4", "0.6", "0.8", "1"]
    small = [
        result(model, name, "general/token_accuracy@1", 0.99, n=40) for model in MODELS for name in ("forget", "retain")
    ]
    read = page(report(ROWS, results=small))
    assert "Token accuracy: forget and retain" in read.texts["h3"] and "0.992" not in read.texts["text"]


def test_names_beside_points_do_not_cover_each_other():
    models = [f"edited-alpha-{i}" for i in range(5)]
    looks = styles(dict.fromkeys(models, "model"))
    drawn = scatter({model: Point(0.99 + 0.001 * i, 0.5) for i, model in enumerate(models)}, looks, ("x", "y"))
    boxes = []
    for text in drawn["texts"]:
        long = 7 * len(text["text"])
        left = text["x"] - long if text["left"] else text["x"]
        assert left >= 0 and left + long <= drawn["width"] + 10
        assert not any(abs(text["y"] - y) < 12 and left < b and a < left + long for a, b, y in boxes)
        boxes.append((left, left + long, text["y"]))


def test_more_than_six_models_have_different_styles():
    looks = styles({f"m{i}": "model" for i in range(12)} | {"r": "reference", "b": "base"})
    assert len(set(looks.values())) == 14
    text = to_html(report(ROWS), Rows(ROWS))
    looked = dict(re.findall(r"\.(m\d+)(?:, \.m\d+)? \{ --c: var\(--m\d\); --d: ([^;]+);", text))
    assert len(set(looked.values())) == 6


def test_absent_columns_leave_out_their_charts_and_say_why():
    some = narrowed(ROWS, "nll")
    read = page(report(ROWS), some)
    titles = read.texts["h3"]
    assert "NLL, forget" in titles and not any(
        "Truth ratio" in text or "Token accuracy, forget" in text for text in titles
    )
    reasons = " ".join(read.texts["p"])
    assert "No truth ratios: no row of forget has paraphrased_nll and perturbed_nll." in reasons
    assert "No Token accuracy of retain by example: no row has token_accuracy." in reasons
    assert "No memorization histogram: no row of forget has ma." in reasons
    assert "What the models write" not in read.texts["h2"]
    nothing = page(report(ROWS, results=[], metrics=[], sets=[]), [])
    assert nothing.texts["h2"] == ["Not drawn", "How it was measured", "All results"]
    assert not re.search(r"\b(None|nan|NaN|inf|Undefined)\b", said(nothing).split('{"columns"')[0])


def test_values_that_are_not_finite_count_as_unknown():
    some = [dict(row) for row in ROWS]
    for row in some:
        row["nll"] = math.nan if row["index"] % 2 else math.inf
        row["perturbed_nll"] = [None, 1.0] if row["index"] % 2 else [-1e6]
    read = page(report(ROWS), some)
    assert "NLL, forget" not in read.texts["h3"] and "Truth ratio, forget" not in read.texts["h3"]
    assert not re.search(r"\b(nan|NaN|inf)\b", said(read).split('{"columns"')[0])


def test_one_model_has_nothing_before_it():
    some = [row for row in ROWS if row["model"] == "full"]
    made = report(some, {"full": "model"})
    made["results"] = [one for one in made["results"] if one["metric"] != "tofu/ks_statistic@1"]
    read = page(made, some)
    assert not any("→" in text for text in read.texts["h1"]) and "No reference, so no test." in said(read)
    assert not any("differ most" in text for text in read.texts["p"])
    assert "Token accuracy: forget and retain" not in read.texts["h3"]
    assert texts(made, Rows(some))[0]["key"] == ""


def test_texts_are_the_first_ones_and_those_in_which_the_models_differ_most():
    some = rows({"base": "base", "full": "model"}, {"forget": 100, "retain": 5})
    for row in some:
        row["token_accuracy"] = 0.5 + (0.01 * row["index"] if row["model"] == "full" else 0) * (row["index"] < 50)
    forget, retain = texts(report(some, {"base": "base", "full": "model"}), Rows(some))
    most, first = ([example["index"] for example in group] for group in forget["groups"])
    assert most == list(range(49, 39, -1)) and len(most) == MOST
    assert first == list(range(30)) and len(first) == FIRST and forget["n"] == 100
    assert [len(group) for group in retain["groups"]] == [4, 1]  # in example 0 they do not differ
    example = forget["groups"][1][3]
    assert example["prompt"] == "Question 3 of forget?" and [one["model"] for one in example["said"]] == [
        "base",
        "full",
    ]
    assert example["said"][1]["numbers"].startswith("accuracy 0.530 · ROUGE-L 0.970 · NLL ")


def test_long_texts_are_cut_and_say_so():
    some = [dict(ROWS[0], generation="é" * 1700, answer=None)]
    [found] = texts(report(some), Rows(some))
    [one] = found["groups"][1][0]["said"]
    assert one["text"] == "é" * 700 + " … (1,000 more characters)" and found["groups"][1][0]["answer"] == "–"


def test_a_reference_that_is_not_among_the_models_is_in_the_tests_only():
    some = [row for row in ROWS if row["model"] == "full"]
    found = [result("full", "forget", "tofu/ks_statistic@1", 0.25, n=40)]
    shown = said(page(report(some, {"full": "model"}, results=found), some))
    assert "KS statistic against the reference, whose curve is not here: full 0.250, p = – (log10 p –)." in shown


def test_an_interval_that_the_value_lies_outside_of_is_not_written_as_plus_minus():
    found = [result("full", "forget", "tofu/ks_statistic@1", 0.0, n=40, ci_low=0.05, ci_high=0.15)]
    made = report(ROWS, results=found)
    assert "±" not in to_table(made).split("±: half")[0] and "[0.050, 0.150]" in page(made).texts["span"]


def test_numbers_of_the_harness_are_shown_with_their_standard_errors():
    numbers = {
        "arc_easy": {"acc,none": {"value": 0.71, "stderr": 0.01, "n": 2376}},
        "odd": {"ppl": {"value": 7.5, "stderr": None, "n": None}},
    }
    made = report(ROWS, lm_eval={"full": numbers, "base": numbers})
    text = to_table(made)
    assert "lm-evaluation-harness · arc_easy, n = 2,376" in text and "1.96 of its own standard errors" in text
    assert re.search(r"acc,none +0\.710 ± 0\.020 +0\.710 ± 0\.020 +–", text) and re.search(r"ppl +7\.500 +7\.500", text)
    assert "[0.690, 0.730]" in page(made).texts["span"]
    assert "harness" not in to_table(report(ROWS))


def test_buckets_have_a_chart():
    read = page()
    assert "Generalized exposure, nats/token, forget, by difficulty" in read.texts["h3"]
    assert {"1/3, n = 14", "2/3, n = 13"} <= set(read.texts["text"])
    assert any(
        text == "full\n2/3".replace("2/3", "difficulty 2/3: 2.000 [1.600, 2.400], n = 13")
        for text in read.texts["title"]
    )


def test_results_stay_in_the_order_of_suites_and_sets():
    places = [(line.metric["id"], line.set) for line in lines(report(ROWS)) if line.metric["id"].startswith("tofu/")]
    assert places == [
        *((f"tofu/{name}@1", "forget") for name in ("probability", "forget_quality", "ks_statistic")),
        *(("tofu/probability@1", name) for name in ("retain", "real_authors", "world_facts")),
        ("tofu/model_utility@1", None),
    ]
    stray = report(ROWS, metrics=[], results=[result("full", "other", "mine", 0.5, n=3)])
    assert "mine" in to_table(stray) and "0.500" in to_table(stray)


def test_twenty_thousand_rows_of_four_models_make_a_small_page_quickly():
    models = several(4)
    some = rows(models, {"forget": 10_000, "retain": 10_000})
    made = report(some, models)
    started = time.perf_counter()
    text = to_html(made, Rows(some))
    assert time.perf_counter() - started < 20
    assert len(text) < 2_000_000
    assert "400 points of up to 10,000 examples" in text and "of n = 10,000" in text


def test_same_report_same_bytes_and_numbers_of_numpy_or_without_a_value_do_not_matter(tmp_path):
    made, some = report(ROWS), [dict(row) for row in ROWS]
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
    write_pages(made, some, tmp_path / "one")
    for one in made["results"]:
        one["value"] = None if one["value"] is None else np.float64(one["value"])
    write_pages(made, iter(some), tmp_path / "two")
    written = [
        [(path.name, path.read_bytes()) for path in sorted((tmp_path / folder).iterdir())] for folder in ("one", "two")
    ]
    assert written[0] == written[1] and [name for name, _ in written[0]] == ["report.html", "report.png"]
    made["results"][0]["value"] = math.nan
    write_pages(made, some, tmp_path / "two")
    data = (tmp_path / "two" / "report.html").read_text("utf-8").split('id="data">')[1].split("</script>")[0]
    assert "NaN" not in data


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("n", [1, 3, 6, 30])
def test_the_picture_has_every_model_and_leaves_matplotlib_as_it_was(n):
    import matplotlib

    before = dict(matplotlib.rcParams)
    models = several(n) if n > 1 else {"full": "model"}
    some = rows(models)
    png = to_png(report(some, models), Rows(some))
    assert png is not None and png == to_png(report(some, models), Rows(some))
    found, (width, height) = colors(png)
    assert "#2d718e" in found and width > 900 and 600 < height < 3500
    assert dict(matplotlib.rcParams) == before


@pytest.mark.filterwarnings("error")
def test_odd_rows_have_a_picture_and_none_where_there_is_nothing_to_draw():
    assert to_png(report(ROWS), Rows(narrowed(ROWS))) is None and to_png(report([]), Rows([])) is None
    assert to_png(report(ROWS), Rows(narrowed(ROWS, "nll"))) is not None
    assert to_png(*(lambda made, some: (made, Rows(some)))(*hostile(EVIL))) is not None
    assert to_png(report(ROWS), Rows([dict(row, nll=0.0, ma=0.5, token_accuracy=1.0) for row in ROWS])) is not None
    assert set(COLUMNS)
