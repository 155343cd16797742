"""Gates: what a rule reads as, where it holds, and that the unknown never passes. All numbers are worked by hand."""

import pytest
from reports import report, tensor

from editkit.diffing.gates import KNOWN, differs, evaluate, parse_rule
from editkit.errors import EditError

UP, DOWN, HEAD = "model.layers.0.mlp.up_proj.weight", "model.layers.10.mlp.down_proj.weight", "lm_head.weight"
REPORT = report(
    [
        tensor(UP, changed=8, l2=0.3, max_abs=0.25),  # 8 of 32 elements, rel_l2 0.03
        tensor(DOWN, changed=16, l2=0.1, max_abs=0.5),  # 16 of 32 elements, rel_l2 0.01
        tensor(HEAD),
        tensor("steps", dtype="I64", shape=(4,), changed=1),
    ]
)


def violated(*rules, on=REPORT):
    return [(found.where, found.value) for found in evaluate([parse_rule(rule) for rule in rules], on)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("rel_l2 > 0.02 @ model.layers.*.mlp.*", ("rel_l2", ">", 0.02, "model.layers.*.mlp.*")),
        ("changed>0@lm_head.weight", ("changed", ">", 0.0, "lm_head.weight")),
        ("changed_fraction >= 10 %", ("changed_fraction", ">=", 0.1, None)),
        ("  max_abs  <=  1.5e-3  ", ("max_abs", "<=", 0.0015, None)),
        ("projection < -1.1 @ *", ("projection", "<", -1.1, "*")),
        ("cosine == +.5", ("cosine", "==", 0.5, None)),
        ("sign_flips != 3.", ("sign_flips", "!=", 3.0, None)),
        ("spectral_norm > 1 @ [ab].weight", ("spectral_norm", ">", 1.0, "[ab].weight")),
    ],
)
def test_rules_that_read(text, expected):
    assert parse_rule(text)[1:] == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rel_l2", "cannot read the rule 'rel_l2': write MEASURE > | >= | < | <= | == | != NUMBER"),
        ("rel_l2 => 3", "cannot read"),
        ("rel_l2 > three", "cannot read"),
        ("rel_l2 > nan", "cannot read"),
        ("rel_l2 > 3 @", "cannot read"),
        ("rel_l2 > 3 *.mlp.*", "cannot read"),
        ("", "cannot read"),
        ("rel_l1 > 3", "unknown measure 'rel_l1' in the rule 'rel_l1 > 3': did you mean rel_l2?"),
        ("zzz > 3", "known are numel, changed, .*stable_rank"),
        ("max_abs > 3 %", "max_abs is no share; shares are changed_fraction, rel_l2"),
        ("added > 0 @ *", "added counts over the whole diff"),
        ("stable_rank < 4", "stable_rank is known per tensor"),
        ("l2 > 1e999", "out of range"),
    ],
)
def test_rules_that_do_not_read(text, message):
    with pytest.raises(EditError, match=message.replace("|", r"\|")):
        parse_rule(text)


def test_every_measure_of_a_row_can_be_asked():
    row = REPORT["tensors"][0]
    assert {key for key in row if isinstance(row[key], int | float) and key != "layer"} <= set(KNOWN)


def test_a_glob_asks_each_tensor_by_its_whole_name():
    assert violated("rel_l2 > 2 % @ *.mlp.*") == [(UP, 0.03)]
    assert violated("changed > 0 @ *.weight") == [(UP, 8), (DOWN, 16)]
    assert violated("changed_fraction >= 50 % @ *.weight") == [(DOWN, 0.5)]
    assert violated("changed_fraction > 50 % @ *.weight") == []
    assert violated("changed == 0 @ lm_head.weight", "changed != 0 @ lm_head.weight") == [(HEAD, 0)]


def test_without_a_glob_the_summary_is_asked():
    assert violated("changed > 24") == [("summary", 25)]  # 8 + 16 + 0 + 1
    assert violated("changed < 25", "changed <= 25") == [("summary", 25)]
    assert violated("tensors_changed >= 3", "removed > 0") == [("summary", 3)]
    assert violated("max_abs > 0.4", "max_abs > 0.5") == [("summary", 0.5)]


def test_a_glob_that_matches_nothing_is_an_error_and_all_are_named():
    with pytest.raises(EditError) as error:
        violated("changed > 0 @ layers.0.*", "rel_l2 > 0 @ steps", "changed > 0 @ *")
    assert "'changed > 0 @ layers.0.*' matches nothing" in str(error.value).replace(
        "(matches no tensor)", "matches nothing"
    )
    assert "'rel_l2 > 0 @ steps' (no matching tensor has this measure)" in str(error.value)
    with pytest.raises(EditError, match=r"matches no tensor"):
        violated("rel_l2 > 0 @ model.layers.1.*")  # layer 10 is not layer 1


def test_integer_tensors_have_counts_only():
    assert violated("changed > 0 @ s*") == [("steps", 1)]
    assert violated("max_abs > 0.4 @ *") == [(DOWN, 0.5)]  # steps is left out, not unknown


