"""`editkit run RECIPE.yaml [--set KEY=VALUE]... -o DIR`."""

import json
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import click

import editkit

from .main import fail
from .options import Assigned, examples, quiet
from .options import as_json as json_option
from .progress import Advance, progress

BYTES = (
    "apply_patch bake conflicts create_patch diff merge negate patch scores task_vector undo_patch verify verify_patch write"
).split()
"""Parts of the work that count bytes; most others count steps or examples."""


def watched(quiet: bool) -> dict[str, Any]:
    """`stage` and `observe` of a run: a bar for each part of the work, and a line for each step that ends."""

    def stage(name: str) -> AbstractContextManager[Advance | None]:
        part = name.rpartition(": ")[2]
        unit = "bytes" if part in BYTES else "calls" if part == "calls" else "steps"
        return progress(name, unit=unit, quiet=quiet)

    def observe(call: Mapping[str, Any]) -> None:
        if not quiet and call["state"] != "running":
            from editkit.recipes.rendering.wording import settled

            click.echo(settled(call), err=True)

    return {"stage": stage, "observe": observe}


@click.command(
    epilog=examples(
        "editkit run recipes/negate.yaml -o negated",
        "editkit run recipes/negate.yaml --set seed=0,1,2 --dry-run",
        "editkit run recipes/fictitious.yaml --set model=MODEL --set reference=NEVER-SAW --set forget=forget.jsonl --set retain=retain.jsonl -o mine",
        "editkit run recipes/methods.yaml --jobs 2 --resume",
        "editkit run --schema > recipe.schema.json",
    )
)
@click.argument("recipe", required=False)
@click.option(
    "--set",
    "settings",
    multiple=True,
    type=Assigned("alpha=0.5 or seed=0,1,2"),
    metavar="KEY=VALUE",
    help="Another value of a setting, or list of the matrix (seed=0,1,2), of RECIPE; paths are relative to the working directory; repeatable.",
)
@click.option(
    "--dry-run", is_flag=True, help="Check everything, and show what would run; read no weights, write nothing."
)
@click.option("--resume", is_flag=True, help="Let interrupted steps go on with the work that they kept.")
@click.option(
    "--engine",
    type=click.Choice(["processes", "ray"]),
    default="processes",
    show_default=True,
    help="Where steps run; ray is a local cluster, or the one at RAY_ADDRESS.",
)
@click.option("--jobs", type=click.IntRange(min=1), default=1, show_default=True, metavar="N", help="Steps at a time.")
@click.option("--schema", is_flag=True, help="Print the JSON schema of recipes, for editors, and do nothing else.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="Where results and report.html go; what a run left there is used again.  [default: NAME-run]",
)
@json_option
@quiet
def command(
    recipe: str | None,
    settings: tuple[tuple[str, Any], ...],
    schema: bool,
    output: Path | None,
    as_json: bool,
    quiet: bool,
    **others: Any,
) -> int:
    """Run the steps of RECIPE, a YAML file: each is a function of editkit, and may use what others made.

    A matrix in RECIPE runs steps once for every combination and gives one table. What is finished stays: the same run again computes
    only what changed, and what depends on it.
    """
    if schema:
        from editkit.recipes.schema import schema as made

        click.echo(json.dumps(made(), indent=2))
        return 0
    if recipe is None:
        raise click.UsageError("give a RECIPE, or --schema")
    names = [name for name, _ in settings]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise click.UsageError(f"--set {', '.join(twice)} is given more than once")

    run = editkit.run(recipe, output, settings=dict(settings), **watched(quiet), **others)
    if as_json:
        click.echo(json.dumps(run, indent=2))
    elif not quiet:
        from editkit.recipes.rendering.table import to_table

        click.echo(to_table(run, color=sys.stdout.isatty()), nl=False)
        if not run["dry_run"]:
            click.echo(f"{output or run['recipe']['name'] + '-run'} written, with report.html")
    for note in run["notes"]:
        fail(f"note: {note}", 0)
    for sentence in (*run["failures"], *run["gates"]):
        fail(sentence, run["exit_code"])
    return run["exit_code"]
