"""`editkit extract-lora --base BASE --tuned TUNED -o OUT`."""

import json
from pathlib import Path
from typing import Any

import click

import editkit

from .main import fail
from .options import allow_other_base, examples, output, quiet, threads
from .options import as_json as json_option
from .progress import progress

SHOWN = 12
"""Modules in the table."""


@click.command(
    epilog=examples(
        "editkit extract-lora --base model --tuned tuned --rank 32 -o my-lora",
        "editkit extract-lora --base model --tuned tuned --energy 0.95 --only '*.self_attn.*' -o my-lora",
    )
)
@click.option("--base", metavar="CHECKPOINT", required=True, help="What it was tuned from.")
@click.option("--tuned", metavar="CHECKPOINT", required=True, help="The fine-tuned checkpoint, or a saved vector.")
@click.option("--rank", type=int, metavar="N", help="Of every module.  [default: 32]")
@click.option(
    "--energy", type=float, metavar="SHARE", help="In place of --rank: the share of each change that is kept, below 1."
)
@click.option("--only", multiple=True, metavar="GLOB", help="Only tensors with such a whole name; may be repeated.")
@click.option("--embeddings", is_flag=True, help="Also embeddings and output heads.")
@allow_other_base("a tuned checkpoint or a vector")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the random starts.")
@output("the adapter (a folder)")
@json_option
@threads
@quiet
def command(base: str, tuned: str, output: Path, as_json: bool, quiet: bool, **settings: Any) -> None:
    """Find the LoRA adapter that comes nearest to what a fine-tuning changed, for peft.

    Each linear layer gets the best factors of its change. The residual is the share of the energy (squared L2) of the
    change that they lack.
    """
    with progress("extract-lora", quiet=quiet) as advance:
        result = editkit.extract_lora(base, tuned, output, progress=advance, **settings)
    if as_json:
        click.echo(json.dumps(result, indent=2))
    elif not quiet:
        click.echo(_summary(result))
    for warning in result["warnings"]:
        fail(f"warning: {warning}", 0)


def _summary(result: dict[str, Any]) -> str:
    """The modules that lose most, and what is kept in all."""
    modules = sorted(result["modules"], key=lambda row: -row["residual_energy"])
    rows = [("module", "rank", "L2 of the change", "residual energy")]
    rows += [
        (row["module"], str(row["rank"]), f"{row['l2']:.4g}", f"{row['residual_energy']:.3%}")
        for row in modules[:SHOWN]
    ]
    width = max(len(row[0]) for row in rows)
    lines = [
        "  ".join([row[0].ljust(width), *(c.rjust(len(h)) for c, h in zip(row[1:], rows[0][1:], strict=True))])
        for row in rows
    ]
    if len(modules) > SHOWN:
        lines.append(f"... and {len(modules) - SHOWN} more, see --json")
    lines.append(
        f"{len(modules)} modules, residual {result['residual_energy']:.4%} of the energy of their change; {result['kept']:.4%} of the "
        f"energy of the whole change kept; {result['output']} written"
    )
    return "\n".join(lines)
