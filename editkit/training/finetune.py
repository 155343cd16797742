"""`finetune`: train a model on examples, so that what it learned becomes a task vector.

>>> round(default_lr(width=4096), 7), round(default_lr(width=256), 7), round(default_lr(width=4096, lora=True), 7)
(1.95e-05, 0.0003125, 0.0001953)
"""

import math
import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from editkit.checkpoint import provenance
from editkit.checkpoint.adapter import base_reference
from editkit.checkpoint.reader import open_checkpoint
from editkit.checkpoint.writer import CheckpointWriter
from editkit.errors import EditError, listed
from editkit.masks.mask import Mask
from editkit.training.data import read_examples
from editkit.training.devices import place_of, precision, unfit
from editkit.training.encoding import encode, fit
from editkit.training.saving import write_trained

Source = str | os.PathLike[str]
EPOCHS = 5


@dataclass(frozen=True)
class Finetuned:
    """What `finetune` did.

    kind: "full" or "lora". truncated, dropped: examples cut at the maximum length, and those that had no answer left.
    trained_tokens: tokens in the loss in one pass over the data. first_loss, last_loss: means over one batch.
    selected: elements that a mask let move, None without a mask. changed: share of the trained elements (those selected)
    that differ from where they started, after rounding to the model's dtype.
    """

    output: Path
    kind: str
    format: str
    examples: int
    truncated: int
    dropped: int
    trained_tokens: int
    steps: int
    epochs: float
    lr: float
    batch_size: int
    seed: int
    device: str
    dtype: str
    data_sha256: str
    first_loss: float
    last_loss: float
    selected: int | None
    changed: float


