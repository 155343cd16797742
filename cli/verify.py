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
    type=NamedFile(),
    metavar="NAME=PATH",
    help="Where an input is, by its role or name; may be repeated.  [default: looked for beside OUT]",
)
@click.option("--recompute", is_flag=True, help="Run the command again on the inputs, and compare all bytes.")
@json_option
@threads
@quiet
def command(
    output: str, inputs: tuple[tuple[str, str], ...], recompute: bool, as_json: bool, quiet: bool, threads: int | None
) -> int:
    """Check whether OUT is what its editkit.json claims: the sha256 of its files and of the inputs it was made from.

    Exit code 1 where something differs, or where nothing says what the output was. Inputs that are not found are unknown.
    """
    with progress("verify", quiet=quiet) as advance:
        found = editkit.verify(output, inputs=dict(inputs), recompute=recompute, threads=threads, progress=advance)
    if as_json:
        click.echo(json.dumps(found, indent=2))
    elif not quiet:
        click.echo(
            "\n".join([*map(_line, found["rows"]), f"{output}, made by editkit {found['command']}: {found['verdict']}"])
        )
    return 0 if found["verdict"] == "ok" else 1


def _line(row: dict[str, Any]) -> str:
    why = f": {row['why']}" if row["why"] else ""
    return printable(f"{row['state']:8} {row['what']} {row['name']}{why}")
