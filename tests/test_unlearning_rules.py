"""The grammar of --stop, and when a rule holds."""

import pytest

from editkit.errors import EditError
from editkit.unlearning.rules import Term, check, parse, parse_all

START = {"ma(forget)": 1.0, "ma_max(forget)": 1.0, "ppl(retain)": 4.0, "nll(retain)": None, "ma(forget 2)": 0.8}
NOW = {
    "ma(forget)": 0.25,
    "ma_max(forget)": 0.5,
    "ppl(retain)": 5.0,
    "nll(retain)": 1.5,
    "ma(forget 2)": 0.4,
    "ma(retain)": None,
    "ppl(forget)": float("inf"),
    "nll(forget)": float("nan"),
}


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("ma(forget) <= 0.25", True),
        ("ma(forget) < 0.25", False),
        ("ma(forget)<.26", True),
        ("ma(forget) >= 25%", True),
        ("ma(forget) > 25 %", False),
        ("ma(forget) <= level", True),  # the level is 0.25
        ("ma(forget) < level", False),
        ("ma_max(forget) <= level", False),
        ("ppl(retain) >= 1.25x", True),  # 5 = 1.25 * 4
        ("ppl(retain) > 1.25 x", False),
        ("ppl(retain) > 1.2x", True),
        (" ma ( forget   2 )  <=  0.5x ", True),  # 0.4 = 0.5 * 0.8
        ("ma(forget) <= level and ppl(retain) < 1.3x", True),
        ("ma(forget) <= level and ppl(retain) < 1.2x", False),
        ("ma(forget) < level and ppl(retain) < 1.3x", False),
        ("ma(forget) > -1e-3 and ma(forget) < 1 and ma_max(forget) < 1", True),
        ("ppl(forget) > 1e9", True),
        # what is unknown holds for nothing, and so does what has no known start where that matters
        ("ma(retain) <= 1", False),
        ("ma(retain) > 0", False),
        ("ma(unseen) > 0", False),
        ("nll(forget) > 0", False),
        ("nll(forget) <= 0", False),
        ("nll(retain) > 1", True),
        ("nll(retain) > 0.1x", False),
        ("ppl(forget) > 1x", False),
    ],
)
def test_rules(text, holds):
    assert parse(text).holds(NOW, START, level=0.25) is holds


def test_a_rule_is_read_into_its_terms():
    rule = parse("ma_max(forget 1)<=33% and ppl(retain) > 1.2x and ma(forget 1) <= level and ppl(retain) < 9")
    assert rule.terms == (
        Term("ma_max", "forget 1", "<=", 0.33, ""),
        Term("ppl", "retain", ">", 1.2, "x"),
        Term("ma", "forget 1", "<=", 1.0, "level"),
        Term("ppl", "retain", "<", 9.0, ""),
    )
    assert rule.names == ["ma_max(forget 1)", "ppl(retain)", "ma(forget 1)"]
    assert [str(term) for term in rule.terms] == [
        "ma_max(forget 1) <= 0.33",
        "ppl(retain) > 1.2x",
        "ma(forget 1) <= level",
        "ppl(retain) < 9",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "and",
        "ma",
        "ma <= 0.3",
        "ma() <= 0.3",
        "(forget) <= 0.3",
        "ma(forget)",
        "ma(forget) <=",
        "ma(forget) = 0.3",
        "ma(forget) == 0.3",
        "ma(forget) != 0.3",
        "0.3 >= ma(forget)",
        "ma(forget) <= 0.3 and",
        "ma(forget) <= 0.3 or ppl(retain) > 2",
        "ma(forget) <= 0.3, ppl(retain) > 2",
        "ma(forget)) <= 0.3",
        "0.1 < ma(forget) <= 0.3",
    ],
)
def test_what_is_no_rule_is_refused_with_the_grammar(text):
    with pytest.raises(EditError) as error:
        parse(text)
    assert f"--stop {text!r} is no rule: write STAT(SET) <|<=|>|>= NUMBER[x|%]|level [and ...]" in str(error.value)


@pytest.mark.parametrize(
    "number", ["much", "nan", "inf", "0,3", "x", "%", "1xx", "1.2%x", "levelx", "level%", "levels"]
)
def test_a_term_needs_a_number(number):
    with pytest.raises(EditError) as error:
        parse(f"ma(forget) <= {number}")
    assert f"{number!r} is no finite number" in str(error.value)


@pytest.mark.parametrize("stat", ["ppl", "nll", "ma_sd", "accuracy"])
def test_only_memorization_has_a_level(stat):
    with pytest.raises(EditError, match=f"{stat} has no level: .* one of ma, ma_max, ma_p95"):
        parse(f"{stat}(forget) <= level")


def test_all_unknown_quantities_of_all_rules_are_refused_with_what_there_is():
    rules = [
        parse("ma_mx(forget) <= 0.3 and ppl(retain) > 2"),
        parse("zz(q) > 1 and ma_mx(forget) < 1"),
        parse("ppl(retian) > 1.2x"),
    ]
    with pytest.raises(EditError) as error:
        check(rules, {"ppl(retain)", "ma(forget)", "ma_max(forget)"})
    assert str(error.value) == (
        "--stop: this run does not measure ma_mx(forget) (did you mean ma_max(forget)?), zz(q), "
        "ppl(retian) (did you mean ppl(retain)?): there are ma(forget), ma_max(forget), ppl(retain)"
    )


def test_all_rules_that_are_none_are_said_at_once():
    with pytest.raises(EditError, match=r"--stop 'bar < 1' is no rule: .*; --stop 'ma\(forget\)' is no rule: "):
        parse_all(["bar < 1", "ma(forget) < 1", "ma(forget)"])


def test_known_quantities_pass():
    check([parse("ma(forget) <= 0.3"), parse("ppl(retain) > 2")], START)
    check([], [])