def test_what_is_unknown_does_not_pass():
    rows = [tensor("bias", base_l2=0, changed=3, l2=0.1), tensor("same.bias", base_l2=0, cosine=None)]
    made = report(rows, reshaped=[{"name": "head.bias", "base_shape": [2], "edited_shape": [3]}])
    [unknown, reshaped] = evaluate([parse_rule("rel_l2 > 1000 @ *bias")], made)
    assert (unknown.where, unknown.value) == ("bias", None)
    assert str(unknown) == "bias: rel_l2 is unknown: the report has no value for it (rule: rel_l2 > 1000 @ *bias)"
    assert (reshaped.where, reshaped.reason) == ("head.bias", "is unknown: the tensor was reshaped")
    assert violated("cosine < 0.99 @ same.bias", "rel_l2 > 0 @ same.bias", on=made) == []  # equal bits: 1 and 0
    assert violated("changed > 5 @ head.bias", on=made) == [("head.bias", None)]
    made["summary"]["rel_l2"] = None
    assert violated("rel_l2 > 1000", on=made) == [("summary", None)]


def test_a_retyped_tensor_that_was_compared_is_asked_once():
    made = report([tensor("a", changed=1)], retyped=[{"name": "a", "base_dtype": "F32", "edited_dtype": "F16"}])
    assert violated("changed > 0 @ a", on=made) == [("a", 1)]


def test_rules_on_an_edit():
    edit = {"alpha": 1.0, "requested_l2": 2.0, "applied_l2": 1.9, "projection": -0.95}
    made = report(
        [tensor("a", changed=1, edit=edit), tensor("b")], edit={"command": "negate", **edit, "lost_to_rounding": 0.2}
    )
    assert violated("projection > -0.99", "lost_to_rounding >= 20 %", on=made) == [("summary", -0.95), ("summary", 0.2)]
    assert violated("projection > -0.99 @ *", on=made) == [("a", -0.95)]  # b was not edited
    with pytest.raises(EditError, match="this is a plain diff"):
        violated("projection > -0.99")


def test_rules_on_the_spectrum():
    spectrum = {"norm": 2.0, "stable_rank": 1.5, "energy": {"1": 0.7}, "method": "gram"}
    skipped = {"norm": None, "stable_rank": None, "energy": {}, "method": "skipped: NaN or Inf in the change"}
    rows = [tensor("a", changed=1, spectral=spectrum), tensor("b"), tensor("c", changed=1, spectral=skipped)]
    assert violated("spectral_norm > 1 @ *", on=report(rows)) == [("a", 2.0), ("c", None)]
    assert violated("stable_rank < 2 @ [ab]", on=report(rows)) == [("a", 1.5)]
    assert "skipped: NaN" in evaluate([parse_rule("stable_rank < 2 @ c")], report(rows))[0].reason
    assert "--spectral" in evaluate([parse_rule("stable_rank < 2 @ d")], report([tensor("d", changed=1)]))[0].reason


def test_differs():
    assert differs(REPORT) and not differs(report([tensor("a")]))
    assert differs(report([tensor("a")], added=[{"name": "b", "dtype": "F32", "shape": [1]}]))


@pytest.mark.parametrize(
    ("lists", "reason"),
    [
        ({"added": [{"name": "x", "dtype": "F32", "shape": [2]}]}, "is unknown: x was added"),
        ({"removed": [{"name": "x", "dtype": "F32", "shape": [2]}]}, "is unknown: x was removed"),
        ({"reshaped": [{"name": "x", "base_shape": [2], "edited_shape": [3]}]}, "is unknown: x was reshaped"),
        ({"settings": [{"name": "lora_alpha", "base": 8, "edited": 16}]}, "is unknown: the setting lora_alpha differs"),
    ],
)
@pytest.mark.parametrize("measure", ["changed", "nan_after", "rel_l2", "cosine"])
def test_a_summary_that_covers_only_a_part_does_not_pass(measure, lists, reason):
    made = report([tensor("same")], **lists)
    [found] = evaluate([parse_rule(f"{measure} == 7")], made)
    assert (found.where, found.value, found.reason) == ("summary", None, reason)
    assert violated("tensors > 1", on=made) == []  # a count of the tensors is known all the same


@pytest.mark.parametrize("key", ["nan_before", "nan_after", "inf_before", "inf_after"])
def test_norms_that_leave_nan_out_do_not_pass(key):
    made = report([tensor(HEAD, changed=16, l2=0.0) | {key: 16}, tensor("same") | {key: 2}])
    for rule in ("rel_l2 > 0.001", "max_abs > 0", "cosine < 0.9", "mean > 1", "sign_flips > 0"):
        [alone] = evaluate([parse_rule(f"{rule} @ {HEAD}")], made)
        assert (alone.where, alone.reason) == (HEAD, "is unknown: the tensor has 16 elements that are NaN or Inf")
        [whole] = evaluate([parse_rule(rule)], made)
        assert (whole.where, whole.reason) == ("summary", f"is unknown: {HEAD} has 16 elements that are NaN or Inf")
        assert violated(f"{rule} @ same", on=made) == []  # equal bit for bit: no change, whatever it holds
    assert violated("changed > 20", f"{key} > 99 @ *", on=made) == []  # counts are exact


def test_floating_point_that_became_whole_numbers_is_unknown_in_the_summary():
    gone = tensor("a", changed=32) | dict.fromkeys(("l2", "rel_l2", "max_abs", "mean", "cosine"))
    [found] = evaluate([parse_rule("max_abs > 9")], report([tensor("b", changed=1, max_abs=1.0), gone]))
    assert found.reason == "is unknown: a has no values to compare"


def test_settings_count_as_a_difference():
    made = report([tensor("same")], settings=[{"name": "r", "base": 8, "edited": 4}])
    assert differs(made) and violated("settings > 0", on=made) == [("summary", 1)]
    assert not differs(report([tensor("same")]))
