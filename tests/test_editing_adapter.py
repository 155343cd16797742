"""Negated adapters: the file that `negate` writes is base - alpha * (peft's merged model - base)."""

import numpy as np
import pytest
from safetensors.torch import load_file
from test_vectors_lowrank import LLAMA, gpt2, llama, train

import editkit


@pytest.mark.parametrize("alpha", [1.0, -1.0, 0.4])
@pytest.mark.parametrize(
    ("make", "targets", "settings"),
    [
        (llama, LLAMA, {}),
        (llama, LLAMA, {"use_rslora": True, "alpha_pattern": {"q_proj": 1}, "rank_pattern": {"v_proj": 2}}),
        (llama, ["embed_tokens", "q_proj"], {}),
        (gpt2, ["c_attn", "c_fc"], {}),
    ],
)
def test_negated_adapter_is_the_mirror_of_the_merged_one(tmp_path, make, targets, settings, alpha):
    base = make(tmp_path / "base")
    adapter = train(base, tmp_path / "lora", targets, **settings)
    result = editkit.negate(base, adapter, tmp_path / "out", alpha=alpha)
    before, merged = (load_file(f / "model.safetensors") for f in (base, adapter / "merged"))
    for name, tensor in load_file(tmp_path / "out" / "model.safetensors").items():
        want = before[name].double() - alpha * (merged[name].double() - before[name].double())
        np.testing.assert_allclose(tensor.double().numpy(), want.numpy(), rtol=0, atol=1e-6)
    assert result.total["projection"] == pytest.approx(-alpha, abs=1e-5)
    untouched = [row["name"] for row in result.report["tensors"] if not row["changed"]]
    assert untouched and all(not any(f"{target}.weight" in name for target in targets) for name in untouched)


def test_adapter_saved_as_a_vector_and_two_adapters_in_one_diff(tmp_path):
    base = llama(tmp_path / "base")
    one = train(base, tmp_path / "one", LLAMA)
    editkit.task_vector(one, tmp_path / "tau.safetensors")  # the adapter's own config names its base
    editkit.negate(base, one, tmp_path / "direct", alpha=1.0)
    editkit.negate(base, tmp_path / "tau.safetensors", tmp_path / "saved", alpha=1.0)
    difference = editkit.diff(tmp_path / "direct", tmp_path / "saved")["summary"]
    assert difference["max_abs"] < 1e-7
    two = train(base, tmp_path / "two", LLAMA, lora_dropout=0.1)
    assert editkit.diff(one, two)["summary"]["changed"] == 0  # the same seed drew the same factors
