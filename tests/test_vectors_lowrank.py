"""Merged adapters against peft's merge_and_unload, and the joining of names, shapes and tied modules."""

import json
import shutil
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

import editkit
from editkit.arithmetic.codec import decode
from editkit.checkpoint.adapter import open_adapter
from editkit.checkpoint.reader import open_checkpoint
from editkit.errors import EditError
from editkit.vectors.lowrank import LowRankVector
from editkit.vectors.open import open_vector

WIDTH, TOKENS = 24, 40
LLAMA = ["q_proj", "v_proj", "down_proj"]


def llama(folder: Path, tied: bool = False, dtype: str = "float32") -> Path:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    config = LlamaConfig(
        hidden_size=WIDTH, intermediate_size=56, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=TOKENS, tie_word_embeddings=tied,
    )  # fmt: skip
    LlamaForCausalLM(config).to(getattr(torch, dtype)).save_pretrained(folder)
    return folder


def gpt2(folder: Path) -> Path:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(2)
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    GPT2LMHeadModel(
        GPT2Config(n_embd=WIDTH, n_layer=2, n_head=4, vocab_size=TOKENS, n_positions=16, **ends)
    ).save_pretrained(folder)
    return folder


def train(base: Path, folder: Path, targets: list[str], dtype: str = "float32", **settings) -> Path:
    """An adapter of `base` with random factors, as peft saves it; the merged model goes to `folder`/merged."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    config = LoraConfig(r=4, lora_alpha=6, target_modules=targets, task_type="CAUSAL_LM", **settings)
    peft = get_peft_model(model, config, autocast_adapter_dtype=False)
    generator = torch.Generator().manual_seed(3)
    for name, parameter in peft.named_parameters():
        if "lora_" in name:
            parameter.data = (0.1 * torch.randn(parameter.shape, generator=generator)).to(getattr(torch, dtype))
    peft.save_pretrained(folder)
    peft.merge_and_unload().save_pretrained(folder / "merged")
    return folder


def merged(base: Path, adapter: Path) -> tuple[dict[str, np.ndarray], list[str]]:
    """base + tau in float64, every tensor in blocks of three rows."""
    checkpoint = open_checkpoint(base)
    vector = LowRankVector(open_adapter(adapter), checkpoint)
    vector.check(checkpoint, vector.names)
    out = {}
    for name in vector.names:
        info = checkpoint.tensors[name]
        values = decode(checkpoint.array(name), info.dtype, np.empty(info.shape, np.float64))
        for first in range(0, info.rows, 3):
            rows = values[first : first + 3]
            tau = vector.rows(name, first, min(first + 3, info.rows), rows)
            assert tau.dtype == np.float64 and tau.shape == rows.shape
            rows += tau
        out[name] = values
    return out, vector.names


PLAIN = [
    pytest.param(LLAMA, {}, id="lora"),
    pytest.param(LLAMA, {"use_rslora": True}, id="rslora"),
    pytest.param(
        LLAMA,
        {"rank_pattern": {"v_proj": 2, r"layers\.1\.mlp\.down_proj": 8}, "alpha_pattern": {"q_proj": 1}},
        id="patterns",
    ),
    pytest.param(
        LLAMA,
        {"use_rslora": True, "rank_pattern": {"q_proj": 9}, "alpha_pattern": {"1.self_attn.q_proj": 5}},
        id="both",
    ),
    pytest.param(["q_proj", "embed_tokens"], {}, id="embedding"),
    pytest.param(["lm_head", "embed_tokens", "o_proj"], {"rank_pattern": {"embed_tokens": 3}}, id="head"),
]


@pytest.mark.parametrize(("targets", "settings"), PLAIN)
def test_equals_merge_and_unload(tmp_path, targets, settings):
    base, adapter = llama(tmp_path / "base"), train(tmp_path / "base", tmp_path / "lora", targets, **settings)
    ours, names = merged(base, adapter)
    theirs = load_file(adapter / "merged" / "model.safetensors")
    before = load_file(base / "model.safetensors")
    assert sorted(names) == sorted(name for name in theirs if not theirs[name].equal(before[name]))
    for name in names:
        # peft multiplies and adds in fp32; with values below 1 and ranks below 16 that is well within 1e-6.
        np.testing.assert_allclose(ours[name], theirs[name].numpy(), rtol=0, atol=1e-6)
        assert np.abs(ours[name] - before[name].numpy()).max() > 1e-3


def test_equals_merge_and_unload_on_gpt2_conv1d(tmp_path):
    base = gpt2(tmp_path / "base")
    adapter = train(base, tmp_path / "lora", ["c_attn", "c_proj", "c_fc"])  # attn.c_proj is square
    ours, names = merged(base, adapter)
    theirs = load_file(adapter / "merged" / "model.safetensors")
    assert len(names) == 8
    for name in names:
        np.testing.assert_allclose(ours[name], theirs[name].numpy(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_equals_merge_and_unload_within_one_rounding_in_16_bits(tmp_path, dtype):
    base = llama(tmp_path / "base", dtype=dtype)
    adapter = train(base, tmp_path / "lora", [*LLAMA, "embed_tokens"], dtype)
    ours, names = merged(base, adapter)
    theirs, before = load_file(adapter / "merged" / "model.safetensors"), load_file(base / "model.safetensors")
    unit = 2.0**-8 if dtype == "bfloat16" else 2.0**-11  # half a step, relative
    for name in names:
        exact, peft = ours[name], theirs[name].double().numpy()
        change = np.abs(exact - before[name].double().numpy())
        # peft rounds the change, then the sum; editkit rounds the sum alone.
        assert (np.abs(peft - exact) <= unit * (np.abs(exact) + 2 * change) + 1e-7).all()


def test_bf16_factors_on_an_fp32_base(tmp_path):
    base = llama(tmp_path / "base")
    adapter = train(base, tmp_path / "lora", LLAMA, "bfloat16")
    ours, names = merged(base, adapter)
    factors, before = load_file(adapter / "adapter_model.safetensors"), load_file(base / "model.safetensors")
    for name in names:
        stem = "base_model.model." + name.removesuffix(".weight")
        a, b = (factors[f"{stem}.lora_{side}.weight"].double().numpy() for side in "AB")
        np.testing.assert_allclose(ours[name], before[name].double().numpy() + 1.5 * (b @ a), rtol=0, atol=1e-14)


def test_rows_in_float32_are_the_float64_product_rounded_once(tmp_path):
    base = open_checkpoint(llama(tmp_path / "base"))
    vector = LowRankVector(open_adapter(train(tmp_path / "base", tmp_path / "lora", LLAMA)), base)
    name = vector.names[0]
    info = base.tensors[name]
    wide = vector.rows(name, 1, 5, np.empty((4, info.columns), np.float64))
    narrow = vector.rows(name, 1, 5, np.empty((4, info.columns), np.float32))
    assert narrow.dtype == np.float32 and np.array_equal(narrow, wide.astype(np.float32))


def renamed(base: Path, folder: Path, rename) -> Path:
    shutil.copytree(base, folder)
    tensors = load_file(folder / "model.safetensors")
    save_file(
        {rename(name): value.clone() for name, value in tensors.items()}, folder / "model.safetensors", {"format": "pt"}
    )
    return folder


@pytest.mark.parametrize(
    "rename",
    [lambda name: name.removeprefix("transformer."), lambda name: f"wrapped.{name}"],
    ids=["without the prefix", "with one more"],
)
def test_names_are_joined_across_a_wrapper_prefix(tmp_path, rename):
    base = gpt2(tmp_path / "base")
    adapter = train(base, tmp_path / "lora", ["c_attn", "c_proj"])
    expected, names = merged(base, adapter)
    ours, found = merged(renamed(base, tmp_path / "renamed", rename), adapter)
    assert sorted(found) == sorted(map(rename, names))
    for name in names:
        np.testing.assert_array_equal(ours[rename(name)], expected[name])


def refusal(base: Path, adapter: Path) -> str:
    with pytest.raises(EditError) as caught:
        merged(base, adapter)
    return str(caught.value)


def test_adapter_for_another_model_lists_every_module(tmp_path):
    message = refusal(
        gpt2(tmp_path / "gpt2"), train(llama(tmp_path / "llama"), tmp_path / "lora", ["q_proj", "v_proj"])
    )
    assert "is an adapter for another model" in message
    assert all(f"model.layers.{layer}.self_attn.{leaf}_proj" in message for layer in (0, 1) for leaf in "qv")


def test_other_shapes_are_all_listed(tmp_path):
    base = llama(tmp_path / "base")
    adapter = train(base, tmp_path / "lora", ["q_proj", "v_proj"])
    tensors = load_file(base / "model.safetensors")
    for layer in (0, 1):
        tensors[f"model.layers.{layer}.self_attn.q_proj.weight"] = tensors["lm_head.weight"].clone()
    save_file(tensors, base / "model.safetensors")
    message = refusal(base, adapter)
    assert "does not fit the shapes" in message and "v_proj" not in message
    for layer in (0, 1):
        assert f"model.layers.{layer}.self_attn.q_proj.weight [40, 24] (the adapter's factors make [24, 24])" in message


def test_tied_modules_are_refused_with_the_reason(tmp_path):
    untied, tied = llama(tmp_path / "untied"), llama(tmp_path / "tied", tied=True)
    head = train(untied, tmp_path / "head", ["lm_head", "q_proj"])
    embedding = train(untied, tmp_path / "embedding", ["embed_tokens", "q_proj"])
    assert "lm_head (LoRA on the output head, which is also the input embedding)" in refusal(tied, head)
    assert "embed_tokens (LoRA on the input embedding, which is also the output head)" in refusal(tied, embedding)


def test_an_embedding_brought_along_must_be_that_of_the_base(tmp_path):
    base = llama(tmp_path / "base")
    adapter = train(base, tmp_path / "lora", ["embed_tokens"])
    tensors = {name: t.clone() for name, t in load_file(adapter / "adapter_model.safetensors").items()}
    copy = "base_model.model.model.embed_tokens.base_layer.weight"
    tensors[copy] = tensors[copy].bfloat16()  # trained on the base in bf16: the same values, rounded
    save_file(tensors, adapter / "adapter_model.safetensors")
    merged(base, adapter)
    tensors[copy][3, 3] += 1
    save_file(tensors, adapter / "adapter_model.safetensors")
    assert copy in refusal(base, adapter)


def other_weights(base: Path, folder: Path) -> Path:
    shutil.copytree(base, folder)
    tensors = load_file(folder / "model.safetensors")
    save_file({name: t * 2 for name, t in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize("command", ["finetune", "unlearn", "extract-lora"])
def test_an_adapter_that_records_its_base_is_refused_on_other_weights(tmp_path, command):
    base = llama(tmp_path / "base")
    adapter, other = train(base, tmp_path / "lora", LLAMA), other_weights(base, tmp_path / "other")
    merged(other, adapter)  # peft records nothing
    files = {"model.safetensors": sha256((base / "model.safetensors").read_bytes()).hexdigest()}
    record = {"command": command, "inputs": [{"name": "start", "role": "base", "files": files}]}
    (adapter / "editkit.json").write_text(json.dumps(record))
    merged(base, adapter)
    message = refusal(other, adapter)
    assert message == (
        f"{adapter} was tuned from start, whose weight files differ from those of {other}: give that one as the model, or "
        "allow another base where it is meant"
    )
    vector = open_vector(adapter, open_checkpoint(other), allow_other_base=True)
    vector.check(open_checkpoint(other), vector.names)
    assert vector.origin() == {"kind": "adapter", "adapter": "lora", "allow_other_base": True}


def test_every_command_refuses_an_adapter_of_another_base(tmp_path):
    base = llama(tmp_path / "base")
    other, tuned = other_weights(base, tmp_path / "other"), other_weights(base, tmp_path / "tuned")
    tensors = load_file(base / "model.safetensors")
    tensors["model.layers.0.mlp.down_proj.weight"] += 1
    save_file(tensors, tuned / "model.safetensors", {"format": "pt"})
    lora, out = tmp_path / "lora", tmp_path / "out"
    editkit.extract_lora(base, tuned, lora, rank=1)
    calls = {
        "negate": lambda **allowed: editkit.negate(other, lora, out / "negated", alpha=1.0, **allowed),
        "bake": lambda **allowed: editkit.bake(other, lora, out / "baked", **allowed),
        "conflicts": lambda **allowed: editkit.conflicts(other, [lora, tuned], **allowed),
        "task_vector": lambda: editkit.task_vector(lora, out / "tau.safetensors", base=other),
        "extract_lora": lambda **allowed: editkit.extract_lora(other, lora, out / "lora", rank=1, **allowed),
    }
    for name, call in calls.items():
        with pytest.raises(
            EditError, match=r"lora was tuned from base, whose weight files differ from those of .*other"
        ):
            call()
        assert not out.exists()
        if name != "task_vector":
            call(allow_other_base=True)
            shutil.rmtree(out, ignore_errors=True)
    editkit.bake(base, lora, out)


def test_factors_that_are_not_finite_are_listed(tmp_path):
    base = llama(tmp_path / "base")
    adapter = train(base, tmp_path / "lora", LLAMA)
    tensors = {name: t.clone() for name, t in load_file(adapter / "adapter_model.safetensors").items()}
    for layer, value in ((0, float("nan")), (1, float("inf"))):
        tensors[f"base_model.model.model.layers.{layer}.mlp.down_proj.lora_B.weight"][0, 0] = value
    save_file(tensors, adapter / "adapter_model.safetensors")
    message = refusal(base, adapter)
    assert all(f"model.layers.{layer}.mlp.down_proj.weight (its change has NaN or Inf)" in message for layer in (0, 1))


def test_square_modules_of_a_mixed_adapter_are_refused(tmp_path):
    # The saved fan_in_fan_out is that of the module peft wrapped last, so it may be wrong for the square ones.
    base = gpt2(tmp_path / "base")
    adapter = train(base, tmp_path / "lora", ["c_attn", "c_proj"])
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"fan_in_fan_out": False}))
    assert "nothing tells which way round the square ones are stored: transformer.h.0.attn.c_proj" in refusal(
        base, adapter
    )


def test_threads_read_the_same_rows(tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    base = open_checkpoint(llama(tmp_path / "base"))
    vector = LowRankVector(open_adapter(train(tmp_path / "base", tmp_path / "lora", [*LLAMA, "embed_tokens"])), base)
    rows = [(name, row) for row in range(8) for name in vector.names]

    def read(place: tuple[str, int]) -> bytes:
        name, row = place
        return vector.rows(name, row, row + 1, np.empty((1, base.tensors[name].columns))).tobytes()

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(read, rows)) == [read(place) for place in rows]
