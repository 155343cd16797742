"""`editkit eval MODEL... --forget F --retain R -o DIR`."""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

import editkit

from .main import fail
from .options import as_json as json_option
from .options import computing, examples, output, prompt_template, quiet, readers
from .options import sets as set_files
from .progress import Advance, progress
from .reporting import show

COUNT = click.IntRange(min=1)


@click.command(
    epilog=examples(
        "editkit eval edited --base model --forget forget.jsonl --retain retain.jsonl -o eval",
        "editkit eval before edited --reference never-saw --forget forget.jsonl --retain retain.jsonl --suite tofu -o eval",
        "editkit eval model+adapter-a model+adapter-b --forget forget.jsonl --metrics 'memorization/*' -o eval",
        "editkit eval --from eval/examples.jsonl --reference-from other/examples.jsonl -o again",
    )
)
@click.argument("models", nargs=-1, metavar="MODEL...")
@click.option("--forget", metavar="FILE", help="What is to be forgotten: .jsonl, .json, .csv or .parquet.")
@click.option("--retain", metavar="FILE", help="What is to be kept.")
@set_files(
    "Another set; real_authors, world_facts as in TOFU, unseen for text of the kind of the forget set that no model saw."
)
@click.option("--base", metavar="MODEL", help="The model before the edit.")
@click.option(
    "--reference", metavar="MODEL", help="A model that never saw the forget set, for forget quality and exposure."
)
@click.option(
    "--suite",
    "suites",
    multiple=True,
    type=click.Choice(["tofu", "closer-look", "memorization", "knowundo", "exposure", "general", "all"]),
    help="What to measure; repeatable.  [default: all that can be had, but el_10, which takes long]",
)
@click.option("--metrics", multiple=True, metavar="GLOB", help="Metrics by id, such as tofu/ks_statistic; repeatable.")
@click.option("--max-examples", type=COUNT, metavar="N", help="Take the first N examples of each set.")
@click.option("--batch-size", type=COUNT, default=16, show_default=True, metavar="N", help="Examples a pass.")
@click.option(
    "--max-new-tokens", type=COUNT, default=200, show_default=True, metavar="N", help="Length of an answer at most."
)
@prompt_template
@readers
@click.option(
    "--calibrate",
    metavar="SET",
    help="Mix each MODEL with --base until it keeps 95 % of the token accuracy on this set, such as retain; then compare.",
)
@click.option(
    "--lm-eval", multiple=True, metavar="TASK", help="Also run this task of lm-evaluation-harness; repeatable."
)
@click.option(
    "--from", "rows", metavar="FILE", help="Saved rows in place of MODEL: examples.jsonl, or a log of TOFU's script."
)
@click.option("--reference-from", metavar="FILE", help="Saved rows of the reference, with --from.")
@computing
@click.option("--resume", is_flag=True, help="Skip what an interrupted run to the same output has finished.")
@output("the evaluation (examples.jsonl, results.json, report.html)")
@json_option
@quiet
def command(
    models: tuple[str, ...],
    rows: str | None,
    reference_from: str | None,
    sets: tuple[tuple[str, str], ...],
    output: Path,
    as_json: bool,
    quiet: bool,
    **settings: Any,
) -> None:
    """Measure what models know of examples to forget and to keep, one column for each MODEL.

    MODEL is a checkpoint, or MODEL+ADAPTER. Metrics that lack something (a reference, a set, another model) say what.
    """
    if rows is not None:
        report = _again(rows, reference_from, output, models, settings)
    elif not models:
        raise click.UsageError("give a MODEL, or saved rows with --from")
    elif reference_from is not None:
        raise click.UsageError("--reference-from goes with --from; for models give --reference")
    else:
        named = dict(sets)
        if len(named) < len(sets):
            raise click.UsageError("--set: give each set a name of its own")

        def stage(name: str) -> AbstractContextManager[Advance | None]:
            return progress(name, unit="texts", quiet=quiet)

        try:
            report = editkit.evaluate(models, output, sets=named, stage=stage, **settings)
        except (KeyboardInterrupt, SystemExit):
            from editkit.checkpoint.unfinished import unfinished_folder

            kept = unfinished_folder(output)
            said = f"go on with --resume (what was done is in {kept.name} beside {output})"
            fail(f"interrupted: {said if kept.exists() else 'no set was finished yet, so nothing is kept'}", 0)
            raise
    show(report, "evaluation", output, "report.html", as_json=as_json, quiet=quiet)


def _again(
    rows: str, reference_from: str | None, output: Path, models: tuple[str, ...], settings: dict[str, Any]
) -> dict[str, Any]:
    kept = {key: settings[key] for key in ("suites", "metrics")}
    context = click.get_current_context()
    given = [
        parameter.opts[0]
        for parameter in context.command.params
        if parameter.name not in ("models", "rows", "reference_from", "output", "as_json", "quiet", *kept)
        and context.get_parameter_source(str(parameter.name)) is ParameterSource.COMMANDLINE
    ]
    if models or given:
        raise click.UsageError(f"--from reads saved rows and loads no model: leave out {', '.join([*models, *given])}")
    return editkit.evaluate_rows(rows, output, reference_from=reference_from, **kept)
