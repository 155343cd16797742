"""Table, page and picture of attacks: what they say, what they must not say, and strangers' names."""

import copy
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from editkit.attacks.membership import infer
from editkit.attacks.rendering import to_table, wording
from editkit.attacks.rendering.html import to_html
from editkit.attacks.rendering.picture import to_png
from editkit.attacks.verdict import NO_BASE, NO_REFERENCE, NOTHING_LOST


def about(value, n=40):
    return {"value": value, "n": n, "sd": 0.1, "ci_low": value - 0.03, "ci_high": value + 0.03}


def verdict(name, kind, label, after, said, **more):
    found = {
        "attack": name, "kind": kind, "label": label, "metric": "token_accuracy", "set": "forget", "n": 40, "verdict": said,
        "edited_before": about(0.41), "edited_after": about(after), "original_before": about(0.93), "original_after": about(0.87),
        "control_before": about(0.22), "control_after": about(0.24), "recovered": about(0.123), "excess": about(0.045), "judged": about(0.0867),
    }  # fmt: skip
    return found | more


def curve(name, label, **more):
    steps = [0, 1, 2, 4]
    points = {
        side: [{"step": step, "token_accuracy": about(low + step / 10), "nll": about(2.0)} for step in steps]
        for side, low in (("edited", 0.4), ("control", 0.2))
    }
    found = {
        "attack": name, "label": label, "trained_on": "forget", "examples": 12, "held_out": 28, "points": points,
        "original": about(0.93), "steps_to_recover": 4, "apart_at": None,
    }  # fmt: skip
    return found | more


def scored(shift):
    draws = np.random.default_rng(0)

    def rows(n, by):
        return [
            {"nll": 1 - by + draws.normal(), "num_tokens": 9, "zlib_bytes": 30, "min_k": by + draws.normal(), "min_k_plus_plus": by + draws.normal()}
            for _ in range(n)
        ]  # fmt: skip

    return {"model": {"forget": rows(40, shift), "unseen": rows(50, 0)}, "reference": {"forget": rows(40, 0), "unseen": rows(50, 0)}}  # fmt: skip


REPORT = {
    "schema": "editkit.attack/1",
    "editkit": "0.1.0",
    "models": [
        {"role": "model", "name": "edited", "adapter": "my-lora", "sha256": {"model.safetensors": "ab" * 32}},
        {"role": "base", "name": "full", "adapter": None, "sha256": {}},
        {"role": "reference", "name": "never", "adapter": None, "sha256": {}},
    ],
    "sets": [{"set": "forget", "name": "forget.jsonl", "sha256": "cd" * 32, "examples": 40}],
    "settings": {"kinds": ["quantize", "relearn"], "steps": 4, "lr": 3.125e-4, "batch_size": 16, "part": 0.3, "seed": 0, "dtype": "float32", "max_examples": None, "max_new_tokens": None, "prompt_template": None, "quantized": 4349952},
    "attacks": [
        {"attack": "int4", "kind": "quantize", "label": "4 bit, per row", "status": "ok"},
        {"attack": "paraphrased", "kind": "paraphrase", "label": "asked in other words", "status": "skipped: 0 of 40 examples have the key"},
    ],
    "results": [{"attack": "int4", "step": None, "role": "model", "set": "forget", "metric": "nll", **about(1.25)}],
    "curves": [curve("relearn-forget", "relearned on part of forget"), curve("relearn-retain", "relearned on retain", trained_on="retain", steps_to_recover=None, apart_at=2)],
    "membership": infer(scored(1.0)),
    "verdicts": [
        verdict("int4", "quantize", "4 bit, per row", 0.45, "survives"),
        verdict("few-shot", "paraphrase", "after 3 solved examples", 0.2, "unclear: under this attack the original itself shows too little"),
        verdict("relearn-forget", "relearn", "relearned on part of forget", 0.8, "recovers", original_after="skipped: the original is not trained"),
    ],
    "warnings": ["look here"],
}  # fmt: skip

BARE = copy.deepcopy(REPORT)
BARE["models"] = BARE["models"][:1]
BARE["membership"] = infer({"model": scored(0.0)["model"]})
for one in BARE["verdicts"]:
    for key in ("recovered", "judged", "verdict", "original_before", "original_after"):
        one[key] = NO_BASE
    for key in ("excess", "control_before", "control_after"):
        one[key] = NO_REFERENCE
