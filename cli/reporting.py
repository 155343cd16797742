"""What a command says at its end of the report that it made."""

import json
import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import click

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
