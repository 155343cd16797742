"""`editkit demo`."""

import json
import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from .options import as_json as json_option
from .options import examples, quiet
from .run import watched

SETS = {"forget": "to forget", "retain": "to keep", "unseen": "never met"}
BY_HAND = ("tuned", "located", "swept", "edited", "audited", "scored")


@click.command(epilog=examples("editkit demo", "editkit demo -o my-demo --json | jq .alpha"))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default="editkit-demo",
    show_default=True,
    help="Where everything goes; an earlier demo there is gone on with.",
)
@json_option
@quiet
def command(output: Path, as_json: bool, quiet: bool) -> None:
    """Teach a small model fictional people, make it forget some of them, and see what it still knows.

    Needs no download and no GPU: under four minutes the first time, then the models come from the cache. It is a recipe as `editkit run`
    takes them, and leaves a page with all results.
    """
    from editkit.demo.demo import run_demo

    found = run_demo(output, **watched(quiet))
    if as_json:
        click.echo(json.dumps(found, indent=2))
    elif not quiet:
        show(found)


def show(found: Mapping[str, Any]) -> None:
    """Three tables, where to look, and the commands."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)

    def table(title: str, *columns: str, numbers: int) -> Table:
        made = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
        for place, name in enumerate(columns):
            made.add_column(name, overflow="fold", justify="left" if place < len(columns) - numbers else "right")
        return made

    answers = table("What the model answers", "", "question", "before", "edited", numbers=0)
    for one in found["answers"]:
        wanted = (one["after"] == one["truth"]) == (one["set"] == "retain")
        after = Text(one["after"], style="green" if wanted else "red")
        answers.add_row(SETS[one["set"]], one["question"], one["before"], after)
    console.print(answers)

    known = {(one["set"], one["model"]): one for one in found["knows"]}
    models = ("model", "edited", "reference")
    heads = ("before", "edited", "reference")
    numbers = table("What it knows: token accuracy", "people", "questions", *heads, numbers=4)
    for name, said in SETS.items():
        texts = (f"{one['value']:.3f} ± {one['sd']:.3f}" for one in (known[name, model] for model in models))
        numbers.add_row(said, f"n = {known[name, 'model']['n']}", *texts)
    console.print(numbers)
    console.print(
        "±: standard deviation over questions. The reference learned those to keep and never met the others.\n"
    )

    def interval(score: Mapping[str, Any]) -> str:
        return f"{score['value']:.3f} ({score['ci_low']:.3f} to {score['ci_high']:.3f})"

    points = table("How much to subtract", "where", "alpha", "forgetting", "retention", "", numbers=4)
    for index, one in enumerate(found["points"], 1):
        cells = (one["where"], f"{one['alpha']:g}", interval(one["forgetting"]), interval(one["retention"]))
        last = index == len(found["points"]) or found["points"][index]["where"] != one["where"]
        mark = {"located": "taken", "everywhere": "best"}[one["where"]] if one["best"] else ""
        points.add_row(*cells, mark, style="bold" if one["best"] else "", end_section=last)
    console.print(points)
    console.print(
        "Forgetting: how much of the token accuracy on those to forget is gone; retention: how much of that on those to keep is left; in "
        f"brackets 95 % intervals. Forgetting of the reference: {interval(found['level'])}. Best: of the points that forget as much as the "
        f"reference, the one that retains most.\n\nLocated: {found['located']}\nChanged: {found['changed']}\n"
    )
    place = shlex.quote(found["output"])
    click.echo(f"Look at {place}/report.html\n\nRun its parts again, or change them:\n")
    here = sys.argv[0] if Path(sys.argv[0]).name == "editkit" and not shutil.which("editkit") else "editkit"
    calls = {one["step"]: one for one in found["calls"]}
    for step in BY_HAND:
        click.echo(f"  {here} {by_hand(calls[step])} -o again/{step}")
    click.echo(
        f"  {here} attack {place}/edited --base {place}/model --reference {place}/reference --forget {place}/forget.jsonl "
        f"--retain {place}/retain.jsonl --unseen {place}/unseen.jsonl -o attacked"
    )


def by_hand(call: Mapping[str, Any]) -> str:
    """The command with the arguments of a call, but for its output: of {"function": "diff", "arguments": {"base": "a", "edited": "b"}} `diff a b`."""
    from .main import main

    name = {"evaluate": "eval"}.get(call["function"], call["function"])
    command = main.get_command(click.Context(main), name)
    words = [name]
    for one in command.params if command else ():
        if (value := call["arguments"].get(one.name)) is None:
            continue
        option = isinstance(one, click.Option)
        if isinstance(value, dict):
            value = [f"{key}={inner}" for key, inner in value.items()]
        elif isinstance(value, list) and not (one.multiple if option else one.nargs < 0):
            value = ",".join(map(str, value))
        for inner in value if isinstance(value, list) else [value]:
            words += [*one.opts[-1:], str(inner)] if option else [str(inner)]
    return shlex.join(words)
