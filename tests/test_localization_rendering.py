"""Renderings of localizations, from handmade reports of schema editkit.localization/1: page, picture and table."""

import base64
import hashlib
import math
import re

import numpy as np
import pytest
from localization_reports import (
    VARIANTS,
    bare,
    hostile,
    model,
    page,
    paper,
    report,
    small,
    tensor,
)
from test_diffing_page import EVIL, Page, colors

from editkit.diffing.rendering.charts import PALETTE
from editkit.errors import printable
from editkit.localization.rendering import to_table, write_pictures
from editkit.localization.rendering.charts import histogram, scatter
from editkit.localization.rendering.html import to_html
from editkit.localization.rendering.picture import to_png
from editkit.localization.rendering.rows import known_scales, modules, stack_maps
from editkit.localization.rendering.wording import headline


def test_the_headline_counts():
    assert headline(small()) == (
        "memflex selected 30.0 % of 160 parameters (48), as 6 of 20 rows in 3 of 4 tensors. "
        "The largest part, 50.0 % of the selection, lies in layer 1."  # 24 of 48
    )
    made = small()
    made["settings"]["granularity"] = "element"
    assert "(48), element by element, in 3 of 4 tensors." in headline(made)
    made["settings"]["granularity"] = "tensor"
    assert "(48), as 3 of 4 tensors." in headline(made)
    made = report([tensor("h.0.w", 4, stack="h", layer=0), tensor("h.1.w", stack="h", layer=1)])
    assert headline(made).endswith("All of them lie in layer 0.")
    made = report([tensor("h.0.w", 4, stack="h", layer=0), tensor("w", 20)])
    assert headline(made).endswith("lies outside the layers.")


def test_the_table_has_the_modules_with_most_selected_parameters_first():
    lines = [line.split() for line in to_table(small()).splitlines()]
    down = "mlp.down 66.7 % ████████ 32 of 64 50.0 % 2 of 2 0.300 ± 0.283 (2) 0.00400"  # sd of 0.5, 0.1: 0.4 / sqrt(2)
    head = "lm_head.weight 33.3 % ████ 16 of 64 25.0 % – -0.250 (1) 0.200"
    assert down.split() in lines and head.split() in lines
    assert lines.index(down.split()) < lines.index(head.split())
    assert not any("attn" in line[:1] for line in lines)
    many = report([tensor(f"w{i}", i + 1) for i in range(13)])
    text = to_table(many)
    assert "3 more modules with a selection." in text and text.index("w12") < text.index("w11")
    assert "w3 " in text and "w2 " not in text
    text = to_table(report([tensor(f"w{i}", i + 1) for i in range(12)]))  # two lines more say more than "2 more"
    assert "w0 " in text and "more modules" not in text


def test_heads_are_said_to_be_those_of_one_projection():
    made = small()
    made["settings"]["granularity"] = "head"
    assert (
        "of 160 parameters of the attention projections (48), as 6 of 20 heads (each one head of one projection: q, k, v or o)"
        in to_table(made)
    )
    assert {
        "48 of 160 parameters of the attention projections",
        "selected, of 20, each one head of one projection: q, k, v or o",
    } <= set(page(made).texts["dd"])
    assert "projection" not in to_table(small())


def test_labels_that_were_drawn_are_said_where_the_loss_is():
    said = "12,345 tokens in the loss (40 % of them replaced at random, 3 draws), 1.25 ± 0.500 nats per token"
    assert said in to_table(small()) and "40 % of them replaced at random, 3 draws:" in to_html(small())
    note = "nats per token, sd 0.500, n = 400 examples; of the tokens in the loss, 40 % replaced at random, 3 draws"
    assert note in page(small()).texts["dd"]
    true = small()
    true["settings"] |= {"labels": "true", "draws": 1}
    along = model(
        2, path=True, granularity="tensor"
    )  # the losses at both ends of a path are of the answers as they are
    along["settings"] |= {"labels": "random:0.4", "draws": 3}
    for made in (true, along):
        assert "at random, " not in to_table(made) and "at random, " not in to_html(made)
        assert "nats per token, sd 0.500, n = 400 examples" in page(made).texts["dd"]


