import json
import shutil
from contextlib import nullcontext
from functools import partial

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_masks_mask import packed, save_mask
from test_training_finetune import (  # noqa: F401
    ROWS,
    data,
    gpt2_without_prefix,
    llama_sharded,
    llama_tied_half,
    mixtral,
    tensors,
)
from tiny_models import save_gpt2, save_llama, tokenizer

from editkit.checkpoint import blocks
from editkit.checkpoint.reader import open_checkpoint
from editkit.errors import EditError
from editkit.masks.mask import Mask
from editkit.training import masking
from editkit.training.data import read_examples
from editkit.training.encoding import collate, encode
from editkit.training.finetune import finetune
from editkit.training.loading import file_parts, file_tensors, load_model

TUNING = {"steps": 12, "lr": 1e-2, "device": "cpu"}


def bits(tensor):
    return tensor.contiguous().reshape(-1, 1).view(torch.uint8)


def moved(base, tuned):
    """Name -> which elements have other bits."""
    old, new = tensors(base), tensors(tuned)
    assert old.keys() == new.keys()
    return {name: (bits(old[name]) != bits(new[name])).any(1).reshape(old[name].shape) for name in old}


def odd_llama(folder):
    """Rows of 12 and of 21 elements: no whole number of bytes in packed bits. 4 heads of 3, 2 of keys; has negative zeros."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=262,
        hidden_size=12,
        intermediate_size=21,
        num_hidden_layers=2,
        head_dim=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=48,
    )
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = LlamaForCausalLM(config).bfloat16()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.view(-1)[::7] = -0.0
                parameter.view(-1)[1::11] = 0.0
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


MODELS = [save_llama, llama_sharded, llama_tied_half, odd_llama, save_gpt2, gpt2_without_prefix, mixtral]


def scattered(base, share=0.3):
    """Elements at random in every second floating tensor."""
    generator = torch.Generator().manual_seed(1)
    names = sorted(name for name in tensors(base) if not name.endswith("attn.bias"))[::2]
    return {name: torch.rand(tensors(base)[name].shape, generator=generator) < share for name in names}


@pytest.mark.parametrize("make", MODELS)
def test_only_the_selected_elements_move(tmp_path, data, make):  # noqa: F811
    base = make(tmp_path / "base")
    chosen = scattered(base)
    save_mask(tmp_path / "mask.safetensors", "element", {name: packed(one) for name, one in chosen.items()})
    result = finetune(base, data, tmp_path / "tuned", mask=tmp_path / "mask.safetensors", **TUNING)
    there = moved(base, tmp_path / "tuned")
    for name, changed in there.items():
        assert not (changed & ~chosen.get(name, torch.tensor(False))).any(), name
    assert result.selected == sum(int(one.sum()) for one in chosen.values())
    assert result.changed == pytest.approx(sum(int(one.sum()) for one in there.values()) / result.selected, rel=1e-6)
    assert all(there[name].any() for name in chosen) and result.last_loss < result.first_loss


def test_the_selected_elements_move_as_adam_moves_them_alone(tmp_path, data):  # noqa: F811
    """A plain loop: clear the gradients of the others, clip at norm 1, Adam, a rate that falls to zero."""
    base, steps, lr = save_llama(tmp_path / "base"), 6, 3e-3
    chosen = {name: one for name, one in scattered(base, 0.5).items() if "embed" not in name}
    save_file(chosen, tmp_path / "mask.safetensors")
    settings = {"steps": steps, "lr": lr, "batch_size": 12, "device": "cpu"}
    finetune(base, data, tmp_path / "tuned", mask=tmp_path / "mask.safetensors", **settings)
    model = load_model(open_checkpoint(base))
    batch = collate(encode(read_examples(data), tokenizer()).rows, pad=2)
    names = dict(model.named_parameters())
    adam = torch.optim.Adam([names[name] for name in chosen], lr=lr, betas=(0.9, 0.999), eps=1e-8)
    norms = []
    for step in range(steps):
        model.zero_grad()
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1].double()
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"][:, 1:].flatten()).backward()
        for name, one in chosen.items():
            names[name].grad *= one
        norms.append(float(torch.nn.utils.clip_grad_norm_([names[name] for name in chosen], 1.0)))
        adam.param_groups[0]["lr"] = lr * (1 - step / steps)
        adam.step()
    assert min(norms) < max(norms)
    for name, tensor in tensors(tmp_path / "tuned").items():
        change = (tensor - names[name]).abs().max()
        assert change < 5e-5, name  # a step is 3e-3; gradients near zero may differ in their sign
    total = torch.cat([(names[name] - tensors(base)[name])[one] for name, one in chosen.items()])
    assert total.abs().mean() > 5e-3


Q, K, OUT, DOWN = (
    f"model.layers.1.{name}.weight"
    for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.o_proj", "mlp.down_proj")
)
BY_GRANULARITY = [
    ("tensor", {DOWN: [True], Q: [False], "model.norm.weight": [True]}),
    ("row", {DOWN: [index % 3 == 0 for index in range(12)], "model.norm.weight": [True]}),
    ("head", {Q: [False, True, False, True], K: [True, False], OUT: [False, False, True, True]}),
]


@pytest.mark.parametrize(("granularity", "entries"), BY_GRANULARITY)
def test_masks_of_every_granularity(tmp_path, data, granularity, entries):  # noqa: F811
    base = odd_llama(tmp_path / "base")
    shapes = {name: tuple(one.shape) for name, one in tensors(base).items()}
    save_mask(tmp_path / "mask.safetensors", granularity, {name: torch.tensor(one) for name, one in entries.items()})
    finetune(base, data, tmp_path / "tuned", mask=tmp_path / "mask.safetensors", **TUNING)
    for name, changed in moved(base, tmp_path / "tuned").items():
        units = np.array(entries.get(name, [False]))
        if granularity == "head" and name in entries:
            units = units.repeat(4)  # head_dim
        whole = np.broadcast_to(units[:, None] if len(units) > 1 and name != OUT else units, shapes[name])
        assert not (changed.numpy() & ~whole).any(), name
        if whole.any():
            assert changed.numpy()[whole].mean() > 0.9, name


def test_an_expert_of_a_fused_parameter_moves_alone(tmp_path, data):  # noqa: F811
    base, inside = mixtral(tmp_path / "base"), "model.layers.1.block_sparse_moe.experts"
    rows = torch.arange(24) % 4 == 0
    chosen = {f"{inside}.1.w3.weight": rows, f"{inside}.2.w2.weight": torch.arange(16) < 5}
    save_mask(tmp_path / "mask.safetensors", "row", chosen)
    finetune(base, data, tmp_path / "tuned", mask=tmp_path / "mask.safetensors", **TUNING)
    there = moved(base, tmp_path / "tuned")
    assert {name for name, one in there.items() if one.any()} == set(chosen)
    for name, one in chosen.items():
        assert torch.equal(there[name].any(1), one)


def test_parts_of_a_parameter_are_those_of_the_whole_model(tmp_path):
    for make in MODELS:
        base = open_checkpoint(make(tmp_path / make.__name__))
        model = load_model(base)
        whole = file_tensors(model, base)
        parts = {}
        for name, parameter in model.named_parameters():
            found = file_parts(model, base, name, parameter.detach())
            assert not found.keys() & parts.keys()
            parts |= found
        assert parts.keys() == whole.keys()
        assert all(torch.equal(parts[name], whole[name]) for name in whole)


def test_the_selection_of_a_tensor_in_several_blocks(tmp_path):
    """1,100,000 elements in rows of 1100 are three blocks, which begin in the middle of a byte of the mask."""
    chosen = torch.rand(1000, 1101, generator=torch.Generator().manual_seed(3)) < 0.5
    save_file({"w": torch.ones(1000, 1101)}, tmp_path / "base.safetensors")
    save_mask(tmp_path / "mask.safetensors", "element", {"w": packed(chosen)})
    base = open_checkpoint(tmp_path / "base.safetensors")
    assert len(list(blocks.blocks(base.tensors["w"]))) == 3
    assert torch.equal(masking.selection(Mask(tmp_path / "mask.safetensors", base), base.tensors["w"]), chosen)


def test_blocks_do_not_matter_to_what_is_fixed(tmp_path, monkeypatch):
    base = open_checkpoint(mixtral(tmp_path / "base"))
    save_mask(tmp_path / "m.safetensors", "element", {name: packed(one) for name, one in scattered(base.path).items()})
    model, mask = load_model(base), Mask(tmp_path / "m.safetensors", base)
    whole = masking.fixed_elements(model, base, mask)
    monkeypatch.setattr(masking, "blocks", partial(blocks.blocks, elements=40))
    small = masking.fixed_elements(model, base, mask)
    assert whole.keys() == small.keys() and all(torch.equal(whole[name], small[name]) for name in whole)


def test_what_is_not_selected_takes_no_part_in_training_and_is_given_back(tmp_path):
    base = open_checkpoint(save_llama(tmp_path / "base"))
    half = torch.arange(24)[:, None].expand(24, 16) < 12
    save_file({UP: half, "model.norm.weight": torch.tensor(True)}, tmp_path / "mask.safetensors")
    model = load_model(base)
    fixed = masking.fixed_elements(model, base, Mask(tmp_path / "mask.safetensors", base))
    assert fixed.keys() == {UP, "model.norm.weight"} and fixed["model.norm.weight"] is None
    with masking.fixing(model, fixed):
        model(input_ids=torch.tensor([[0, 70, 71]]), labels=torch.tensor([[0, 70, 71]])).loss.backward()
        gradients = {name: one.grad for name, one in model.named_parameters() if one.grad is not None}
        assert {name for name, one in model.named_parameters() if one.requires_grad} == gradients.keys() == fixed.keys()
        assert not gradients[UP][12:].any() and gradients[UP][:12].all() and gradients["model.norm.weight"].all()
    model.zero_grad()
    model(input_ids=torch.tensor([[0, 70, 71]]), labels=torch.tensor([[0, 70, 71]])).loss.backward()
    assert all(one.requires_grad for one in model.parameters()) and model.get_parameter(UP).grad[12:].all()


UP = "model.layers.0.mlp.up_proj.weight"


def doubly(folder):
    """A tied model whose files hold the one tensor under both names."""
    named = load_file(save_llama(folder, tied=True) / "model.safetensors")
    save_file({**named, "lm_head.weight": named["model.embed_tokens.weight"].clone()}, folder / "model.safetensors")
    return folder


def test_copies_of_a_tied_tensor_are_selected_alike(tmp_path, data):  # noqa: F811
    base, mask = doubly(tmp_path / "base"), tmp_path / "mask.safetensors"
    rows = torch.arange(262) % 2 == 0
    alike = {"model.embed_tokens.weight": rows, "lm_head.weight": rows.clone()}
    save_file(alike, mask)
    finetune(base, data, tmp_path / "tuned", mask=mask, **TUNING)
    new, there = tensors(tmp_path / "tuned"), moved(base, tmp_path / "tuned")
    assert torch.equal(new["lm_head.weight"], new["model.embed_tokens.weight"])
    assert there["lm_head.weight"].any(1)[rows].all() and not there["lm_head.weight"].any(1)[~rows].any()
    for other in ({"lm_head.weight": rows}, {**alike, "lm_head.weight": ~rows}):
        save_file(other, mask)
        with pytest.raises(
            EditError, match=r"lm_head\.weight, model\.embed_tokens\.weight are one tensor in .*\(tied\)"
        ):
            finetune(base, data, tmp_path / "other", mask=mask, **TUNING)


@pytest.mark.parametrize("fault", ["no hooks", "weight decay"])
def test_a_training_that_moves_something_else_is_found_out(tmp_path, data, monkeypatch, fault):  # noqa: F811
    base = save_llama(tmp_path / "base")
    save_file({UP: torch.rand(24, 16) < 0.5}, tmp_path / "mask.safetensors")
    if fault == "no hooks":
        monkeypatch.setattr(masking, "fixing", lambda model, fixed: nullcontext())
    else:
        import transformers

        arguments = transformers.TrainingArguments
        monkeypatch.setattr(
            transformers, "TrainingArguments", lambda *a, **given: arguments(*a, **{**given, "weight_decay": 0.1})
        )
    with pytest.raises(EditError, match=r"the training moved \d+ elements of .* outside the mask"):
        finetune(base, data, tmp_path / "tuned", mask=tmp_path / "mask.safetensors", **TUNING)
    assert not (tmp_path / "tuned").exists()


def test_doubles_keep_the_bits_that_training_does_not_hold(tmp_path, data):  # noqa: F811
    base = save_llama(tmp_path / "base")
    generator = torch.Generator().manual_seed(2)
    fine = {
        name: one.double() + 1e-12 * torch.rand(one.shape, generator=generator) for name, one in tensors(base).items()
    }
    save_file(fine, base / "model.safetensors", {"format": "pt"})
    chosen = torch.rand(24, 16) < 0.5
    save_file({UP: chosen}, tmp_path / "mask.safetensors")
    finetune(base, data, tmp_path / "tuned", mask=tmp_path / "mask.safetensors", **TUNING)
    there = moved(base, tmp_path / "tuned")
    assert torch.equal(there.pop(UP), chosen) and not any(one.any() for one in there.values())


def test_the_provenance_has_the_hash_of_the_mask(tmp_path, data):  # noqa: F811
    from hashlib import sha256

    base, mask = save_llama(tmp_path / "base"), tmp_path / "loc" / "mask.safetensors"
    mask.parent.mkdir()
    save_mask(mask, "tensor", {UP: torch.tensor([True])}, base_sha256=open_checkpoint(base).sha256())
    finetune(base, data, tmp_path / "tuned", mask=mask.parent, **TUNING)
    text = (tmp_path / "tuned" / "editkit.json").read_text()
    inputs = {one["role"]: one["files"] for one in json.loads(text)["inputs"]}
    assert inputs == {
        "base": open_checkpoint(base).sha256(),
        "mask": {"mask.safetensors": sha256(mask.read_bytes()).hexdigest()},
    }
    assert str(tmp_path) not in text


def test_tensors_that_training_does_not_know_are_refused(tmp_path, data):  # noqa: F811
    base = gpt2_without_prefix(tmp_path / "base")
    named = load_file(base / "model.safetensors")
    save_file({**named, "steps": torch.arange(3)}, base / "model.safetensors", {"format": "pt"})
    save_file(
        {name: torch.tensor(True) for name in ("h.0.attn.bias", "steps", "wte.weight")}, tmp_path / "m.safetensors"
    )
    with pytest.raises(
        EditError, match=r"m\.safetensors is no mask for training .*base: training never moves steps, h\.0\.attn\.bias"
    ):
        finetune(base, data, tmp_path / "tuned", mask=tmp_path / "m.safetensors", **TUNING)


def test_masks_for_another_model_are_refused_before_anything_is_loaded(tmp_path, data, monkeypatch):  # noqa: F811
    base, mask = save_llama(tmp_path / "base"), tmp_path / "mask.safetensors"
    hashes = {"base_sha256": {"model.safetensors": "0" * 64}}
    with monkeypatch.context() as patched:
        patched.setattr("editkit.training.loading.load_model", lambda *_: pytest.fail("loaded"))
        for entries, said, more in (
            ({"h.0.weight": torch.tensor([True])}, r"has no h\.0\.weight", {}),
            ({UP: torch.ones(2, dtype=torch.bool)}, r"has the shape \[2\]", {}),
            ({UP: torch.tensor([True])}, r"has other weights \(sha256\)", hashes),
            ({UP: torch.tensor([False])}, "selects nothing", {}),
        ):
            save_mask(mask, "tensor", entries, **more)
            with pytest.raises(EditError, match=said):
                finetune(base, data, tmp_path / "tuned", mask=mask, **TUNING)
        with pytest.raises(EditError, match="lora and mask are both given"):
            finetune(base, data, tmp_path / "tuned", mask=mask, lora=2)
    save_mask(mask, "tensor", {UP: torch.tensor([True])}, **hashes)
    assert finetune(base, data, tmp_path / "tuned", mask=mask, allow_other_base=True, **TUNING).selected == 24 * 16
    with pytest.raises(EditError, match="contains the input"):
        shutil.rmtree(tmp_path / "tuned")
        (tmp_path / "loc").mkdir()
        shutil.copy(mask, tmp_path / "loc" / "mask.safetensors")
        finetune(base, data, tmp_path / "loc", mask=tmp_path / "loc", allow_other_base=True, **TUNING)
