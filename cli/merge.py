"""`editkit merge CONFIG.yaml -o OUT`, and `editkit merge --base B --vector V=WEIGHT ... -o OUT`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

import editkit

from .main import fail
from .options import Assigned, allow_other_base, examples, output, patch, quiet, threads
from .options import as_json as json_option
from .progress import progress
from .reporting import show_edit

WITH_CONFIG = ("base", "vectors", "masks", "method", "settings")
"""What a config says itself."""
NO_ADAPTER = ("config", "base", "masks", "only", "compatible", "shard_size", "patch", "no_report")
"""What has no meaning for adapters that are combined with each other."""


class Weighted(click.ParamType):
    """VECTOR=WEIGHT, or VECTOR alone, as a pair."""

    name = "vector=weight"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, float | None]:
        vector, _, weight = str(value).rpartition("=")
        try:
            return (vector, float(weight)) if vector else (str(value), None)
        except ValueError:
            return str(value), None  # a path with = in it


@click.command(
    epilog=examples(
        "editkit merge merge.yaml -o merged",
        "editkit merge merge.yaml --dry-run",
        "editkit merge --base base --vector math=0.5 --vector my-lora=0.3 --method ties --set density=0.5 -o merged",
        "editkit merge --base base --vector a=1 --vector b=-0.5 --mask b=loc --method task_arithmetic -o merged",
        "editkit merge --to adapter --vector lora-a=1 --vector lora-b=-0.5 --method svd --set rank=16 -o both",
    )
)
@click.argument("config", required=False)
@click.option("--base", metavar="MODEL", help="What the vectors are changes of.")
@click.option(
    "--vector",
    "vectors",
    multiple=True,
    type=Weighted(),
    metavar="VECTOR[=WEIGHT]",
    help="A tuned checkpoint, an adapter or a saved vector; repeatable; the weight is 1 where none is given.",
)
@click.option(
    "--method",
    metavar="NAME",
    help="As mergekit names it; with --to adapter as peft does.  [default: task_arithmetic, cat]",
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    type=Assigned("density=0.5 or t=0,0.5,1"),
    metavar="KEY=VALUE",
    help="A setting of the method, such as density=0.5; repeatable; a list (t=0,0.5,1) is a gradient over the layers.",
)
@click.option(
    "--mask",
    "masks",
    multiple=True,
    metavar="[VECTOR=]LOC",
    help="Merge only what this mask selects, of one vector or of all; a folder that localize wrote, or its file; repeatable.",
)
@click.option("--only", multiple=True, metavar="GLOB", help="Merge only tensors with such a whole name; repeatable.")
@allow_other_base("a saved vector, or a mask,")
@click.option(
    "--to",
    "kind",
    type=click.Choice(["checkpoint", "adapter"]),
    default="checkpoint",
    show_default=True,
    help="What comes out; an adapter is made of adapters alone, without a base.",
)
@click.option(
    "--mergekit-compatible", "compatible", is_flag=True, help="Do as mergekit does, where that is not right too."
)
@click.option("--seed", type=click.IntRange(min=0), help="Of what DARE and DELLA drop.  [default: CONFIG's, or 0]")
@click.option(
    "--shard-size", type=int, metavar="BYTES", help="Write new shards of this size.  [default: the base's own]"
)
@patch
@click.option("--no-report", is_flag=True, help="Leave out the diff report in OUT/diff.")
@click.option(
    "--dry-run", is_flag=True, help="Check everything, and show rules, sizes and memory; read and write no weights."
)
@output("the merged checkpoint or adapter", required=False)
@json_option
@threads
@quiet
def command(
    config: str | None,
    base: str | None,
    vectors: tuple[tuple[str, float | None], ...],
    method: str | None,
    settings: tuple[tuple[str, Any], ...],
    masks: tuple[str, ...],
    kind: str,
    seed: int | None,
    no_report: bool,
    output: Path | None,
    as_json: bool,
    quiet: bool,
    **others: Any,
) -> int:
    """Merge models, adapters and task vectors into one checkpoint, by the methods of mergekit and its configs.

    CONFIG is YAML as mergekit reads it; paths in it are relative to the working directory. Without one, --base and --vector say
    what is merged. What is done unlike mergekit is said in a line each.
    """
    if output is None and not others["dry_run"]:
        raise click.UsageError("give -o/--output, or --dry-run")
    if twice := sorted({name for name, _ in vectors if [one for one, _ in vectors].count(name) > 1}):
        raise click.UsageError(f"--vector {', '.join(twice)} is given more than once")
    if kind == "adapter":
        return _adapter(vectors, method, dict(settings), seed or 0, output, as_json, quiet, others)
    if config is not None:
        _refuse(WITH_CONFIG, "a CONFIG says this itself")
        inputs: Any = config
    elif base is None or not vectors:
        raise click.UsageError("give a CONFIG, or --base and --vector")
    else:
        inputs = _with_settings(vectors, masks, method or "task_arithmetic")
        others |= {"method": method or "task_arithmetic", "settings": dict(settings)}
    with progress("merge", quiet=quiet) as advance:
        result = editkit.merge(base, inputs, output, seed=seed, report=not no_report, progress=advance, **others)
    said = _planned(result) if others["dry_run"] else _summary(result)
    return show_edit(result, said, dry_run=others["dry_run"], as_json=as_json, quiet=quiet, notes=result.notes)


def _refuse(names: Sequence[str], why: str) -> None:
    """Raise UsageError that lists those of the options which were given."""
    context = click.get_current_context()
    given = [one for one in context.command.params if one.name in names]
    shown = [
        one.opts[-1] for one in given if context.get_parameter_source(str(one.name)) is ParameterSource.COMMANDLINE
    ]
    if shown:
        raise click.UsageError(f"{', '.join(shown)}: {why}")


def _with_settings(
    vectors: Sequence[tuple[str, float | None]], masks: Sequence[str], method: str
) -> dict[str, dict[str, Any]]:
    """Each vector with its weight, where the method knows one, and its mask."""
    from editkit.merging.methods import REGISTRY

    weighted = method not in REGISTRY or "weight" in REGISTRY[method].model_settings
    found: dict[str, dict[str, Any]] = {}
    for name, weight in vectors:
        found[name] = {"weight": 1.0 if weight is None else weight} if weighted or weight is not None else {}
    for mask in masks:
        name, _, own = mask.partition("=")
        for one in [name] if own and name in found else found:
            if "mask" in found[one]:
                raise click.UsageError(f"--mask: {one} gets more than one")
            found[one]["mask"] = own if own and name in found else mask
    return found


def _adapter(
    vectors: Sequence[tuple[str, float | None]],
    method: str | None,
    settings: dict[str, Any],
    seed: int,
    output: Path | None,
    as_json: bool,
    quiet: bool,
    others: dict[str, Any],
) -> int:
    _refuse(
        NO_ADAPTER,
        "has no meaning with --to adapter, which combines adapters with each other, without a base: leave it out",
    )
    if not vectors:
        raise click.UsageError("--to adapter needs --vector, once for each adapter")
    if unknown := sorted(settings.keys() - {"rank", "density"}):
        raise click.UsageError(f"--set {', '.join(unknown)}: with --to adapter there are rank and density")
    adapters: dict[Any, float] = {name: 1.0 if weight is None else weight for name, weight in vectors}
    same = {key: others[key] for key in ("allow_other_base", "dry_run", "threads")}
    with progress("merge", unit="modules", quiet=quiet) as advance:
        report = editkit.combine_adapters(
            adapters, output, method=method or "cat", seed=seed, progress=advance, **settings, **same
        )
    if as_json:
        click.echo(json.dumps(report, indent=2))
    elif not quiet:
        click.echo(_planned_adapter(report) if others["dry_run"] else _combined(report))
    for note in report.get("notes", ()) if not quiet and not as_json else ():
        fail(f"note: {note}", 0)
    for warning in report.get("warnings", ()):
        fail(f"warning: {warning}", 0)
    return 0


def _combined(report: dict[str, Any]) -> str:
    off = report["relative_error"]
    said = "" if off is None else f", {off:.3g} (relative L2) from the weighted sum"
    return f"{len(report['modules'])} modules combined by {report['method']}{said}; {report['output']} written"


def _planned_adapter(report: dict[str, Any]) -> str:
    rows = [("module", "rank", "bytes")]
    rows += [(one["module"], str(one["rank"]), f"{one['bytes']:,}") for one in report["modules"]]
    size = f"at most {report['bytes']:,} bytes to write"
    return "\n".join(
        [
            *_table(rows, "<"),
            f"{len(report['modules'])} modules would be combined by {report['method']}: {size}; nothing was written.",
        ]
    )


def _planned(result: "editkit.Merged") -> str:
    rows = [("tensors", "setting", "filter", "value")]
    rows += [(f"{one['tensors']:,}", one["place"], one["filter"] or "", str(one["value"])) for one in result.rules]
    size = f"{result.bytes / 1e6:,.1f} MB to write, about {result.memory / 1e6:,.0f} MB of memory"
    tensors = (
        f"{result.merged:,} tensors would be merged by {result.method} and {result.copied:,} taken over as they are"
    )
    return "\n".join(
        [*_stacked(result), *(_table(rows, "<") if len(rows) > 1 else []), f"{tensors}: {size}; nothing was written."]
    )


def _summary(result: "editkit.Merged") -> str:
    """What was asked for and what arrived, per layer."""
    rows = [("layer", "requested change, L2", "applied, L2", "lost to rounding")]
    for row in [*result.layers, result.total] if result.layers else []:
        place = "all" if row is result.total else str(row["layer"]) if row["layer"] is not None else "outside layers"
        lost = "–" if row["lost_to_rounding"] is None else f"{row['lost_to_rounding']:.3%}"
        rows.append((place, f"{row['requested_l2']:.4g}", f"{row['applied_l2']:.4g}", lost))
    where = f", report in {result.output}/diff/report.html" if result.report is not None else ""
    tensors = f"{result.merged:,} tensors merged, {result.copied:,} taken over as they are"
    written = f"{tensors}; change to {result.like}; {result.output} written{where}"
    return "\n".join([*_stacked(result), *(_table(rows, ">") if len(rows) > 1 else []), written])


def _stacked(result: "editkit.Merged") -> list[str]:
    """Which layers of the output are made of which, where they are stacked anew."""

    def span(layers: Sequence[int]) -> str:
        return f"{layers[0]} to {layers[1]}" if layers[0] != layers[1] else f"{layers[0]}"

    return [
        f"layers {span(run['layers'])} from "
        + " and ".join(f"{one['model']} {span(one['layers'])}" for one in run["of"])
        for run in result.stacked
    ]


def _table(rows: Sequence[tuple[str, ...]], side: str) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(f"{cell:{side}{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