def test_the_table_says_from_what_and_how_far_to_trust_it():
    text = to_table(small())
    assert (
        "Forget set forget.jsonl: n = 400 examples, 12,345 tokens in the loss (40 % of them replaced at random, 3 draws), 1.25 ± 0.500 nats per token"
        in text
    )
    assert (
        "(n = 200 and 199 examples) have a Jaccard overlap of 0.750; random ones with the same share of every tensor would "
        "have 0.176." in text
    )
    assert "control/mask.safetensors selects 36 parameters at random (seed 7), where the selection has 48." in text
    path = to_table(model(2, path=True, granularity="tensor"))
    assert (
        "over 32 points of the path: the forget loss fell by 2.808 nats per token, and the attributions add up to 2.812 (error "
        "0.142 %)" in path
    )
    some = model(2, path=True, granularity="tensor")
    some["path"]["forget"] = {"attributed": 6.5954, "drop": 6.55, "error": None}  # with --only
    assert (
        "fell by 6.550 nats per token, and the attributions add up to 6.595 (some parameters were left out)"
        in to_table(some)
    )
    assert {"6.550", "6.595"} <= set(page(some).texts["b"])
    shared = small()
    shared["control"]["jaccard"] = 0.0204
    assert "where the selection has 48; their Jaccard overlap is 0.0204." in to_table(shared)
    assert "Retain" not in to_table(model(2, retain=False)) and "12 examples" not in to_table(paper())


def test_the_table_is_plain_text_and_coloured_on_request_only():
    assert "\x1b" not in to_table(model(3)) and "\x1b[" in to_table(model(3), color=True)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\u202e]", to_table(hostile(EVIL)))


def test_a_module_adds_up_counts_and_averages_gradients_over_parameters():
    rows = [
        tensor(
            "h.0.e.0",
            4,
            shape=(4,),
            stack="h",
            layer=0,
            module="e",
            expert=0,
            mean_abs_forget=1.0,
            attribution_forget=0.5,
        ),
        tensor(
            "h.0.e.1",
            0,
            shape=(12,),
            stack="h",
            layer=0,
            module="e",
            expert=1,
            mean_abs_forget=3.0,
            attribution_forget=-0.1,
        ),
        tensor("h.1.e.0", 0, shape=(4,), stack="h", layer=1, module="e", expert=0),
    ]
    [module] = modules(report(rows))
    assert (module["tensors"], module["layers"], module["layers_touched"], module["cosine"]) == (3, 2, 1, None)
    assert module["mean_abs_forget"] == 2.5 and module["selected_fraction"] == 0.2  # (4 * 1 + 12 * 3) / 16; 4 / 20
    assert module["attribution_forget"] == pytest.approx(0.4)
    cell = stack_maps(report(rows))[0].cells["e", 0]
    assert cell["selected"] == 4 and cell["tensors"] == 2
    assert any("e by expert" in text for text in page(report(rows)).texts["figcaption"])


def test_cells_tell_nothing_selected_unknown_small_and_large_apart():
    cells, last = page(small()).cells, len(PALETTE) - 1
    # selected: 1/8 (of all of layer 0), 1/4 and 3/4; cosine: 0.1 to 0.5, unknown in attn; mean |G_F|: 0 to 0.006
    assert cells["model.layers.0, attn"] == ["az", "b0", "cn"]
    assert cells["model.layers.1, mlp.down"] == [f"a{last}", f"b{last}", "c0"]
    assert cells["model.layers.0, mlp.down"][0] == "a2" and cells["model.layers.0, mlp.down"][2] == f"c{last}"
    assert cells["model.layers.1, attn"] == ["missing"]
    assert cells["model.layers.0, all of the layer"][0] == "a0"


def test_cosines_and_attributions_have_linear_scales_though_they_span_decades():
    rows = [
        tensor(f"h.{i}.w", 1, stack="h", layer=i, cosine=c, attribution_forget=c)
        for i, c in enumerate((-0.5, 0.001, 0.9))
    ]
    scales = known_scales(stack_maps(report(rows)))
    assert scales["cosine"] == (-0.5, 0.9, False) == scales["attribution_forget"] and "mean_abs_forget" not in scales


