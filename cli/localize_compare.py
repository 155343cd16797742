"""`editkit localize compare LOC1 LOC2`."""

import json
from typing import Any

import click

import editkit

from .options import as_json as json_option
from .options import examples


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

    Beside it stands what random selections of the same sizes would have in common.
    """
    found = editkit.compare_localizations(one, other)
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    parts = {"layer": ["layers"], "module": ["modules"], "tensor": ["tensors"], None: ["layers", "modules"]}[by]
    rows: list[tuple[str, ...]] = [("", "in 1", "in 2", "in both", "Jaccard", "of random")]
    for row in [*(row for part in parts for row in found[part]), {**found["all"], "name": "all"}]:
        counts = (f"{row[key]:,}" for key in ("one", "other", "both"))
        rows.append((_place(row), *counts, _share(row["jaccard"]), _share(row["expected_of_random"])))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *rest in rows:
        cells = (cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))
        click.echo("  ".join([first.ljust(widths[0]), *cells]).rstrip())
    click.echo(f"Parameters selected by 1 ({found['one']}) and 2 ({found['other']}); {found['all']['numel']:,} in all")


def _place(row: dict[str, Any]) -> str:
    if "name" in row:
        return str(row["name"])
    if "module" in row:
        return str(row["module"])
    return f"{row['stack']}.{row['layer']}" if row["layer"] is not None else "outside layers"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
