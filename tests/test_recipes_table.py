"""Values of results, and the table of a run."""

import pytest

from editkit.errors import EditError
from editkit.recipes.lookup import lookup, parse
from editkit.recipes.table import tabulate, to_csv

RESULT = {
    "results": [
        {"model": "edited × 0.9", "set": "forget", "metric": "ma@1", "bucket": None, "value": 0.25, "n": 8, "sd": 0.5},
        {"model": "edited × 0.9", "set": "forget", "metric": "ma@1", "bucket": "long", "value": 0.5, "n": 3, "sd": 0.5},
        {"model": "model", "set": "forget", "metric": "ma@1", "bucket": None, "value": 1.0, "n": 8, "sd": 0.0},
    ],
    "report": {"points": [{"alpha": 0.0}, {"alpha": 0.5}], "chosen": 1, "knee": None},
}


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("results[model=edited*, bucket=null].value", 0.25),
        ("results[ model = edited* , bucket = long ].n", 3),
        ("results[value=1].model", "model"),
        ("results[-1].set", "forget"),
        ("report.points[chosen].alpha", 0.5),
        ("report", RESULT["report"]),
    ],
)
def test_a_value_is_looked_up(path, expected):
    assert lookup(RESULT, parse(path)) == expected


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("resluts", "the result has no 'resluts': there is results, report"),
        ("results[model=edited*].value", "results has 2 elements with model=edited*: say which, by bucket"),
        ("results[set=forget, metric=mb].value", "results has nothing with metric=mb: there is metric=ma@1"),
        ("results[3]", "results has 3 elements: there is no [3]"),
        ("report[0]", "report is a mapping and no list: leave the brackets out"),
        ("report.points[knee].alpha", "report.points[knee]: there is no number under 'knee' beside the list, but None"),
        ("report.knee.alpha", "report.knee has no 'alpha': there is unknown (null), without keys"),
    ],
)
def test_what_is_not_there_is_said_with_what_is(path, said):
    with pytest.raises(EditError) as raised:
        lookup(RESULT, parse(path))
    assert str(raised.value) == said


@pytest.mark.parametrize("path", ["", "a[", "a]", "a..b", "[x y]", "a[b=1, c]", "a.[0].b."])
def test_a_path_that_is_none_is_refused(path):
    with pytest.raises(ValueError, match="write"):
        parse(path)


def cells(*values):
    return [({"method": "m", "seed": seed}, {"x": value}) for seed, value in enumerate(values)]


def only(table):
    [row] = table["rows"]
    return row["values"]["x"]


def test_mean_and_spread_are_over_the_cells_and_n_is_their_number():
    found = only(tabulate(cells(1, 2, 6), ["x"], ["method", "seed"], ["seed"]))
    assert (found["value"], found["n"], found["of"], found["each"]) == (3.0, 3, "seed", [1, 2, 6])
    assert found["sd"] == pytest.approx(7**0.5)  # ((-2)^2 + (-1)^2 + 3^2) / 2


def test_without_over_a_summary_keeps_its_own_spread():
    table = tabulate(cells({"value": 0.25, "n": 8, "sd": 0.5, "unit": "nats"}), ["x"], ["method", "seed"], [])
    assert only(table) == {
        "value": 0.25, "sd": 0.5, "n": 8, "of": "examples", "unit": "nats", "status": "ok", "each": [0.25]
    }  # fmt: skip
    assert to_csv(table) == "method,seed,x,x sd,x n,x status\nm,0,0.25,0.5,8,\n"


def test_one_cell_has_no_spread():
    found = only(tabulate(cells(4), ["x"], ["method", "seed"], ["seed"]))
    assert (found["value"], found["sd"], found["n"]) == (4.0, None, 1)


def test_texts_and_truths_are_counted():
    assert only(tabulate(cells("a", "b", "a"), ["x"], ["method", "seed"], ["seed"]))["value"] == "a 2, b 1"
    assert only(tabulate(cells(True, True), ["x"], ["method", "seed"], ["seed"]))["value"] == "yes 2"


def test_the_unknown_stays_unknown_and_is_never_a_number():
    found = only(tabulate(cells(1.0, {"status": "unknown: why"}), ["x"], ["method", "seed"], ["seed"]))
    assert (found["value"], found["sd"], found["n"]) == (None, None, None)
    assert found["status"] == "unknown: why (so in 1 of 2 cells)" and found["each"] == [1.0, None]
    skipped = {"value": None, "n": 0, "status": "skipped: no unseen"}
    assert only(tabulate(cells(skipped), ["x"], ["method", "seed"], []))["status"] == "skipped: no unseen"
    assert only(tabulate(cells(None), ["x"], ["method", "seed"], []))["status"] == "unknown: it has no value"
    assert only(tabulate(cells([1]), ["x"], ["method", "seed"], []))["value"] is None


def test_rows_keep_the_order_of_the_cells():
    rows = [({"a": a, "b": b}, {"x": 10 * a + b}) for a in (2, 1) for b in (0, 1)]
    table = tabulate(rows, ["x"], ["a", "b"], ["a"])
    assert [(row["cell"], row["values"]["x"]["value"]) for row in table["rows"]] == [({"b": 0}, 15.0), ({"b": 1}, 16.0)]
