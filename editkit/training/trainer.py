"""The training loop: Hugging Face Trainer, silent, without files of its own, and deterministic given the seed.

>>> from editkit.training.encoding import Tokens
>>> train(model, [Tokens([0, 5, 9], [-100, 5, 9])], steps=10, lr=1e-3)  # doctest: +SKIP
[6.92, 6.31, ...]
"""

import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from math import isfinite
from tempfile import TemporaryDirectory
from typing import Any

from editkit.errors import EditError
from editkit.training.encoding import Tokens, collate

WARMUP = 0.05  # share of the steps


def train(
    model: Any,
    rows: Sequence[Tokens],
    *,
    steps: int,
    lr: float,
    batch_size: int = 8,
    seed: int = 0,
    device: str = "auto",
    dtype: str = "float32",
    pad: int = 0,
    progress: Callable[[int, int], None] | None = None,
    observe: Callable[[int], None] | None = None,
) -> list[float]:
    """Train `model` in place with AdamW (no weight decay, gradients clipped at norm 1) and return the loss of every step.

    The learning rate rises over the first 5 % of the steps and then falls linearly to zero. The loss of a step is the
    mean over the trained tokens of its batch. `dtype` float16 or bfloat16 computes in it; the weights that are trained
    stay as they are in `model`, float32. The global random states are as before afterwards. `observe` is called with 0 before the
    first step and with the number of each step after it, to look at `model`, which it must leave in training mode.

    Raises EditError where the loss is not a number (which step), and where the device runs out of memory.
    """
    import torch
    from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

    losses: list[float] = []

    class Watch(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if observe:
                observe(0)

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if observe:
                observe(state.global_step)

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if "loss" not in logs:
                return
            losses.append(logs["loss"])
            if not isfinite(losses[-1]):
                raise EditError(
                    f"the loss is {losses[-1]} at step {state.global_step} of {steps}: lower the learning rate ({lr:g})"
                )
            if progress:
                progress(state.global_step, steps)

    with quiet_transformers(), seeded(seed), TemporaryDirectory(prefix="editkit-") as scratch:
        settings = TrainingArguments(
            scratch,
            max_steps=steps,
            learning_rate=lr,
            per_device_train_batch_size=batch_size,
            warmup_steps=round(WARMUP * steps),
            weight_decay=0.0,
            seed=seed,
            use_cpu=device == "cpu",
            bf16=dtype == "bfloat16",
            fp16=dtype == "float16",
            logging_steps=1,
            logging_nan_inf_filter=False,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
            remove_unused_columns=False,
        )
        settings._n_gpu = min(settings.n_gpu, 1)  # one device: several would change the size of a batch, and the result
        trainer = Trainer(
            model, settings, data_collator=partial(collate, pad=pad), train_dataset=rows, callbacks=[Watch()]
        )
        trainer.remove_callback(PrinterCallback)
        try:
            trainer.train()
        except torch.OutOfMemoryError as error:
            raise EditError(
                f"the device ran out of memory at step {len(losses) + 1}: lower --batch-size or --max-length, or use --lora"
            ) from error
    return losses


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global generators of python, numpy and torch, and give them back as they were."""
    import numpy as np
    import torch

    python, array = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(array)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No log lines below errors, warnings and progress bars from transformers and peft; all is as before afterwards."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
