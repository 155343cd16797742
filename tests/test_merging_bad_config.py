"""All that is wrong with a config is said at once, with its line; what has no effect is noted."""

from pathlib import Path

import pytest
from merge_configs import of_merge, planned, said, three_models

from editkit.errors import EditError
from editkit.merging.document import parse_document
from editkit.merging.planning import plan_merge


@pytest.fixture
def here(tmp_path, monkeypatch):
    return three_models(tmp_path, monkeypatch)


def test_everything_that_is_wrong_with_the_form_is_said_at_once_with_its_line(here):
    text = """merge_method: dare_tise
bse_model: a
modules: {}
dtype: int4
seed: -1
slices:
  - sources: [{model: a, layer_range: [0, 3], wieght: 1}]
  - sources: [{model: b, layer_range: [4, 1]}]
    residual_weight: 1
  - sources: [{modle: b, layer_range: [0, 1]}, b]
tokenizer_source: base
"""
    found = said(text)
    for line, what in {
        1: "merge_method (line 1) is 'dare_tise', which is no method: did you mean dare_ties?",
        2: "bse_model (line 2) is unknown: did you mean base_model?",
        3: "modules (line 3) is not supported: merging",
        4: "dtype (line 4) is 'int4': there are float64, float32, float16, bfloat16",
        5: "seed (line 5) is -1: give a whole number from 0 on",
        7: "slices[0].sources[0].wieght (line 7) is no place for a setting: give weight under parameters",
        8: "slices[1].sources[0].layer_range (line 8) is [4, 1]: give the first layer and the one after the last",
        9: "slices[1].residual_weight (line 9) is not supported: it has no effect in mergekit either",
        10: "slices[2].sources[0].modle (line 10) is unknown: did you mean model?",
        11: "tokenizer_source (line 11) is base, and there is no base_model",
    }.items():
        assert what in found, line
    assert "slices[2].sources[0] (line 10) needs a model, or a vector" in found
    assert "slices[2].sources[1] (line 10) is 'b': give an entry with keys" in found


def test_everything_that_is_wrong_with_settings_is_said_at_once(here):
    found = said("""merge_method: ties
base_model: a
models:
  - model: b
    parameters:
      density: 1.5
      weigth: 1
      weight: []
parameters:
  normalize: maybe
  lambda: [{value: x}, {filter: '', value: 1}, {valeu: 1}, 3]
""")
    for what in (
        "models[0].parameters.density (line 6) is 1.5: give a number from 0 to 1",
        "models[0].parameters.weigth (line 7) is unknown: did you mean weight?",
        "models[0].parameters.weight (line 8) is an empty list",
        "parameters.normalize (line 10) is 'maybe': give true or false",
        "parameters.lambda (line 11) is 'x': give a number",
        "parameters.lambda (line 11) has the filter ''",
        "parameters.lambda (line 11) holds {'valeu': 1}",
        "parameters.lambda (line 11) holds 3",
    ):
        assert what in found