for one in BARE["curves"]:
    del one["points"]["control"]
    one |= {"original": NO_BASE, "steps_to_recover": NO_BASE, "apart_at": NO_REFERENCE}


def table_rows(text, name):
    return re.split(r"\s{2,}", next(line for line in text.splitlines() if line.strip().startswith(name)).strip())


def test_the_table_has_accuracies_before_and_after_what_came_back_and_the_verdict():
    text = to_table(REPORT)
    assert table_rows(text, "4 bit, per row") == [
        "4 bit, per row", "41.0 → 45.0", "22.0 → 24.0", "8.7 ± 3.0", "survives"
    ]  # fmt: skip
    assert "Original, before: 93.0; n = 40 examples." in text
    assert table_rows(text, "after 3")[-1] == "unclear"
    assert "unclear: under this attack the original itself shows too little (after 3 solved examples)" in text
    assert "asked in other words: skipped: 0 of 40 examples have the key" in text
    assert "Back at 90 % of the original after 4 steps." in text
    assert "Never ahead of the control" in text and "Ahead of the control, beyond its lead from before, after 2 steps." in text  # fmt: skip


def test_numbers_of_examples_that_differ_are_said_above_the_table():
    def said(*rows):
        return wording.originals(
            {"verdicts": [{"label": label, "n": n, "original_before": of} for label, n, of in rows]}
        )

    parts = [("relearned", 140, about(0.359)), ("8 bit", 200, about(0.359)), ("4 bit", 200, about(0.359))]
    assert said(*parts) == "Original, before: 35.9; n = 200 examples; n = 140 for relearned."
    assert said(("shots", 139, about(0.4)), *parts) == "Original, before: 35.9; n = 200 examples; n = 140 for relearned; 40.0, n = 139 for shots."  # fmt: skip
    assert said(("8 bit", 1, NO_BASE)) == "Original, before: unknown; n = 1 example."


@pytest.mark.parametrize("color", [False, True])
def test_the_tables_are_80_columns_wide_and_whole(color, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    report = copy.deepcopy(REPORT)
    for one in report["verdicts"]:  # the longest that there can be
        one |= {f"{side}_{when}": about(1.0) for side in ("edited", "control") for when in ("before", "after")}
        one["judged"] = {"value": -1.237, "ci_low": -1.5, "ci_high": -1.0}
    for one in report["membership"]:
        for role in ("base", "reference"):
            one["roles"][role] = one["roles"]["model"]
    text = re.sub(r"\x1b\[[\d;]*m", "", to_table(report, color=color))
    tables = [part for part in text.split("\n\n") if "───" in part]
    assert len(tables) == 2
    assert max(len(line) for part in tables for line in part.splitlines()) <= 80 and "…" not in text
    row = next(line for line in tables[0].splitlines() if line.startswith("4 bit"))
    assert re.split(r"\s{2,}", row) == ["4 bit, per row", "100.0 → 100.0", "100.0 → 100.0", "-123.7 ± 25.0", "survives"]


def test_the_membership_table_has_areas_of_the_models_that_are_there():
    text = to_table(REPORT)
    for one in REPORT["membership"]:
        row = table_rows(text, one["label"])
        found = one["roles"]["model"]["auc"]
        assert row[1] == f"{found['value']:.3f} ± {(found['ci_high'] - found['ci_low']) / 2:.3f}" and row[2] == "–"
        assert row[-1] == one["verdict"]
    assert "FPR, edited" in text and "n = 40 and 50" in text
    below = "An AUC below 0.5: the forget set looks less likely than unseen text. Both sides count."
    assert below in text and below in to_html(REPORT)
    assert "which is at least 0.5 by construction, so that its interval lies above 0.5 by chance alone" in to_html(
        REPORT
    )
    assert table_rows(text, "reference")[3] == "–"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["recovers", "survives"], "1 of 2 attacks brings back more than 10 % of what was forgotten."),
        (["recovers", "recovers"], "2 of 2 attacks bring back more than 10 % of what was forgotten."),
        (["survives", "survives"], "The edit survives all 2 attacks."),
        (["survives"], "The edit survives the attack."),
        (
            ["survives", "unclear: x"],
            "The edit survives 1 of 2 attacks, and none is seen to bring back what was forgotten (1 unclear).",
        ),
        (["unclear", "unclear: x"], "Whether the edit survives is unclear under all 2 attacks."),
        ([NO_BASE] * 5, "Nothing can be judged: give --base, the model before the edit."),
        ([NOTHING_LOST], "Nothing can be judged: the edit took nothing away."),
        (
            ["survives", NO_REFERENCE, NO_REFERENCE],
            "The edit survives the attack. 2 more cannot be judged: give --reference, a model that never saw the forget set.",
        ),
        (
            ["recovers", "survives", NO_REFERENCE],
            "1 of 2 attacks brings back more than 10 % of what was forgotten. 1 more cannot be judged: give --reference, a model that never "
            "saw the forget set.",
        ),
        ([], "Nothing was attacked."),
    ],
)
def test_the_headline_counts_verdicts(words, said):
    assert wording.headline({"verdicts": [{"verdict": word} for word in words], "membership": []}) == said


