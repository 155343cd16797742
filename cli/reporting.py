"""What a command says at its end of the report that it made."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

import click

import editkit

from .main import fail


def show(report: Mapping[str, Any], room: str, output: Path, page: str, *, as_json: bool, quiet: bool) -> None:
    """The report as JSON, or as the table of its `room` and where its page is; then the warnings, on stderr."""
    if as_json:
        click.echo(json.dumps(report, indent=2))
    elif not quiet:
        to_table = import_module(f"editkit.{room}.rendering").to_table
        click.echo(to_table(report, color=sys.stdout.isatty()), nl=False)
        click.echo(f"{output} written, with {page}")
    for warning in report["warnings"]:
        fail(f"warning: {warning}", 0)


def show_edit(
    result: "editkit.Negation | editkit.Merged",
    said: str,
    *,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
    notes: Sequence[str] = (),
) -> int:
    """An edit as JSON (its report is in the output), or as the text `said`; notes and warnings on stderr. Returns the exit code."""
    if as_json:
        click.echo(
            json.dumps({**asdict(result), "output": result.output and str(result.output), "report": None}, indent=2)
        )
    elif not quiet:
        click.echo(said)
    for note in notes if not quiet and not as_json else ():
        fail(f"note: {note}", 0)
    for warning in result.warnings:
        fail(f"warning: {warning}", 0)
    return 0 if result.changed or dry_run else editkit.NothingChanged.exit_code
