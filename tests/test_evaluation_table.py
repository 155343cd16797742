"""What eval prints of handmade reports: its headline, its table and the key of its names."""

import math
import re

import numpy as np
import pytest
from evaluation_reports import MODELS, ROWS, hostile, mean, report, result, rows, several
from rich.cells import cell_len
from test_diffing_page import EVIL

from editkit.evaluation.rendering import to_table
from editkit.evaluation.rendering.wording import headline, verdict


def test_the_headline_says_from_where_to_where_and_where_the_reference_is():
    values = {("base", "forget"): 0.99, ("full", "forget"): 0.24, ("retain", "forget"): 0.251}
    values |= {("base", "retain"): 0.98, ("full", "retain"): 0.97, ("retain", "retain"): 0.975}
    found = [result(model, name, "general/token_accuracy@1", value, n=40) for (model, name), value in values.items()]
    assert headline(report(ROWS, results=found)) == (
        "3 models on 4 sets, 120 examples. Token accuracy: forget 0.990 → 0.240 (reference 0.251); retain 0.980 → 0.970 "
        "(reference 0.975)."
    )
    single = {"full": "model"}
    assert headline(report(ROWS, single, results=found[1:2])).endswith("Token accuracy: forget 0.240.")
    two = {"full": "model", "base": "model"}
    assert headline(report(ROWS, two, results=found[:2])).endswith("Token accuracy: forget 0.990 base, 0.240 full.")
    assert headline(report(ROWS, results=[])) == "3 models on 4 sets, 120 examples."


def test_every_result_is_in_the_table_with_its_interval_and_n():
    text = to_table(report(ROWS))
    lines_of = [line.split() for line in text.splitlines()]
    assert "Forget quality, p-value 0.310 1.83e-21 1.000".split() in lines_of
    assert "KS statistic 0.200 0.397 0.000".split() in lines_of
    assert "Model utility 0.586 ± 0.040 0.486 ± 0.040 0.386 ± 0.040".split() in lines_of
    assert "Perplexity 1,234 ± 151 1,236 ± 151 1,236 ± 151".split() in lines_of  # 1234.5 rounds to even
    assert "Retention success, % 97.2 ± 1.5 97.2 ± 1.5 97.2 ± 1.5".split() in lines_of
    assert "TOFU · forget, n = 40" in text and "TOFU · over the sets, n = 80" in text
    assert "skipped: give --embedding-model: Cosine similarity (forget)" in text
    assert not any(line[:1] == ["Cosine"] for line in lines_of)  # no line without a value
    assert "By bucket: 3 more lines" in text
    accuracy = [row["token_accuracy"] for row in ROWS if (row["model"], row["set"]) == ("full", "forget")]
    half = 1.96 * np.std(accuracy, ddof=1) / math.sqrt(40)
    [line] = [
        line
        for line in text.split("General · forget")[1].split("General")[0].splitlines()
        if line.startswith("Token accuracy")
    ]
    assert f"{np.mean(accuracy):.3f} ± {half:.3f}" in line


def test_numbers_of_examples_that_differ_are_said_line_by_line():
    found = [
        result("base", "forget", "memorization/ma@1", 0.5, n=38),
        result("full", "forget", "memorization/ma@1", 0.5, n=40),
    ]
    found.append(result("full", "forget", "general/token_accuracy@1", 0.5, n=40))
    text = to_table(report(ROWS, results=found))
    assert "MA (n = 38–40)" in text and "General · forget, n = 40" in text


def test_the_tail_of_memorization_is_in_the_table():
    text = to_table(report(ROWS, results=[mean("full", "forget", "memorization/ma@1", [0.25] * 39 + [1.0])]))
    assert re.search(r"p95 / max +– +0\.250 / 1\.000 +–", text)


def test_what_is_only_yes_or_no_has_no_tail():
    metric = {
        "id": "memorization/forgotten@1",
        "label": "Forgotten",
        "unit": "",
        "better": None,
        "meaning": "",
        "source": "",
    }
    found = [mean("full", "forget", metric["id"], [0.0] * 39 + [1.0])]
    text = to_table(report(ROWS, results=found, metrics=[metric]))
    assert "Forgotten" in text and "p95" not in text


def test_names_of_metrics_are_cut_only_where_there_is_no_room(monkeypatch):
    made = report(ROWS, results=[mean(model, "forget", "exposure/gen_exposure@1", [0.5, 1.0]) for model in MODELS])
    assert "Generalized exposure, nats/token" in to_table(made)
    monkeypatch.setenv("COLUMNS", "75")
    assert "Generalized exp…, nats/token" in re.sub(r"\x1b\[[\d;]*m", "", to_table(made, color=True))


@pytest.mark.parametrize(
    ("word", "start"),
    [
        ("in-distribution", "By difficulty the forget set cannot be told from never-seen text"),
        ("out-of-distribution", "By difficulty the forget set can be told from never-seen text"),
        ("unclear", "Whether the forget set can be told from never-seen text by difficulty is open"),
    ],
)
def test_the_verdict_on_difficulty_says_what_was_compared_with_its_n(word, start):
    found = {
        "verdict": word,
        "auc": 0.5444,
        "ci_low": 0.4521,
        "ci_high": 0.6361,
        "n": 64,
        "controls": 1096,
        "text": "so be it",
    }
    assert verdict({"distribution": found}) == (
        f"{start} (AUC 0.544 [0.452, 0.636], 95 % interval, {word}, n = 64 forget and 1,096 never-seen examples): so be it."
    )
    assert verdict({"distribution": None}) == ""


@pytest.mark.parametrize("n", [1, 3, 6, 9, 30])
def test_the_table_fits(n, monkeypatch):
    models = several(n) if n > 1 else {"full": "model"}
    some = rows(models)
    made = report(some, models)
    plain = to_table(made)

    def widths(text, first="TOFU · forget"):
        start = text.index(first)
        return [cell_len(line) for line in text[start:].split("±: half")[0].splitlines()]

    assert max(widths(plain)) <= 100
    assert n > 6 or plain.count("Model utility") == 1  # one table, where the intervals fit below
    monkeypatch.setenv("COLUMNS", "80")
    narrow = re.sub(r"\x1b\[[\d;]*m", "", to_table(made, color=True))
    assert max(widths(narrow)) <= 80
    assert all(f"{one['value']:.3f}" in narrow for one in made["results"] if one["metric"] == "tofu/model_utility@1")
    if n == 3:
        assert "edited-0" in plain and "A:" not in plain and plain.count("\n± ") == 0


def test_long_names_become_letters_with_a_key():
    models = {"runs/2026-11-21/checkpoint-alpha-1.0": "model", "retain": "reference"}
    text = to_table(report(rows(models), models))
    assert "A: runs/2026-11-21/checkpoint-alpha-1.0, B: retain" in text
    assert re.search(r"^ +A +B$", text, re.MULTILINE)


def test_the_table_is_plain_text_and_coloured_on_request_only():
    made = report(ROWS, warnings=["12 examples are in both sets."])
    assert "\x1b" not in to_table(made) and "\x1b[" in to_table(made, color=True)
    assert "12 examples are in both sets." not in to_table(made)  # the command says warnings on stderr
    assert not re.search(r"[\x00-\x09\x0b-\x1f\u202e]", to_table(hostile(EVIL)[0]))
