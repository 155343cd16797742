"""The HTML page and the picture: safe against hostile names, offline, and their cells and bars say what the report says."""

import base64
import hashlib
import io
import json
import re
import time
from html.parser import HTMLParser
from itertools import pairwise

import pytest
from PIL import Image
from reports import llama, report, tensor

from editkit.diffing.rendering import render
from editkit.diffing.rendering.charts import PALETTE, histogram
from editkit.diffing.rendering.heatmap import Scale, layer_maps, part_maps
from editkit.diffing.rendering.picture import to_png
from editkit.errors import printable

VOID = {"meta", "input"}
EVIL = [
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "\"><svg onload='alert(1)'>",
    "</title></style></textarea><!--<script>",
    "{{ 7 * 7 }}{% endfor %}",
    "\u2028\x00\x1b[31m\u202e\ud800",
    "$\\frac$ &lt;&amp;",
]


class Page(HTMLParser):
    """Tags in order with attributes; the texts inside each kind of element; the classes of every cell by its tooltip."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts, self.open, self.cells = [], {}, [], {}
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"{tag} closes nothing"

    def handle_data(self, data):
        self.texts.setdefault(self.open[-1] if self.open else "", []).append(data)
        if self.open[-2:] == ["rect", "title"]:
            self.cells[data.split("\n")[0]] = self.tags[-2][1]["class"].split()[1:]

    def data(self):
        return json.loads(self.texts["script"][0])


def page(made):
    return Page(render(made, "html"))


def layered(*rows):
    """Rows (layer, module, measures) of one stack."""
    return report(
        [
            tensor(
                f"model.layers.{layer}.{module}.weight", layer=layer, stack="model.layers", module=module, **measures
            )
            for layer, module, measures in rows
        ]
    )


def test_the_page_is_offline_and_only_its_own_script_may_run():
    text = render(llama(3), "html")
    read = Page(text)
    assert read.open == []
    for tag, attrs in read.tags:
        assert tag not in ("link", "iframe", "img", "object", "base", "form")
        assert not set(attrs) & {"src", "action", "srcset", "data"}
        assert not [name for name in attrs if name.startswith("on")]
        assert attrs.get("href", "#").startswith("#")
    assert not re.search(r"https?:|@import|url\((?!#)|//[a-z]+\.", text)
    _, script = read.texts["script"]
    policy = next(attrs["content"] for tag, attrs in read.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    assert "innerHTML" not in script and "prefers-color-scheme: dark" in text


def test_hostile_names_stay_text():
    def made(names):
        rows = [tensor(name, changed=2, l2=0.1, nan_after=1) for name in names]
        rows += [tensor(f"h.0.{name}", layer=0, stack=f"h{name}", module=name, changed=2, l2=0.1) for name in names]
        lists = {"removed": [{"name": name, "dtype": "F32", "shape": [2]} for name in names]}
        result = report(rows, **lists)
        result["base"]["name"], result["edited"]["name"] = names[0], names[1]
        return result

    hostile, harmless = (
        page(made(EVIL)),
        page(made(["abcdefg"[index] * len(printable(name)) for index, name in enumerate(EVIL)])),
    )
    assert [tag for tag, _ in hostile.tags] == [tag for tag, _ in harmless.tags]
    assert [sorted(attrs) for _, attrs in hostile.tags] == [sorted(attrs) for _, attrs in harmless.tags]
    names = [row[0] for row in hostile.data()["rows"]]
    assert names[:5] == EVIL[:5] and names[5] == r"\u2028\x00\x1b[31m\u202e\ud800"
    assert "<" not in hostile.texts["script"][0]
    assert "{{ 7 * 7 }}{% endfor %}" in hostile.texts["code"]
    render(made(EVIL), "html").encode("utf-8")


def test_the_data_of_the_table_is_that_of_the_report():
    made = llama(2)
    read = page(made).data()
    labels = [column[0] for column in read["columns"]]
    assert len(read["rows"]) == len(made["tensors"]) and all(len(row) == len(labels) for row in read["rows"])
    for row, source in zip(read["rows"], made["tensors"], strict=True):
        found = dict(zip(labels, row, strict=True))
        assert found["tensor"] == source["name"] and found["elements"] == source["numel"]
        assert found["relative change"] == pytest.approx(source["rel_l2"], rel=1e-8)
        expected = source["crossed_int4"] / source["changed"] if source["changed"] else None
        assert found["survive 4 bit"] == (None if expected is None else pytest.approx(expected, rel=1e-8))
    assert "spectral norm" not in labels
    made["tensors"][1]["spectral"] = {"norm": 2.0, "stable_rank": 3.0, "energy": {"4": 0.5}, "method": "gram"}
    read = page(made).data()
    assert read["columns"][-3][0] == "spectral norm" and read["rows"][1][-3:] == [2.0, 3.0, 0.5]
    assert read["rows"][0][-3:] == [None, None, None]


def test_cells_tell_unchanged_missing_undefined_small_and_large_apart():
    made = layered(
        (0, "a", {}),
        (1, "a", {"changed": 16, "l2": 0.01, "max_abs": 1.0, "crossed_int4": 0}),  # the smallest relative change
        (2, "a", {"changed": 32, "l2": 1.0, "max_abs": 1.0, "crossed_int4": 16}),  # the largest, by 100
        (0, "b", {"changed": 16, "l2": 0.1, "max_abs": 1.0, "crossed_int4": 4}),  # half way on a log scale
        (1, "b", {"changed": 16, "base_l2": 0, "max_abs": 1.0, "crossed_int4": None}),
    )
    made["layers"] = []  # no rows of whole layers, which would widen the scales
    cells = page(made).cells
    assert cells["model.layers.0, a"] == ["same"] and cells["model.layers.2, b"] == ["missing"]
    last = len(PALETTE) - 1
    assert cells["model.layers.1, a"] == ["a0", "b0", "c0", f"d{last}"]
    assert cells["model.layers.2, a"] == [f"a{last}", f"b{last}", f"c{last}", f"d{last}"]
    assert cells["model.layers.0, b"][0] in ("a5", "a6")
    assert cells["model.layers.1, b"] == ["an", "b0", "cn", f"d{last}"]


def test_scales_are_logarithmic_over_decades_only():
    assert Scale.of([0.1, 1.0]) == (0.1, 1.0, False) and Scale.of([0.01, 1.0]) == (0.01, 1.0, True)
    assert Scale.of([0.0, 0.01, 1.0]) == (0.01, 1.0, True) and Scale.of([0.0, 0.5, 1.0]) == (0.0, 1.0, False)
    log = Scale.of([1e-6, 1e-2])
    assert (
        log.position(1e-4) == pytest.approx(0.5) and log.position(0.0) == 0 and log.value(0.25) == pytest.approx(1e-5)
    )
    assert Scale.of([]).position(0.0) == 1.0


def test_experts_share_a_cell_and_have_a_map_of_their_own():
    rows = [
        tensor(f"h.{layer}.experts.{expert}.w", layer=layer, stack="h", module="experts.w", expert=expert, **measures)
        for layer, expert, measures in (
            (0, 0, {}),
            (0, 1, {"changed": 8, "l2": 0.2, "max_abs": 0.5}),
            (0, 10, {"changed": 4, "l2": 0.3, "max_abs": 0.1}),
            (0, 2, {}),
        )
    ]
    [joined] = layer_maps(report(rows))
    cell = joined.cells["experts.w", 0]
    assert (cell["tensors"], cell["numel"], cell["changed"]) == (4, 128, 12)
    assert (cell["rel_l2"], cell["max_abs"], cell["changed_fraction"]) == (0.03, 0.5, 12 / 128)
    [parts] = part_maps(report(rows))
    assert parts.rows == [0, 1, 2, 10] and parts.title == "h: experts.w by expert"
    assert "(largest of them)" in render(report(rows), "html")


def test_heads_and_several_stacks_have_maps():
    assert [map_.title for map_ in part_maps(llama(2))] == [
        f"model.layers: self_attn.{part}_proj by head" for part in ("q", "k", "v", "o")
    ]
    rows = [
        tensor(f"{stack}.0.fc", layer=0, stack=stack, module="fc", changed=1)
        for stack in ("encoder.layers", "decoder.layers")
    ]
    assert [map_.title for map_ in layer_maps(report(rows))] == ["encoder.layers", "decoder.layers"]
    assert "encoder.layers" in page(report(rows)).texts["figcaption"]


def test_histogram_bars_have_the_shares_of_the_counts():
    drawn = histogram(
        {"log2_edges": [-4, -3, -2, -1, 0], "counts": [0, 30, 10, 0], "zeros": 60, "n": 100, "sampling": "1 row in 16"}
    )
    assert len(drawn["bars"]) == 2 and [tick["text"] for tick in drawn["y"]] == ["0 %", "20 %", "40 %", "60 %", "80 %"]
    first, second = (bar["height"] for bar in drawn["bars"])
    assert first == pytest.approx(drawn["height"] * 0.75 / 0.8, abs=0.01) and second == pytest.approx(
        first / 3, abs=0.01
    )
    assert drawn["bars"][0]["tip"].startswith("2⁻³ to 2⁻² (0.125 to 0.250)\n30 elements, 75.0 %")
    assert (drawn["n"], drawn["changed"], drawn["zeros"]) == ("100", "40", "60")
    assert histogram({"log2_edges": [0, 1], "counts": [0], "zeros": 5, "n": 5, "sampling": "all"}) is None


def test_an_edit_says_what_was_asked_and_what_arrived():
    made = llama(3)
    good = page(made)
    assert "-0.998000" in good.texts["strong"] and "as requested, within 1 %" in good.texts["strong"]
    assert sum(attrs.get("class") == "pair" for _, attrs in good.tags) == 3
    made["edit"] |= {"projection": -0.7}
    bad = page(made)
    assert "off by more than 1 %" in bad.texts["strong"]
    assert any("missed its target" in text for text in bad.texts["p"])
    made["edit"] |= {"alpha": None, "projection": -0.7}
    assert "several" in page(made).texts["dd"]
    assert not any("Requested" in text for text in page(llama(3, edited=False)).texts["h2"])


def test_nan_is_loud():
    read = page(report([tensor("a", changed=1, nan_after=1)]))
    assert [attrs["class"] for _, attrs in read.tags if attrs.get("role") == "alert"] == ["warning"]
    assert not any(attrs.get("role") == "alert" for _, attrs in page(report([tensor("a")])).tags)


def test_nothing_changed_leaves_out_the_charts():
    assert page(report([tensor("a")])).texts["h2"] == ["All tensors"]
    assert "Different structure" in page(report([], added=[{"name": "a", "dtype": "F32", "shape": []}])).texts["h2"]


def test_ten_thousand_tensors_stay_out_of_the_markup():
    rows = [(layer, f"part{part}", {"changed": 1, "l2": 0.1}) for layer in range(100) for part in range(10)]
    lone = [tensor(f"extra{index}", changed=index % 2) for index in range(9000)]
    made = layered(*rows)
    made["tensors"] += lone
    started = time.perf_counter()
    read = page(made)
    assert time.perf_counter() - started < 10
    assert len(read.data()["rows"]) == 10_000 and len(read.tags) < 6_000


def luminance(color):
    channels = [int(color[index : index + 2], 16) / 255 for index in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_the_palette_reads_without_colour_vision():
    values = [luminance(color) for color in PALETTE]
    assert all(lighter > 1.15 * darker for lighter, darker in pairwise(values))


def colors(png):
    image = Image.open(io.BytesIO(png)).convert("RGB")
    return {f"#{bytes(color).hex()}" for _, color in image.getcolors(1 << 24)}, image.size


@pytest.mark.filterwarnings("error")
def test_the_picture_shows_the_ends_of_the_scale_and_is_reproducible():
    made = layered(
        (0, "a", {}), (1, "a", {"changed": 16, "l2": 0.01}), (2, "a", {"changed": 32, "l2": 1.0}), (0, "b", {})
    )
    png = to_png(made)
    found, (width, height) = colors(png)
    assert {PALETTE[0], PALETTE[-1]} <= found and width > 900 and height > 250
    assert png == to_png(made)
    plain, _ = colors(to_png(layered((0, "a", {}), (1, "a", {}))))
    assert not set(PALETTE) & plain


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "made",
    [
        report([]),
        report([tensor("w")]),
        report([tensor(name, changed=1, l2=0.1) for name in EVIL]),
        layered(*((0, name, {"changed": 1, "l2": 0.1}) for name in EVIL)),
        layered((0, "a", {"changed": 1, "base_l2": 0})),
        report([tensor(f"s{stack}.layers.{i}.w", layer=i, stack=f"s{stack}.layers", module="w") for stack in range(9) for i in range(3)]),
        report([tensor("i", dtype="I64", changed=1)]),
    ],
)  # fmt: skip
def test_odd_reports_have_a_picture(made):
    assert Image.open(io.BytesIO(to_png(made))).format == "PNG"


def test_the_picture_leaves_matplotlib_as_it_was():
    import matplotlib

    before = dict(matplotlib.rcParams)
    to_png(report([tensor("w", changed=1, l2=0.1)]))
    assert dict(matplotlib.rcParams) == before
