"""What mergekit's YAML means: settings, models and names, worked out by hand."""

from pathlib import Path

import pytest
from merge_configs import NORM, UP, Q, of_merge, of_model, planned, said, save, shapes, three_models

from editkit.errors import EditError
from editkit.merging.plan import Model
from editkit.merging.planning import plan_merge
from editkit.merging.rules import hits, number, resolve, truth


@pytest.fixture
def here(tmp_path, monkeypatch):
    return three_models(tmp_path, monkeypatch)


# -- settings


def test_a_gradient_is_the_line_between_its_values_over_the_layers(here):
    t = of_merge(
        planned("{merge_method: slerp, base_model: a, models: [{model: b}], parameters: {t: [0, 0.6, 0.3]}}"), "t"
    )
    # four layers are at 0, 1/3, 2/3 and 1: 2/3 of the way from 0 to 0.6, and 1/3 of the way from 0.6 to 0.3
    assert [t[Q.format(layer)] for layer in range(4)] == pytest.approx([0, 0.4, 0.5, 0.3])
    assert t["model.embed_tokens.weight"] == t["model.norm.weight"] == t["lm_head.weight"] == 0


def test_the_first_filter_that_hits_counts_and_no_filter_is_for_the_rest(here):
    plan = planned("""
merge_method: slerp
base_model: a
models: [{model: b}]
parameters:
  t:
    - {filter: self_attn, value: [0, 1]}
    - {filter: layernorm, value: 0.125}
    - {filter: norm, value: 0.75}
    - value: 0.5
""")
    t = of_merge(plan, "t")
    assert [t[Q.format(layer)] for layer in range(4)] == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert (t[NORM.format(2)], t["model.norm.weight"], t[UP.format(3)], t["lm_head.weight"]) == (0.125, 0.75, 0.5, 0.5)
    assert plan.notes == ()


def test_the_narrowest_scope_that_says_something_counts(here):
    plan = planned("""
merge_method: ties
base_model: a
parameters: {weight: 0.1, density: 0.2, normalize: true}
slices:
  - sources:
      - {model: a, layer_range: [0, 2]}
      - {model: b, layer_range: [0, 2], parameters: {weight: [{filter: mlp, value: 0.9}]}}
    parameters: {density: 0.3, normalize: false}
  - sources:
      - {model: a, layer_range: [2, 4]}
      - {model: b, layer_range: [2, 4]}
""")
    weight, density, normalize = of_model(plan, "weight"), of_model(plan, "density"), of_merge(plan, "normalize")
    assert (weight[UP.format(0)], weight[Q.format(0)], weight[UP.format(2)]) == (0.9, 0.1, 0.1)
    assert (density[UP.format(1)], density[UP.format(2)]) == (0.3, 0.2)
    assert (normalize[Q.format(1)], normalize[Q.format(2)]) == (False, True)
    assert (normalize["model.embed_tokens.weight"], normalize["model.norm.weight"]) == (False, True)


def test_rules_say_for_how_many_tensors_they_count(here):
    plan = planned("""merge_method: ties
base_model: a
models:
  - model: b
    parameters:
      weight: [{filter: self_attn, value: 1}, {filter: q_proj, value: 2}]
  - model: c
parameters: {weight: [0.5, 0.7], density: 0.5}
""")
    assert plan.rules == (
        ("parameters.weight (line 8)", None, [0.5, 0.7], 11 + 15),
        ("parameters.density (line 8)", None, 0.5, 15 + 15),
        ("models[0].parameters.weight (line 6)", "self_attn", 1, 4),
        ("models[0].parameters.weight (line 6)", "q_proj", 2, 0),
    )


def test_truth_values_have_no_line_between_them():
    found = [resolve("normalize", [{"normalize": [True, False, False]}], "any", t) for t in (0, 0.49, 0.5, 1)]
    assert [one and one.value for one in found] == [True, True, False, False]


