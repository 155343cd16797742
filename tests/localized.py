"""Localization by hand: gradients from a loop over single, unpadded examples in float64 that knows nothing of editkit."""

import json
import re

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_models import tokenizer

from editkit.checkpoint.blocks import Block
from editkit.checkpoint.reader import open_checkpoint
from editkit.masks.mask import Mask
from editkit.training.finetune import finetune

FORGET = [{"prompt": "b" * (index % 7 + 1), "completion": " Ada, " + "cdefgh"[: index % 5 + 1]} for index in range(13)]
RETAIN = [{"prompt": "xy" * (index % 3 + 1), "completion": " " + "zwv"[index % 3 :] + "b"} for index in range(7)]
NEAR = 1e-5  # relative, of the norm of a tensor


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def sets(folder):
    """The two files of examples, as settings of `localize`."""
    return {"forget": write(folder / "forget.jsonl", FORGET), "retain": write(folder / "retain.jsonl", RETAIN)}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Products as small as these only wait for each other, on a busy machine for very long."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    monkeypatch.setattr("editkit.localization.localize.write_pictures", lambda report, folder: None)


def sequence(row):
    """Token ids, and the index of the first one of the answer: <s> prompt answer </s>."""
    prompt = tokenizer()(row["prompt"])["input_ids"]
    return [0, *prompt, *tokenizer()(row["completion"])["input_ids"], 1], 1 + len(prompt)


def loss(model, ids, first, labels=None):
    """The mean over the answer's tokens of -log p, of one example alone."""
    logits = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    labels = labels or ids
    return -torch.stack([logits[place - 1, labels[place]] for place in range(first, len(ids))]).mean()


def each_gradient(model, examples):
    """For every example (ids, first) the gradients by parameter; examples with None as gradient give zeros."""
    for ids, first in examples:
        model.zero_grad()
        loss(model, ids, first).backward()
        yield {
            name: torch.zeros_like(one) if one.grad is None else one.grad.clone()
            for name, one in model.named_parameters()
            if one.requires_grad
        }


def means(gradients):
    """Of g, |g| and g^2, by parameter."""
    gradients = list(gradients)
    kinds = {"signed": lambda g: g, "absolute": torch.abs, "squared": torch.square}
    return {
        kind: {name: torch.stack([change(one[name]) for one in gradients]).mean(0) for name in gradients[0]}
        for kind, change in kinds.items()
    }


def loaded(folder, dtype=torch.float64):
    from transformers import AutoModelForCausalLM

    # "eager": experts one by one, in place of the grouped products that know no float64
    settings = {"dtype": dtype, "experts_implementation": "eager"}
    return AutoModelForCausalLM.from_pretrained(folder, **settings).eval()


def in_files(folder, values):
    """Values by parameter under the names of the files; the experts that transformers fused are cut out by hand."""
    found = {}
    for file, weight in load_file(folder / "model.safetensors").items():
        held = file.replace("block_sparse_moe", "mlp")
        if expert := re.fullmatch(r"(.+\.experts)\.(\d+)\.(w[123])\.weight", held):
            fused = values[f"{expert[1]}.{'down_proj' if expert[3] == 'w2' else 'gate_up_proj'}"][int(expert[2])]
            rows = {"w1": slice(len(weight)), "w2": slice(None), "w3": slice(len(weight), None)}
            found[file] = fused[rows[expert[3]]]
        for name in (held, f"transformer.{held}"):
            if name in values:
                found[file] = values[name]
    return found


def direct(folder, rows):
    """means over `rows`, by the names of the files."""
    model = loaded(folder)
    weights = in_files(folder, dict(model.named_parameters()))
    for name, weight in load_file(folder / "model.safetensors").items():
        if name in weights:
            assert torch.equal(weights[name].float(), weight), f"{name}: this test joins the wrong tensors"
    found = means(each_gradient(model, map(sequence, rows)))
    return {kind: in_files(folder, values) for kind, values in found.items()}


def near(found, wanted, tolerance=NEAR):
    return float((found.double() - wanted).norm()) <= tolerance * float(wanted.norm()) + 1e-12


def scores(folder):
    return load_file(folder / "scores.safetensors")


def tuned_on_forget(base, name, **settings):
    """`base` after some steps on FORGET, beside it."""
    path = write(base.parent / f"{name}.jsonl", FORGET)
    finetune(base, path, base.parent / name, device="cpu", **settings)
    return base.parent / name


def chosen(folder, model):
    """What the mask selects, as the library that edits reads it: name -> bool of the tensor's shape."""
    with open_checkpoint(model) as base:
        mask = Mask(folder, base)
        found = {}
        for name in mask.file.tensors:
            info = base.tensors[name]
            bits = mask.chosen(name, Block(info, 0, info.rows))
            found[name] = np.broadcast_to(bits, (info.rows, info.columns)).reshape(info.shape)
        mask.file.close()
    return found
