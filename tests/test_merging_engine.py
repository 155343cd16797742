"""Merges of files: every number recomputed with torch in float64, and whatever does not fit refused before anything is written."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from merge_models import (
    CONFIG,
    FLOATS,
    SETTINGS,
    SHAPES,
    UP,
    added,
    models,
    read,
    refused,
    same,
    save,
    tensors,
)
from safetensors.torch import save_file
from sharded import tree

import editkit
from editkit.errors import EditError
from editkit.merging import engine
from editkit.merging.merge import execute, merge
from editkit.merging.planning import plan_merge
from editkit.merging.record import recorded, restored


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_merge_is_rounded_once(tmp_path, dtype):
    base, one, two = models(tmp_path, dtype)
    result = merge(base, {one: 0.6, two: -0.3}, tmp_path / "out", method="task_arithmetic")
    wanted, found = added(base, (one, 0.6), (two, -0.3)), read(tmp_path / "out")
    assert found.keys() == SHAPES.keys()
    assert all(same(found[name], wanted[name]) for name in SHAPES)
    moved = {name: wanted[name].double() - read(base)[name].double() for name in SHAPES}
    assert result.total["applied_l2"] == pytest.approx(
        math.sqrt(sum(float((d**2).sum()) for d in moved.values())), rel=1e-6
    )
    assert result.merged == len(SHAPES) and result.copied == 0 and result.changed > 1000
    assert result.bytes == sum(one.nbytes for one in found.values())
    assert result.report["summary"]["changed"] == result.changed
    assert (tmp_path / "out" / "diff" / "report.html").exists()
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == CONFIG


def test_vectors_of_all_kinds_are_merged_together(tmp_path):
    base, one, two = models(tmp_path)
    editkit.task_vector(two, tmp_path / "tau.safetensors", base=base, dtype="float64")
    generator = torch.Generator().manual_seed(9)
    a, b = torch.randn(3, 16, generator=generator), torch.randn(40, 3, generator=generator) * 0.01
    factors = {"lora_A.weight": a, "lora_B.weight": b}
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    save_file(
        {f"base_model.model.{UP.removesuffix('.weight')}.{key}": one for key, one in factors.items()},
        adapter / "adapter_model.safetensors",
    )
    said = {"peft_type": "LORA", "r": 3, "lora_alpha": 6, "target_modules": ["up_proj"]}
    (adapter / "adapter_config.json").write_text(json.dumps(said))
    vectors = {one: 0.5, tmp_path / "tau.safetensors": -0.2, adapter: {"weight": 0.7}}
    merge(base, vectors, tmp_path / "out", **SETTINGS)
    wanted = {name: one.double() for name, one in read(base).items()}
    for name in wanted:
        wanted[name] += 0.5 * (read(one)[name].double() - read(base)[name].double())
        wanted[name] -= 0.2 * (read(two)[name].double() - read(base)[name].double())
    wanted[UP] += 0.7 * 2 * (b.double() @ a.double())
    for name, found in read(tmp_path / "out").items():
        assert same(found, wanted[name].float()), name
    # as a model of its own: base+adapter, merged by its values
    config = {
        "merge_method": "linear",
        "models": [
            {"model": f"{base}+{adapter}", "parameters": {"weight": 1}},
            {"model": str(two), "parameters": {"weight": 1}},
        ],
    }
    merge(None, config, tmp_path / "mean", report=False)
    mean = {name: ((one.double() + read(two)[name].double()) / 2).float() for name, one in read(base).items()}
    mean[UP] = ((read(base)[UP].double() + 2 * (b.double() @ a.double()) + read(two)[UP].double()) / 2).float()
    assert all(same(found, mean[name]) for name, found in read(tmp_path / "mean").items())


def test_an_adapter_leaves_the_tensors_beside_it_byte_for_byte(tmp_path):
    base, one = models(tmp_path, "bfloat16", 1)
    named = {name: tensor.clone() for name, tensor in read(base).items()}  # the file is mapped, and written anew
    named["model.norm.weight"][:4] = -0.0
    save_file(named, base / "model.safetensors")
    result = merge(base, {one: 0.5}, tmp_path / "out", only=["*.mlp.*"], **SETTINGS)
    assert (result.merged, result.copied) == (2, 4)
    wanted = added(base, (one, 0.5))
    for name, found in read(tmp_path / "out").items():
        assert same(found, wanted[name] if ".mlp." in name else named[name]), name


def test_a_mask_leaves_the_base_where_it_is_false(tmp_path):
    base, one, two = models(tmp_path)
    chosen = torch.rand(40, 16, generator=torch.Generator().manual_seed(3)) < 0.3
    save_file({UP: chosen}, tmp_path / "mask.safetensors")
    both = {one: {"weight": 0.6, "mask": tmp_path / "mask.safetensors"}, two: 0.3}
    merge(base, both, tmp_path / "out", **SETTINGS)
    whole, other = added(base, (one, 0.6), (two, 0.3)), added(base, (two, 0.3))
    for name, found in read(tmp_path / "out").items():
        want = torch.where(chosen, whole[name], other[name]) if name == UP else other[name]
        assert same(found, want), name
    merge(base, {one: both[one]}, tmp_path / "alone", **SETTINGS)
    for name, found in read(tmp_path / "alone").items():
        want = torch.where(chosen, added(base, (one, 0.6))[name], read(base)[name]) if name == UP else read(base)[name]
        assert same(found, want), name


def test_settings_may_differ_by_name_and_run_over_the_layers(tmp_path):
    base, one = models(tmp_path, count=1)
    weight = [{"filter": "mlp", "value": [0.2, 0.8]}, {"value": 1.0}]
    merge(base, {one: {"weight": weight}}, tmp_path / "out", **SETTINGS)
    for name, found in read(tmp_path / "out").items():
        w = 1.0 if ".mlp." not in name else 0.2 if ".0." in name else 0.8
        assert same(found, added(base, (one, w))[name]), name


@pytest.mark.parametrize("method", ["dare_ties", "ties", "breadcrumbs", "della", "slerp", "sce", "karcher"])
def test_threads_and_shards_and_the_order_of_tensors_change_nothing(tmp_path, method, monkeypatch):
    base, *tuned = models(tmp_path, "bfloat16", 1 if method == "slerp" else 2)
    own = {
        "dare_ties": {"density": 0.4},
        "ties": {"density": 0.4},
        "breadcrumbs": {"density": 0.4},
        "della": {"density": 0.4},
    }
    each = {"weight": 0.5, **own[method]} if method in own else {}
    entries = [{"model": str(one), "parameters": each} for one in tuned]
    settings = {"slerp": {"t": 0.3}, "sce": {"select_topk": 0.5}}.get(method, {})
    config = {"merge_method": method, "models": entries, "parameters": settings, "base_model": str(base), "seed": 7}
    monkeypatch.setattr(engine, "size_of_blocks", lambda work: 64)
    merge(None, config, tmp_path / "one", threads=1, report=False)
    merge(None, config, tmp_path / "many", threads=5, shard_size=1500, report=False)
    monkeypatch.setattr(engine, "_TOGETHER", (1, 1))
    merge(None, config, tmp_path / "alone", threads=2, report=False)
    first = read(tmp_path / "one")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 1
    for other in ("many", "alone"):
        assert all(same(found, first[name]) for name, found in read(tmp_path / other).items())
    assert any(not same(first[name], one) for name, one in read(base).items())
    if method in ("dare_ties", "della"):
        merge(None, {**config, "seed": 8}, tmp_path / "other", report=False)
        assert any(not same(found, first[name]) for name, found in read(tmp_path / "other").items())


def test_whole_numbers_scalars_empty_tensors_and_other_files(tmp_path):
    extra = {"model.steps": torch.arange(5), "model.scale": torch.tensor(2.0), "model.empty": torch.zeros(0, 4)}
    base = save(tmp_path / "base", {**tensors(0), **extra})
    changed = {"model.steps": torch.arange(5) * 2, "model.scale": torch.tensor(5.0), "model.empty": torch.zeros(0, 4)}
    tuned = save(tmp_path / "tuned", {**tensors(1), **changed})
    (base / "chat_template.jinja").write_text("{{ messages }}")
    for method in ("ties", "dare_ties", "breadcrumbs", "della", "sce", "task_arithmetic"):
        own = {"density": 0.5} if method not in ("sce", "task_arithmetic") else {}
        weight = {} if method == "sce" else {"weight": 1.0}
        merge(base, {tuned: {**weight, **own}}, tmp_path / method, method=method, report=False)
        found = read(tmp_path / method)
        assert found["model.steps"].tolist() == [0, 1, 2, 3, 4] and found["model.empty"].shape == (0, 4)
        assert float(found["model.scale"]) in ((2.0, 8.0) if method in ("dare_ties", "della") else (5.0,)), method
        assert (tmp_path / method / "chat_template.jinja").read_text() == "{{ messages }}"


def test_a_merge_without_any_change_says_so(tmp_path):
    base, one = models(tmp_path, count=1)
    result = merge(base, {one: 0.0}, tmp_path / "out", **SETTINGS)
    assert result.changed == 0 and result.warnings == [
        "nothing changed: the merge is equal to the model whose files it takes"
    ]
    assert all(same(found, read(base)[name]) for name, found in read(tmp_path / "out").items())
    refused(tmp_path, "models is empty", {}, method="ties")


def test_a_dry_run_writes_nothing_and_says_what_would_be(tmp_path):
    base, one = models(tmp_path, count=1)
    before = tree(tmp_path)
    result = merge(base, {one: -1.0}, tmp_path / "out", method="ties", dry_run=True)
    assert tree(tmp_path) == before
    assert (result.output, result.merged, result.copied) == (None, 6, 0)
    assert result.bytes == 4 * sum(math.prod(shape) for shape in SHAPES.values())
    assert 10**8 < result.memory < 10**9
    assert any("sum of |weight|" in note for note in result.notes)
    with pytest.raises(EditError, match="no output folder given"):
        merge(base, {one: 1.0})
    with pytest.raises(EditError, match="is an input as well"):
        merge(base, {one: 1.0}, base, dry_run=True)


def test_provenance_has_the_whole_plan_and_no_folder_of_this_machine(tmp_path):
    base, one, two = models(tmp_path)
    vectors = {one: {"weight": 0.5, "density": 0.4}, two: {"weight": [0.1, 0.9]}}
    merge(base, vectors, tmp_path / "out", method="dare_ties", seed=3, report=False)
    text = (tmp_path / "out" / "editkit.json").read_text()
    record = json.loads(text)
    assert str(tmp_path) not in text
    assert (record["command"], record["seed"], record["method"]) == ("merge", 3, "dare_ties")
    assert [(one["role"], one["name"]) for one in record["inputs"]] == [
        ("base", "base"), ("model 1", "tuned-1"), ("model 2", "tuned-2"),
    ]  # fmt: skip
    places = {"base": base, "model 1": one, "model 2": two}
    plan = restored(record["plan"], lambda role: str(places[role]))
    execute(plan, tmp_path / "again", report=False)
    assert tree(tmp_path / "again") == tree(tmp_path / "out")


def test_a_recorded_plan_is_the_plan(tmp_path):
    base, one, _ = models(tmp_path)
    entries = [
        {"model": str(base), "layer_range": [0, 2], "parameters": {}},
        {"model": str(one), "layer_range": [0, 2], "parameters": {"weight": 0.5, "density": 0.3}},
    ]
    config = {"merge_method": "ties", "base_model": str(base), "slices": [{"sources": entries}], "dtype": "bfloat16"}
    plan = plan_merge(config)
    places = {"base": str(base), "model 1": str(one)}
    assert restored(json.loads(json.dumps(recorded(plan))), places.__getitem__) == plan


def test_other_dtypes_and_layers_make_new_files(tmp_path):
    _, one, _ = models(tmp_path)
    entries = [{"sources": [{"model": str(one), "layer_range": span}]} for span in ([0, 2], [1, 2])]
    merge(None, {"merge_method": "passthrough", "slices": entries, "dtype": "bfloat16"}, tmp_path / "out")
    found, before = read(tmp_path / "out"), read(one)
    assert len(found) == len(SHAPES) + 2
    for name, tensor in found.items():
        assert same(tensor, before[name.replace("layers.2", "layers.1")].bfloat16()), name
    assert json.loads((tmp_path / "out" / "config.json").read_text())["num_hidden_layers"] == 3
    report = json.loads((tmp_path / "out" / "diff" / "report.json").read_text())
    assert len(report["added"]) == 2 and len(report["retyped"]) == len(SHAPES) and not report["removed"]


def test_inputs_are_rounded_to_the_dtype_of_the_merge_first_as_in_mergekit(tmp_path):
    base, one, _ = models(tmp_path)
    entries = [{"model": str(one), "parameters": {"weight": 0.6}}]
    config = {"merge_method": "task_arithmetic", "base_model": str(base), "models": entries, "dtype": "bfloat16"}
    merge(None, config, tmp_path / "out", report=False)
    for name, found in read(tmp_path / "out").items():
        start, tuned = (read(folder)[name].bfloat16().double() for folder in (base, one))
        assert same(found, (start + 0.6 * (tuned - start)).bfloat16()), name


def test_a_patch_takes_the_merge_back(tmp_path):
    base, one, two = models(tmp_path, "bfloat16")
    merge(base, {one: 0.5, two: 0.5}, tmp_path / "out", patch=tmp_path / "merge.editpatch", **SETTINGS)
    editkit.undo_patch(tmp_path / "out", tmp_path / "merge.editpatch", output=tmp_path / "back")
    assert (tmp_path / "back" / "model.safetensors").read_bytes() == (base / "model.safetensors").read_bytes()
    config = {
        "merge_method": "linear",
        "dtype": "float32",
        "models": [{"model": str(p), "parameters": {"weight": 1}} for p in (one, two)],
    }
    refused(tmp_path, "which no patch can undo", config, base=None, patch=tmp_path / "other.editpatch")


def test_merging_needs_no_torch(tmp_path):
    base, one, _ = models(tmp_path, "bfloat16")
    code = (
        "import sys; from editkit.merging.merge import merge\n"
        f"merge({str(base)!r}, {{{str(one)!r}: {{'weight': 1.0, 'density': 0.5}}}}, {str(tmp_path / 'out')!r}, method='ties')\n"
        "print({'torch', 'transformers', 'peft'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("other", [torch.tensor([5, 6, 7]), torch.tensor([0.0, 1.0, 2.0])])
def test_whole_numbers_that_differ_are_the_bases_and_said(tmp_path, other):
    base, tuned = models(tmp_path, count=1)
    save_file({**read(base), "ids": torch.tensor([0, 1, 2])}, base / "model.safetensors")
    save_file({**read(tuned), "ids": other}, tuned / "model.safetensors")
    found = merge(base, {tuned: 0.5}, tmp_path / "out", **SETTINGS)
    assert read(tmp_path / "out")["ids"].tolist() == [0, 1, 2]
    assert [note for note in found.notes if note.startswith("ids: whole numbers") and note.endswith("/base are taken")]


def test_numbers_of_numpy_are_numbers(tmp_path):
    base, tuned = models(tmp_path, count=1)
    merge(base, {tuned: np.float32(0.5)}, tmp_path / "one", **SETTINGS)
    merge(base, {tuned: 0.5}, tmp_path / "other", **SETTINGS)
    assert all(same(one, read(tmp_path / "other")[name]) for name, one in read(tmp_path / "one").items())
