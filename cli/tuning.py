"""Options of fine-tuning, shared by `finetune` and `negate --forget`."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import click

import editkit

from .options import computing, prompt_template

OPTIONS = (
    click.option(
        "--lora", type=click.IntRange(min=1), metavar="RANK", help="Train a LoRA adapter instead of all weights."
    ),
    click.option("--epochs", type=click.IntRange(min=1), metavar="N", help="Passes over the data.  [default: 5]"),
    click.option("--steps", type=click.IntRange(min=1), metavar="N", help="Optimizer steps, in place of --epochs."),
    click.option("--lr", type=float, metavar="RATE", help="Peak learning rate.  [default: from the size of the model]"),
    click.option(
        "--batch-size", type=click.IntRange(min=1), default=8, show_default=True, metavar="N", help="Examples a step."
    ),
    click.option(
        "--max-length", type=click.IntRange(min=2), metavar="N", help="Tokens an example.  [default: the context]"
    ),
    click.option(
        "--loss-on",
        type=click.Choice(["answer", "all"]),
        default="answer",
        show_default=True,
        help="Tokens that are learned: those of the answer, or of the prompt as well.",
    ),
    prompt_template,
    computing,
)
NAMES = ("lora", "epochs", "steps", "lr", "batch_size", "max_length", "loss_on", "prompt_template", "dtype", "device")


def tuning(function: Callable[..., Any]) -> Callable[..., Any]:
    """All options of fine-tuning, given to the command as `tuning: dict`, ready for `editkit.finetune`."""

    @wraps(function)
    def collected(**given: Any) -> Any:
        settings = {name: given.pop(name) for name in NAMES}
        return function(tuning=settings, **given)

    for option in reversed(OPTIONS):
        collected = option(collected)
    return collected


def describe(tuned: "editkit.Finetuned") -> str:
    """One line on what was trained on, how long, and with what result."""
    cut = f", {tuned.truncated} of them truncated" if tuned.truncated else ""
    cut += f", {tuned.dropped} dropped because nothing of the answer fits" if tuned.dropped else ""
    moved = "" if tuned.selected is None else f"; {tuned.selected:,} elements selected by the mask"
    return (
        f"{tuned.examples} examples of {tuned.format}{cut}; {tuned.trained_tokens:,} tokens in the loss{moved}; "
        f"{tuned.steps} steps of {tuned.batch_size} at {tuned.lr:.3g} on {tuned.device}; loss of a batch "
        f"{tuned.first_loss:.3f} at first, {tuned.last_loss:.3f} at last"
    )
