"""An edit of a small checkpoint, and the patch between its two sides."""

import shutil

import torch
from safetensors.torch import load_file, save_file
from sharded import model, tree

import editkit

REPORTS = ("diff/",)


def kept(folder):
    """Everything but reports."""
    return {name: content for name, content in tree(folder).items() if not name.startswith(REPORTS)}


def tuned(base, folder, seed=1, scale=0.01, only=""):
    """The same files with other floats in the tensors whose name contains `only`."""
    shutil.copytree(base, folder)
    generator = torch.Generator().manual_seed(seed)
    for path in folder.glob("*.safetensors"):
        tensors = load_file(path)
        drawn = {name: torch.randn(one.shape, generator=generator) * scale for name, one in tensors.items()}
        if {"lm_head.weight", "model.embed_tokens.weight"} <= drawn.keys() and torch.equal(
            tensors["lm_head.weight"], tensors["model.embed_tokens.weight"]
        ):
            drawn["lm_head.weight"] = drawn["model.embed_tokens.weight"]
        moved = {
            name: (one.float() + drawn[name]).to(one.dtype) if only in name else one for name, one in tensors.items()
        }
        save_file(moved, path, {"format": "pt"})
    return folder


def sides_and_patch(place):
    """Base, edit and patch of a small sharded checkpoint in bf16."""
    base = model(place / "base", dtype=torch.bfloat16)
    edited = tuned(base, place / "edited", only="layers.1.")
    editkit.create_patch(base, edited, place / "edit.editpatch")
    return base, edited, place / "edit.editpatch"


def there_and_back(base, edited, patch, place):
    editkit.apply_patch(base, patch, place / "there")
    assert kept(place / "there") == kept(edited)
    editkit.undo_patch(edited, patch, place / "back")
    assert kept(place / "back") == kept(base)
