"""What --alphas, --mask and --only make of a sweep."""

import pytest

from editkit.errors import EditError
from editkit.sweeps.points import MOST, alphas, choices


def test_a_range_holds_both_ends_and_its_steps_are_decimal():
    assert alphas("0:2:0.25") == [0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0]
    assert alphas("0:0.3:0.1") == [0.0, 0.1, 0.2, 0.3]  # in binary 0.1 + 0.1 + 0.1 is beyond 0.3
    assert alphas("1:-1:-0.5") == [1.0, 0.5, 0.0, -0.5, -1.0]
    assert alphas("0.5:0.5:1") == [0.5]


def test_an_end_that_the_steps_do_not_meet_is_left_out():
    assert alphas("0:1:0.3") == [0.0, 0.3, 0.6, 0.9]


def test_numbers_between_commas_keep_their_order_and_python_may_give_a_list():
    assert alphas("2, 0,.5,-1e-1") == [2.0, 0.0, 0.5, -0.1] == alphas([2, 0, 0.5, -0.1])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "'' is no finite number"),
        ("a:b:c", "'a' is no finite number: give FIRST:LAST:STEP"),
        ("0:nan:1", "'nan' is no finite number"),
        ("0,inf", "'inf' is no finite number"),
        ("0,,1", "'' is no finite number"),
        ("0:1", "is not FIRST:LAST:STEP"),
        ("0:1:2:3", "is not FIRST:LAST:STEP"),
        ("0:1:0", "never gets from 0 to 1 in steps of 0"),
        ("0:1:-0.1", "never gets from 0 to 1 in steps of -0.1"),
        ("0:1:1e-9", "makes 1,000,000,001 alphas: give at most 1,000"),
        ("0.5,1,0.50,1.0", "has 0.5, 1 more than once"),
    ],
)
def test_what_makes_no_alphas_is_refused(text, said):
    with pytest.raises(EditError) as error:
        alphas(text)
    assert str(error.value).startswith("--alphas") and said in str(error.value)


def test_as_many_alphas_as_allowed():
    assert len(alphas(f"1:{MOST}:1")) == MOST
    with pytest.raises(EditError, match="makes 1,001 alphas"):
        alphas(f"0:{MOST}:1")


def test_every_mask_goes_with_every_group_of_globs():
    found = choices(["none", "runs/loc/"], ["*", "*.0.*, *.1.*"])
    assert [(one.mask, one.only, one.label) for one in found] == [
        (None, (), "all"),
        (None, ("*.0.*", "*.1.*"), "*.0.*, *.1.*"),
        ("runs/loc/", (), "loc"),
        ("runs/loc/", ("*.0.*", "*.1.*"), "loc, *.0.*, *.1.*"),
    ]
    assert [(one.mask, one.only, one.label) for one in choices()] == [(None, (), "all")]


def test_masks_of_one_name_are_told_apart():
    assert [one.label for one in choices(["a/loc", "b/loc", "c"])] == ["a/loc", "b/loc", "c"]


def test_the_same_choice_twice_is_refused():
    with pytest.raises(EditError, match="--mask none is given more than once"):
        choices(["none", "loc", "none"])
    with pytest.raises(EditError, match=r"--only \*\.mlp\.\* is given more than once"):
        choices([], ["*.mlp.*", "*.mlp.*"])
