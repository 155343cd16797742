"""`editkit bake MODEL ADAPTER -o OUT`."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

import editkit

from .main import fail
from .negate import summary
from .options import allow_other_base, examples, mask, output, patch, quiet, threads
from .options import as_json as json_option
from .progress import progress


@click.command(
    epilog=examples(
        "editkit bake model my-lora -o baked",
        "editkit bake model my-lora --scale 0.5 --only '*.mlp.*' -o baked",
        "editkit bake model my-lora --patch lora.editpatch -o baked",
    )
)
@click.argument("model")
@click.argument("adapter")
@click.option(
    "--scale", type=float, default=1.0, show_default=True, help="How much of the adapter, beside its own scale."
)
@click.option(
    "--only", multiple=True, metavar="GLOB", help="Edit only tensors with such a whole name; may be repeated."
)
@mask("Edit only what this mask selects")
@allow_other_base("an adapter, or a mask,")
@click.option(
    "--rounding",
    type=click.Choice(["nearest", "stochastic"]),
    default="nearest",
    show_default=True,
    help="To the dtype.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of stochastic rounding.")
@click.option("--shard-size", type=int, metavar="BYTES", help="Write new shards of this size.  [default: MODEL's own]")
@patch
@click.option("--no-report", is_flag=True, help="Leave out the diff report in OUT/diff.")
@click.option("--dry-run", is_flag=True, help="Check names, shapes and output and list the tensors; write nothing.")
@output("the model with the adapter in it", required=False)
@json_option
@threads
@quiet
def command(
    model: str, adapter: str, no_report: bool, output: Path | None, as_json: bool, quiet: bool, **settings: Any
) -> int:
    """Add a LoRA adapter to the weights of MODEL: write MODEL + SCALE * ADAPTER and a report of what changed in which layer.

    What the adapter does not touch stays as it is, byte for byte. In the JSON, alpha is -SCALE.
    """
    if output is None and not settings["dry_run"]:
        raise click.UsageError("give -o/--output, or --dry-run")
    with progress("bake", quiet=quiet) as advance:
        result = editkit.bake(model, adapter, output, report=not no_report, progress=advance, **settings)
    if as_json:
        click.echo(
            json.dumps({**asdict(result), "output": result.output and str(result.output), "report": None}, indent=2)
        )
    elif not quiet:
        click.echo(summary(result) if result.output else "\n".join([*result.alphas, _planned(result)]))
    for warning in result.warnings:
        fail(f"warning: {warning}", 0)
    return 0 if result.changed or settings["dry_run"] else editkit.NothingChanged.exit_code


def _planned(result: "editkit.Negation") -> str:
    return f"{len(result.alphas)} tensors would be edited; nothing was written."
