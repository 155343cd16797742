"""`editkit diff BASE EDITED`."""

import sys
from pathlib import Path
from typing import Any

import click

import editkit
from editkit.diffing.gates import differs, evaluate, parse_rule
from editkit.diffing.rendering import FORMATS, check_folder, render, write_report
from editkit.diffing.rendering.wording import audit

from .main import fail
from .options import allow_other_base, examples, mask, output, quiet, threads
from .options import as_json as json_option
from .progress import progress


@click.command(
    epilog=examples(
        "editkit diff model edited",
        "editkit diff model edited --only '*.mlp.*' --spectral -o report",
        "editkit diff model edited --mask loc",
        "editkit diff model edited --fail-if 'rel_l2 > 2 % @ model.layers.*.mlp.*' --fail-if 'changed > 0 @ lm_head.weight'",
    )
)
@click.argument("base")
@click.argument("edited")
@click.option("--format", type=click.Choice(FORMATS), help="What is printed on stdout.  [default: table]")
@click.option(
    "--by",
    type=click.Choice(["tensor", "module", "layer"]),
    default="layer",
    show_default=True,
    help="One row per this.",
)
@click.option(
    "--only", multiple=True, metavar="GLOB", help="Compare only tensors with such a whole name; may be repeated."
)
@mask("List what changed outside of this mask, and exit with 1 where anything did")
@allow_other_base()
@click.option("--spectral", is_flag=True, help="Add spectral norm, stable rank and top energies of each change; slow.")
@click.option("--exit-code", is_flag=True, help="Exit with 1 where anything differs, as in git diff.")
@click.option(
    "--fail-if", multiple=True, metavar="RULE", help="Exit with 1 where RULE holds: MEASURE > NUMBER [%] [@ GLOB]."
)
@output("a report (report.html, report.json, layers.png)", required=False)
@json_option
@threads
@quiet
def command(
    base: str,
    edited: str,
    format: str | None,
    by: str,
    exit_code: bool,
    fail_if: tuple[str, ...],
    output: Path | None,
    as_json: bool,
    quiet: bool,
    **settings: Any,
) -> int:
    """Show what changed from BASE to EDITED: two checkpoints, two adapters, or two task vectors.

    Elements are compared bit for bit. With a mask for BASE the edit is audited: whatever changed outside of it, in any
    tensor, is listed. A RULE asks every tensor that GLOB matches, or the whole diff without one; what is
    unknown does not pass.
    """
    rules = [parse_rule(rule) for rule in fail_if]
    if output is not None:
        check_folder(output, (base, edited))
    with progress("diff", quiet=quiet) as advance:
        report = editkit.diff(base, edited, hashes=output is not None, progress=advance, **settings)
    violations = evaluate(rules, report)
    if output is not None:
        write_report(report, output)
    chosen = "json" if as_json else format
    if chosen or not quiet:
        click.echo(render(report, chosen or "table", by, color=sys.stdout.isatty()), nl=False)
    failures = [str(violation) for violation in violations]
    if report.get("mask", {}).get("outside"):
        failures.insert(0, audit(report))
    for failure in failures:
        fail(failure, editkit.GateFailed.exit_code)
    return editkit.GateFailed.exit_code if failures or (exit_code and differs(report)) else 0
