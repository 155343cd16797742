"""Models of random weights, and what a merge of them should be."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from editkit.errors import EditError
from editkit.merging.merge import merge

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


def refused(tmp_path: Path, match: str, vectors, base="base", **settings) -> str:
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(EditError, match=match) as error:
        merge(base and tmp_path / base, vectors, tmp_path / "out", **{"report": False, **settings})
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    return str(error.value)
