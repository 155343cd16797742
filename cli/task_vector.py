"""`editkit task-vector --base BASE --tuned TUNED -o FILE`."""

import json
from pathlib import Path

import click

import editkit

from .options import as_json as json_option
from .options import examples, output, quiet, threads
from .progress import progress


@click.command(
    epilog=examples(
        "editkit task-vector --base model --tuned tuned -o tau.safetensors",
        "editkit task-vector --adapter my-lora --base model -o tau.safetensors",
    )
)
@click.option(
    "--base", metavar="CHECKPOINT", help="What it was tuned from.  [default with --adapter: what its config names]"
)
@click.option("--tuned", metavar="CHECKPOINT", help="The fine-tuned checkpoint.")
@click.option("--adapter", metavar="FOLDER", help="A LoRA adapter, in place of --tuned.")
@click.option(
    "--dtype",
    type=click.Choice(["float64", "float32", "float16", "bfloat16"]),
    default="float32",
    show_default=True,
    help="Of the saved numbers. Differences of 16-bit checkpoints need float32.",
)
@output("the task vector (a .safetensors file)")
@json_option
@threads
@quiet
def command(
    base: str | None,
    tuned: str | None,
    adapter: str | None,
    dtype: str,
    output: Path,
    as_json: bool,
    threads: int | None,
    quiet: bool,
) -> None:
    """Save the change from one checkpoint to another, or of a LoRA adapter, as a task vector.

    The file holds tuned - base under the base's tensor names, without the tensors that did not change. It records the
    hashes of its base and is refused on any other.
    """
    source = tuned or adapter
    if source is None or (tuned and adapter):
        raise click.UsageError("give either --tuned or --adapter")
    with progress("task vector", quiet=quiet) as advance:
        record = editkit.task_vector(source, output, base=base, dtype=dtype, threads=threads, progress=advance)
    if as_json:
        click.echo(json.dumps(record, indent=2))
    elif not quiet:
        left_out = f", {record['zero_tensors']} without a change left out" if record["zero_tensors"] else ""
        click.echo(f"{output}: {record['tensors']} tensors in {dtype}{left_out}; its base is called {record['base']}")
