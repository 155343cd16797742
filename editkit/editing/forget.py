"""`forget`: fine-tune on the data to be forgotten, keep what that changed as a task vector, and negate it."""

import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from editkit.checkpoint.blocks import Progress
from editkit.checkpoint.reader import open_checkpoint
from editkit.checkpoint.writer import CheckpointWriter
from editkit.editing.negate import Negation, Source, check_settings, negate
from editkit.masks.mask import Mask
from editkit.names import select
from editkit.patching.writer import check_new_patch
from editkit.training.finetune import Finetuned, finetune
from editkit.vectors.task_vector import task_vector
from editkit.vectors.vector import refuse_quantized

MEMORISED = 0.1
"""Loss per token below which an example has hardly a gradient left."""
Stage = Callable[[str], AbstractContextManager[Progress | None]]


def forget(
    model: Source,
    data: Source,
    output: Source,
    *,
    alpha: float,
    vector_base: Source | None = None,
    allow_other_base: bool = False,
    finetune_settings: Mapping[str, Any] | None = None,
    stage: Stage = lambda name: nullcontext(),
    **negate_settings: Any,
) -> tuple[Finetuned, Negation]:
    """Write `model` - alpha * (what fine-tuning on `data` changes) to `output`, with the vector in `output`/vector.

    >>> tuned, result = forget("model", "forget.jsonl", "edited", alpha=1.0, vector_base="before")  # doctest: +SKIP
    >>> result.report["summary"]["rel_l2"]  # doctest: +SKIP
    0.021

    Fine-tuning starts from `vector_base` (default: from `model`). A model that has fully memorised the data has vanishing
    gradients there and yields an empty vector: then give the checkpoint from before it learned them. A mask is one for
    `model`, whatever the vector comes from; allow_other_base accepts one that was made for other weights.
    finetune_settings: arguments of `finetune`, such as {"lora": 16, "steps": 60}. negate_settings: arguments of `negate`.
    stage: called with the name of each part of the work ("fine-tune", "negate"), gives a context with its progress function.

    Raises EditError as those two do, before any training where the fault shows then; nothing is left behind.
    """
    alpha_for, mask = negate_settings.get("alpha_for") or {}, negate_settings.get("mask")
    check_settings(alpha, alpha_for, negate_settings.get("rounding", "nearest"))
    with open_checkpoint(model) as base:  # what `negate` would refuse is refused before hours of training
        refuse_quantized(base)
        select(base.tensors, negate_settings.get("only", ()))
        select(base.tensors, list(alpha_for), "--alpha-for")
        CheckpointWriter(base, output, inputs=[data])
        if (patch := negate_settings.get("patch")) is not None:
            check_new_patch(patch, [base.source, Path(output)])
        if mask is not None:
            Mask(mask, base, allow_other_base=allow_other_base).file.close()
    place, start = Path(output).expanduser().resolve(), vector_base or model
    place.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=place.parent, prefix=f".{place.name}.tuning-") as folder:
        kept = Path(folder) / "vector"
        settings = dict(finetune_settings or {})
        lora = bool(settings.get("lora"))
        trained = kept if lora else Path(folder) / "tuned"
        with stage("fine-tune") as progress:
            tuned = finetune(start, data, trained, **settings, progress=progress)
        vector = kept if lora else kept / "task_vector.safetensors"
        if not lora:
            task_vector(trained, vector, base=start)
        with stage("negate") as progress:
            result = negate(
                model,
                vector,
                output,
                alpha=alpha,
                allow_other_base=allow_other_base or vector_base is not None,
                keep=kept,
                data_sha256=tuned.data_sha256,
                progress=progress,
                **negate_settings,
            )
    if tuned.first_loss < MEMORISED:
        text = (
            f"{os.fspath(start)} already answers these examples (loss {tuned.first_loss:.3f} before the first step), so that "
            "the vector is mostly noise: make it from the model before it learned them (--vector-base)"
        )
        result = replace(result, warnings=[*result.warnings, text])
    return tuned, result
