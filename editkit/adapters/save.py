"""Writing a LoRA adapter that peft loads: adapter_config.json and adapter_model.safetensors, in a new folder.

>>> module_settings({"layers.0.q_proj": 4, "layers.1.q_proj": 4, "layers.1.v_proj": 2})["rank_pattern"]
{'^layers\\\\.1\\\\.v_proj': 2}
"""

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from editkit.arithmetic.codec import encode
from editkit.arithmetic.dtypes import DTYPES
from editkit.checkpoint import digests, disk, provenance
from editkit.checkpoint.adapter import CONFIG
from editkit.checkpoint.header import encode as header
from editkit.checkpoint.reader import Checkpoint
from editkit.errors import EditError

WEIGHTS, _SPOOL = "adapter_model.safetensors", ".factors"
_STEP = 1 << 20  # bytes of one read
_PREFIX = "base_model.model."


def module_settings(ranks: Mapping[str, int]) -> dict[str, Any]:
    """What adapter_config.json says of modules (path -> rank) whose scale alpha / rank is 1.

    The most frequent rank is the default. Paths are whole and literal: peft's patterns are regular expressions, of which "^"
    and "\\\\" keep layers.1 from meaning more than layers.1.
    """
    [(usual, _)] = Counter(sorted(ranks.values(), reverse=True)).most_common(1)
    others = {f"^{re.escape(module)}": rank for module, rank in ranks.items() if rank != usual}
    return {
        "r": usual,
        "lora_alpha": usual,
        "rank_pattern": others,
        "alpha_pattern": others,
        "use_rslora": False,
        "target_modules": sorted(ranks),
    }


def common_rank(ranks: Mapping[str, int]) -> int | None:
    """What the ranks of all modules (path -> rank) are filled up to with zeros; None where each keeps its own.

    transformers 5 keeps the experts of a layer in one parameter, of one rank, and gives other modules beside them other
    names than the files do, so that no rank_pattern would find them.
    """
    uneven = len(set(ranks.values())) > 1 and any(".experts." in module for module in ranks)
    return max(ranks.values()) if uneven else None


def factor_names(module: str, embedding: bool) -> tuple[str, str]:
    """What peft calls the factors A [rank, in] and B [out, rank] of a module in a file."""
    kind, end = ("lora_embedding", "") if embedding else ("lora", ".weight")
    return f"{_PREFIX}{module}.{kind}_A{end}", f"{_PREFIX}{module}.{kind}_B{end}"


class AdapterWriter:
    """Tensors one after another, then the settings; nothing is kept in memory. Made by `new_adapter`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ranks: dict[str, int] = {}
        self._entries: dict[str, tuple[str, tuple[int, ...]]] = {}
        self._axes: dict[str, int] = {}  # name of a factor -> its axis of the rank

    def add(self, module: str, a: np.ndarray, b: np.ndarray, dtype: str, embedding: bool) -> None:
        """The change b @ a of a module (of an embedding, its transpose), a [rank, in] and b [out, rank], stored as `dtype`."""
        self.ranks[module] = len(a)
        names = factor_names(module, embedding)
        self._axes |= {name: axis for axis, name in enumerate(names)}
        for name, factor in zip(names, (a, b), strict=True):
            self._append(name, dtype, factor.shape, [encode(np.ascontiguousarray(factor), dtype)])

    def take(self, checkpoint: Checkpoint, name: str) -> None:
        """A tensor of another adapter as it is, such as the embedding of the base that peft saves along."""
        info = checkpoint.tensors[name]
        pieces = (
            _read(checkpoint, name, start, min(_STEP, info.nbytes - start)) for start in range(0, info.nbytes, _STEP)
        )
        self._append(name, info.dtype, info.shape, pieces)

    def _append(self, name: str, dtype: str, shape: tuple[int, ...], pieces: Iterable[np.ndarray]) -> None:
        self._entries[name] = (dtype, shape)
        with open(self.folder / _SPOOL, "ab") as file:
            file.writelines(piece.data for piece in pieces)

    def _pad(self, rank: int) -> None:
        """Fill all factors up to one rank with zeros, one tensor in memory at a time."""
        entries, self._entries = self._entries, {}
        ragged = (self.folder / _SPOOL).rename(self.folder / f"{_SPOOL}.ragged")
        with open(ragged, "rb") as file:
            for name, (dtype, shape) in entries.items():
                width = DTYPES[dtype].bytes
                values = np.fromfile(file, np.uint8, prod(shape) * width).reshape(*shape, width)
                if name in self._axes:
                    axis = self._axes[name]
                    values = np.pad(values, [(0, rank - shape[axis] if axis == other else 0) for other in range(3)])
                self._append(name, dtype, values.shape[:-1], [values.reshape(-1)])
        ragged.unlink()
        self.ranks = dict.fromkeys(self.ranks, rank)

    def finish(self, settings: Mapping[str, Any], record: Mapping[str, Any]) -> None:
        """Write the adapter's config, its weights and editkit.json. `settings` are keys beside those of `module_settings`."""
        if (rank := common_rank(self.ranks)) is not None:
            self._pad(rank)
        config = {
            "peft_type": "LORA",
            "bias": "none",
            "inference_mode": True,
            "init_lora_weights": True,
            "lora_dropout": 0.0,
            "modules_to_save": None,
            **module_settings(self.ranks),
            **settings,
        }
        (self.folder / CONFIG).write_text(json.dumps(dict(sorted(config.items())), indent=2) + "\n", "utf-8")
        spool, head = self.folder / _SPOOL, header(self._entries, {"format": "pt"})
        with open(spool, "rb") as source, open(self.folder / WEIGHTS, "wb") as target:
            target.write(head)
            target.flush()
            done, size = 0, spool.stat().st_size
            while done < size:
                done += disk.copy_at(source.fileno(), target.fileno(), done, len(head) + done, size - done)
        spool.unlink()
        hashes = {file: digests.sha256_of(self.folder / file) for file in (CONFIG, WEIGHTS)}
        provenance.save(record, self.folder, hashes)


def _read(checkpoint: Checkpoint, name: str, start: int, size: int) -> np.ndarray:
    piece = np.empty(size, np.uint8)
    checkpoint.read_into(name, start, piece)
    return piece


def check_new_folder(output: str | os.PathLike[str], inputs: Sequence[Checkpoint]) -> Path:
    """The place of `output`. Raises EditError where it is a file, a folder with something in it, or touches an input."""
    place = Path(output).expanduser().resolve()
    disk.refuse_inputs(place, os.fspath(output), (one.source for one in inputs))
    if place.is_dir() and any(place.iterdir()):
        raise EditError(f"{output} is not empty: give a new folder, or empty it first")
    if place.exists() and not place.is_dir():
        raise EditError(f"{output} is a file: give a folder")
    return place


@contextmanager
def new_adapter(output: str | os.PathLike[str], inputs: Sequence[Checkpoint]) -> Iterator[AdapterWriter]:
    """A writer whose folder is put at `output` when the `with` block ends well; else nothing is left behind."""
    place = check_new_folder(output, inputs)
    with disk.writing(os.fspath(output)), disk.staged(place) as folder:
        yield AdapterWriter(folder)
        for path in folder.iterdir():
            disk.sync(path)
        disk.sync(folder)
        os.rename(folder, place)
        disk.sync(place.parent)