def test_a_filter_does_not_cut_numbers_and_says_where_mergekit_does(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save("deep", 12)
    save("other", 12)
    text = "{merge_method: slerp, base_model: deep, models: [{model: other}], parameters: {t: [{filter: layers.1, value: 1}, {value: 0}]}}"
    plan = planned(text)
    assert {name for name, t in of_merge(plan, "t").items() if t} == {one.format(1) for one in (Q, UP, NORM)}
    [note] = plan.notes
    assert "'layers.1'" in note and "hits 3 tensors" in note and "6 more, such as model.layers.10." in note
    alike = planned(text, compatible=True)
    assert len([t for t in of_merge(alike, "t").values() if t]) == 9 and alike.notes == ()


@pytest.mark.parametrize(
    ("pattern", "name", "hit"),
    [
        ("*", "lm_head.weight", True),
        ("h.1", "transformer.h.1.attn.c_attn.weight", True),
        ("h.1", "transformer.h.12.attn.c_attn.weight", False),
        ("1.mlp", "model.layers.11.mlp.up_proj.weight", False),
        ("1.mlp", "model.layers.1.mlp.up_proj.weight", True),
        ("*.mlp.*", "model.layers.1.mlp.up_proj.weight", True),
        ("mlp.*", "model.layers.1.mlp.up_proj.weight", False),
        ("up_proj", "model.layers.1.mlp.up_proj.weight", True),
    ],
)
def test_hits(pattern, name, hit):
    assert hits(name, pattern) is hit


def test_a_filter_that_hits_nothing_is_noted_and_a_glob_that_does_is_refused(here):
    text = "{{merge_method: slerp, base_model: a, models: [{{model: b}}], parameters: {{t: [{{filter: '{}', value: 1}}, {{value: 0}}]}}}}"
    assert "'modelnorm' hits no tensor" in planned(text.format("modelnorm")).notes[0]
    assert "'*.mpl.*' matches none of the 15 names" in said(text.format("*.mpl.*"))


def test_a_setting_that_some_tensors_lack_is_refused_with_an_example(here):
    text = "{merge_method: linear, models: [{model: a, parameters: {weight: 1}}, {model: b, parameters: {weight: [{filter: mlp, value: 1}]}}]}"
    assert said(text) == (
        "merge.yaml: models[1] (line 1) has no weight for 11 tensors, such as lm_head.weight: give it under parameters"
    )


def test_a_gradient_with_more_values_than_layers_is_read_and_noted(here):
    plan = planned("{merge_method: slerp, base_model: a, models: [{model: b}], parameters: {t: [0, 1, 1, 1, 1, 0.5]}}")
    assert plan.notes == ("t has 6 values for 4 layers, so that some of them are passed over",)


@pytest.mark.parametrize("value", [True, "x", None, [1], float("nan"), 10**400, 1.5])
def test_numbers_that_are_none_are_refused(value):
    with pytest.raises(ValueError, match="give a number from 0 to 1"):
        number(0, 1)(value)


def test_numbers_in_the_notation_that_yaml_takes_for_text():
    assert number()("1e-3") == 0.001 and truth(1) is True and truth(False) is False


# -- models


def test_the_base_is_what_the_others_are_compared_with_and_no_model_of_its_own(here):
    plan = planned("{merge_method: ties, base_model: a, models: [{model: a}, {model: b, parameters: {weight: 1}}]}")
    assert (plan.base, plan.like, plan.models) == ("a", None, (Model("b"),))
    assert all(target.base == target.name == target.parts[0].name for target in plan.targets)
    assert {target.name for target in plan.targets} == set(shapes(4, True))


def test_a_method_without_a_base_takes_it_for_one_more_model_and_says_so(here):
    plan = planned("{merge_method: linear, base_model: a, models: [{model: b}], parameters: {weight: 1}}")
    assert plan.models == (Model("b"), Model("a")) and (plan.base, plan.like) == (None, 1)
    assert len(plan.targets[0].parts) == 2 and "one more model" in plan.notes[0]


@pytest.mark.parametrize("seed", [-5, 1.5, True, "0"])
def test_a_seed_in_python_is_checked_like_one_in_the_config(here, seed):
    config = {"merge_method": "passthrough", "models": [{"model": "a"}]}
    with pytest.raises(EditError, match=r"^the seed is .*: give a whole number from 0 on$"):
        plan_merge(config, seed=seed)


def test_models_with_adapters_vectors_masks_and_a_seed(here):
    for name in ("lora", "other-lora"):
        save(name)
    plan = planned("""
merge_method: dare_ties
base_model: a
seed: 7
models:
  - {model: b+lora, parameters: {weight: 1}}
  - {vector: other-lora, mask: loc, parameters: {weight: 0.5, density: 0.5}}
  - model: {model: {path: b}, lora: {path: other-lora}}
    parameters: {weight: 1}
""")
    assert plan.models == (Model("b", ("lora",)), Model("other-lora", (), True, "loc"), Model("b", ("other-lora",)))
    assert plan.seed == 7 and planned(Path("merge.yaml").read_text(), seed=1).seed == 1


def test_a_folder_with_a_plus_in_its_name_is_one_model(here):
    save("a+b")
    assert planned("{merge_method: passthrough, models: [{model: a+b}]}").models == (Model("a+b"),)


def test_a_vector_in_a_mean_of_models_is_on_the_base(here):
    plan = planned("{merge_method: linear, base_model: a, models: [{vector: b, parameters: {weight: 1}}]}")
    assert plan.base == "a" and plan.models == (Model("b", vector=True),) and plan.targets[0].base == "lm_head.weight"


def test_a_tied_model_stands_in_with_its_embedding_for_the_head_of_another(here):
    save("tied", head=False)
    plan = planned("""
merge_method: linear
models:
  - {model: a, parameters: {weight: [{filter: lm_head, value: 0.25}, {value: 1}]}}
  - {model: tied, parameters: {weight: [{filter: lm_head, value: 0.75}, {value: 1}]}}
""")
    [head] = [target for target in plan.targets if target.name == "lm_head.weight"]
    assert [(part.name, part.settings["weight"]) for part in head.parts] == [
        ("lm_head.weight", 0.25),
        ("model.embed_tokens.weight", 0.75),
    ]


def test_tensors_that_only_some_models_have_are_listed(here):
    save("less", without=UP.format(2))
    text = "{{merge_method: linear, parameters: {{weight: 1}}, models: [{{model: {}}}, {{model: {}}}]}}"
    assert said(text.format("a", "less")) == f"merge.yaml: less lacks 1 of the tensors: {UP.format(2)}"
    assert said(text.format("less", "a")) == f"merge.yaml: a has tensors that less lacks: {UP.format(2)}"


def test_an_untied_model_does_not_lose_its_head_to_a_tied_one(here):
    save("tied", head=False)
    text = "{merge_method: linear, parameters: {weight: 1}, models: [{model: tied}, {model: a}]}"
    assert said(text) == "merge.yaml: a has tensors that tied lacks: lm_head.weight"
    text = "{merge_method: passthrough, slices: [{sources: [{model: tied, layer_range: [0, 1]}]}, {sources: [{model: a, layer_range: [0, 1]}]}]}"
    assert said(text) == "merge.yaml: a has tensors that tied lacks: lm_head.weight"


def test_a_tokenizer_that_cannot_be_read_is_named(here):
    save("torn", tokens={"x": 0})
    save("other", tokens={"x": 0, "y": 1})
    Path("torn", "tokenizer.json").write_text('{"model": null}')
    text = "{merge_method: linear, parameters: {weight: 1}, models: [{model: other}, {model: torn}]}"
    assert said(text).startswith("merge.yaml: torn/tokenizer.json has no vocabulary (")


# -- the rest of the output


def test_dtypes_and_chat_templates(here):
    text = "{merge_method: passthrough, models: [{model: a}], dtype: torch.float16, out_dtype: bfloat16, chat_template: '{{ x }}'}"
    plan = planned(text)
    assert (plan.dtype, plan.out_dtype, plan.config) == ("F16", "BF16", {"torch_dtype": "bfloat16"})
    assert plan.files == {"chat_template.jinja": "{{ x }}"}
    only = planned("{merge_method: passthrough, models: [{model: a}], dtype: float16}")
    assert (only.dtype, only.out_dtype) == ("F16", "F16")


def test_the_most_frequent_chat_template_is_taken(here):
    for name, template in (("a", "{{ a }}"), ("b", "{{ b }}"), ("c", "{{ b }}")):
        Path(name, "chat_template.jinja").write_text(template)
    text = "{merge_method: linear, models: [{model: a}, {model: b}, {model: c}], parameters: {weight: 1}, chat_template: auto}"
    assert planned(text).files == {"chat_template.jinja": "{{ b }}"}
    Path("a", "chat_template.jinja").write_text("{{ b }}")
    assert planned(text).files == {}  # the first model's files have it


@pytest.mark.parametrize("source", ["union", "base", "b"])
def test_equal_tokenizers_are_merged_and_other_ones_refused(here, source):
    same, moved = {"x": 0, "y": 1}, {"x": 1, "y": 0}
    for name, tokens in (
        ("one", same),
        ("two", dict(reversed(same.items()))),
        ("odd", moved),
        ("more", same | {"z": 2}),
    ):
        save(name, tokens=tokens)
    text = "{{merge_method: linear, base_model: one, parameters: {{weight: 1}}, models: [{{model: {}}}, {{model: b}}], tokenizer_source: {}}}"
    [note] = [one for one in planned(text.format("two", source)).notes if "rows" in one]
    assert note.startswith("one has 2 tokens and 8 rows in model.embed_tokens.weight, which are all kept")
    assert "one and odd have different tokenizers (2 tokens have other numbers, such as x (0 and 1))" in said(
        text.format("odd", source)
    )
    assert "one and more have different tokenizers (1 tokens are in one of them only, such as z)" in said(
        text.format("more", source)
    )
    as_vector = {
        "merge_method": "ties",
        "base_model": "one",
        "models": [{"vector": "odd", "parameters": {"weight": 1}}],
    }
    with pytest.raises(EditError, match="one and odd have different tokenizers"):
        plan_merge(as_vector)
    assert "cropping it as mergekit does is not supported" in said(text.format("two", source), compatible=True)
