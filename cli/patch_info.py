"""`editkit patch info PATCH`."""

import json
from collections.abc import Mapping, Sized
from typing import Any

import click

import editkit

from .options import as_json as json_option
from .options import examples

SHOWN = 20


@click.command(
    epilog=examples("editkit patch info edit.editpatch", "editkit patch info edit.editpatch --json | jq .base.sha256")
)
@click.argument("patch")
@json_option
def command(patch: str, as_json: bool) -> None:
    """Show what PATCH changes: tensors, elements, bytes, and the sha256 of its two sides. --json has all tensors and files."""
    found = editkit.inspect_patch(patch)
    click.echo(json.dumps(found, indent=2) if as_json else described(found))


def described(found: Mapping[str, Any]) -> str:
    """A patch in one line and a table, of at most 20 tensors and files each."""
    rows = [("tensor", "dtype", "changed", "of", "bytes")]
    rows += [
        (row["name"], row["dtype"], f"{row['changed']:,}", f"{row['numel']:,}", f"{row['bytes']:,}")
        for row in found["tensors"][:SHOWN]
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.rjust(width) if place > 1 else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    lines += _more(found["tensors"], "tensors")
    for other in found["others"][:SHOWN]:
        kind = "added" if other["base"] is None else "removed" if other["edited"] is None else "changed"
        lines.append(f"{other['path']}: {kind}")
    lines += _more(found["others"], "files")
    for side in ("base", "edited"):
        lines.append(f"{side} {found[side]['name']}")
        hashes = list(found[side]["sha256"].items())
        lines += [f"  {digest}  {file}" for file, digest in hashes[:SHOWN]]
        lines += _more(hashes, "weight files")
    return "\n".join([totals(found), *lines])


def _more(items: Sized, what: str) -> list[str]:
    return [f"and {len(items) - SHOWN} more {what}: see --json"] if len(items) > SHOWN else []


def totals(found: Mapping[str, Any]) -> str:
    """A patch in one line."""
    total = found["summary"]
    return (
        f"{total['changed']:,} of {total['numel']:,} elements changed, in {total['tensors_changed']} of {total['tensors']} tensors; "
        f"{total['bytes'] / 1e6:,.1f} MB for a model of {total['bytes_of_model'] / 1e6:,.1f} MB"
    )
