"""`task_vector`: a tuned checkpoint or an adapter saved as the change that it is, tau = tuned - base."""

import json
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from editkit.arithmetic.codec import decode, encode, working_dtype
from editkit.arithmetic.dtypes import DTYPES
from editkit.checkpoint import provenance
from editkit.checkpoint.blocks import Block, Progress, Scratch, blocks, counted, ordered_map
from editkit.checkpoint.header import TensorInfo
from editkit.checkpoint.reader import Checkpoint, open_checkpoint
from editkit.checkpoint.single import SingleFileWriter, check_new_file
from editkit.errors import EditError
from editkit.vectors.dense import FORMAT
from editkit.vectors.open import open_vector
from editkit.vectors.vector import TaskVector, refuse_quantized

SAVED_DTYPES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}


def task_vector(
    tuned: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    base: str | os.PathLike[str] | None = None,
    dtype: str = "float32",
    threads: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Save tau = `tuned` - `base` to the safetensors file `output` and return what the file records of itself.

    >>> task_vector("tuned", "tau.safetensors", base="base")["tensors"]  # doctest: +SKIP
    201

    tuned: a checkpoint tuned from `base`, or a LoRA adapter, whose own config names its base if `base` is None. dtype: of the saved numbers; "float32" (default) holds
    differences of 16-bit checkpoints with a relative error below 1e-7, which "bfloat16" would not. Tensors without any
    change are left out. The header's metadata keeps the base's name and sha256, so that the vector is refused on another.

    Raises EditError for inputs that do not fit together, NaN or Inf in the vector, numbers too large for `dtype`, and an
    output that exists or lies in an input.
    """
    if dtype not in SAVED_DTYPES:
        raise EditError(f"dtype {dtype!r} is unknown: choose one of {', '.join(SAVED_DTYPES)}")
    stored = SAVED_DTYPES[dtype]
    check_new_file(output)
    with ExitStack() as stack:
        start = stack.enter_context(open_checkpoint(_base_of_adapter(tuned) if base is None else base))
        vector = open_vector(tuned, start)
        for checkpoint in vector.inputs:
            stack.callback(checkpoint.close)
        refuse_quantized(start)
        inputs = [checkpoint.source for checkpoint in (start, *vector.inputs)]
        check_new_file(output, inputs)
        vector.check(start, vector.names)
        for checkpoint in (start, *vector.inputs):
            checkpoint.start_hashing()
        names = [name for name in vector.names if _differs(start, vector, name)]
        record = {
            "format": FORMAT,
            "base": provenance.public_name(start),
            "base_sha256": start.sha256(),
            "tuned": [{"name": provenance.public_name(one), "sha256": one.sha256()} for one in vector.inputs],
            "kind": vector.origin()["kind"],
            "dtype": dtype,
            "tensors": len(names),
            "zero_tensors": len(vector.names) - len(names),
        }
        entries = {name: (stored, start.tensors[name].shape) for name in names}
        metadata = {"format": "pt", "editkit": json.dumps(record)}
        with SingleFileWriter(output, entries, metadata, inputs) as writer:
            _save(start, vector, [start.tensors[name] for name in names], stored, writer, threads, progress)
    return {**record, "output": Path(output).name}


def _base_of_adapter(tuned: str | os.PathLike[str]) -> str:
    if not (Path(tuned) / "adapter_config.json").exists():
        raise EditError(f"{tuned} is no adapter, so it does not say what it was tuned from: give --base")
    from editkit.checkpoint.adapter import open_adapter

    named = open_adapter(tuned).config.get("base_model_name_or_path")
    if not named or (not Path(named).expanduser().exists() and "/" not in named):
        raise EditError(f"the adapter {tuned} names its base {named!r}, which is not here: give --base")
    return str(named)


def _differs(base: Checkpoint, vector: TaskVector, name: str) -> bool:
    """Whether any element of tau is not zero; stops at the first block that has one."""
    scratch = Scratch()
    return any(_tau(base, vector, block, scratch).any() for block in blocks(base.tensors[name]))


def _tau(base: Checkpoint, vector: TaskVector, block: Block, scratch: Scratch) -> np.ndarray:
    info = block.info
    before = scratch.read("base", base, info.name, block, working_dtype(info.dtype))
    return vector.rows(info.name, block.first, block.last, before)


def _save(
    base: Checkpoint,
    vector: TaskVector,
    infos: list[TensorInfo],
    stored: str,
    writer: SingleFileWriter,
    threads: int | None,
    progress: Progress | None,
) -> None:
    scratch, width = Scratch(), DTYPES[stored].bytes
    advance = counted(progress, sum(info.nbytes for info in infos))

    def work(block: Block) -> Block:
        values = _tau(base, vector, block, scratch)
        if not np.isfinite(values).all():
            raise EditError(f"the task vector has NaN or Inf in {block.info.name}: check the tuned checkpoint")
        saved = encode(values, stored)
        kept = decode(saved, stored, scratch.array("kept", values.shape, working_dtype(stored)))
        if not np.isfinite(kept).all():
            raise EditError(
                f"{block.info.name} changes by up to {np.abs(values).max():.3g}, too much for {stored}: choose another dtype"
            )
        writer.write(block.info.name, block.first * block.info.columns * width, saved)
        return block

    with ordered_map(work, (block for info in infos for block in blocks(info)), threads) as results:
        for block in results:
            advance(block.nbytes)
