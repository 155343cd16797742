"""`editkit bake MODEL ADAPTER -o OUT`."""

from pathlib import Path
from typing import Any

import click

import editkit

from .negate import summary
from .options import allow_other_base, examples, mask, output, patch, quiet, rounding, shard_size, threads
from .options import as_json as json_option
from .progress import progress
from .reporting import show_edit


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
@rounding
@click.option("--seed", type=int, default=0, show_default=True, help="Of stochastic rounding.")
@shard_size
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
    said = summary(result) if result.output else "\n".join([*result.alphas, _planned(result)])
    return show_edit(result, said, dry_run=settings["dry_run"], as_json=as_json, quiet=quiet)


def _planned(result: "editkit.Negation") -> str:
    return f"{len(result.alphas)} tensors would be edited; nothing was written."
