"""The grammar of --choose, and what it chooses."""

import pytest

from editkit.errors import EditError
from editkit.sweeps.choice import check, choose, closest, parse

POINTS = [
    {"alpha": 0.5, "forgetting": 0.2, "retention": 0.99},
    {"alpha": 1.0, "forgetting": 0.5, "retention": 0.95},
    {"alpha": 1.5, "forgetting": 0.8, "retention": 0.70},
    {"alpha": 2.0, "forgetting": None, "retention": None},
]


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("max forgetting s.t. retention >= 0.95", 1),
        ("max forgetting s.t. retention > 0.95", 0),
        ("max forgetting s.t. retention>=95%", 1),
        ("max forgetting s.t. retention >= 95 % and alpha < 1", 0),
        ("max forgetting", 2),
        ("min forgetting", 0),
        ("max retention s.t. forgetting >= .4", 1),
        ("min alpha s.t. forgetting >= 0.5 and retention <= 0.8", 2),
        ("max forgetting s.t. retention >= 1", None),
        ("max alpha s.t. retention <= 1", 2),  # the last point is unknown, which holds for nothing
    ],
)
def test_rules(text, place):
    assert choose(parse(text), POINTS) == place


@pytest.mark.parametrize(
    "text",
    [
        "",
        "forgetting",
        "most forgetting",
        "max",
        "max forgetting retention",
        "max forgetting s.t.",
        "max forgetting s.t. retention",
        "max forgetting s.t. retention = 0.9",
        "max forgetting s.t. retention >= 0.9 and",
        "max forgetting s.t. retention >= 0.9 or alpha < 1",
        "max forgetting subject to retention >= 0.9",
    ],
)
def test_what_is_no_rule_is_refused_with_the_grammar(text):
    with pytest.raises(EditError) as error:
        parse(text)
    assert "is no rule: write max|min NAME [s.t. NAME >=|<= NUMBER [and ...]]" in str(error.value)


@pytest.mark.parametrize("number", ["much", "nan", "inf", "0,95"])
def test_a_demand_needs_a_number(number):
    with pytest.raises(EditError, match=f"'{number}' is no finite number"):
        parse(f"max forgetting s.t. retention >= {number}")


def test_names_with_dots_and_dashes_are_names():
    rule = parse("min real-authors.nll s.t. retain.token_accuracy >= 0.5")
    assert rule.names == ["real-authors.nll", "retain.token_accuracy"]


def test_unknown_quantities_are_refused_with_those_that_there_are():
    with pytest.raises(EditError, match="does not measure forgeting, utility: there are alpha, forgetting, retention"):
        check(parse("max forgeting s.t. utility >= 1"), {"alpha", "retention", "forgetting"})


def test_of_equal_points_the_smallest_step_is_taken():
    points = [{"alpha": alpha, "forgetting": 1.0} for alpha in (2.0, -0.5, 0.5, 1.0)]
    assert choose(parse("max forgetting"), points) == 1


def test_where_nothing_will_do_the_closest_is_named():
    assert closest(parse("max forgetting s.t. retention >= 0.999"), POINTS) == 0
    # missed by 0.05 + 0.3, 0 + 0.25 and 0.25: the last two miss by as much, and the first of them forgets less
    points = [
        {"alpha": 1.0, "forgetting": 0.5, "retention": 0.9},
        {"alpha": 2.0, "forgetting": 0.8, "retention": 0.7},
        {"alpha": 3.0, "forgetting": 0.55, "retention": 0.95},
    ]
    assert closest(parse("max forgetting s.t. forgetting >= 0.8 and retention >= 0.95"), points) == 1
    assert closest(parse("max forgetting s.t. retention >= 2"), POINTS[3:]) is None
