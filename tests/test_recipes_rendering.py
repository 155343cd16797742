"""The page and the table of a run: what they show, and that nothing of it can do harm."""

import base64
import json
import re

import pytest
from run_reports import PIXEL, call, step, two_methods, value, written

from editkit.recipes.rendering.graph import graph
from editkit.recipes.rendering.page import to_html, write_page
from editkit.recipes.rendering.results import results
from editkit.recipes.rendering.table import to_table
from editkit.recipes.rendering.wording import header, number, settled, spreads


@pytest.fixture
def folder(tmp_path):
    return written(two_methods(), tmp_path)


def text_of(page):
    """What a reader sees of a page, without its table of all calls."""
    shown = re.sub(r"<(script|style).*?</\1>", "", page, flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]+>", " ", shown).split())


def test_the_page_has_the_table_with_its_spread_and_n(folder):
    said = text_of(to_html(two_methods(), folder))
    assert "0.240 ± 0.028" in said and "0.500 ± 0.141" in said and "survives 1, recovers 1" in said
    assert "±: standard deviation over seed, n = 2." in said
    assert "4 bit: unknown: edited (method me+gd, seed 1) has no result" in said


def test_the_page_says_what_the_recipe_is_and_how_it_went(folder):
    said = text_of(to_html(two_methods(), folder))
    assert "What forget, in two ways Paper arXiv 2410.08109" in said
    assert "edited (method me+gd, seed 1): no weight differs from the base" in said and "made again" in said
    assert "9 calls of 3 steps: 1 cached, 6 computed, 1 gate failed, 1 not run, in 1 min 15 s." in said
    assert "given by --set" in said and "spare" not in said.split("All calls")[0]


def test_pages_and_outputs_are_linked_relative_to_the_page(folder):
    links = re.findall(r'href="([^"]+)"', to_html(two_methods(), folder))
    assert "steps/edited-npo%2Bgd-0/edited/unlearning/report.html" in links
    assert "steps/people-all/people" in links and not any(link.startswith(("/", "http", "file")) for link in links)


def test_pictures_are_in_the_page_once_for_every_row_of_the_table(folder):
    page = to_html(two_methods(), folder)
    sources = re.findall(r'<img src="data:image/png;base64,([^"]+)" alt="([^"]+)"', page)
    assert [alt for _, alt in sources] == [
        "edited (method npo+gd, seed 0): curves",
        "edited (method me+gd, seed 0): curves",
    ]
    assert all(base64.b64decode(source) == PIXEL for source, _ in sources)
    assert "1 more is linked in the list of steps" in text_of(page)
    assert "img-src data:" in page and "default-src 'none'" in page


def test_a_picture_that_is_gone_is_left_out(tmp_path):
    assert "<img" not in to_html(two_methods(), tmp_path)


def test_names_of_strangers_stay_text(folder):
    run = two_methods(failures=["<script>alert(1)</script>\x1b[2J"])
    run["recipe"]["text"] = "# </pre><script>alert(2)</script>\n"
    run["calls"][1]["summary"] = "</script><script>alert(3)</script>"
    page = to_html(run, folder)
    assert page.count("<script") == 2 and "alert(1)</script>" not in page and "\x1b" not in page
    rows = json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])["rows"]
    assert any("alert(3)" in str(cell) for cell in rows[1])


