"""`editkit verify OUT`."""

import json
from typing import Any

import click

import editkit
from editkit.errors import printable

from .options import NamedFile, examples, quiet, threads
from .options import as_json as json_option
from .progress import progress


@click.command(
    epilog=examples(
        "editkit verify edited",
        "editkit verify edited --input base=model --input 'vector 1=tuned' --recompute",
        "editkit verify edited --json | jq .verdict",
    )
)
@click.argument("output", metavar="OUT")
@click.option(
    "--input",
    "inputs",
    multiple=True,
    type=NamedFile("NAME=PATH", "base=model or 'vector 1=tuned'"),
    metavar="NAME=PATH",
    help="Where an input is; may be repeated. NAME is its role (base, 'vector 1', mask, 'model 1', 'model 1 adapter 1', "
    "'model 1 mask', 'adapter 1', data; tuned for the only vector), or what OUT calls it.  [default: looked for beside OUT]",
)
@click.option("--recompute", is_flag=True, help="Run the command again on the inputs, and compare all bytes.")
@json_option
@threads
@quiet
def command(
    output: str, inputs: tuple[tuple[str, str], ...], recompute: bool, as_json: bool, quiet: bool, threads: int | None
) -> int:
    """Check whether OUT is what its editkit.json claims: the sha256 of its files and of the inputs it was made from.

    Exit code 1 where something differs, where nothing says what the output was, and where --recompute could not be done.
    Inputs that are not found are unknown.
    """
    with progress("verify", quiet=quiet) as advance:
        found = editkit.verify(output, inputs=dict(inputs), recompute=recompute, threads=threads, progress=advance)
    if as_json:
        click.echo(json.dumps(found, indent=2))
    elif not quiet:
        said = f"{output}, made by editkit {found['command']}: {found['verdict']}"
        skipped = [f"; not recomputed: {row['why']}" for row in found["rows"] if row["state"] == "skipped"]
        click.echo("\n".join([*map(_line, found["rows"]), printable("".join([said, *skipped]))]))
    return 0 if found["verdict"] == "ok" else 1


def _line(row: dict[str, Any]) -> str:
    why = f": {row['why']}" if row["why"] else ""
    return printable(f"{row['state']:8} {row['what']} {row['name']}{why}")
