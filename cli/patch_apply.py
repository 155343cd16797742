"""`editkit patch apply MODEL PATCH -o OUT`."""

from pathlib import Path

import click

import editkit

from .options import examples, output, quiet, threads
from .progress import progress


@click.command(
    epilog=examples(
        "editkit patch apply model edit.editpatch -o edited",
        "editkit patch apply model first.editpatch second.editpatch -o edited-twice",
    )
)
@click.argument("model")
@click.argument("patches", metavar="PATCH...", nargs=-1, required=True)
@output("the edited checkpoint")
@threads
@quiet
def command(model: str, patches: tuple[str, ...], output: Path, quiet: bool, threads: int | None) -> None:
    """Make the edited checkpoint from MODEL, the base of PATCH, bit for bit.

    Refused on every other model, and on one that is edited already. Several patches follow each other, the first edit first.
    """
    with progress("apply", quiet=quiet) as advance:
        editkit.apply_patch(model, patches, output, threads=threads, progress=advance)
    if not quiet:
        click.echo(f"{output} written: the edited checkpoint, bit for bit")
