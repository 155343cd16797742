"""Small checkpoints in several files, and all that a folder holds."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

INDEX = "model.safetensors.index.json"


def tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def model(folder, shards=2, dtype=torch.float32):
    """A made-up checkpoint with other files around its weights."""
    (folder / "code").mkdir(parents=True)
    names = [f"model.layers.{i}.w" for i in range(6)]
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(50, 30, generator=generator).to(dtype) for name in names}
    files = ["model.safetensors"] if shards == 1 else [f"model-{i}.safetensors" for i in range(shards)]
    weight_map = {name: files[i * shards // 6] for i, name in enumerate(names)}
    for file in files:
        save_file({n: t for n, t in tensors.items() if weight_map[n] == file}, folder / file, {"format": "pt"})
    if shards > 1:
        (folder / INDEX).write_text(json.dumps({"weight_map": weight_map, "metadata": {"made": "by hand"}}))
    for name in ("config.json", "code/modeling.py", "tokenizer.json"):
        (folder / name).write_text(f'{{"{name}": 1}}')
    return folder
