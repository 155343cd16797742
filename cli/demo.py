"""`editkit demo`."""

import json
import shlex
import shutil
import sys
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .options import as_json as json_option
from .options import examples, quiet
from .progress import Advance, progress

if TYPE_CHECKING:
    from editkit.demo.demo import Demo
    from editkit.demo.scoring import Score


@click.command(epilog=examples("editkit demo", "editkit demo -o my-demo --json | jq .alpha"))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default="editkit-demo",
    show_default=True,
    help="Where everything goes; an earlier demo there is replaced.",
)
@json_option
@quiet
def command(output: Path, as_json: bool, quiet: bool) -> None:
    """Teach a small model fictional people, make it forget some of them, and see what it still knows.

    Needs no download and no GPU: under four minutes the first time, then the models come from the cache.
    """
    from editkit.demo.demo import run_demo

    def stage(name: str) -> AbstractContextManager[Advance | None]:
        return progress(name, unit="steps", quiet=quiet)

    demo = run_demo(output, stage=stage)
    if as_json:
        click.echo(json.dumps({**asdict(demo), "output": str(output)}, indent=2))
    elif not quiet:
        show(demo)


def show(demo: "Demo") -> None:
    """Three tables, the files and the commands."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    answers = Table(title="What the model answers", box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    for name in ("", "question", "truth (= model before)", "edited model"):
        answers.add_column(name, overflow="fold")
    for one in demo.answers:
        before = one.truth if one.before == one.truth else f"{one.truth} (before: {one.before})"
        wanted = (one.after == one.truth) == (one.group == "retain")
        answers.add_row(NAMES[one.group], one.question, before, Text(one.after, style="green" if wanted else "red"))
    console.print(answers)

    numbers = Table(title="What it knows", box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    numbers.add_column("people")
    for name in ("n", "token accuracy", "mean NLL", "whole answers"):
        numbers.add_column(name, justify="right")
    for group, name in NAMES.items():
        for when, found in (("before", demo.before[group]), ("edited", demo.after[group])):
            numbers.add_row(f"{name}, {when}", *_numbers(found), end_section=when == "edited")
    console.print(numbers)

    trials = Table(title="How strong an edit", box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    for name in ("alpha", "forget accuracy", "keep accuracy", ""):
        trials.add_column(name, justify="right")
    for trial in demo.trials:
        chosen = trial.alpha == demo.alpha
        cells = (f"{trial.alpha:g}", f"{trial.forget.accuracy.mean:.3f}", f"{trial.retain.accuracy.mean:.3f}")
        trials.add_row(*cells, "taken" if chosen else "", style="bold" if chosen else None)
    console.print(trials)
    level = demo.before["unseen"].accuracy.mean
    if demo.settled:
        console.print(
            f"Taken: the best for those to keep among those at or below {level:.3f}, the level of people never met."
        )
    else:
        console.print(f"No alpha went down to {level:.3f}, the level of people never met: the lowest was taken.")
    click.echo(f"\nLook at   {demo.output / 'edited/diff/report.html'}\n\nRun again, from base to report:\n")
    here = sys.argv[0] if Path(sys.argv[0]).name == "editkit" and not shutil.which("editkit") else "editkit"
    for line in demo.commands:
        click.echo(f"  {here}{line.removeprefix('editkit')}" if line.startswith("editkit ") else f"  {line}")

    place = shlex.quote(str(demo.output))
    sets = " ".join(f"--{name} {place}/{name}.jsonl" for name in ("forget", "retain"))
    models = f"--base {place}/model --reference {place}/base"
    click.echo("\nMeasure, find another strength, attack:\n")
    for line in (
        f"eval {place}/edited {models} {sets} --set unseen={place}/unseen.jsonl -o {place}-eval",
        f"sweep {place}/model {place}/tuned --vector-base {place}/base --reference {place}/base --alphas 0:2:0.25 {sets} -o {place}-sweep",
        f"attack {place}/edited {models} {sets} --unseen {place}/unseen.jsonl -o {place}-attack",
    ):
        click.echo(f"  {here} {line}")


NAMES = {"forget": "to forget", "retain": "to keep", "unseen": "never met"}


def _numbers(found: "Score") -> tuple[str, str, str, str]:
    accuracy, nll = found.accuracy, found.nll
    return (
        str(found.n),
        f"{accuracy.mean:.3f} ± {accuracy.spread:.3f}",
        f"{nll.mean:.2f} ± {nll.spread:.2f}",
        f"{found.exact:.0%}",
    )
