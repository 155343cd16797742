"""Slices of mergekit's YAML: which layer comes from where, worked out by hand."""

from pathlib import Path

import numpy as np
import pytest
from merge_configs import LAYER, UP, Q, of_model, planned, said, save, shapes, three_models
from safetensors.numpy import save_file


@pytest.fixture
def here(tmp_path, monkeypatch):
    return three_models(tmp_path, monkeypatch)


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
