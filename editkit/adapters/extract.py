"""`extract_lora`: the LoRA adapter that comes nearest to what a fine-tuning changed, W_tuned - W_base ~ B @ A.

Every linear layer gets the truncated singular value decomposition of its change, see `factorize.py`. A LoRA fine-tuning of
float32 weights is found again at its rank. In 16 bits the tuned weights were rounded when they were saved, which adds noise
of full rank to the change: what is left over, `residual_energy`, then has that noise in it, and no small rank holds it.

Biases, norms and all else that is no matrix have no place in an adapter; where they changed, the result says how much.
"""

import os
import re
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import numpy as np

from editkit.adapters.factorize import Factors, check_rank, factorize
from editkit.adapters.save import check_new_folder, new_adapter
from editkit.arithmetic.codec import working_dtype
from editkit.arithmetic.draws import key_of
from editkit.checkpoint import provenance
from editkit.checkpoint.adapter import base_reference
from editkit.checkpoint.blocks import Block, Progress, Scratch, blocks, counted, ordered_map
from editkit.checkpoint.header import TensorInfo
from editkit.checkpoint.reader import Checkpoint, open_checkpoint
from editkit.errors import EditError, NothingChanged, listed
from editkit.names import embeddings_and_heads, lookup_table, parse, select, stored_transposed
from editkit.vectors.open import open_vector
from editkit.vectors.vector import TaskVector, refuse_quantized

RANK = 32
_WRAPPERS = {"h": "transformer.", "layers": "model."}
_NO_MATRIX, _EMBEDDING = "no matrix of a linear layer", "embedding or output head: --embeddings takes it in"
_TIED = "embedding that is the output head too: no adapter of it can be merged"


class Place(NamedTuple):
    """A module as peft calls it. transposed: its weight is stored [in, out]."""

    module: str
    transposed: bool
    embedding: bool


