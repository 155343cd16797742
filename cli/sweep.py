"""`editkit sweep MODEL VECTOR --alphas 0:2:0.25 --forget F --retain R -o DIR`."""

import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import click

import editkit
from editkit.diffing.rendering import to_json

from .main import fail
from .options import allow_other_base, computing, examples, output, prompt_template, quiet, readers, threads
from .options import as_json as json_option
from .options import sets as set_files
from .progress import Advance, progress

COUNT = click.IntRange(min=1)


@click.command(
    epilog=examples(
        "editkit sweep model tuned --alphas 0:2:0.25 --forget forget.jsonl --retain retain.jsonl -o sweep",
        "editkit sweep model tuned --alphas 0:2:0.25 --forget forget.jsonl --retain retain.jsonl --choose 'max forgetting s.t. retention >= 0.95' -o sweep",
        "editkit sweep model tuned --alphas 0.5,1,2 --mask none --mask loc --only '*' --only '*.mlp.*' --forget forget.jsonl --retain retain.jsonl -o sweep",
    )
)
@click.argument("model")
@click.argument("vector")
@click.option(
    "--alphas",
    required=True,
    metavar="FIRST:LAST:STEP",
    help="How much of the vector is subtracted; or numbers with commas: 0.5,1,2.",
)
@click.option("--forget", required=True, metavar="FILE", help="Examples to forget.")
@click.option("--retain", metavar="FILE", help="Examples to keep; without it there is no retention, and no front.")
@set_files("More examples to measure on; may be repeated.")
@click.option("--reference", metavar="MODEL", help="A model that never saw the forget set, whose level is shown.")
@click.option("--vector-base", metavar="CHECKPOINT", help="What VECTOR was tuned from.  [default: MODEL]")
@click.option(
    "--mask",
    "masks",
    multiple=True,
    metavar="LOC",
    help="Edit only what this mask selects; may be repeated, and 'none' is no mask.",
)
@click.option(
    "--only",
    multiple=True,
    metavar="GLOB[,GLOB...]",
    help="Edit only such tensors, a group of globs; may be repeated, and '*' is all.",
)
@allow_other_base("a vector, or a mask,")
@click.option(
    "--choose", metavar="RULE", help="max|min NAME [s.t. NAME >=|<= NUMBER [and ...]]: write this point to OUT/edited."
)
@click.option(
    "--suite",
    "suites",
    multiple=True,
    metavar="NAME",
    help="Measure these metrics of `editkit eval` too; may be repeated.",
)
@click.option("--metrics", multiple=True, metavar="GLOB", help="Measure metrics with such ids too; may be repeated.")
@click.option("--max-examples", type=COUNT, metavar="N", help="Take the first N examples of each set.")
@click.option("--batch-size", type=COUNT, default=16, show_default=True, metavar="N", help="Examples a pass.")
@click.option(
    "--max-new-tokens",
    type=COUNT,
    default=200,
    show_default=True,
    metavar="N",
    help="Of what the model writes, for metrics that ask for it.",
)
@prompt_template
@readers
@computing
@output("sweep.json, sweep.html, pareto.png, and the chosen checkpoint")
@json_option
@threads
@quiet
def command(
    model: str,
    vector: str,
    sets: tuple[tuple[str, str], ...],
    output: Path,
    as_json: bool,
    quiet: bool,
    **settings: Any,
) -> int:
    """Evaluate MODEL - alpha * VECTOR for many alphas, and show what forgetting costs.

    The weights are moved in place, in one model in memory, and every alpha is evaluated with every mask and every group of
    tensors. forgetting = 1 - token accuracy on forget / that of MODEL; retention = token accuracy on retain / that of MODEL,
    both teacher-forced. RULE may ask for these, for alpha, and for SET.METRIC, such as retain.nll or forget.ma.
    """
    names = [name for name, _ in sets]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise click.UsageError(f"--set {', '.join(twice)} is given more than once")

    def stage(name: str) -> AbstractContextManager[Advance | None]:
        return progress(name, unit="bytes" if name == "write" else "examples", quiet=quiet)

    found = editkit.sweep(model, vector, output, sets=dict(sets), stage=stage, **settings)
    if as_json:
        click.echo(to_json(found.report), nl=False)
    elif not quiet:
        from editkit.sweeps.rendering import to_table

        click.echo(to_table(found.report, color=sys.stdout.isatty()), nl=False)
        click.echo(_written(found))
    for warning in [*found.report["warnings"], *(found.edit.warnings if found.edit else ())]:
        fail(f"warning: {warning}", 0)
    return fail(found.refusal, editkit.GateFailed.exit_code) if found.refusal else 0


def _written(found: "editkit.Sweep") -> str:
    picture = " and pareto.png" if (found.output / "pareto.png").exists() else ""
    lines = [f"{found.output} written, with sweep.html{picture}"]
    if found.edit:
        lines.append(f"{found.edit.output} written: {found.command}")
    elif found.command:
        lines.append(f"To write the knee: {found.command}")
    return "\n".join(lines)
