"""Small models and what a config makes of them."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from editkit.errors import EditError
from editkit.merging.plan import Plan
from editkit.merging.planning import plan_merge

LAYER = {"self_attn.q_proj.weight": (4, 4), "mlp.up_proj.weight": (6, 4), "input_layernorm.weight": (4,)}
Q, UP, NORM = ("model.layers.{}." + rest for rest in LAYER)


def shapes(layers: int, head: bool, vocabulary: int = 8) -> dict[str, tuple[int, ...]]:
    inside = {f"model.layers.{layer}.{rest}": shape for layer in range(layers) for rest, shape in LAYER.items()}
    named = {"model.embed_tokens.weight": (vocabulary, 4), **inside, "model.norm.weight": (4,)}
    return named | ({"lm_head.weight": (vocabulary, 4)} if head else {})


def save(
    name: str, layers: int = 4, *, head: bool = True, without: str = "", tokens: dict | None = None, **config
) -> None:
    folder = Path(name)
    folder.mkdir(parents=True)
    draw = np.random.default_rng(len(name))
    named = {
        key: draw.standard_normal(shape, np.float32) for key, shape in shapes(layers, head).items() if key != without
    }
    save_file(named, folder / "model.safetensors", metadata={"format": "pt"})
    said = {
        "model_type": "llama",
        "num_hidden_layers": layers,
        "tie_word_embeddings": not head,
        "torch_dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(said | config))
    if tokens:
        (folder / "tokenizer.json").write_text(
            json.dumps({"model": {"type": "BPE", "vocab": tokens}, "added_tokens": []})
        )


def three_models(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`folder` with the models a, b and c in it, as the current one."""
    monkeypatch.chdir(folder)
    for name in "abc":
        save(name)
    return folder


def planned(text: str, **settings) -> Plan:
    Path("merge.yaml").write_text(text)
    return plan_merge("merge.yaml", **settings)


def said(text: str, **settings) -> str:
    with pytest.raises(EditError) as caught:
        planned(text, **settings)
    return str(caught.value)


def of_model(plan: Plan, setting: str, model: int = 0) -> dict[str, object]:
    return {t.name: part.settings.get(setting) for t in plan.targets for part in t.parts if part.model == model}


def of_merge(plan: Plan, setting: str) -> dict[str, object]:
    return {target.name: target.settings.get(setting) for target in plan.targets}
