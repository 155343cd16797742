"""The files without weights that a patch speaks for: config.json, tokenizer, index, editkit.json, code."""

import os
from pathlib import Path

from editkit.checkpoint.layout import INDEX, PROVENANCE, weight_file
from editkit.checkpoint.reader import Checkpoint


def without_weights(checkpoint: Checkpoint) -> dict[str, Path]:
    """The files of a checkpoint that a patch speaks for beside the weights: path in its folder -> place."""
    if checkpoint.lone:
        return {}
    own = [path for path in (INDEX, PROVENANCE) if (checkpoint.path / path).is_file()]
    paths = [str(path) for path in checkpoint.other_files() if not _beside_weights(checkpoint, path)]
    return {path: checkpoint.path / path for path in sorted([*own, *paths])}


def left_out(checkpoint: Checkpoint) -> set[str]:
    """Files in folders that hold weights, such as that of a task vector: half of such a folder would be no use."""
    return {str(path) for path in checkpoint.other_files() if _beside_weights(checkpoint, path)}


def _beside_weights(checkpoint: Checkpoint, path: Path) -> bool:
    return len(path.parts) > 1 and any(weight_file(entry.name) for entry in os.scandir(checkpoint.path / path.parent))
