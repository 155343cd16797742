from itertools import accumulate

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from editkit.errors import EditError
from editkit.masks.budget import Budget, best_units, parse_budget


@pytest.mark.parametrize(
    ("said", "budget"),
    [
        ("5%", Budget(0.05, None)),
        (" 0.1 % ", Budget(0.001, None)),
        ("1e-3%", Budget(1e-5, None)),
        ("4", Budget(None, 4)),
        (7, Budget(None, 7)),
    ],
)
def test_a_percentage_is_a_share_and_a_whole_number_counts_units(said, budget):
    found = parse_budget(said)
    assert found.count == budget.count and found.share == pytest.approx(budget.share)
    assert parse_budget(str(found)).share == pytest.approx(found.share)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("0%", "budget 0% selects nothing: give more than 0% and less than 100%"),
        ("100%", "budget 100% selects everything"),
        ("150%", "selects everything"),
        ("-5%", "selects nothing"),
        ("0", "budget 0 selects nothing: give at least 1"),
        ("-4", "budget -4 selects nothing"),
        ("abc", "budget 'abc' is neither a share such as 5% nor a whole number of units such as 4"),
        ("0.05", "neither a share"),
        ("", "neither a share"),
        ("%", "neither a share"),
        ("five%", "neither a share"),
    ],
)
def test_other_budgets_are_refused_by_name(said, message):
    with pytest.raises(EditError) as caught:
        parse_budget(said)
    assert message in str(caught.value)


@pytest.mark.parametrize("said", ["nan%", "inf%", "-inf%"])
def test_a_share_that_is_no_number_is_refused(said):
    with pytest.raises(EditError):
        parse_budget(said)


def one_by_one(scores, costs, limits, groups, fill):
    """The rule as a loop over single units."""
    chosen = {name: np.zeros(len(values), bool) for name, values in scores.items()}
    for group, limit in limits.items():
        units = [
            (-value, place, name, index, costs[name])
            for place, (name, index, value) in enumerate(
                (name, index, float(value))
                for name in scores
                if groups[name] == group
                for index, value in enumerate(scores[name])
            )
            if value > 0
        ]
        for _, _, name, index, cost in sorted(units):
            if cost > limit:
                if fill:
                    continue
                break
            chosen[name][index] = True
            limit -= cost
    return chosen


@settings(deadline=None)
@given(st.data(), st.booleans())
def test_units_are_taken_by_score_as_long_as_they_fit(data, fill):
    names = [f"t{index}" for index in range(data.draw(st.integers(1, 6)))]
    values = st.sampled_from([-1.0, 0.0, 1e-300, 1.0, 1.5, 2.0, np.nan]) | st.floats(0, 10)
    scores = {name: np.array(data.draw(st.lists(values, min_size=1, max_size=6))) for name in names}
    costs = {name: data.draw(st.integers(1, 20)) for name in names}
    groups = {name: data.draw(st.sampled_from("ab")) for name in names}
    limits = {group: data.draw(st.integers(0, 60)) for group in sorted(set(groups.values()))}
    found = best_units(scores, costs, limits, groups, fill=fill)
    wanted = one_by_one(scores, costs, limits, groups, fill)
    assert all(np.array_equal(found[name], wanted[name]) for name in names)
    for group, limit in limits.items():
        assert sum(costs[name] * int(found[name].sum()) for name in names if groups[name] == group) <= limit


def test_a_large_unit_ends_the_selection_and_is_passed_over_where_the_limit_is_to_be_filled():
    scores = {"norm": np.array([5.0]), "big": np.array([4.0]), "rows": np.array([1.0, 3.0, 2.0])}
    costs, groups = {"norm": 8, "big": 1000, "rows": 40}, dict.fromkeys(scores, "")
    assert [one.tolist() for one in best_units(scores, costs, {"": 100}, groups).values()] == [
        [True],
        [False],
        [False] * 3,
    ]
    filled = best_units(scores, costs, {"": 100}, groups, fill=True)
    assert [one.tolist() for one in filled.values()] == [[True], [False], [False, True, True]]
    assert list(accumulate(costs[name] * int(one.sum()) for name, one in filled.items()))[-1] == 88