def test_settings_that_mergekit_ignores_are_noted(here):
    plan = planned("""merge_method: slerp
base_model: a
models:
  - model: b
    parameters: {t: 1, weight: 0.5}
parameters: {t: 0.5, int8_mask: true}
""")
    assert plan.notes == (
        "models[0].parameters.t (line 5) has no effect: it is for the whole merge, not for one model",
        "models[0].parameters.weight (line 5) has no effect on SLERP",
        "parameters.int8_mask (line 6) has no effect on SLERP",
    )
    assert set(of_merge(plan, "t").values()) == {0.5} and plan.targets[0].parts[0].settings == {}


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("{merge_method: ties, models: [{model: b}]}", "base_model is missing: TIES merges what models change in a base"),
        ("{merge_method: slerp, base_model: a, models: [{model: b}, {model: c}], parameters: {t: 1}}", "has 2 models besides base_model: SLERP takes 1"),
        ("{merge_method: passthrough, models: [{model: b}, {model: c}]}", "has 2 models: passthrough takes 1"),
        ("{merge_method: linear, models: [{vector: b}]}", "models[0] (line 1) needs a base_model"),
        ("{merge_method: linear, models: [{model: b, mask: m}]}", "models[0] (line 1) needs a base_model"),
        ("{merge_method: linear, models: [{model: b}, {model: b}]}", "models[1].model (line 1) is b a second time"),
        ("{merge_method: linear, models: [{model: b, vector: b}]}", "needs a model, or a vector, and not both"),
        ("{merge_method: linear, models: []}", "models (line 1) is empty"),
        ("{merge_method: linear, models: b}", "models (line 1) is 'b': give a list"),
        ("{merge_method: linear}", "there are neither models nor slices"),
        ("{merge_method: linear, models: [{model: b}], slices: [{sources: [{model: b, layer_range: [0, 1]}]}]}", "models and slices are both given"),
        ("{models: [{model: b}]}", "merge_method is missing: there are "),
        ("{merge_method: linear, models: [{model: [b]}]}", "models[0].model (line 1) is ['b']: give a folder"),
        ("{merge_method: linear, models: [{model: {model: b, override_architecture: X}}]}", "override_architecture (line 1) is not supported"),
        ("{merge_method: ties, base_model: a+b, models: [{model: c}]}", "base_model (line 1) is a model with an adapter"),
        ("{merge_method: linear, models: [{model: nowhere}, {model: b}]}", "models[0] (line 1): nowhere does not exist"),
        ("{merge_method: passthrough, slices: [{sources: [{model: b}]}]}", "slices[0].sources[0].layer_range (line 1) is missing"),
        ("{merge_method: linear, slices: [{sources: [{model: a, layer_range: [0, 1]}, {model: b, layer_range: [0, 2]}]}]}", "have layer ranges of different lengths"),
        ("{merge_method: ties, base_model: a, slices: [{sources: [{model: b, layer_range: [0, 1]}]}]}", "slices[0].sources (line 1) do not have the base_model a among them"),
        ("{merge_method: passthrough, models: [{model: b}], tokenizer_source: c}", "tokenizer_source (line 1) is 'c': give union, base, or one of the models"),
        ("{merge_method: passthrough, models: [{model: b}], tokenizer_source: [b]}", "tokenizer_source (line 1) is ['b']"),
        ("{merge_method: passthrough, models: [{model: b}], tokenizer: {source: union, tokens: {}}}", "tokenizer.tokens (line 1) is not supported"),
        ("{merge_method: passthrough, models: [{model: b}], chat_template: chatml}", "a template of mergekit's own"),
    ],
)  # fmt: skip
def test_bad_configs(here, text, what):
    assert what in said(text)


def test_a_model_that_is_an_adapter_is_told_from_one(here):
    Path("b", "adapter_config.json").write_text("{}")
    assert "models[0] (line 1) is an adapter: give it as vector, or as a+b" in said(
        "{merge_method: ties, base_model: a, models: [{model: b}], parameters: {weight: 1}}"
    )


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("a: 1\n---\na: 1\n", "merge.yaml (line 2): several YAML documents; give one document, one merge"),
        ("a: 1\nb: !include x\n", "merge.yaml (line 2): could not determine a constructor for the tag '!include'"),
        ("a: 1\nb:\n  c: 1\n  c: 2\na: 3\n", "merge.yaml: a (line 5), c (line 4): given more than once, keep one"),
        ("a: [1", "merge.yaml (line 1) is no YAML"),
        ("- a", "merge.yaml is no merge config"),
        ("", "merge.yaml is no merge config"),
        ("&a [*a]", "merge.yaml has aliases that unfold to more than 100,000 values"),
    ],
)
def test_bad_yaml(text, what):
    with pytest.raises(EditError) as caught:
        parse_document(text, "merge.yaml")
    assert str(caught.value).startswith(what)


def test_anchors_and_merged_keys_keep_their_lines():
    document = parse_document("a: &x {b: 1}\nc:\n  <<: *x\n  d: 2\ne: [*x, *x]\n", "merge.yaml")
    assert document.data == {"a": {"b": 1}, "c": {"b": 1, "d": 2}, "e": [{"b": 1}, {"b": 1}]}
    assert (document.place("c", "d"), document.place("c", "b")) == ("c.d (line 4)", "c.b (line 1)")
    assert document.place("e", 1, "nothing") == "e[1].nothing (line 1)"


def test_files_that_are_no_config(tmp_path):
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(EditError, match="is no text in UTF-8"):
        plan_merge(tmp_path / "binary")
    with pytest.raises(EditError, match="cannot be read"):
        plan_merge(tmp_path)


def test_a_config_given_as_a_dictionary_is_read_without_lines(here):
    assert len(plan_merge({"merge_method": "passthrough", "models": [{"model": Path("a")}]}).targets) == 15
    with pytest.raises(EditError, match=r"^the merge: models\[0\]\.modle is unknown: did you mean model\?"):
        plan_merge({"merge_method": "passthrough", "models": [{"modle": "a"}]})
