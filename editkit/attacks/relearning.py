"""Relearning as an attack: a few steps of fine-tuning on some of what was forgotten, or on what was kept, and the rest is back.

Hu et al. 2024, "Unlearning or obfuscating?" (arXiv 2406.13356); Lynch et al. 2024, "Eight methods" (arXiv 2402.16835). What is measured was not
trained on. A model that never saw the forget set, trained just the same, shows what is learned rather than remembered.

>>> points(20)
[0, 1, 2, 4, 8, 16, 20]
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from editkit.attacks.subject import opened_whole
from editkit.checkpoint.blocks import Progress
from editkit.evaluation.measuring import measure, prepare
from editkit.evaluation.subject import Source
from editkit.localization.examples import encoded
from editkit.training.data import Examples
from editkit.training.devices import precision
from editkit.training.finetune import default_lr
from editkit.training.trainer import train

Row = dict[str, Any]

PART = 0.3  # of the forget set that is trained on
BACK = 0.9  # of the original's accuracy, at which something counts as relearned
COLUMNS = ("token_accuracy", "nll")


def points(steps: int) -> list[int]:
    """The steps after which is measured: 0, the powers of two, and the last."""
    powers = (2**power for power in range(steps.bit_length()))
    return sorted({0, *powers, steps})


def split(examples: int, seed: int) -> tuple[list[int], list[int]]:
    """Which examples are trained on (30 %, at least one) and which are held out (at least one), in the order of the file.

    >>> trained, held_out = split(10, seed=0)
    >>> len(trained), sorted(trained + held_out) == list(range(10))
    (3, True)
    """
    order = np.random.default_rng(seed).permutation(examples)
    count = min(max(round(PART * examples), 1), examples - 1)
    return sorted(order[:count].tolist()), sorted(order[count:].tolist())


def relearn(
    source: Source,
    trained: Examples,
    held_out: Examples,
    *,
    steps: int,
    batch_size: int,
    seed: int,
    dtype: str | None,
    device: str,
    prompt_template: str | None,
    progress: Progress | None,
) -> dict[int, list[Row]]:
    """Fine-tune the model on `trained` and measure `held_out` on the way: step -> a row per example with COLUMNS.

    All weights are trained, at `default_lr`, in one run: the rate rises over the first 5 % of the steps and falls to zero at the last, so
    that an early point is not what a shorter run would end with. The checkpoint is left alone.
    """
    with opened_whole(source, dtype="float32", device=device) as subject:
        asked = prepare(held_out, "forget", subject, COLUMNS, prompt_template=prompt_template)
        rows = encoded(
            "forget",
            trained,
            subject.tokenizer,
            context=subject.context,
            vocabulary=subject.vocabulary,
            prompt_template=prompt_template,
        ).rows
        found: dict[int, list[Row]] = {}
        wanted = set(points(steps))

        def observe(step: int) -> None:
            if step in wanted:
                found[step] = measure(subject, asked, batch_size=batch_size)

        subject.net.requires_grad_(True)
        train(
            subject.net,
            rows,
            steps=steps,
            lr=learning_rate(subject),
            batch_size=batch_size,
            seed=seed,
            device=subject.place,
            dtype=dtype or precision(subject.checkpoint, subject.place),
            progress=progress,
            observe=observe,
        )
        return found


def learning_rate(subject: Any) -> float:
    """That of `finetune`."""
    return default_lr(subject.core.config.get_text_config().hidden_size)


def back_at(curve: Mapping[int, ArrayLike], original: float) -> int | None:
    """The first step at which the mean accuracy is 90 % of the original's; None where no point is.

    >>> back_at({0: [0.2, 0.4], 1: [0.8, 0.6], 2: [0.9, 0.9]}, original=1.0)
    2
    """
    return next((step for step, values in curve.items() if np.mean(np.asarray(values)) >= BACK * original), None)
