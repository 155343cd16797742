"""`editkit negate MODEL VECTOR --alpha A -o OUT`."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

import editkit

from .finetune import tuning_options
from .options import as_json as json_option
from .options import examples, output, quiet, threads
from .progress import progress
from .summary import negation_summary


class Alpha(click.ParamType):
    """GLOB=NUMBER."""

    name = "GLOB=ALPHA"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, float]:
        glob, _, number = str(value).rpartition("=")
        try:
            return glob, float(number)
        except ValueError:
            self.fail(f"{value!r} is not GLOB=NUMBER, such as '*.mlp.*=0.5'", param, ctx)
