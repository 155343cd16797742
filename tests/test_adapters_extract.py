"""Extracted adapters against numpy's singular values, the LoRA that made the tuned model, and peft that loads them."""

import json
import shutil
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_vectors_lowrank import LLAMA, TOKENS, gpt2, llama, renamed, train
from transformers import AutoModelForCausalLM, MixtralConfig, MixtralForCausalLM

from editkit.adapters import factorize as factorization
from editkit.adapters.extract import extract_lora
from editkit.adapters.factorize import factorize
from editkit.editing.bake import bake
from editkit.errors import EditError, NothingChanged
from editkit.vectors.task_vector import task_vector

OLD_PEFT = tuple(map(int, version("peft").split(".")[:2])) < (0, 21)
TODAYS_PEFT = pytest.mark.skipif(OLD_PEFT, reason="compares with what peft 0.21 does")

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def logits(folder: Path, adapter: Path | None = None) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder)
    if adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, adapter)
    with torch.no_grad():
        return model.eval()(torch.arange(12)[None] % TOKENS).logits


def moved(base: Path, folder: Path, scale: float = 0.02, only: str = "") -> Path:
    """Every floating tensor with `only` in its name gets noise of full rank."""
    shutil.copytree(base, folder)
    generator = torch.Generator().manual_seed(5)
    tensors = load_file(folder / "model.safetensors")
    for name in sorted(tensors):
        if only in name:
            noise = torch.randn(tensors[name].shape, generator=generator) * scale
            tensors[name] = (tensors[name].float() + noise).to(tensors[name].dtype)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def best(change: np.ndarray, rank: int) -> float:
    """Eckart and Young: the smallest share of the energy that a matrix of this rank can lack."""
    squares = np.linalg.svd(change, compute_uv=False) ** 2
    return float(squares[rank:].sum() / squares.sum())


# -- the decomposition


