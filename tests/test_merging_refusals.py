"""Merges that are refused: all misfits at once, by model and tensor, and nothing is left."""

import json
import math

import pytest
import torch
from merge_models import (
    CONFIG,
    SETTINGS,
    SHAPES,
    UP,
    Q,
    models,
    read,
    refused,
    same,
    save,
    tensors,
)
from safetensors.torch import save_file

import editkit
from editkit.errors import EditError
from editkit.merging.merge import execute, merge
from editkit.merging.plan import Model, Part, Plan, Target


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