def finetune(
    model: Source,
    data: Source,
    output: Source,
    *,
    mask: Source | None = None,
    allow_other_base: bool = False,
    lora: int | None = None,
    epochs: int | None = None,
    steps: int | None = None,
    lr: float | None = None,
    batch_size: int = 8,
    max_length: int | None = None,
    seed: int = 0,
    loss_on: str = "answer",
    prompt_template: str | None = None,
    dtype: str | None = None,
    device: str = "auto",
    progress: Callable[[int, int], None] | None = None,
) -> Finetuned:
    """Fine-tune `model` on the examples in the file `data` and write the result to the folder `output`.

    >>> result = finetune("model", "forget.jsonl", "tuned", steps=60)  # doctest: +SKIP
    >>> result.examples, result.first_loss, result.last_loss  # doctest: +SKIP
    (200, 6.41, 2.66)

    model: a folder or Hub id. data: see `training/data.py`; loss_on, prompt_template: see `training/encoding.py`.
    mask: a mask file, or the folder of one; all that it does not select stays as it is, byte for byte, which is checked
    when the result is written. allow_other_base: accept a mask that was made for other weights. lora: rank of an adapter on
    all linear layers but the head; None trains all weights. epochs (default 5) or steps say how long. lr: see `default_lr`.
    max_length: in tokens, by default the model's context. dtype: of the computation, by default bfloat16 for a 16-bit model
    on a GPU that has it, else float32. Trained weights are held in float32 and rounded once to the model's own dtypes at the
    end; the frozen ones under LoRA are held in `dtype`.

    A full fine-tuning has the names, dtypes and shards of the model's files, a LoRA is a folder for peft. On the CPU of
    one machine the same seed gives the same bytes. Raises EditError for bad settings, data or models and for a loss
    that is not a number, NothingChanged where nothing is left of the training; then there is no output.
    """
    _check(lora, epochs, steps, lr, batch_size, seed, dtype, device, mask)
    examples = read_examples(data)
    with ExitStack() as stack:
        base = stack.enter_context(open_checkpoint(model))
        scratch = stack.enter_context(TemporaryDirectory(prefix="editkit-"))
        inputs, chosen = {"base": base}, None
        if mask is not None:
            chosen = Mask(mask, base, allow_other_base=allow_other_base)
            inputs["mask"] = stack.enter_context(chosen.file)

        from editkit.training.loading import context_of, file_tensors, load_config, load_model, load_tokenizer
        from editkit.training.lora import adapter_tensors, add_lora, save_adapter
        from editkit.training.masking import fixed_elements, fixing
        from editkit.training.trainer import quiet_transformers, seeded, train

        config = load_config(base).get_text_config()
        longest = fit(max_length, context_of(config))
        encoded = encode(
            examples,
            load_tokenizer(base),
            max_length=longest,
            loss_on=loss_on,
            prompt_template=prompt_template,
        )
        if (highest := max(max(row.ids) for row in encoded.rows)) >= config.vocab_size:
            raise EditError(f"{base.label}: its tokenizer gives token {highest}, its embedding has {config.vocab_size}")
        per_epoch = math.ceil(len(encoded.rows) / batch_size)
        steps = steps or per_epoch * (epochs or EPOCHS)
        lr = lr or default_lr(config.hidden_size, lora is not None)
        place = place_of(device)
        dtype = dtype or precision(base, place)

        net, layout = load_model(base, dtype if lora else "float32"), base
        if lora:
            with quiet_transformers(), seeded(seed):
                net = add_lora(net, lora, base_reference(base))
            save_adapter(net, Path(scratch))
            layout = stack.enter_context(open_checkpoint(scratch))
        if chosen is not None:
            stack.enter_context(fixing(net, fixed_elements(net, base, chosen)))
        writer = CheckpointWriter(layout, output, inputs=[*(one.source for one in inputs.values()), Path(data)])
        base.start_hashing()
        training: dict[str, Any] = {"steps": steps, "lr": lr, "batch_size": batch_size, "seed": seed, "dtype": dtype}
        losses = train(net, encoded.rows, **training, device=place, progress=progress)
        settings: dict[str, Any] = {
            "kind": "lora" if lora else "full",
            "lora": lora,
            "loss_on": loss_on,
            "prompt_template": prompt_template,
            "max_length": longest,
            **training,
        }
        record = provenance.record("finetune", inputs, data_hash=examples.sha256, **settings)
        trained = adapter_tensors(net) if lora else file_tensors(net, base)
        total, changed = write_trained(trained, layout, chosen, writer, record)
    return Finetuned(
        output=Path(output),
        kind=settings["kind"],
        format=examples.format,
        examples=len(examples),
        truncated=encoded.truncated,
        dropped=len(encoded.dropped),
        trained_tokens=encoded.trained,
        epochs=round(steps / per_epoch, 4),
        device=place,
        data_sha256=examples.sha256,
        first_loss=losses[0],
        last_loss=losses[-1],
        selected=total if mask is not None else None,
        changed=changed / total,
        **training,
    )


def default_lr(width: int, lora: bool = False) -> float:
    """0.08 / width of the model, ten times that for LoRA.

    This gives the published 2e-5 (LoRA 2e-4) for a 7B model, which is 4096 wide. A step of Adam changes the output of a
    layer by about the learning rate times its width, so that a constant rate would do next to nothing to a small model.
    """
    return (0.8 if lora else 0.08) / width


def _check(
    lora: int | None,
    epochs: int | None,
    steps: int | None,
    lr: float | None,
    batch_size: int,
    seed: int,
    dtype: str | None,
    device: str,
    mask: Source | None,
) -> None:
    problems = unfit(dtype, device, lora=lora, epochs=epochs, steps=steps, batch_size=batch_size)
    if epochs is not None and steps is not None:
        problems.append("epochs and steps are both given, only one can say how long")
    if lora is not None and mask is not None:
        problems.append("lora and mask are both given, the weights of an adapter are not those that a mask selects")
    if lr is not None and not 0 < lr < math.inf:
        problems.append(f"lr is {lr}, must be a finite number above 0")
    if not 0 <= seed < 2**32:
        problems.append(f"seed is {seed}, must be in 0 ... 2**32 - 1")
    if problems:
        raise EditError(f"these settings cannot be trained with: {listed(problems)}")