def extract_lora(
    base: str | os.PathLike[str],
    tuned: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    rank: int | None = None,
    energy: float | None = None,
    only: Sequence[str] = (),
    embeddings: bool = False,
    allow_other_base: bool = False,
    seed: int = 0,
    threads: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write the change from `base` to `tuned` as a LoRA adapter for peft to the folder `output`.

    >>> extract_lora("base", "tuned", "my-lora", rank=16)["residual_energy"]  # doctest: +SKIP
    0.0123

    tuned: a checkpoint tuned from `base`, or another task vector on it. rank: of every module, default 32; a smaller matrix
    is taken over whole. energy: in place of a rank, the share of the energy (squared L2) of each module's change that is
    kept, by the smallest rank that does. only: whole-name globs of tensors. embeddings: also embeddings and output heads.
    allow_other_base: accept a tuned checkpoint or vector that says it was made from other weights. seed: of the random
    starts. The factors are float32, of scale 1.

    Returns {"rank", "energy", "kept", "residual_energy", "modules", "left_out", "warnings", "output"}. residual_energy: share
    of the energy that the factors lack. modules: rows of "module", "tensor", "shape", "rank", "l2" of the change and
    "residual_energy". left_out: rows of "tensor", "l2" and "why", of those that changed and are not in the adapter. kept: share
    of the energy of the whole change that the adapter has.

    Raises EditError for inputs that do not fit together, NothingChanged where no matrix differs.
    Memory: for each thread one matrix of at most 16 M elements in float32; larger ones are read several times.
    """
    if rank is not None and energy is not None:
        raise EditError("rank and energy are both given: only one of them can say how much is kept")
    if energy is not None and not 0 < energy < 1:
        raise EditError(f"energy {energy} is no share: give a number between 0 and 1, such as 0.95")
    with ExitStack() as stack:
        start = stack.enter_context(open_checkpoint(base))
        refuse_quantized(start)
        vector = open_vector(tuned, start, allow_other_base=allow_other_base)
        for checkpoint in vector.inputs:
            stack.callback(checkpoint.close)
        named = set(select(start.tensors, only))
        infos = [start.tensors[name] for name in vector.names if name in named]
        places, left_out = _places(start, infos, embeddings)
        vector.check(start, [info.name for info in infos])
        if rank is not None:
            check_rank(rank, {name: start.tensors[name].shape for name in places})
        elif energy is None:
            rank = RANK
        inputs = {"base": start, **{f"vector {index}": one for index, one in enumerate(vector.inputs, 1)}}
        check_new_folder(output, list(inputs.values()))
        change, advance = _Change(start, vector), counted(progress, sum(info.nbytes for info in infos))

        def work(info: TensorInfo) -> tuple[TensorInfo, Factors | float]:
            if info.name not in places:
                return info, change.energy(info)
            key = key_of(seed, info.name)
            return info, factorize(change.reader(info), info.rows, info.columns, rank=rank, energy=energy, seed=key)

        rows, lost = [], []
        with new_adapter(output, list(inputs.values())) as writer:
            for checkpoint in inputs.values():
                checkpoint.start_hashing()
            with ordered_map(work, infos, threads) as results:
                for info, found in results:
                    squares = found.energy if isinstance(found, Factors) else found
                    if not np.isfinite(squares):
                        raise EditError(f"the change of {info.name} has NaN or Inf: check {os.fspath(tuned)}")
                    if isinstance(found, Factors) and found.rank:
                        place = places[info.name]
                        a, b = (found.b.T, found.a.T) if place.transposed else (found.a, found.b)
                        writer.add(place.module, a, b, "F32", place.embedding)
                        rows.append(_row(info, place, found))
                    elif squares:
                        lost.append({"tensor": info.name, "l2": squares**0.5, "why": left_out[info.name]})
                    advance(info.nbytes)
            if not rows:
                raise NothingChanged(
                    f"{os.fspath(tuned)} differs from {start.label} in none of the {len(places)} matrices"
                )
            for info in _other_experts(start, {row["tensor"] for row in rows}):
                out, inner = info.shape
                module = _prefix(start) + info.name.removesuffix(".weight")
                writer.add(module, np.zeros((1, inner)), np.zeros((out, 1)), "F32", False)
            result = _result(rows, lost, rank, energy, start)
            record = provenance.record(
                "extract-lora",
                inputs,
                seed=seed,
                only=list(only),
                embeddings=embeddings,
                vector=vector.origin(),
                **result,
            )
            transposed = any(place.transposed and not place.embedding for place in places.values())
            writer.finish(_settings(start, transposed), record)
    return {**result, "output": os.fspath(output)}


class _Change:
    """tuned - base by rows, for any thread."""

    def __init__(self, base: Checkpoint, vector: TaskVector) -> None:
        self.base, self.vector, self._scratch = base, vector, Scratch()

    def rows(self, block: Block) -> np.ndarray:
        name = block.info.name
        before = self._scratch.read("base", self.base, name, block, working_dtype(block.info.dtype))
        return self.vector.rows(name, block.first, block.last, before)

    def reader(self, info: TensorInfo) -> Any:
        return lambda first, last: self.rows(Block(info, first, last))

    def energy(self, info: TensorInfo) -> float:
        return sum(float(np.square(self.rows(block), dtype=np.float64).sum()) for block in blocks(info))


def _places(base: Checkpoint, infos: Sequence[TensorInfo], embeddings: bool) -> tuple[dict[str, Place], dict[str, str]]:
    """Tensor -> module of those that an adapter can hold, tensor -> reason for the others."""
    config, prefix = base.config or {}, _prefix(base)
    tokens = embeddings_and_heads(base.tensors)
    heads = [name for name in tokens if not lookup_table(name)]
    places, left_out = {}, {}
    for info in infos:
        name, table = info.name, lookup_table(info.name)
        if len(info.shape) != 2 or not name.endswith(".weight"):
            left_out[name] = _NO_MATRIX
        elif (table or name in heads) and not embeddings:
            left_out[name] = _TIED if base.tied and name in tokens else _EMBEDDING
        else:
            module = name.removesuffix(".weight")
            transposed = table or stored_transposed(name, config)
            places[name] = Place(module if name in heads else prefix + module, transposed, table)
    if not places:
        raise EditError(f"nothing to extract from {base.label}: --only names no matrix of a linear layer")
    if base.tied and (shared := [name for name in tokens if name in places]):
        raise EditError(
            f"{base.label} ties its output head to its embedding, so that no adapter of {listed(shared)} can be merged: leave "
            "--embeddings out, or untie the model first"
        )
    return places, left_out


def _other_experts(base: Checkpoint, written: set[str]) -> list[TensorInfo]:
    """The experts without a change, where others have one: transformers 5 fuses them, so that peft asks for all or none."""
    if all(parse(name).expert is None for name in written):
        return []
    experts = [info for name, info in base.tensors.items() if parse(name).expert is not None and name not in written]
    return [info for info in experts if len(info.shape) == 2 and info.name.endswith(".weight")]


def _prefix(base: Checkpoint) -> str:
    """What the files leave out of the names that the model uses: on the Hub, GPT-2's have h.0 in place of transformer.h.0."""
    kind = next(iter((base.config or {}).get("architectures") or []), "")
    stacks = {parse(name).stack for name in base.tensors} - {""}
    bare = re.search("LMHead|For[A-Z]", kind) and len(stacks) == 1
    return _WRAPPERS.get(stacks.pop(), "") if bare else ""


def _settings(base: Checkpoint, transposed: bool) -> dict[str, Any]:
    kind = next(iter((base.config or {}).get("architectures") or []), "")
    return {
        "base_model_name_or_path": base_reference(base),
        "fan_in_fan_out": transposed,
        "task_type": "CAUSAL_LM" if re.search("CausalLM|LMHead", kind) else None,
    }


def _row(info: TensorInfo, place: Place, found: Factors) -> dict[str, Any]:
    return {
        "module": place.module,
        "tensor": info.name,
        "shape": list(info.shape),
        "rank": found.rank,
        "l2": found.energy**0.5,
        "residual_energy": found.residual,
    }


def _result(
    rows: list[dict[str, Any]], lost: list[dict[str, Any]], rank: int | None, energy: float | None, base: Checkpoint
) -> dict[str, Any]:
    inside, outside = (sum(row["l2"] ** 2 for row in part) for part in (rows, lost))
    residual = sum(row["l2"] ** 2 * row["residual_energy"] for row in rows)
    warnings = []
    if lost:
        most = sorted(lost, key=lambda row: -row["l2"])
        named = [f"{row['tensor']} ({row['l2'] ** 2 / (inside + outside):.2%})" for row in most]
        tables = [row for row in most if row["why"] == _EMBEDDING]
        share = sum(row["l2"] ** 2 for row in tables) / (inside + outside)
        taken = f"; --embeddings takes in {listed(row['tensor'] for row in tables)}, with {share:.2%}" if tables else ""
        warnings.append(
            f"{len(lost)} tensors changed and are not in the adapter, with {outside / (inside + outside):.2%} of the energy (squared "
            f"L2) of the change: {listed(named, limit=5)}{taken}"
        )
    if large := [row["module"] for row in rows if row["rank"] * sum(row["shape"]) >= np.prod(row["shape"])]:
        warnings.append(
            f"{len(large)} modules have factors at least as large as their matrix: {listed(large, limit=5)}"
        )
    return {
        "rank": rank,
        "energy": energy,
        "kept": (inside - residual) / (inside + outside),
        "residual_energy": residual / inside,
        "modules": rows,
        "left_out": lost,
        "warnings": warnings,
    }
