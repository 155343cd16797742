"""`editkit patch create BASE EDITED -o FILE`."""

import json
from pathlib import Path

import click

import editkit

from .options import as_json as json_option
from .options import examples, output, quiet, threads
from .patch_info import totals
from .progress import progress


@click.command(
    epilog=examples(
        "editkit patch create model edited -o edit.editpatch",
        "editkit patch create org/name edited -o edit.editpatch --json | jq .summary",
    )
)
@click.argument("base")
@click.argument("edited")
@output("the patch, a name that ends in .editpatch,")
@json_option
@threads
@quiet
def command(base: str, edited: str, output: Path, as_json: bool, quiet: bool, threads: int | None) -> None:
    """Write what turns BASE into EDITED and back, bit for bit, in one small file.

    Both have the same tensors in the same dtypes. Files such as config.json that differ are kept from both sides.
    """
    with progress("patch", quiet=quiet) as advance:
        found = editkit.create_patch(base, edited, output, threads=threads, progress=advance)
    if as_json:
        click.echo(json.dumps(found, indent=2))
    elif not quiet:
        click.echo(f"{totals(found)}\n{output} written; editkit patch undo EDITED {output} -o OUT takes the edit back")
