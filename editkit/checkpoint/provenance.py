"""`editkit.json`: what an output was made from, by what. The same inputs give the same bytes: no time, no paths.

>>> record("negate", [], seed=0, alpha=1.0)["command"]
'negate'
"""

import json
import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from editkit import __version__
from editkit.checkpoint.digests import sha256_of
from editkit.checkpoint.layout import PROVENANCE
from editkit.checkpoint.reader import Checkpoint
from editkit.errors import printable

SCHEMA = "editkit.provenance/1"
ADAPTER = "adapter_config.json"
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
    every weight file is computed here unless `Checkpoint.start_hashing` began it before, see `hashes`. `data_hash` is the sha256 of
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
        "inputs": [{"name": public_name(one), "role": role, "files": hashes(one)} for role, one in roles],
        "seed": seed,
        "data": data_hash,
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
    }


def hashes(checkpoint: Checkpoint) -> dict[str, str]:
    """The sha256 of every weight file and, of an adapter, of its adapter_config.json, which scales them."""
    settings = checkpoint.path / ADAPTER
    model = checkpoint.lone or checkpoint.index is not None or "model.safetensors" in checkpoint.files
    return checkpoint.sha256() | ({} if model or not settings.is_file() else {ADAPTER: sha256_of(settings)})


def save(provenance: Mapping[str, Any], folder: Path, output: Mapping[str, str] | None = None) -> None:
    """Write `editkit.json` into a folder. output: the sha256 of every file that it speaks for, see `verify`."""
    said = {**provenance, **({"output": dict(output)} if output else {})}
    text = json.dumps(said, indent=2, ensure_ascii=False) + "\n"
    (folder / PROVENANCE).write_bytes(text.encode("utf-8", "backslashreplace"))  # unpaired characters as JSON escapes


def public_name(checkpoint: Checkpoint) -> str:
    """The name of a checkpoint without the folders of the user's machine: a Hub id, or the last part of its path.

    A link keeps its own name: what it leads to may be called by a hash.
    """
    return printable(
        checkpoint.label if checkpoint.layout.hub else os.path.basename(os.path.abspath(checkpoint.source))
    )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
