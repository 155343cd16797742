"""`editkit localize compare LOC1 LOC2`."""

import json
from typing import Any

import click

import editkit

from .options import as_json as json_option
from .options import examples

SHORT = 16  # characters of a name that may head a column


@click.command(
    epilog=examples(
        "editkit localize compare loc loc-of-another-seed", "editkit localize compare loc loc/control --by module"
    )
)
@click.argument("one", metavar="LOC1")
@click.argument("other", metavar="LOC2")
@click.option(
    "--by",
    type=click.Choice(["layer", "module", "tensor"]),
    help="One row per this.  [default: layers and modules]",
)
@json_option
def command(one: str, other: str, by: str | None, as_json: bool) -> None:
    """Show how far two localizations agree: what both select, as a share of what either does.

    Beside it stands what random selections with the same share of every tensor would have in common.
    """
    found = editkit.compare_localizations(one, other)
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    parts = {"layer": ["layers"], "module": ["modules"], "tensor": ["tensors"], None: ["layers", "modules"]}[by]
    names, numbered = (found["one"], found["other"]), ""
    if names[0] == names[1] or max(map(len, names)) > SHORT:
        names, numbered = ("1", "2"), f" 1 is {found['one']}, 2 is {found['other']}."
    rows = [["", *(f"in {name}" for name in names), "in both", "Jaccard", "of random"]]
    empty = []
    for part in parts:
        touched = [row for row in found[part] if row["jaccard"] is not None]
        rows += [*map(_cells, touched), []]
        if none := len(found[part]) - len(touched):
            empty.append(f"{none:,} more {part if none > 1 else part[:-1]}")
    rows.append(_cells({**found["all"], "name": "all"}))
    widths = [max(map(len, column)) for column in zip(*filter(None, rows), strict=True)]
    for row in rows:
        cells = [
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=False))
        ]
        click.echo("  ".join(cells).rstrip())
    if empty:
        click.echo(f"{' and '.join(empty)} without a selection in either")
    click.echo(
        f"Selected parameters, of {found['all']['numel']:,}; of random: random selections with the same share of every tensor.{numbered}"
    )


def _cells(row: dict[str, Any]) -> list[str]:
    counts = (f"{row[key]:,}" for key in ("one", "other", "both"))
    return [_place(row), *counts, _share(row["jaccard"]), _share(row["expected_of_random"])]


def _place(row: dict[str, Any]) -> str:
    if "name" in row:
        return str(row["name"])
    if "module" in row:
        return str(row["module"])
    return f"{row['stack']}.{row['layer']}" if row["layer"] is not None else "outside layers"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