def noisy(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    """Singular values 1, 1/2, 1/3 ... under noise."""
    random = np.random.default_rng(seed)
    count = min(rows, columns, 40)
    u, v = (np.linalg.qr(random.standard_normal((side, count)))[0] for side in (rows, columns))
    return (u / np.arange(1, count + 1)) @ v.T + 1e-3 * random.standard_normal((rows, columns))


@pytest.mark.parametrize("whole", [True, False], ids=["kept in memory", "read for every product"])
@pytest.mark.parametrize("side", [1 << 20, 16], ids=["exact", "krylov"])
@pytest.mark.parametrize("shape", [(300, 700), (700, 300), (310, 310)])
def test_factors_are_those_of_the_truncated_svd(monkeypatch, shape, side, whole):
    monkeypatch.setattr(factorization, "GRAM_SIDE", side)
    monkeypatch.setattr(factorization, "BLOCK", 1 << 14)
    if not whole:
        monkeypatch.setattr(factorization, "WHOLE", 0)
    change = noisy(*shape) * 1e-4
    found = factorize(lambda first, last: change[first:last], *shape, rank=6)
    assert found.rank == 6 and found.energy == pytest.approx((change**2).sum(), rel=1e-6)
    lost = ((change - found.b.astype(np.float64) @ found.a) ** 2).sum() / (change**2).sum()
    assert found.residual == pytest.approx(lost, abs=1e-7)
    assert best(change, 6) - 1e-9 <= lost <= best(change, 6) + 1e-4
    np.testing.assert_allclose(np.linalg.norm(found.b, axis=0), np.linalg.norm(found.a, axis=1), rtol=1e-3)


@pytest.mark.parametrize("side", [1 << 20, 16], ids=["exact", "krylov"])
def test_an_energy_gets_the_smallest_rank_that_has_it(monkeypatch, side):
    monkeypatch.setattr(factorization, "GRAM_SIDE", side)
    change = noisy(700, 640)
    squares = np.cumsum(np.linalg.svd(change, compute_uv=False) ** 2)
    for energy in (0.5, 0.9):
        found = factorize(lambda first, last: change[first:last], 700, 640, energy=energy)
        assert found.rank == int(np.argmax(squares >= energy * squares[-1])) + 1
        assert found.residual <= 1 - energy + 1e-6


def test_a_matrix_of_less_rank_than_asked_for_keeps_its_own():
    random = np.random.default_rng(1)
    change = random.integers(-3, 4, (60, 3)).astype(float) @ random.integers(-3, 4, (3, 50))
    found = factorize(lambda first, last: change[first:last], 60, 50, rank=8)
    assert found.rank == 3 and found.residual < 1e-12


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_the_size_of_a_change_does_not_matter(scale):
    change = noisy(40, 30)
    found = factorize(lambda first, last: change[first:last] * scale, 40, 30, rank=5)
    assert found.residual == pytest.approx(best(change, 5), rel=1e-3)


def test_zeros_have_no_factors_and_what_is_not_finite_has_no_energy():
    zeros = np.zeros((4, 3))
    assert factorize(lambda first, last: zeros[first:last], 4, 3, rank=2)[2:] == (0.0, 0.0)
    zeros[2, 2] = np.nan
    assert factorize(lambda first, last: zeros[first:last], 4, 3, rank=2).energy == np.inf


# -- adapters


@pytest.mark.parametrize(
    ("make", "targets", "settings"),
    [
        (llama, LLAMA, {}),
        (llama, LLAMA, {"use_rslora": True, "rank_pattern": {"v_proj": 2}}),
        (gpt2, ["c_attn", "c_proj", "c_fc"], {}),
        (llama, ["embed_tokens", "lm_head", "q_proj"], {}),
    ],
    ids=["llama", "rslora", "gpt2", "embeddings"],
)
def test_a_lora_fine_tuning_is_found_again_at_its_rank(tmp_path, make, targets, settings):
    base = make(tmp_path / "base")
    tuned = train(base, tmp_path / "lora", targets, **settings) / "merged"
    result = extract_lora(base, tuned, tmp_path / "out", rank=4, embeddings="embed_tokens" in targets)
    assert result["residual_energy"] < 1e-6 and result["kept"] > 1 - 1e-6 and not result["warnings"]
    assert all(row["residual_energy"] < 1e-6 and row["rank"] <= 4 for row in result["modules"])
    assert {row["module"].rsplit(".")[-1] for row in result["modules"]} == set(targets)
    torch.testing.assert_close(logits(base, tmp_path / "out"), logits(tuned), rtol=0, atol=2e-5)
    assert (logits(base) - logits(tuned)).abs().max() > 1e-2
    bake(base, tmp_path / "out", tmp_path / "baked")
    for name, tensor in load_file(tmp_path / "baked" / "model.safetensors").items():
        torch.testing.assert_close(tensor, load_file(tuned / "model.safetensors")[name], rtol=0, atol=1e-6)


def test_a_full_fine_tuning_keeps_the_leading_directions_and_lists_what_has_no_place(tmp_path):
    base = llama(tmp_path / "base")
    tuned = moved(base, tmp_path / "tuned")
    result = extract_lora(base, tuned, tmp_path / "out", rank=5)
    before, after = (load_file(folder / "model.safetensors") for folder in (base, tuned))
    change = {name: (after[name].double() - before[name].double()).numpy() for name in before}
    for row in result["modules"]:
        assert row["residual_energy"] == pytest.approx(best(change[row["tensor"]], 5), abs=1e-6)
        assert row["l2"] == pytest.approx(np.linalg.norm(change[row["tensor"]]), rel=1e-6)
    assert {row["module"].rsplit(".")[-1] for row in result["modules"]} == set(LINEAR)
    outside = {row["tensor"]: row["l2"] for row in result["left_out"]}
    assert outside == {n: pytest.approx(np.linalg.norm(c), rel=1e-6) for n, c in change.items() if "proj" not in n}
    whole = sum((c**2).sum() for c in change.values())
    kept = sum(row["l2"] ** 2 * (1 - row["residual_energy"]) for row in result["modules"]) / whole
    assert result["kept"] == pytest.approx(kept, rel=1e-6)
    [warning] = result["warnings"]
    assert warning.startswith("7 tensors changed and are not in the adapter, with ") and "norm.weight" in warning
    tables = sum((change[name] ** 2).sum() for name in ("lm_head.weight", "model.embed_tokens.weight")) / whole
    taken = warning.split("; --embeddings takes in ")[1]
    assert {"lm_head.weight,", "model.embed_tokens.weight,"} < set(taken.split()) and taken.endswith(
        f", with {tables:.2%}"
    )


def test_embeddings_and_heads_are_an_option(tmp_path):
    base = llama(tmp_path / "base")
    tuned = moved(base, tmp_path / "tuned")
    result = extract_lora(base, tuned, tmp_path / "out", rank=24, embeddings=True)
    assert {"model.embed_tokens", "lm_head"} <= {row["module"] for row in result["modules"]}
    assert result["residual_energy"] < 1e-9 and len(result["left_out"]) == 5
    assert not any("--embeddings" in one for one in result["warnings"])
    assert any("at least as large as their matrix" in one for one in result["warnings"])
    after = load_file(tuned / "model.safetensors")
    for name, tensor in after.items():
        if "norm" in name:  # what an adapter cannot hold
            tensor.copy_(load_file(base / "model.safetensors")[name])
    save_file(after, tuned / "model.safetensors", {"format": "pt"})
    torch.testing.assert_close(logits(base, tmp_path / "out"), logits(tuned), rtol=0, atol=1e-4)


def test_positions_of_gpt2_count_as_embeddings(tmp_path):
    base = gpt2(tmp_path / "base")
    tuned = moved(base, tmp_path / "tuned")
    left_out = extract_lora(base, tuned, tmp_path / "out", rank=3)["left_out"]
    why = {row["tensor"]: row["why"] for row in left_out}
    assert "--embeddings" in why["transformer.wpe.weight"] and "no matrix" in why["transformer.h.0.attn.c_attn.bias"]


def test_files_without_the_wrapper_get_the_names_that_the_model_uses(tmp_path):
    base = gpt2(tmp_path / "base")
    tuned = moved(base, tmp_path / "tuned", only="c_attn.weight")
    bare = [
        renamed(one, tmp_path / f"bare-{one.name}", lambda name: name.removeprefix("transformer."))
        for one in (base, tuned)
    ]
    extract_lora(*bare, tmp_path / "out", rank=24)
    names = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert "base_model.model.transformer.h.0.attn.c_attn.lora_A.weight" in names
    torch.testing.assert_close(logits(base, tmp_path / "out"), logits(tuned), rtol=0, atol=1e-4)
    assert (logits(base) - logits(tuned)).abs().max() > 1e-2


def test_saved_vectors_and_adapters_are_changes_as_well(tmp_path):
    base = llama(tmp_path / "base")
    lora = train(base, tmp_path / "lora", LLAMA)
    task_vector(lora, tmp_path / "tau.safetensors", base=base)
    rows = [
        extract_lora(base, source, tmp_path / f"out{index}", rank=4)["modules"]
        for index, source in enumerate([lora, lora / "merged", tmp_path / "tau.safetensors"])
    ]
    for others in zip(*rows, strict=True):
        assert len({row["module"] for row in others}) == 1 and all(row["residual_energy"] < 1e-9 for row in others)
        assert others[1]["l2"] == pytest.approx(others[0]["l2"], rel=1e-5)


@pytest.mark.parametrize(
    ("only", "amount"),
    [
        ("block_sparse_moe", {"rank": 24}),  # the router, of 3 rows, has rank 3
        ("block_sparse_moe", {"energy": 0.6}),
        ("experts.1.w2", {"rank": 24}),  # the other experts get factors of zero
    ],
    ids=["all", "of several ranks", "one of them"],
)
@TODAYS_PEFT  # older ones do not find the experts
def test_experts_in_files_load_as_the_fused_ones_of_transformers(tmp_path, only, amount):
    torch.manual_seed(3)
    config = MixtralConfig(
        hidden_size=24, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        vocab_size=TOKENS, num_local_experts=3,
    )  # fmt: skip
    base, out = tmp_path / "base", tmp_path / "out"
    MixtralForCausalLM(config).save_pretrained(base)
    tuned = moved(base, tmp_path / "tuned", only=only)
    result = extract_lora(base, tuned, out, **amount)
    assert (len({row["rank"] for row in result["modules"]}) > 1) == (only != "experts.1.w2")
    bake(base, out, tmp_path / "baked")
    torch.testing.assert_close(logits(base, out), logits(tmp_path / "baked"), rtol=0, atol=1e-6)
    if "rank" in amount:
        torch.testing.assert_close(logits(base, out), logits(tuned), rtol=0, atol=1e-6)


def test_ranks_by_energy_differ_and_peft_reads_them(tmp_path):
    base = llama(tmp_path / "base")
    tuned = moved(base, tmp_path / "tuned", only="proj")
    result = extract_lora(base, tuned, tmp_path / "out", energy=0.9)
    ranks = {row["module"]: row["rank"] for row in result["modules"]}
    assert len(set(ranks.values())) > 1
    assert all(row["residual_energy"] <= 0.1 for row in result["modules"]) and result["residual_energy"] > 0.05
    saved = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert {rank for rank in ranks.values() if rank != saved["r"]} == set(saved["rank_pattern"].values())
    out = logits(base, tmp_path / "out")
    bake(base, tmp_path / "out", tmp_path / "baked")
    torch.testing.assert_close(out, logits(tmp_path / "baked"), rtol=0, atol=1e-5)


def test_threads_do_not_matter_and_the_seed_is_recorded(tmp_path):
    base = llama(tmp_path / "base")
    tuned = moved(base, tmp_path / "tuned")
    for threads in (1, 3):
        extract_lora(base, tuned, tmp_path / f"out{threads}", rank=3, threads=threads, seed=7)
    for file in ("adapter_model.safetensors", "adapter_config.json", "editkit.json"):
        assert (tmp_path / "out1" / file).read_bytes() == (tmp_path / "out3" / file).read_bytes()
    record = json.loads((tmp_path / "out1" / "editkit.json").read_text())
    assert record["command"] == "extract-lora" and record["seed"] == 7 and str(tmp_path) not in json.dumps(record)


def test_the_base_of_an_adapter_is_no_hub_id_that_loaders_would_fetch(tmp_path, monkeypatch):
    import socket

    from peft import AutoPeftModelForCausalLM

    base = llama(tmp_path / "base")
    extract_lora(base, moved(base, tmp_path / "tuned"), tmp_path / "out", rank=4)
    saved = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert saved["base_model_name_or_path"] == "./base"
    asked = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *address, **_: asked.append(address))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(OSError, match=r"\./base"):
        AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out")
    assert not asked
    want = logits(base, tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    with torch.no_grad():
        found = (
            AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out").eval()(torch.arange(12)[None] % TOKENS).logits
        )
    torch.testing.assert_close(found, want)


def test_rounding_of_a_bf16_checkpoint_is_the_floor(tmp_path):
    base = llama(tmp_path / "base", dtype="bfloat16")
    tuned = train(base, tmp_path / "lora", LLAMA, "bfloat16") / "merged"
    result = extract_lora(base, tuned, tmp_path / "out", rank=4)
    assert 1e-7 < result["residual_energy"] < 1e-3


# -- what is refused


def refused(tmp_path: Path, match: str, **settings) -> None:
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(EditError, match=match):
        extract_lora(tmp_path / "base", tmp_path / "tuned", tmp_path / "out", **settings)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_bad_settings_are_refused(tmp_path):
    moved(llama(tmp_path / "base"), tmp_path / "tuned")
    refused(tmp_path, "rank and energy are both given", rank=3, energy=0.5)
    refused(tmp_path, "energy 1.5 is no share", energy=1.5)
    refused(tmp_path, "rank 99 is larger than the matrix: .* give a rank from 1 to 24", rank=99)
    refused(tmp_path, "rank 0 ", rank=0)
    refused(tmp_path, "--only '.*nothing.*' matches none", rank=3, only=["nothing.*"])
    refused(tmp_path, "nothing to extract", rank=3, only=["model.norm.weight"])


def test_nan_and_models_that_do_not_differ_are_refused(tmp_path):
    base = llama(tmp_path / "base")
    tuned = moved(base, tmp_path / "tuned", only="norm")
    with pytest.raises(NothingChanged, match=r"differs from .*base in none of the 14 matrices"):
        extract_lora(base, tuned, tmp_path / "out", rank=3)
    tensors = load_file(tuned / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 3] = torch.nan
    save_file(tensors, tuned / "model.safetensors", {"format": "pt"})
    refused(tmp_path, "up_proj.weight has NaN or Inf", rank=3)


def test_the_embedding_of_a_tied_model_is_refused(tmp_path):
    moved(llama(tmp_path / "base", tied=True), tmp_path / "tuned")
    refused(tmp_path, "ties its output head to its embedding", rank=3, embeddings=True)
    result = extract_lora(tmp_path / "base", tmp_path / "tuned", tmp_path / "out", rank=3)
    why = {row["tensor"]: row["why"] for row in result["left_out"]}
    assert why["model.embed_tokens.weight"].startswith("embedding that is the output head too")
    assert not any("--embeddings" in one for one in result["warnings"])


def test_a_tuned_model_of_other_shapes_is_refused(tmp_path):
    moved(llama(tmp_path / "base"), tmp_path / "tuned")
    tensors = load_file(tmp_path / "tuned" / "model.safetensors")
    tensors["lm_head.weight"] = torch.zeros(TOKENS + 1, 24)
    save_file(tensors, tmp_path / "tuned" / "model.safetensors", {"format": "pt"})
    refused(tmp_path, r"lm_head.weight \[41, 24\] instead of \[40, 24\]", rank=3)
    extract_lora(tmp_path / "base", tmp_path / "tuned", tmp_path / "out", rank=3, only=["*_proj.weight"])


def test_an_output_that_is_there_stays(tmp_path):
    moved(llama(tmp_path / "base"), tmp_path / "tuned")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    refused(tmp_path, "is not empty", rank=3)
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"
