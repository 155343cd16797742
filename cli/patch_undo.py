"""`editkit patch undo EDITED PATCH -o OUT`."""

from pathlib import Path

import click

import editkit

from .options import examples, output, quiet, threads
from .progress import progress


@click.command(
    epilog=examples(
        "editkit patch undo edited edit.editpatch -o model-again",
        "editkit patch undo edited-twice second.editpatch first.editpatch -o model-again",
    )
)
@click.argument("edited")
@click.argument("patches", metavar="PATCH...", nargs=-1, required=True)
@output("the base")
@threads
@quiet
def command(edited: str, patches: tuple[str, ...], output: Path, quiet: bool, threads: int | None) -> None:
    """Take an edit back: make the base of PATCH from EDITED, bit for bit.

    Several patches are a stack: give the last edit first. Their order is checked before anything is written.
    """
    with progress("undo", quiet=quiet) as advance:
        editkit.undo_patch(edited, patches, output, threads=threads, progress=advance)
    if not quiet:
        click.echo(f"{output} written: the base, bit for bit")
