"""What mergekit's YAML means: settings and names worked out by hand, all that is wrong said at once, with its line."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from editkit.errors import EditError
from editkit.merging.document import parse_document
from editkit.merging.plan import Model, Plan
from editkit.merging.planning import plan_merge
from editkit.merging.rules import hits, number, resolve, truth

LAYER = {"self_attn.q_proj.weight": (4, 4), "mlp.up_proj.weight": (6, 4), "input_layernorm.weight": (4,)}
Q, UP, NORM = ("model.layers.{}." + rest for rest in LAYER)


def shapes(layers: int, head: bool, vocabulary: int = 8) -> dict[str, tuple[int, ...]]:
    inside = {f"model.layers.{layer}.{rest}": shape for layer in range(layers) for rest, shape in LAYER.items()}
    named = {"model.embed_tokens.weight": (vocabulary, 4), **inside, "model.norm.weight": (4,)}
    return named | ({"lm_head.weight": (vocabulary, 4)} if head else {})


def save(
    name: str, layers: int = 4, *, head: bool = True, without: str = "", tokens: dict | None = None, **config
) -> None:
    folder = Path(name)
    folder.mkdir(parents=True)
    draw = np.random.default_rng(len(name))
    named = {
        key: draw.standard_normal(shape, np.float32) for key, shape in shapes(layers, head).items() if key != without
    }
    save_file(named, folder / "model.safetensors", metadata={"format": "pt"})
    said = {
        "model_type": "llama",
        "num_hidden_layers": layers,
        "tie_word_embeddings": not head,
        "torch_dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(said | config))
    if tokens:
        (folder / "tokenizer.json").write_text(
            json.dumps({"model": {"type": "BPE", "vocab": tokens}, "added_tokens": []})
        )


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in "abc":
        save(name)
    return tmp_path


def planned(text: str, **settings) -> Plan:
    Path("merge.yaml").write_text(text)
    return plan_merge("merge.yaml", **settings)


def said(text: str, **settings) -> str:
    with pytest.raises(EditError) as caught:
        planned(text, **settings)
    return str(caught.value)


def of_model(plan: Plan, setting: str, model: int = 0) -> dict[str, object]:
    return {t.name: part.settings.get(setting) for t in plan.targets for part in t.parts if part.model == model}


def of_merge(plan: Plan, setting: str) -> dict[str, object]:
    return {target.name: target.settings.get(setting) for target in plan.targets}


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


# -- slices


def test_models_with_two_stacks_of_layers_are_merged_whole_and_not_sliced(here):
    named = {
        f"{part}.block.{layer}.wi.weight": np.ones((2, 2), np.float32)
        for part in ("encoder", "decoder")
        for layer in (0, 1)
    }
    Path("t5").mkdir()
    save_file(named, "t5/model.safetensors")
    t = of_model(planned("{merge_method: linear, models: [{model: t5}], parameters: {weight: [0, 1]}}"), "weight")
    assert t == {name: float(".1." in name) for name in named}
    text = "{merge_method: passthrough, slices: [{sources: [{model: t5, layer_range: [0, 1]}]}]}"
    assert said(text) == "merge.yaml: slices need one stack of layers, which t5 does not have: merge whole models"


def test_layers_that_differ_in_their_tensors_are_refused(here):
    save("less", without=UP.format(2))
    text = """
merge_method: linear
parameters: {weight: 1}
slices: [{sources: [{model: less, layer_range: [1, 3]}, {model: a, layer_range: [0, 2]}]}]
"""
    assert said(text) == f"merge.yaml: less lacks 1 of the tensors: {UP.format(2)}"


def test_slices_put_layers_on_top_of_each_other_and_number_them_anew(here):
    save("deep", 6, layer_types=["full", "local", "full", "local", "full", "wide"])
    save("flat", 4, layer_types=["a", "b", "c", "d"])
    plan = planned("""
merge_method: passthrough
slices:
  - sources: [{model: deep, layer_range: [0, 3]}]
  - sources: [{model: flat, layer_range: [1, 3]}]
  - sources: [{model: deep, layer_range: [5, 6], parameters: {scale: [{filter: up_proj, value: 0.0}, {value: 1.0}]}}]
