"""`editkit.json`: what an output was made from, by what. The same inputs give the same bytes: no time, no paths.

>>> record("negate", [], seed=0, alpha=1.0)["command"]
'negate'
"""

import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from editkit import __version__
from editkit.checkpoint.layout import PROVENANCE
from editkit.checkpoint.reader import Checkpoint

SCHEMA = "editkit.provenance/1"
_PACKAGES = ("numpy", "torch", "transformers", "peft", "safetensors")


def record(
    command: str,
    inputs: Sequence[Checkpoint] | Mapping[str, Checkpoint],
    *,
    seed: int | None = None,
    data_hash: str | None = None,
    **extra: Any,
) -> dict[str, Any]:
    """The provenance of one output.

    `inputs` may map the role of a checkpoint ("base", "tuned") to it; a mere sequence has no roles. The sha256 of
    every weight file is computed here unless `Checkpoint.start_hashing` began it before. `data_hash` is the sha256 of
    the data file; `extra` are settings that JSON can hold, such as alpha.
    """
    roles = list(inputs.items()) if isinstance(inputs, Mapping) else [(None, one) for one in inputs]
    for _, checkpoint in roles:
        checkpoint.start_hashing()
    return {
        "schema": SCHEMA,
        "editkit": __version__,
        "command": command,
        **extra,
        "inputs": [{"name": public_name(one), "role": role, "files": one.sha256()} for role, one in roles],
        "seed": seed,
        "data": data_hash,
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
    }


def save(provenance: Mapping[str, Any], folder: Path) -> None:
    """Write `editkit.json` into a folder."""
    (folder / PROVENANCE).write_text(json.dumps(provenance, indent=2, ensure_ascii=False) + "\n", "utf-8")


def public_name(checkpoint: Checkpoint) -> str:
    """The name of a checkpoint without the folders of the user's machine: a Hub id, or the last part of its path."""
    return checkpoint.label if checkpoint.layout.hub else checkpoint.source.resolve().name


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
