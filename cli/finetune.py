"""`editkit finetune MODEL --data FILE -o OUT`."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

import editkit

from .options import allow_other_base, examples, mask, output, quiet
from .options import as_json as json_option
from .progress import progress
from .tuning import describe
from .tuning import tuning as tuning_options


@click.command(
    epilog=examples(
        "editkit finetune model --data forget.jsonl -o tuned --epochs 3",
        "editkit finetune model --data forget.jsonl -o my-lora --lora 16",
        "editkit finetune model --data forget.jsonl --mask loc -o tuned",
    )
)
@click.argument("model")
@click.option("--data", required=True, metavar="FILE", help="Examples: .jsonl, .json, .csv or .parquet.")
@mask("Train only what this mask selects")
@allow_other_base()
@tuning_options
@click.option(
    "--seed", type=int, default=0, show_default=True, help="Of the order of the examples and of LoRA's start."
)
@output("the tuned checkpoint, or with --lora the adapter,")
@json_option
@quiet
def command(
    model: str, data: str, tuning: dict[str, Any], output: Path, as_json: bool, quiet: bool, **settings: Any
) -> None:
    """Fine-tune MODEL on examples, as the first half of a task vector.

    The data have question and answer, prompt and completion, text and labels, messages, or text alone; which of these is
    recognised by itself and shown. With a mask all parameters outside it stay as they are, byte for byte.
    """
    with progress("fine-tune", unit="steps", quiet=quiet) as advance:
        tuned = editkit.finetune(model, data, output, **tuning, **settings, progress=advance)
    if as_json:
        click.echo(json.dumps({**asdict(tuned), "output": str(tuned.output)}, indent=2))
    elif not quiet:
        click.echo(f"{describe(tuned)}\n{output} written")
