"""Checkpoints of one tensor and recipes about them, whose results can be worked out by hand."""

from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import tensor

RECIPE = """\
# What: subtract, and look
editkit: 1
title: Subtraction
settings:
  base: base
  tuned: tuned
matrix:
  alpha: [0.5, 1.0]
steps:
  tau:
    task_vector: {tuned: "${tuned}", base: "${base}"}
  edited:
    negate: {model: "${base}", vector: "${tau}", alpha: "${alpha}", report: false}
  changed:
    diff: {base: "${base}", edited: "${edited}"}
table:
  L2: "${changed: summary.l2}"
  changed: "${edited: changed}"
"""


def checkpoint(folder: Path, *values: float) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"w": tensor(values)}, folder / "model.safetensors", {"format": "pt"})
    return folder


def values_of(folder: Path) -> list[float]:
    return load_file(folder / "model.safetensors")["w"].tolist()


def recipe(folder: Path, text: str = RECIPE) -> Path:
    """The recipe beside base (1, 2) and tuned (4, 6), which differ by (3, 4), of L2 5."""
    checkpoint(folder / "base", 1.0, 2.0)
    checkpoint(folder / "tuned", 4.0, 6.0)
    (folder / "recipe.yaml").write_text(text)
    return folder / "recipe.yaml"