def test_the_page_is_offline_and_only_its_own_script_may_run():
    text = to_html(model(3))
    read = Page(text)
    assert read.open == []
    for tag, attrs in read.tags:
        assert tag not in ("link", "iframe", "img", "object", "base", "form")
        assert not set(attrs) & {"src", "action", "srcset", "data"} and not [
            name for name in attrs if name.startswith("on")
        ]
    assert not re.search(r"https?:|@import|url\((?!#)|//[a-z]+\.", text)
    digest = base64.b64encode(hashlib.sha256(read.texts["script"][1].encode()).digest()).decode()
    policy = next(attrs["content"] for _, attrs in read.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    assert "prefers-color-scheme: dark" in text


def test_hostile_names_stay_text():
    evil, harmless = (
        page(hostile(EVIL)),
        page(hostile(["abcdefg"[i] * len(printable(name)) for i, name in enumerate(EVIL)])),
    )
    assert [tag for tag, _ in evil.tags] == [tag for tag, _ in harmless.tags]
    assert [sorted(attrs) for _, attrs in evil.tags] == [sorted(attrs) for _, attrs in harmless.tags]
    assert [row[0] for row in evil.data()["rows"]][:5] == EVIL[:5] and "<" not in evil.texts["script"][0]
    assert EVIL[0] in evil.texts["p"] and f"row 3 of {EVIL[1]}" in evil.texts["span"]


def test_the_page_says_what_the_report_says():
    made = small()
    made["top_units"] = [
        {"name": "lm_head.weight", "unit": "row", "index": i, "numel": 8, "selected": 8, "score": s}
        for i, s in ((5, 0.5), (2, 0.25))
    ]
    text, read = to_html(made), page(made)
    assert {"30.0 %", "0.250", "1.25", "2.50", "6", "3"} <= set(read.texts["dd"])
    assert "lowest selected score, nats per weight unit" in read.texts["dd"]
    assert headline(made) in read.texts["h1"] and "5 % of the parameters" in read.texts["dd"]
    assert (
        "row 5 of lm_head.weight" in read.texts["span"]
        and "width:50.0%" in text
        and "100 % of 8 parameters" in read.texts["span"]
    )
    assert "16 of 64 parameters" in read.texts["span"]  # of the head, outside the layers
    assert "0.750" in read.texts["b"] and "width:17.6%" in text and any("seed 7" in part for part in read.texts["p"])
    assert not any("Not computed" in part for part in read.texts["p"])
    made |= {"control": None, "stability": None}
    assert any("Not computed: a random mask" in part and "halves" in part for part in page(made).texts["p"])


def test_rows_of_a_selection_of_elements_count_theirs():
    made = small()
    made["settings"]["granularity"] = "element"
    unit = {"name": "lm_head.weight", "unit": "row", "numel": 8, "score": None}
    made["top_units"] = [{**unit, "index": 1, "selected": 6}, {**unit, "index": 0, "selected": 3}]
    text, read = to_html(made), page(made)
    assert {"6", "3"} <= set(read.texts["b"]) and "75.0 % of 8 parameters" in read.texts["span"]
    assert "width:50.0%" in text and "Rows with most selected elements" in read.texts["h2"]


def test_what_a_gradient_stands_for_depends_on_how_it_was_added_up():
    made = small()
    made["settings"]["accumulate"] = "squared"
    assert "mean |G_F|: root of the mean squared gradient" in to_table(made) and "root of the mean" in to_html(made)
    assert "root" not in to_table(small()) and "root of the mean" not in to_html(small())


def test_warnings_and_thresholds_of_the_paper_are_loud():
    read = page(paper())
    assert [attrs["class"] for _, attrs in read.tags if attrs.get("role") == "alert"] == ["warning"]
    assert (
        "12 examples are in both sets." in read.texts["p"]
        and "mu 0.5" in read.texts["text"]
        and "sigma 0.0002" in read.texts["text"]
    )
    assert "tensors with a cosine below mu = 0.5 and a mean |G_F| above sigma = 0.0002" in read.texts["dd"]
    assert any("tiny-llama + tiny-adapter" in text for text in read.texts["span"])


def test_the_table_of_tensors_has_every_row_and_only_known_measures():
    read = page(small()).data()
    labels = [column[0] for column in read["columns"]]
    assert labels == [
        "tensor",
        "shape",
        "parameters",
        "selected",
        "share selected",
        "units",
        "units selected",
        "cosine",
        "mean |G_F|",
    ]
    assert read["rows"][1] == ["model.layers.1.mlp.down.weight", "4×8", 32, 24, 0.75, 4, 3, 0.1, 0.006]
    assert read["rows"][2][7] is None
    assert "attributed, forget" in [column[0] for column in page(model(2, path=True)).data()["columns"]]


def test_bars_are_the_units_and_the_threshold_is_between_the_right_ones():
    data = {"log2_edges": [-4, -3, -2, -1, 0], "counts": [0, 8, 4, 0], "selected": [0, 1, 4, 0], "zero_or_below": 60}
    drawn = histogram(data, 2**-2.5, "row")
    assert not drawn["log"] and [tick["text"] for tick in drawn["y"]] == ["0", "2", "4", "6", "8"]
    first, second = drawn["bars"]
    assert first["all"] == drawn["height"] and (first["chosen"], second["all"], second["chosen"]) == (
        27.5,
        110,
        110,
    )  # of 220
    assert first["tip"] == "scores 0.125 to 0.250\n8 rows, 1 selected"
    assert (
        drawn["line"]["x"] == pytest.approx((first["x"] + second["x"]) / 2, abs=0.01)
        and drawn["line"]["text"] == "threshold 0.177"
    )
    assert (drawn["n"], drawn["chosen"], drawn["zeros"]) == ("12", "5", "60")
    assert histogram(data, None, "row")["line"] is None and histogram(data, 2.0, "row")["line"] is None
    rare = histogram(data | {"counts": [0, 10**6, 10, 0], "selected": [0, 0, 10, 0]}, None, "row")
    assert rare["log"] and rare["bars"][1]["chosen"] == pytest.approx(220 * math.log(20) / math.log(2e6), abs=0.01)
    assert histogram(data | {"counts": [0] * 4, "selected": [0] * 4}, None, "row") is None


def test_points_lie_at_their_cosine_and_gradient_and_those_selected_stand_out():
    drawn = scatter(small()["tensors"], small()["settings"], "")
    assert drawn["n"] == 3 and drawn["all"] == 4  # one has neither a cosine nor a gradient
    places = {point["tip"].split("\n")[0]: point for point in drawn["points"]}
    low, high = places["model.layers.1.mlp.down.weight"], places["model.layers.0.mlp.down.weight"]
    head = places["lm_head.weight"]
    assert drawn["log"] and high["x"] < low["x"] < head["x"] and high["y"] < low["y"] < head["y"]  # y grows downwards
    assert head["y"] - low["y"] == pytest.approx(200 * 0.35 / 0.75, abs=0.02)
    assert low["kind"] == "chosen" and "0.100" in low["tip"]
    assert scatter(model(2, retain=False)["tensors"], {}, "") is None
    path = scatter(model(2, path=True)["tensors"], {}, "")
    assert path["axes"] == ("forget, nats", "retain, nats")


def test_ten_thousand_tensors_stay_out_of_the_markup():
    rows = [tensor(f"w{index}", index % 100 == 0, cosine=0.1, mean_abs_forget=0.1 + index) for index in range(10_000)]
    read = page(report(rows))
    assert len(read.data()["rows"]) == 10_000 and len(read.tags) < 10_000
    assert sum(attrs.get("class") == "cell chosen" for _, attrs in read.tags) == 100


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", VARIANTS)
def test_every_report_has_a_page_a_picture_and_a_table(name, tmp_path):
    made = VARIANTS[name]()
    write_pictures(made, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["localization.html", "localization.png"]
    read = Page((tmp_path / "localization.html").read_text("utf-8"))
    assert read.open == [] and len(read.data()["rows"]) == len(made["tensors"])
    shown = [text for kind, texts in read.texts.items() if kind not in ("script", "style") for text in texts]
    assert not [text for text in shown if re.search(r"\b(None|nan|NaN|inf|Undefined)\b", text)]
    _, (width, _) = colors((tmp_path / "localization.png").read_bytes())
    assert width > 900
    assert "None" not in to_table(made)


def test_tensors_outside_the_layers_are_in_the_picture():
    inside = [tensor("h.0.w", stack="h", layer=0)]
    alone, both = to_png(report(inside)), to_png(report([*inside, tensor("head", 16)]))
    assert colors(both)[1][1] > colors(alone)[1][1] and PALETTE[7] in colors(both)[0]
    many, more = (to_png(report([*inside, *(tensor(f"w{i}", 16) for i in range(n))])) for n in (6, 40))
    assert colors(many)[1] == colors(more)[1]  # the first ones alone


def test_same_report_same_bytes_and_numbers_of_numpy_or_without_a_value_do_not_matter(tmp_path):
    made = model(3)
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
    write_pictures(made, tmp_path / "one")
    for row in made["tensors"]:
        row["selected"], row["cosine"] = np.int64(row["selected"]), np.float64(row["cosine"])
    write_pictures(made, tmp_path / "two")
    assert [(path.name, path.read_bytes()) for path in sorted((tmp_path / "one").iterdir())] == [
        (path.name, path.read_bytes()) for path in sorted((tmp_path / "two").iterdir())
    ]
    made["tensors"][1]["cosine"] = math.nan
    write_pictures(made, tmp_path / "two")
    assert (
        "NaN"
        not in (tmp_path / "two" / "localization.html").read_text("utf-8").split('id="data">')[1].split("</script>")[0]
    )


@pytest.mark.filterwarnings("error")
def test_the_picture_shows_the_ends_of_the_scale_and_leaves_matplotlib_as_it_was():
    import matplotlib

    before = dict(matplotlib.rcParams)
    found, (width, height) = colors(to_png(small()))
    assert {PALETTE[-1], PALETTE[7]} <= found and width > 900 and height > 400
    assert dict(matplotlib.rcParams) == before
    nothing, _ = colors(to_png(report([tensor("h.0.w", stack="h", layer=0)]) | {"histogram": bare()["histogram"]}))
    assert not set(PALETTE) & nothing
