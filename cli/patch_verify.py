"""`editkit patch verify PATCH [MODEL]`."""

import json

import click

import editkit
from editkit.errors import listed

from .options import as_json as json_option
from .options import examples, quiet, threads
from .progress import progress


@click.command(
    epilog=examples("editkit patch verify edit.editpatch", "editkit patch verify edit.editpatch edited --json")
)
@click.argument("patch")
@click.argument("model", required=False)
@json_option
@threads
@quiet
def command(patch: str, model: str | None, as_json: bool, quiet: bool, threads: int | None) -> int:
    """Check every byte of PATCH, and whether MODEL is its base or its edited side.

    Exit code 1 where MODEL is neither; a damaged PATCH is bad input.
    """
    with progress("verify", quiet=quiet) as advance:
        found = editkit.verify_patch(patch, model, threads=threads, progress=advance)
    if as_json:
        click.echo(json.dumps(found, indent=2))
    elif not quiet:
        click.echo(f"{patch}: whole, {found['frames']:,} blocks")
        if model is not None:
            click.echo(f"{model}: {_said(found)}")
    return 1 if model is not None and found["side"] is None else 0


def _said(found: dict) -> str:
    differs = [
        f"{what} {listed(found[key])} differ"
        for key, what in (("tensors", "the tensors"), ("sha256", "the weight files"), ("files", "the files"))
        if found[key] and (key != "sha256" or not found["tensors"])
    ]
    if found["side"] is not None:
        return "; ".join([f"the {found['side']} side, bit for bit in its weights", *differs])
    return "; ".join(["neither side", *differs]) + f" from those of the {found['nearest']} side"
