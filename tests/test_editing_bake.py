"""Baked adapters against peft's merge_and_unload and float64 sums."""

import json

import pytest
import torch
from safetensors.torch import load_file
from test_editing_negate import bits, save_mask
from test_vectors_lowrank import LLAMA, gpt2, llama, train

import editkit
from editkit.editing.bake import bake
from editkit.errors import EditError


def weights(folder) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize(
    ("make", "targets", "settings"),
    [
        (llama, LLAMA, {}),
        (llama, LLAMA, {"use_rslora": True, "alpha_pattern": {"q_proj": 1}, "rank_pattern": {"v_proj": 2}}),
        (llama, ["embed_tokens", "lm_head"], {}),
        (gpt2, ["c_attn", "c_proj"], {}),
    ],
    ids=["llama", "rslora", "embeddings", "gpt2"],
)
@pytest.mark.parametrize("scale", [1.0, -0.4])
def test_baked_is_what_peft_merges(tmp_path, make, targets, settings, scale):
    base = make(tmp_path / "base")
    adapter = train(base, tmp_path / "lora", targets, **settings)
    result = bake(base, adapter, tmp_path / "out", scale=scale)
    before, merged, after = weights(base), weights(adapter / "merged"), weights(tmp_path / "out")
    for name, tensor in after.items():
        want = before[name].double() + scale * (merged[name].double() - before[name].double())
        torch.testing.assert_close(tensor.double(), want, rtol=0, atol=1e-6)
        if not any(f"{target}.weight" in name for target in targets):
            assert torch.equal(bits(tensor), bits(before[name]))
    assert result.total["projection"] == pytest.approx(scale, abs=1e-5) and not result.warnings
    assert result.report["summary"]["changed"] == result.changed > 0


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_sum_is_rounded_once(tmp_path, dtype):
    base = llama(tmp_path / "base", dtype=dtype)
    adapter = train(base, tmp_path / "lora", LLAMA)
    bake(base, adapter, tmp_path / "out", scale=0.3)
    factors, before = load_file(adapter / "adapter_model.safetensors"), weights(base)
    for name, tensor in weights(tmp_path / "out").items():
        stem = f"base_model.model.{name.removesuffix('.weight')}.lora_"
        want = before[name]
        if f"{stem}A.weight" in factors:
            change = factors[f"{stem}B.weight"].double() @ factors[f"{stem}A.weight"].double()
            want = (before[name].double() + 0.3 * 1.5 * change).float().to(before[name].dtype)
        assert torch.equal(bits(tensor), bits(want)), name


def test_masks_names_and_provenance(tmp_path):
    base = llama(tmp_path / "base")
    adapter = train(base, tmp_path / "lora", LLAMA)
    q = "model.layers.1.self_attn.q_proj.weight"
    mask = save_mask(tmp_path / "mask.safetensors", "row", {q: torch.arange(24) < 5})
    result = bake(base, adapter, tmp_path / "out", only=["*.layers.1.*"], mask=mask)
    before, merged, after = weights(base), weights(adapter / "merged"), weights(tmp_path / "out")
    assert {name for name in after if not torch.equal(after[name], before[name])} == {q} == set(result.alphas)
    torch.testing.assert_close(after[q][:5], merged[q][:5], rtol=0, atol=1e-6)
    assert torch.equal(after[q][5:], before[q][5:])
    text = (tmp_path / "out" / "editkit.json").read_text()
    record = json.loads(text)
    assert (record["command"], record["scale"], "alpha" in record) == ("bake", 1.0, False) and str(tmp_path) not in text
    assert [one["role"] for one in record["inputs"]] == ["base", "mask", "vector 1"]


def test_scale_zero_changes_nothing_and_says_so(tmp_path):
    base = llama(tmp_path / "base")
    adapter = train(base, tmp_path / "lora", LLAMA)
    result = bake(base, adapter, tmp_path / "out", scale=0.0)
    assert result.changed == 0 and result.warnings == ["nothing changed: scale is 0"]
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (base / "model.safetensors").read_bytes()


def test_baking_and_negating_undo_each_other_in_float64_arithmetic(tmp_path):
    base = llama(tmp_path / "base")
    adapter = train(base, tmp_path / "lora", LLAMA)
    bake(base, adapter, tmp_path / "one", scale=-0.7)
    editkit.negate(base, adapter, tmp_path / "two", alpha=0.7)
    assert (tmp_path / "one" / "model.safetensors").read_bytes() == (
        tmp_path / "two" / "model.safetensors"
    ).read_bytes()


def test_its_patch_takes_the_adapter_out_again(tmp_path):
    base = llama(tmp_path / "base", dtype="bfloat16")
    adapter = train(base, tmp_path / "lora", LLAMA)
    bake(base, adapter, tmp_path / "out", patch=tmp_path / "lora.editpatch")
    editkit.undo_patch(tmp_path / "out", tmp_path / "lora.editpatch", output=tmp_path / "again")
    files = [(folder / "model.safetensors").read_bytes() for folder in (base, tmp_path / "again", tmp_path / "out")]
    assert files[0] == files[1] != files[2]


def test_what_is_no_adapter_or_no_scale_is_refused(tmp_path):
    base = llama(tmp_path / "base")
    adapter = train(base, tmp_path / "lora", LLAMA)
    with pytest.raises(EditError, match=r"merged has no adapter_config.json"):
        bake(base, adapter / "merged", tmp_path / "out")
    with pytest.raises(EditError, match="--scale is nan: give a finite number"):
        bake(base, adapter, tmp_path / "out", scale=float("nan"))
    with pytest.raises(EditError, match="is an adapter for another model"):
        bake(gpt2(tmp_path / "gpt2"), adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()
