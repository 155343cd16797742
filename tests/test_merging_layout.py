"""Merges with other tensors than the base has, in files as large as those of the base; and outputs that are not touched."""

import json
import math
from pathlib import Path

import pytest
import torch
from merge_models import (
    SHAPES,
    added,
    models,
    read,
    same,
    save,
    tensors,
)
from safetensors.torch import save_file

import editkit
from editkit.checkpoint.header import TensorInfo
from editkit.checkpoint.reader import open_checkpoint
from editkit.checkpoint.writer import CheckpointWriter
from editkit.errors import EditError
from editkit.merging.merge import execute, merge
from editkit.merging.planning import plan_merge


def test_the_writer_puts_new_tensors_into_files_as_large_as_those_of_the_base(tmp_path):
    named = {name: torch.full((64,), float(index)) for index, name in enumerate("abcd")}
    base = tmp_path / "base"
    base.mkdir()
    for number, pair in enumerate((("a", "b"), ("c", "d")), 1):
        save_file({name: named[name] for name in pair}, base / f"model-0000{number}-of-00002.safetensors")
    where = {name: f"model-0000{1 + (name > 'b')}-of-00002.safetensors" for name in named}
    said = {"total_size": 1024, "total_parameters": 256}
    (base / "model.safetensors.index.json").write_text(json.dumps({"metadata": said, "weight_map": where}))
    other = save(tmp_path / "other", {"z": torch.arange(64.0)})
    entries = dict.fromkeys(("a", "new", "b", "c", "d"), ("F32", (64,)))
    with open_checkpoint(base) as one, open_checkpoint(other) as two:
        with CheckpointWriter(one, tmp_path / "out", tensors=entries) as writer:
            for name in "abcd":
                writer.copy(name)
            writer.copy("new", two, "z")
        again = CheckpointWriter(
            one, tmp_path / "same", tensors={n: (i.dtype, i.shape) for n, i in one.tensors.items()}
        )
        assert list(again.shards) == list(one.files)
    found = read(tmp_path / "out")
    assert torch.equal(found.pop("new"), torch.arange(64.0))
    assert all(same(found[name], named[name]) for name in named)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": 1280, "total_parameters": 320}
    assert len(set(index["weight_map"].values())) == 3 and list(index["weight_map"]) == sorted(entries)
    with open_checkpoint(tmp_path / "out") as opened:
        assert isinstance(opened.tensors["new"], TensorInfo)


def test_layers_of_another_model_are_reported_as_the_change_that_they_are(tmp_path):
    _, one, two = models(tmp_path)
    entries = [
        {"sources": [{"model": str(model), "layer_range": span}]} for model, span in ((one, [0, 1]), (two, [1, 2]))
    ]
    config = {"merge_method": "passthrough", "slices": entries}
    result = merge(None, config, tmp_path / "out")
    before, after = read(one), read(two)
    moved = [name for name in SHAPES if "layers.1." in name or name == "model.norm.weight"]
    change = math.sqrt(sum(float((after[name].double() - before[name].double()).square().sum()) for name in moved))
    assert result.changed == sum(int((after[name] != before[name]).sum()) for name in moved)
    assert result.total["applied_l2"] == pytest.approx(change) and not result.warnings
    assert result.stacked == [
        {"layers": [0, 0], "of": [{"model": "tuned-1", "layers": [0, 0]}]},
        {"layers": [1, 1], "of": [{"model": "tuned-2", "layers": [1, 1]}]},
    ]
    assert result.report is not None and result.report["summary"]["tensors_changed"] == len(moved)
    assert merge(None, config, tmp_path / "bare", report=False).changed == result.changed


def test_the_report_of_a_partial_merge_is_that_of_diff(tmp_path):
    base, one, _ = models(tmp_path)
    result = merge(base, {one: 0.5}, tmp_path / "out", only=["*.mlp.*"])
    assert result.report is not None
    seen = editkit.diff(base, tmp_path / "out")
    for key in ("summary", "layers", "modules", "tensors"):
        rows = [
            {k: v for k, v in row.items() if k != "edit"}
            for row in ([result.report[key]] if key == "summary" else result.report[key])
        ]
        assert rows == ([seen[key]] if key == "summary" else seen[key])


def test_another_spelling_of_the_base_is_the_base(tmp_path, monkeypatch):
    models(tmp_path)
    monkeypatch.chdir(tmp_path)
    entries = [{"model": "base"}, {"model": "./tuned-1/", "parameters": {"weight": 0.5}}]
    merge(None, {"merge_method": "task_arithmetic", "base_model": "./base", "models": entries}, "out", report=False)
    expected = added(Path("base"), (Path("tuned-1"), 0.5))
    assert all(same(found, expected[name]) for name, found in read(Path("out")).items())


def test_tied_models_are_stacked_alike_however_often_they_keep_the_tensor(tmp_path):
    found = {}
    for times in ("once", "twice"):
        folders = []
        for seed in (1, 2):
            named = {**tensors(seed), "lm_head.weight": tensors(seed)["model.embed_tokens.weight"].clone()}
            named = named if times == "twice" else tensors(seed)
            folders.append(save(tmp_path / f"{times}-{seed}", named, tie_word_embeddings=True))
        entries = [
            {"sources": [{"model": str(one), "layer_range": span}]}
            for one, span in zip(folders, ([0, 1], [1, 2]), strict=True)
        ]
        merge(None, {"merge_method": "passthrough", "slices": entries}, tmp_path / times, report=False)
        found[times] = read(tmp_path / times)
    assert same(found["twice"].pop("lm_head.weight"), tensors(1)["model.embed_tokens.weight"])
    assert found["twice"].keys() == found["once"].keys()
    assert all(same(found["twice"][name], one) for name, one in found["once"].items())


def test_a_plan_writes_no_files_outside_of_the_output(tmp_path):
    base, one, _ = models(tmp_path)
    config = {
        "merge_method": "task_arithmetic",
        "base_model": str(base),
        "models": [{"model": str(one), "parameters": {"weight": 1}}],
    }
    for path in (str(tmp_path / "victim"), "../victim", "sub/file"):
        with pytest.raises(EditError, match="no name of a file in the output"):
            execute(plan_merge(config)._replace(files={path: "X"}), tmp_path / "out")
        assert not (tmp_path / "victim").exists() and not (tmp_path / "out").exists()


def test_a_patch_inside_the_output_is_refused_before_anything_is_written(tmp_path):
    base, one, _ = models(tmp_path)
    with pytest.raises(EditError, match="out"):
        merge(base, {one: 1.0}, tmp_path / "out", patch=tmp_path / "out" / "edit.editpatch")
    assert not (tmp_path / "out").exists()
