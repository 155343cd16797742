"""`editkit localize MODEL --forget F --retain R -o LOC`."""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import click

import editkit

from .main import fail
from .options import as_json as json_option
from .options import computing, examples, output, prompt_template, quiet, threads
from .progress import Advance, progress
from .reporting import show

METHODS = ("memflex", "salun", "wagle", "fisher", "snip", "path", "magnitude", "random")
COUNT = click.IntRange(min=1)


@click.command(
    epilog=examples(
        "editkit localize model --forget forget.jsonl --retain retain.jsonl -o loc",
        "editkit localize model --forget forget.jsonl --retain retain.jsonl --method path --base before --budget 10% -o loc",
        "editkit localize model+my-lora --forget forget.jsonl --retain retain.jsonl --method memflex --mu 0.92 --sigma 6e-4 -o loc",
        "editkit negate model --forget forget.jsonl --vector-base before --alpha 2 --mask loc -o edited",
    )
)
@click.argument("model")
@click.option("--forget", metavar="FILE", help="Examples of the knowledge to find: .jsonl, .json, .csv or .parquet.")
@click.option("--retain", metavar="FILE", help="Examples to keep, for the methods that compare.")
@click.option(
    "--method",
    type=click.Choice(METHODS),
    help="How parameters are scored.  [default: fisher; memflex with --mu and --sigma]",
)
@click.option("--base", metavar="CHECKPOINT", help="What MODEL was tuned from, for --method path and magnitude.")
@click.option(
    "--granularity",
    type=click.Choice(["tensor", "row", "head", "element"]),
    help="What is selected as a whole.  [default: element; tensor with --mu and --sigma]",
)
@click.option(
    "--budget",
    metavar="SHARE%|N",
    help="How much: a share of the parameters, or N units (single weights unless --granularity says otherwise).  [default: 5%]",
)
@click.option(
    "--per-layer-budget", is_flag=True, help="Each layer, and each tensor outside of layers, has the budget on its own."
)
@click.option("--only", multiple=True, metavar="GLOB", help="Consider only tensors with such a whole name; repeatable.")
@click.option("--mu", type=float, help="MemFlex: select where the cosine is below, with --sigma. WAGLE: its mu.")
@click.option("--sigma", type=float, help="MemFlex: select where mean |G| of the forget set is above, with --mu.")
@click.option(
    "--accumulate",
    type=click.Choice(["signed", "absolute", "squared"]),
    help="How gradients of examples add up.  [default: signed; squared for fisher]",
)
@click.option(
    "--labels",
    metavar="true|random:SHARE",
    help="Answers as they are, or with a share of their tokens replaced at random.  [default: random:0.4 for memflex, else true]",
)
@click.option("--draws", type=COUNT, metavar="N", help="Draws of random labels.  [default: 3 for memflex, else 1]")
@click.option("--batch-size", type=COUNT, default=8, show_default=True, metavar="N", help="Examples a pass.")
@click.option("--max-examples", type=COUNT, metavar="N", help="Take the first N examples of each set.")
@click.option("--max-length", type=click.IntRange(min=2), metavar="N", help="Cut examples at N tokens.")
@prompt_template
@computing
@click.option(
    "--offload",
    type=click.Choice(["auto", "none", "cpu", "disk"]),
    default="auto",
    show_default=True,
    help="Where their sums are kept: on the device, in main memory, in files.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of random labels and masks.")
@click.option("--control", is_flag=True, help="Add a random mask of the same size, and the stability of the selection.")
@click.option("--resume", is_flag=True, help="Go on with an interrupted run to the same output.")
@output("the localization (mask, scores, localization.json, .html, .png)")
@json_option
@threads
@quiet
def command(model: str, output: Path, as_json: bool, quiet: bool, **settings: Any) -> None:
    """Find the parameters of MODEL that hold what the examples say, and write them down as a mask.

    The mask in LOC is what --mask of negate, finetune and diff takes. MODEL+ADAPTER localizes the factors of a LoRA adapter;
    such a mask is for diff --mask of two adapters, and for Python.
    """

    def stage(name: str) -> AbstractContextManager[Advance | None]:
        return progress(name, unit="passes" if name == "gradients" else "bytes", quiet=quiet)

    try:
        report = editkit.localize(model, output, stage=stage, **settings)
    except (KeyboardInterrupt, SystemExit):
        from editkit.checkpoint.unfinished import unfinished_folder

        if (kept := unfinished_folder(output)).exists():
            fail(f"interrupted: go on with --resume (what was done is in {kept.name} beside {output})", 0)
        raise
    show(report, "localization", output, "localization.html", as_json=as_json, quiet=quiet)
