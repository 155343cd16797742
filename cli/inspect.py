"""`editkit inspect CHECKPOINT`."""

import json

import click

import editkit

from .options import as_json as json_option
from .options import examples


@click.command(epilog=examples("editkit inspect model/", "editkit inspect org/name@main --json | jq .summary"))
@click.argument("checkpoint")
@json_option
def command(checkpoint: str, as_json: bool) -> None:
    """Show what a checkpoint is made of: tensors, dtypes, layers, modules, ties, quantization, files, origin.

    Only headers are read, also of a CHECKPOINT on the Hub: no tensor is loaded or downloaded.
    """
    from editkit.checkpoint.inspection import describe

    facts = editkit.inspect(checkpoint)
    click.echo(json.dumps(facts, indent=2, ensure_ascii=False) if as_json else describe(facts))
