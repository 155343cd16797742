"""`editkit negate MODEL VECTOR --alpha A -o OUT`."""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

import editkit

from .options import allow_other_base, examples, mask, output, patch, quiet, rounding, shard_size, threads
from .options import as_json as json_option
from .progress import Advance, progress
from .reporting import show_edit
from .tuning import describe
from .tuning import tuning as tuning_options


class GlobAlpha(click.ParamType):
    """GLOB=ALPHA, such as *.mlp.*=0.5, as a pair."""

    name = "glob=alpha"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, float]:
        glob, _, number = str(value).rpartition("=")
        try:
            return glob, float(number)
        except ValueError:
            self.fail(f"{value!r} is not GLOB=ALPHA, such as '*.mlp.*=0.5'", param, ctx)


@click.command(
    epilog=examples(
        "editkit negate model tuned --alpha 1.0 -o edited",
        "editkit negate model tau.safetensors --alpha 0.8 --only '*.mlp.*' -o edited",
        "editkit negate model --forget forget.jsonl --vector-base before --alpha 1.0 -o edited",
        "editkit negate model tuned --alpha 1.0 --mask loc -o edited",
        "editkit negate model tuned --alpha 1.0 --patch edit.editpatch -o edited",
    )
)
@click.argument("model")
@click.argument("vector", required=False)
@click.option("--alpha", type=float, required=True, help="How much of the vector is subtracted.")
@click.option("--forget", metavar="FILE", help="Examples to forget, in place of VECTOR: fine-tunes on them first.")
@click.option(
    "--vector-base", metavar="CHECKPOINT", help="What VECTOR was tuned from, or --forget tunes.  [default: MODEL]"
)
@click.option(
    "--only", multiple=True, metavar="GLOB", help="Edit only tensors with such a whole name; may be repeated."
)
@click.option(
    "--alpha-for", multiple=True, type=GlobAlpha(), metavar="GLOB=ALPHA", help="Another alpha for some tensors."
)
@mask("Edit only what this mask selects")
@allow_other_base("a vector, or a mask,")
@rounding
@click.option("--seed", type=int, default=0, show_default=True, help="Of stochastic rounding and of fine-tuning.")
@shard_size
@patch
@click.option("--no-report", is_flag=True, help="Leave out the diff report in OUT/diff.")
@click.option(
    "--dry-run", is_flag=True, help="Check names, shapes and output and list the tensors to edit; write nothing."
)
@tuning_options
@output("the edited checkpoint", required=False)
@json_option
@threads
@quiet
def command(
    model: str,
    vector: str | None,
    forget: str | None,
    alpha_for: tuple[tuple[str, float], ...],
    no_report: bool,
    dry_run: bool,
    output: Path | None,
    as_json: bool,
    quiet: bool,
    tuning: dict[str, Any],
    **settings: Any,
) -> int:
    """Subtract a task vector from MODEL: write MODEL - alpha * VECTOR and a report of what changed in which layer.

    VECTOR is a checkpoint tuned from MODEL, a LoRA adapter, or a file made by `editkit task-vector`. The options of
    fine-tuning (--lora to --device) go with --forget.
    """
    if (vector is None) == (forget is None):
        raise click.UsageError("give either a VECTOR or --forget FILE")
    if output is None and not dry_run:
        raise click.UsageError("give -o/--output, or --dry-run")
    given = [f"--{name.replace('_', '-')}" for name in tuning if _was_given(name)]
    if given and forget is None:
        raise click.UsageError(f"{', '.join(given)}: options of fine-tuning go with --forget")
    last_first = dict(reversed(alpha_for))  # a repeated glob counts where it is last
    last = dict(reversed(last_first.items()))
    settings |= {"alpha_for": last, "report": not no_report}
    if vector is not None:
        with progress("negate", quiet=quiet) as advance:
            result = editkit.negate(model, vector, output, progress=advance, dry_run=dry_run, **settings)
    elif forget is not None:
        if dry_run or output is None:
            raise click.UsageError("--dry-run goes with a VECTOR")
        result = _forget(model, forget, output, tuning, quiet, settings)
    return show_edit(result, summary(result), dry_run=dry_run, as_json=as_json, quiet=quiet)


def _was_given(name: str) -> bool:
    return click.get_current_context().get_parameter_source(name) is ParameterSource.COMMANDLINE


def _forget(
    model: str, data: str, output: Path, tuning: dict[str, Any], quiet: bool, settings: dict[str, Any]
) -> "editkit.Negation":
    if settings["allow_other_base"] and settings["mask"] is None:
        raise click.UsageError("--allow-other-base goes with a VECTOR or a --mask")
    tuning["seed"] = settings["seed"]

    def stage(name: str) -> AbstractContextManager[Advance | None]:
        return progress(name, unit="steps" if name == "fine-tune" else "bytes", quiet=quiet)

    tuned, result = editkit.forget(model, data, output, finetune_settings=tuning, stage=stage, **settings)
    if not quiet:
        click.echo(describe(tuned), err=True)
    return result


def summary(result: "editkit.Negation") -> str:
    """What was asked for and what arrived, per layer, as a plain table."""
    if result.output is None:
        lines = [f"{alpha:>8g}  {name}" for name, alpha in result.alphas.items()]
        return "\n".join(["   alpha  tensor", *lines, f"{len(lines)} tensors would be edited; nothing was written."])
    rows: list[tuple[str, ...]] = [("layer", "requested L2", "applied L2", "projection", "lost to rounding")]
    for row in [*result.layers, result.total]:
        place = "all" if row is result.total else str(row["layer"]) if row["layer"] is not None else "outside layers"
        numbers = (f"{row['requested_l2']:.4g}", f"{row['applied_l2']:.4g}")
        rest = ("–" if row[key] is None else form.format(row[key]) for key, form in FORMS.items())
        rows.append((place, *numbers, *rest))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    if result.through is not None:
        lines.append(
            f"The mask lets {result.through:.3%} of the vector's squared L2 through, in the tensors it touches."
        )
    where = f", report in {result.output}/diff/report.html" if result.report is not None else ""
    return "\n".join([*lines, f"{result.changed:,} elements changed; {result.output} written{where}"])


FORMS = {"projection": "{:.6f}", "lost_to_rounding": "{:.3%}"}
