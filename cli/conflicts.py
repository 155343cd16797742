"""`editkit conflicts --base B --vector V --vector W`."""

import json
import sys
from pathlib import Path
from typing import Any

import click

import editkit
from editkit.diffing.rendering import check_folder

from .options import NamedFile, allow_other_base, as_json, examples, output, quiet, threads
from .progress import progress


@click.command(
    epilog=examples(
        "editkit conflicts --base base --vector tuned --vector my-lora",
        "editkit conflicts --base base --vector a --vector b --vector c -o conflicts",
        "editkit conflicts --base base --vector a --vector b --mask a=loc-a --mask b=loc-b",
    )
)
@click.option("--base", required=True, metavar="MODEL", help="What the vectors are changes of.")
@click.option(
    "--vector",
    "vectors",
    required=True,
    multiple=True,
    metavar="VECTOR",
    help="A tuned checkpoint, an adapter or a saved vector; two or more.",
)
@click.option(
    "--mask", "masks", multiple=True, type=NamedFile(), metavar="VECTOR=LOC", help="Count this vector within a mask."
)
@click.option("--only", multiple=True, metavar="GLOB", help="Only tensors with such a whole name; repeatable.")
@allow_other_base("a vector, or a mask,")
@output("the report (conflicts.json, conflicts.png)", required=False)
@as_json
@threads
@quiet
def command(
    masks: tuple[tuple[str, str], ...], output: Path | None, as_json: bool, quiet: bool, **settings: Any
) -> None:
    """Compare task vectors of one base two by two, before they are merged.

    Cosine, share of opposite signs, overlap and ratio of norms: in all, and for every module.
    """
    from editkit.merging.rendering import to_table, write_report

    if output is not None:
        check_folder(output, (settings["base"], *settings["vectors"]))
    with progress("conflicts", quiet=quiet) as advance:
        report = editkit.conflicts(masks=dict(masks), progress=advance, **settings)
    if output is not None:
        write_report(report, output)
    if as_json:
        click.echo(json.dumps(report, indent=2))
    elif not quiet:
        click.echo(to_table(report, color=sys.stdout.isatty()), nl=False)
