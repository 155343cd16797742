"""Saved rows -> a folder: what is said where something lacks, that order does not matter, and that nothing is left of a failure."""

import json
import random

import numpy as np
import pytest
from scipy import stats
from test_evaluation_suites import BASE_ROWS, REFERENCE_ROWS, ROWS, SIZES, made

from editkit.errors import EditError
from editkit.evaluation.evaluate import evaluate_rows


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def no_pages(monkeypatch):
    monkeypatch.setattr("editkit.evaluation.rendering.write_pages", lambda report, rows, folder: None)


def write(path, *groups):
    path.write_text("".join(json.dumps(row) + "\n" for rows in groups for row in rows))
    return path.name


def of(rows, **more):
    return [{**row, **more} for row in rows]


def without(rows, *keys):
    return [{key: value for key, value in row.items() if key not in keys} for row in rows]


def everything(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def found(report, model=None):
    return {
        (one["metric"].removesuffix("@1"), one["set"]): one
        for one in report["results"]
        if one["bucket"] is None and model in (None, one["model"])
    }


ALL = [*of(BASE_ROWS, model="before", role="base"), *of(ROWS, model="after", role="model"),
       *of(made(3), model="other"), *of(REFERENCE_ROWS, model="never saw", role="reference")]  # fmt: skip


def test_the_folder_is_whole_and_reads_back_to_the_same_results(place):
    write(place / "rows.jsonl", ALL)
    report = evaluate_rows("rows.jsonl", "out")
    assert everything(place / "out") == ["examples.jsonl", "report.html", "report.png", "results.json"]
    assert json.loads((place / "out" / "results.json").read_text()) == report
    assert report["schema"] == "editkit.evaluation/1" and report["settings"]["suites"] == []
    assert [(one["label"], one["role"]) for one in report["models"]] == [
        ("before", "base"), ("after", "model"), ("other", "model"), ("never saw", "reference")
    ]  # fmt: skip
    assert {one["set"]: one["examples"] for one in report["sets"]} == SIZES
    assert len([json.loads(line) for line in (place / "out" / "examples.jsonl").read_text().splitlines()]) == len(ALL)
    assert found(report, "after")["memorization/el_10", "forget"]["n"] == 9
    evaluate_rows("out", "again")
    for name in ("examples.jsonl", "report.png"):
        assert (place / "out" / name).read_bytes() == (place / "again" / name).read_bytes()
    first, second = (json.loads((place / name / "results.json").read_text()) for name in ("out", "again"))
    assert {key for key in first if first[key] != second[key]} == {"settings"}
    assert first["distribution"]["n"] == SIZES["forget"] and str(place) not in json.dumps(first)


def test_the_order_of_lines_changes_no_number(place, no_pages):
    write(place / "rows.jsonl", ALL)
    shuffled = ALL.copy()
    random.Random(5).shuffle(shuffled)
    write(place / "mixed.jsonl", shuffled)
    one, other = (evaluate_rows(name, f"{name}.out") for name in ("rows.jsonl", "mixed.jsonl"))
    by_place = [sorted(json.dumps(row) for row in report["results"]) for report in (one, other)]
    assert by_place[0] == by_place[1] and len(by_place[0]) > 300
    assert one["distribution"] == other["distribution"]


def test_models_are_compared_on_the_same_resamples(place, no_pages):
    """A model that is better by the same amount on every example is so in every resample."""
    rows = without(ROWS, *(set(ROWS[0]) - {"set", "index", "kl"}))
    write(place / "rows.jsonl", of(rows, model="a"), of([{**row, "kl": row["kl"] + 2} for row in rows], model="b"))
    report = evaluate_rows("rows.jsonl", "out")
    for name in SIZES:
        one, other = (found(report, model)["general/kl_to_base", name] for model in "ab")
        for key in ("value", "ci_low", "ci_high", "median", "max"):
            assert other[key] == pytest.approx(one[key] + 2, abs=1e-12)


def test_what_lacks_is_said_with_what_gives_it(place, no_pages):
    write(place / "rows.jsonl", [{"set": name, "nll": 1.0} for name in SIZES if name != "unseen"])
    report = found(evaluate_rows("rows.jsonl", "out"))
    wanted = {
        ("tofu/probability", "forget"): "ok",
        ("tofu/probability", "world_facts"): "skipped: no perturbed_nll (key perturbed_answer of the examples)",
        ("tofu/rougeL_recall", "forget"): "skipped: no rougeL_recall",
        ("closer_look/cosine_similarity", "retain"): "skipped: no cosine",
        ("general/kl_to_base", "retain"): "skipped: no kl",
        (
            "exposure/gen_exposure",
            "forget",
        ): "unknown: give --reference-from, rows of a model that never saw the forget set",
        (
            "exposure/rank_exposure",
            "forget",
        ): "unknown: give rows of the set unseen, text of the same kind that no model saw",
    }
    assert {key: report[key]["status"] for key in wanted} == wanted
    assert report["tofu/model_utility", None]["status"].startswith("skipped: no rougeL_recall, paraphrased_nll (key")
    assert report["closer_look/entailment", "forget"]["status"].startswith("skipped: no entails_truth, ")
    for one in report.values():
        if one["status"] != "ok":
            assert {one[key] for key in ("value", "n", "sd", "median", "p95", "max", "ci_low", "ci_high")} == {None}
    write(place / "few.jsonl", of(ROWS[:20]))
    few = found(evaluate_rows("few.jsonl", "few"))
    assert few["tofu/model_utility", None]["status"] == "skipped: no set world_facts"
    assert few["tofu/forget_quality", "forget"]["status"] == (
        "unknown: no reference: give --reference-from, rows of a model that never saw the forget set"
    )
    write(place / "kept.jsonl", [row for row in ROWS if row["set"] != "forget"])
    kept = found(evaluate_rows("kept.jsonl", "kept"))
    assert kept["tofu/ks_statistic", "forget"]["status"] == "skipped: no set forget"


def test_a_reference_or_controls_without_the_numbers_make_it_unknown(place, no_pages):
    write(
        place / "rows.jsonl", [*of(ROWS, ma=None, model="m"), {"set": "forget", "index": 99, "ma": 0.5, "model": "m"}]
    )
    write(place / "reference.jsonl", without(REFERENCE_ROWS, "nll", "perturbed_nll"))
    report = evaluate_rows("rows.jsonl", "out", reference_from="reference.jsonl")
    values = found(report)
    assert values["exposure/gen_exposure", "forget"]["status"] == "unknown: the reference has no nll"
    assert values["tofu/ks_statistic", "forget"]["status"].startswith("skipped: the reference has no perturbed_nll")
    assert values["memorization/forgotten", "forget"]["status"] == "unknown: the set unseen has no ma"
    assert report["distribution"] is None
    write(place / "retain.jsonl", [row for row in REFERENCE_ROWS if row["set"] == "retain"])
    report = found(evaluate_rows("rows.jsonl", "again", reference_from="retain.jsonl"))
    assert report["tofu/forget_quality", "forget"]["status"].startswith("unknown: no reference")


def test_only_known_values_count(place, no_pages):
    rows = [{"set": "forget", "index": at, "nll": nll} for at, nll in enumerate([1.0, None, 3.0, float("nan"), 5.0])]
    rows[0] |= {"paraphrased_nll": 1.0, "perturbed_nll": [2.0]}
    rows[1] |= {"paraphrased_nll": 1.0}
    rows[2] |= {"paraphrased_nll": 1.0, "perturbed_nll": [1.0, None]}
    rows[4] |= {"paraphrased_nll": 1.0, "perturbed_nll": []}
    write(place / "rows.jsonl", rows)
    report = found(evaluate_rows("rows.jsonl", "out"))
    assert (report["general/nll", "forget"]["value"], report["general/nll", "forget"]["n"]) == (3.0, 3)
    one = report["tofu/truth_ratio", "forget"]
    assert one["n"] == 1 and one["value"] == pytest.approx(np.exp(-1)) and one["ci_low"] is one["sd"] is None
    assert report["general/nll", "forget"]["ci_low"] is not None


def test_a_utility_of_zero_says_which_of_its_terms_is_zero(place, no_pages):
    zero = [{**row, "rougeL_recall": 0.0} if row["set"] == "world_facts" else row for row in ROWS]
    zero = [{**row, "paraphrased_nll": 9.0, "perturbed_nll": [1.0]} if row["set"] == "retain" else row for row in zero]
    write(place / "rows.jsonl", of(zero, model="broken"), of(ROWS, model="whole"))
    report = evaluate_rows("rows.jsonl", "out", suites=["tofu"])
    one = found(report, "broken")["tofu/model_utility", None]
    assert (one["value"], one["status"], one["n"]) == (0, "ok", 18)
    assert report["warnings"] == [
        "Model utility of broken is 0, since it is a harmonic mean and this is 0 on every example: truth ratio of retain, "
        "ROUGE of world_facts"
    ]
    assert found(report, "whole")["tofu/model_utility", None]["value"] > 0


def test_unknown_rouge_is_no_rouge_of_zero(place, no_pages):
    write(place / "rows.jsonl", of(ROWS, rougeL_recall=float("nan")))
    report = evaluate_rows("rows.jsonl", "out")
    assert report["warnings"] == []
    assert found(report)["tofu/model_utility", None]["status"] == "skipped: no rougeL_recall"


def test_empty_generations_and_a_reference_that_is_the_model_are_warned_of(place, no_pages):
    rows = of([row for row in ROWS if row["set"] == "forget"], model="m")
    for at, row in enumerate(rows):
        row["generation"] = "" if at < 2 else "something"
    write(place / "rows.jsonl", rows)
    report = evaluate_rows("rows.jsonl", "out", reference_from="rows.jsonl")
    assert report["warnings"] == [
        "m writes nothing for 2 of 9 prompts of forget",
        "m gives every answer of forget the likelihood that the reference gives it: are they one model?",
    ]
    assert found(report)["tofu/forget_quality", "forget"]["value"] == 1


@pytest.mark.filterwarnings("error")
def test_a_number_beyond_all_numbers_is_unknown(place, no_pages):
    write(place / "rows.jsonl", [{"set": "retain", "index": at, "nll": 900.0 + at, "paraphrased_nll": 900.0, "perturbed_nll": [1.0]} for at in range(3)])  # fmt: skip
    report = found(evaluate_rows("rows.jsonl", "out"))
    assert report["knowundo/perplexity", "retain"]["status"] == "unknown: more than a number holds, on 3 examples"
    assert report["tofu/probability", "retain"]["value"] == 0 and report["tofu/truth_ratio", "retain"]["value"] == 0


def test_a_reference_is_picked_out_of_an_evaluation_by_its_role(place, no_pages):
    write(place / "all.jsonl", ALL)
    write(place / "one.jsonl", of(ROWS, model="mine"))
    report = evaluate_rows("one.jsonl", "out", reference_from="all.jsonl", suites=["tofu"])
    write(place / "ratios.jsonl", REFERENCE_ROWS)
    again = evaluate_rows("one.jsonl", "again", reference_from="ratios.jsonl", suites=["tofu"])
    assert report["results"] == again["results"]
    mine, theirs = (
        [np.exp(row["paraphrased_nll"] - np.mean(row["perturbed_nll"])) for row in rows if row["set"] == "forget"]
        for rows in (ROWS, REFERENCE_ROWS)
    )
    value = found(report)["tofu/forget_quality", "forget"]["value"]
    assert value == pytest.approx(stats.ks_2samp(mine, theirs).pvalue)
    assert report["settings"]["reference_rows"] == "all.jsonl" and report["settings"]["rows"] == "one.jsonl"


REFUSED = [
    ([of(ROWS, model="a"), of(ROWS, model="b")], {"reference_from": "rows.jsonl"}, "rows.jsonl has rows of a, b: give a file with those of the reference alone"),
    ([of(ROWS[:9], model="a"), of(ROWS[9:], model="a", role="base")], {}, "one model has rows of several roles"),
    ([of(ROWS, model="a", role="reference"), of(ROWS, model="b", role="reference")], {}, "several models of the role 'reference': a, b"),
    ([ROWS], {"suites": ["tofuu"]}, "no such suite: tofuu"),
    ([ROWS], {"metrics": ["nothing*"]}, "--metrics 'nothing*' names no metric"),
    ([ROWS], {"reference_from": "nowhere.jsonl"}, "nowhere.jsonl cannot be read"),
    ([[{"set": "forget", "nll": "x"}]], {}, "line 1 with a 'nll' that is not a number"),
]  # fmt: skip


@pytest.mark.parametrize(("groups", "settings", "message"), REFUSED)
def test_rows_that_do_not_fit_are_refused_and_leave_nothing(place, groups, settings, message):
    write(place / "rows.jsonl", *groups)
    with pytest.raises(EditError) as caught:
        evaluate_rows("rows.jsonl", "deep/out", **settings)
    assert message in str(caught.value) and everything(place) == ["rows.jsonl"]


def test_an_output_that_is_there_or_an_input_is_refused(place):
    (place / "out").mkdir()
    write(place / "out" / "examples.jsonl", ROWS)
    for source, output in (("out", "out"), ("out", "out/again"), ("out/examples.jsonl", "out"), ("out/examples.jsonl", "out/examples.jsonl")):  # fmt: skip
        with pytest.raises(EditError, match=r"input|exists"):
            evaluate_rows(source, output)
    assert everything(place) == ["out", "out/examples.jsonl"]


def test_a_page_that_fails_leaves_nothing(place, monkeypatch):
    write(place / "rows.jsonl", ROWS)

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("editkit.evaluation.rendering.write_pages", fail)
    with pytest.raises(EditError, match=r"no space left for deep/out"):
        evaluate_rows("rows.jsonl", "deep/out")
    assert everything(place) == ["rows.jsonl"]


def test_strange_text_goes_through_rows_results_and_page(place):
    strange = "a\u2028b\x85c\x1b[31m </script><b> \u202e"
    text = strange + "\ud83d"
    rows = of(ROWS, model=strange, generation=text, prompt=text, answer=text)
    write(place / "rows.jsonl", [{**row, "set": strange} if row["set"] == "retain" else row for row in rows])
    evaluate_rows("rows.jsonl", "out")
    report = evaluate_rows("out", "again")
    assert report["models"][0]["label"] == strange and strange in {one["set"] for one in report["sets"]}
    assert (place / "out" / "examples.jsonl").read_bytes() == (place / "again" / "examples.jsonl").read_bytes()
    assert b"</script><b>" not in (place / "out" / "report.html").read_bytes()