""")
    froms = {target.name: (plan.models[target.parts[0].model].source, target.parts[0].name) for target in plan.targets}
    assert {Q.format(layer): froms[Q.format(layer)] for layer in range(6)} == {
        Q.format(0): ("deep", Q.format(0)),
        Q.format(1): ("deep", Q.format(1)),
        Q.format(2): ("deep", Q.format(2)),
        Q.format(3): ("flat", Q.format(1)),
        Q.format(4): ("flat", Q.format(2)),
        Q.format(5): ("deep", Q.format(5)),
    }
    assert froms["model.embed_tokens.weight"] == ("deep", "model.embed_tokens.weight")
    assert plan.config == {"num_hidden_layers": 6, "layer_types": ["full", "local", "full", "b", "c", "wide"]}
    assert (of_model(plan, "scale")[UP.format(5)], of_model(plan, "scale")[Q.format(5)]) == (0.0, 1.0)
    assert len(plan.targets) == 3 + 6 * len(LAYER)


def test_what_follows_the_layers_is_from_the_last_slice(here):
    plan = planned("""
merge_method: passthrough
slices:
  - sources: [{model: a, layer_range: [0, 1]}]
  - sources: [{model: b, layer_range: [0, 1]}]
""")
    froms = {target.name: plan.models[target.parts[0].model].source for target in plan.targets}
    assert [froms[name] for name in ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")] == [
        "a",
        "b",
        "b",
    ]
    assert plan.config == {"num_hidden_layers": 2} and plan.like == 0


def test_gradients_run_over_each_slice_and_filters_see_the_names_of_the_model(here):
    plan = planned("""
merge_method: linear
slices:
  - sources: [{model: a, layer_range: [0, 3]}, {model: b, layer_range: [1, 4]}]
  - sources: [{model: a, layer_range: [3, 4]}, {model: b, layer_range: [0, 1]}]
parameters: {weight: [{filter: layers.3.mlp, value: 9}, {value: [0, 1]}]}
""")
    first, second = of_model(plan, "weight", 0), of_model(plan, "weight", 1)
    assert [first[Q.format(layer)] for layer in range(4)] == [0, 0.5, 1, 1]  # a slice of one layer is at its end
    assert [layer for layer in range(4) if first[UP.format(layer)] == 9] == [3]
    assert [layer for layer in range(4) if second[UP.format(layer)] == 9] == [2]
    assert plan.config == {}  # the layers of the first model are all there, in their order


def test_one_slice_of_all_layers_leaves_the_config_alone(here):
    text = "{{merge_method: slerp, base_model: a, parameters: {{t: 0}}, slices: [{{sources: [{{model: a, layer_range: [0, {0}]}}, {{model: b, layer_range: [0, {0}]}}]}}]}}"
    assert planned(text.format(4)).config == {}
    assert planned(text.format(3)).config == {"num_hidden_layers": 3}
    assert "is [0, 5] and a has 4 layers" in said(text.format(5))


def test_a_config_that_speaks_of_layers_by_number_is_refused_in_slices(here):
    save("sparse", mlp_only_layers=[1, 3])
    text = "{{merge_method: passthrough, slices: [{{sources: [{{model: sparse, layer_range: [{}, 4]}}]}}]}}"
    assert planned(text.format(0)).config == {}
    assert "sparse/config.json speaks of layers by number (mlp_only_layers)" in said(text.format(2))


def test_vectors_are_sliced_with_their_base(here):
    text = """
merge_method: task_arithmetic
base_model: a
slices:
  - sources: [{{model: a, layer_range: [0, 2]}}, {{vector: b, layer_range: [{}, {}], parameters: {{weight: 1}}}}]
"""
    assert {(target.name, target.base, target.parts[0].name) for target in planned(text.format(0, 2)).targets} == {
        (name, name, name) for name in shapes(2, True)
    }
    assert "slices[0].sources[1].layer_range (line 5) has other layers than the base that it changes" in said(
        text.format(1, 3)
    )


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


# -- what is wrong


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