def test_the_headline_counts_scores_that_leak():
    assert "5 of 5 membership scores tell that it was trained on." in wording.headline(REPORT)
    quiet = {"verdicts": [], "membership": [{"verdict": "survives"}, {"verdict": "unclear"}]}
    assert wording.headline(quiet) == "No membership score tells that it was trained on."
    some = {"verdicts": [], "membership": [{"verdict": "leaks"}, {"verdict": "survives"}, {"verdict": NO_REFERENCE}]}
    assert wording.headline(some) == "1 of 2 membership scores tells that it was trained on."


def test_what_is_unknown_has_no_number_anywhere():
    text = to_table(BARE)
    row = table_rows(text, "4 bit, per row")
    assert row == ["4 bit, per row", "41.0 → 45.0", "unknown", "unknown", "unknown"]
    assert "No attack can be judged: give --base, the model before the edit. 1 of 4 membership scores tells" in text
    assert f"{NO_BASE} (4 bit, per row, after 3 solved examples, relearned on part of forget)" in text
    assert NO_REFERENCE in text and f"Steps to recover: {NO_BASE}." in text
    page = to_html(BARE)
    assert page.count("unknown") > 10 and not re.search(r">\s*(nan|None)\b", page)
    assert to_png(BARE).startswith(b"\x89PNG")


class Reader(HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.tags, self.open, self.texts = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.texts.append(data)


def test_the_page_draws_intervals_where_they_are():
    page = to_html(REPORT)
    tags = Reader(page).tags
    lines = [attributes for tag, attributes in tags if tag == "line" and attributes.get("class") == "whisker"]
    assert {"x1": "79.8", "x2": "91.2"}.items() <= next(
        one for one in lines if one["x2"] == "91.2"
    ).items()  # 0.48 * 190
    bands = [attributes for tag, attributes in tags if tag == "polygon"]
    assert [one["class"] for one in bands] == ["band m0", "band reference"] * 2
    assert page.count('class="verdict recovers"') == 1 and page.count('class="verdict leaks"') == 5


def test_the_page_is_alone_and_says_what_was_attacked():
    page = to_html(REPORT)
    assert not re.search(r"https?://(?!www\.w3\.org)", page) and "default-src 'none'" in page
    text = " ".join(Reader(page).texts)
    for said in (
        "edited+my-lora",
        "full",
        "never",
        "look here",
        "0.0003125",
        "4,349,952",
        "ab" * 32,
        "int4 forget edited nll",
    ):
        assert said in text, said
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1])
    assert [column[0] for column in data["columns"]][-1] == "n" and data["rows"][0][2:] == [1.25, 0.1, 1.22, 1.28, 40]


def test_names_of_strangers_are_text():
    evil = "<script>alert(1)</script>\x1b[2J\u202e"
    report = copy.deepcopy(REPORT)
    report["models"][0]["name"] = report["sets"][0]["name"] = evil
    report["warnings"] = [evil]
    page = to_html(report)
    assert "<script>alert" not in page and "\x1b" not in page and "\u202e" not in page
    assert page.count("<script") == 2
    assert "\x1b" not in to_table(report)
    assert to_png(report).startswith(b"\x89PNG")


def test_the_picture_is_the_same_every_time_and_grows_with_what_there_is():
    from matplotlib.image import imread

    whole = to_png(REPORT)
    assert to_png(REPORT) == whole
    less = to_png({**REPORT, "curves": [], "membership": []})
    assert imread(io.BytesIO(less)).shape[0] < imread(io.BytesIO(whole)).shape[0]
    assert to_png({**REPORT, "verdicts": [], "curves": [], "membership": []}).startswith(b"\x89PNG")