def test_the_page_replaces_an_earlier_one_and_leaves_nothing_else(tmp_path):
    for _ in range(2):
        write_page(two_methods(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert (tmp_path / "report.html").read_text("utf-8") == to_html(two_methods(), tmp_path)


def test_the_pictures_of_a_column_share_its_scale():
    # forget MA goes from 0.22 to 0.5 + 0.1414; the picture has 5 pixels to spare on both sides of 102
    first, second = [row["values"][0]["picture"] for row in results(two_methods()["table"])["rows"]]
    span = 0.6414 - 0.2117
    assert first["at"] == pytest.approx(5 + 102 * (0.24 - 0.2117) / span, abs=0.06)
    assert first["ends"][0] == 5 and second["ends"][1] == 107
    assert second["each"] == pytest.approx([5 + 102 * (one - 0.2117) / span for one in (0.4, 0.6)], abs=0.06)


def test_a_spread_over_examples_is_written_and_not_drawn():
    one, other = (value(mean, sd=0.3, n=200, of="examples") for mean in (0.2, 0.4))
    table = {"over": [], "variables": ["method"], "columns": ["MA"]}
    table["rows"] = [{"cell": {"method": name}, "values": {"MA": it}} for name, it in (("a", one), ("b", other))]
    found = results(table)
    assert [row["values"][0]["picture"]["at"] for row in found["rows"]] == [5, 107]
    assert (
        found["rows"][0]["values"][0]["picture"]["ends"] is None
        and found["rows"][0]["values"][0]["text"] == "0.200 ± 0.300"
    )
    assert found["spreads"] == "±: standard deviation over examples, n = 200."


def test_columns_with_other_spreads_are_told_apart():
    table = two_methods()["table"]
    table["rows"][0]["values"]["4 bit"] = value(0.5, sd=0.1, n=200, of="examples")
    table["rows"][1]["values"]["4 bit"] = value(0.5, sd=0.1, n=100, of="examples")
    said = "±: standard deviation over seed, n = 2 (forget MA); ±: standard deviation over examples, n = 100 to 200 (4 bit)."
    assert spreads(table) == said
    for row in table["rows"]:
        row["values"]["4 bit"]["sd"] = None
    assert spreads(table).endswith("n = 2 (forget MA); mean over examples, n = 100 to 200 (4 bit).")


@pytest.mark.parametrize(
    "value, text",
    [
        (0.0004, "0.000400"),
        (99.94, "99.9"),
        (9.9, "9.900"),
        (-2.125, "-2.125"),
        (1234.5, "1,234"),
        (0.0, "0.000"),
        (-0.5, "-0.500"),
        (False, "no"),
        (12345, "12,345"),
    ],
)
def test_numbers_have_the_digits_that_say_something(value, text):
    assert number(value) == text


def test_the_steps_stand_behind_what_they_need():
    found = graph(two_methods())
    spots = {box["name"]: (box["x"], box["y"]) for box in found["boxes"]}
    assert spots == {"people": (0, 0), "edited": (226, 0), "scored": (452, 0)}
    assert len(found["lines"]) == 2, "people reaches scored through edited"
    assert [box["kind"] for box in found["boxes"]] == ["", "bad", "bad"]


def test_steps_beside_each_other_share_the_height():
    steps = [step("a", "invent"), step("b", "diff", ["a"]), step("c", "diff", ["a"])]
    calls = [call(name, "diff") for name in "abc"]
    found = graph(two_methods(steps=steps, calls=calls))
    assert {box["name"]: box["y"] for box in found["boxes"]} == {"a": 40, "b": 0, "c": 80} and found["height"] == 142


def test_one_step_has_no_graph(tmp_path):
    alone = two_methods(
        steps=[step("seen", "inspect")], calls=[call("seen", "inspect", output=None)], table=None, matrix={}
    )
    assert graph(alone) is None
    assert "1 call of 1 step: 1 computed" in text_of(to_html(alone, tmp_path))


def test_a_header_without_labels_is_one_text():
    assert header("Forget:it\nand keep the rest") == [("", "Forget:it and keep the rest")]


def test_the_table_for_the_terminal_has_the_same_numbers():
    said = to_table(two_methods())
    assert said.startswith("Two methods\n") and "0.240 ± 0.028" in said and "over seed, n = 2" in said
    assert said.splitlines()[-1].startswith("9 calls of 3 steps")
    assert "\x1b" not in said and "\x1b" in to_table(two_methods(), color=True)


def test_a_dry_run_shows_the_plan():
    run = two_methods(dry_run=True, table=None, seconds=0.1)
    for one in run["calls"][1:]:
        one |= {"state": "would run", "why": None}
    run["calls"][1]["why"] = "the output is damaged"
    said = to_table(run)
    assert re.search(
        r"edited \(method npo\+gd, seed 0\) +unlearn +would run +abababababab +the output is damaged", said
    )
    assert said.splitlines()[-1] == "9 calls of 3 steps: 1 cached, 8 would run; nothing was run."


def test_a_failed_call_says_why_in_its_line():
    one = call("edited", "unlearn", {"seed": 0}, state="failed", why="the loss is not a number")
    assert settled(one) == "edited (seed 0): failed; the loss is not a number"
