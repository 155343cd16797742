"""Merges of files: every number recomputed with torch in float64, and whatever does not fit refused before anything is written."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import editkit
from editkit.checkpoint.header import TensorInfo
from editkit.checkpoint.reader import open_checkpoint
from editkit.checkpoint.writer import CheckpointWriter
from editkit.errors import EditError
from editkit.merging import engine
from editkit.merging.merge import execute, merge
from editkit.merging.plan import Model, Part, Plan, Target
from editkit.merging.planning import plan_merge
from editkit.merging.record import recorded, restored

SHAPES = {
    "model.embed_tokens.weight": (32, 16),
    "model.layers.0.self_attn.q_proj.weight": (16, 16),
    "model.layers.0.mlp.up_proj.weight": (40, 16),
    "model.layers.1.self_attn.q_proj.weight": (16, 16),
    "model.layers.1.mlp.up_proj.weight": (40, 16),
    "model.norm.weight": (16,),
}
Q, UP = "model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.up_proj.weight"
FLOATS = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32, "float64": torch.float64}
CONFIG = {"model_type": "llama", "num_attention_heads": 4, "num_hidden_layers": 2, "tie_word_embeddings": False}
SETTINGS = {"method": "task_arithmetic", "report": False}


def tensors(seed: int, dtype: torch.dtype = torch.float32, scale: float = 0.02) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: (torch.randn(shape, generator=generator) * scale).to(dtype) for name, shape in SHAPES.items()}


def save(folder: Path, named: dict[str, torch.Tensor], **config) -> Path:
    folder.mkdir(parents=True)
    save_file(named, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({**CONFIG, **config}))
    return folder


def models(tmp_path: Path, dtype: str = "float32", count: int = 2, **config) -> list[Path]:
    """A base and models that differ from it by a tenth of its size."""
    base = tensors(0, FLOATS[dtype])
    folders = [save(tmp_path / "base", base, **config)]
    for seed in range(1, count + 1):
        noise = tensors(seed, torch.float64, 0.002)
        moved = {name: (one.double() + noise[name]).to(one.dtype) for name, one in base.items()}
        folders.append(save(tmp_path / f"tuned-{seed}", moved, **config))
    return folders


def read(folder: Path) -> dict[str, torch.Tensor]:
    return {name: one for file in sorted(folder.glob("*.safetensors")) for name, one in load_file(file).items()}


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(bits(one), bits(other))


def added(base: Path, *changes: tuple[Path, float]) -> dict[str, torch.Tensor]:
    """base + sum of weight * (tuned - base), rounded once."""
    before = read(base)
    after = {name: one.double() for name, one in before.items()}
    for tuned, weight in changes:
        for name, one in read(tuned).items():
            after[name] = after[name] + weight * (one.double() - before[name].double())
    return {name: one.to(before[name].dtype) for name, one in after.items()}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


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


def refused(tmp_path: Path, match: str, vectors, base="base", **settings) -> str:
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(EditError, match=match) as error:
        merge(base and tmp_path / base, vectors, tmp_path / "out", **{"report": False, **settings})
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    return str(error.value)


def test_nan_is_refused_by_model_and_tensor_and_leaves_nothing(tmp_path):
    _, one, _ = models(tmp_path)
    named = read(one)
    named[UP][3, 3] = math.nan
    save_file(named, one / "model.safetensors")
    for method in ("ties", "task_arithmetic", "model_stock"):
        weight = {} if method == "model_stock" else 1.0
        vectors = {tmp_path / f"tuned-{seed}": weight for seed in (1, 2)}
        refused(tmp_path, f"tuned-1 has 1 NaN or Inf in a block of {UP}", vectors, method=method)


def test_numbers_too_large_for_the_dtype_are_refused(tmp_path):
    _, one, _ = models(tmp_path, "float16")
    refused(tmp_path, "the merge makes numbers in .* that F16 cannot hold", {one: 1e8}, method="task_arithmetic")


def test_all_misfits_are_said_at_once(tmp_path):
    _, one, two = models(tmp_path)
    named = read(one)
    named["model.norm.weight"] = torch.zeros(17)
    del named[Q]
    save_file(named, one / "model.safetensors")
    (two / "config.json").write_text(json.dumps({**CONFIG, "quantization_config": {"quant_method": "gptq"}}))
    plan = Plan(
        "ties",
        str(tmp_path / "base"),
        (Model(str(one)), Model(str(two))),
        tuple(
            Target(n, n, tuple(Part(j, n, {"weight": 1.0, "density": 2.0, "wait": 1}) for j in (0, 1)), {})
            for n in SHAPES
        ),
    )
    with pytest.raises(EditError) as error:
        execute(plan, tmp_path / "out")
    for part in (
        f"{Q} in ", "these tensors are missing", "model.norm.weight [17] in ", "instead of [16]", "quantized", "(gptq)",
        "settings wait are unknown", "density is 2.0: give a number from 0 to 1",
    ):  # fmt: skip
        assert part in str(error.value), part
    assert not (tmp_path / "out").exists()


def test_wrong_numbers_of_models_are_refused(tmp_path):
    _, one, two = models(tmp_path)
    refused(tmp_path, "SLERP takes 1", {one: {}, two: {}}, method="slerp", settings={"t": 0.5})
    refused(tmp_path, "Model Stock takes at least 2", {one: {}}, method="model_stock")
    refused(tmp_path, "has no weight for 6 tensors", {one: {}}, method="ties")
    target = Target(Q, None, (Part(0, Q, {"weight": 1.0}),), {})
    with pytest.raises(EditError, match="TIES needs a base model"):
        execute(Plan("ties", None, (Model(str(one)),), (target,), like=0), tmp_path / "out")


def test_half_of_a_tied_tensor_is_refused_and_whole_ones_stay_tied(tmp_path):
    head = "lm_head.weight"
    for seed, name in enumerate(("base", "tuned")):
        named = tensors(seed, torch.bfloat16)
        save(tmp_path / name, {**named, head: named["model.embed_tokens.weight"].clone()}, tie_word_embeddings=True)
    tuned = tmp_path / "tuned"
    refused(tmp_path, r"are one tensor in .*base \(tied\): merge them alike", {tuned: 1.0}, only=[head], method="ties")
    save_file({head: torch.tensor(True)}, tmp_path / "mask.safetensors")
    masked = {tuned: {"weight": 1.0, "mask": tmp_path / "mask.safetensors"}}
    refused(tmp_path, "are one tensor in", masked, method="ties")
    merge(
        tmp_path / "base",
        {tuned: {"weight": 0.5, "density": 0.3}},
        tmp_path / "drawn",
        method="dare_ties",
        report=False,
    )
    found = read(tmp_path / "drawn")
    assert same(found[head], found["model.embed_tokens.weight"])
    assert not same(found[head], read(tmp_path / "base")[head])


def test_an_untied_head_beside_a_tied_model_is_refused(tmp_path):
    _, one = models(tmp_path, count=1, tie_word_embeddings=True)
    named = read(one)
    save_file({**named, "lm_head.weight": named["model.embed_tokens.weight"] + 1}, one / "model.safetensors")
    refused(tmp_path, "ties its output head to its embedding", {one: 1.0}, method="ties")
    entries = [{"model": str(one), "parameters": {"weight": 1.0}}]
    config = {"merge_method": "ties", "base_model": str(tmp_path / "base"), "models": entries}
    refused(tmp_path, "ties its output head to its embedding", config, base=None)


def test_a_vector_of_another_base_is_refused_unless_that_is_wanted(tmp_path):
    base, one, two = models(tmp_path)
    editkit.task_vector(one, tmp_path / "tau.safetensors", base=two)
    refused(
        tmp_path, "was made from tuned-2, whose weight files differ", {tmp_path / "tau.safetensors": 1.0}, method="ties"
    )
    merge(base, {tmp_path / "tau.safetensors": 1.0}, tmp_path / "out", allow_other_base=True, **SETTINGS)


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
    before = contents(tmp_path)
    result = merge(base, {one: -1.0}, tmp_path / "out", method="ties", dry_run=True)
    assert contents(tmp_path) == before
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
    assert contents(tmp_path / "again") == contents(tmp_path / "out")


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


# -- the writer, for outputs with other tensors than the base


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
