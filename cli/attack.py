"""`editkit attack MODEL [KIND]... --forget F -o DIR`."""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import click

import editkit

from .options import as_json as json_option
from .options import computing, examples, output, prompt_template, quiet
from .progress import Advance, progress
from .reporting import show

KINDS = ("quantize", "relearn", "membership", "paraphrase", "all")
COUNT = click.IntRange(min=1)


@click.command(
    epilog=examples(
        "editkit attack edited --forget forget.jsonl --retain retain.jsonl --base model --reference never-trained -o attacked",
        "editkit attack edited quantize relearn --forget forget.jsonl --base model --reference never-trained --steps 32 -o attacked",
        "editkit attack model+my-lora membership --forget forget.jsonl --unseen unseen.jsonl --reference never-trained -o attacked",
    )
)
@click.argument("model")
@click.argument("kinds", metavar="[quantize|relearn|membership|paraphrase|all]...", nargs=-1, type=click.Choice(KINDS))
@click.option(
    "--forget",
    metavar="FILE",
    required=True,
    help="Examples that were to be forgotten: .jsonl, .json, .csv or .parquet.",
)
@click.option(
    "--retain",
    metavar="FILE",
    help="Examples that were to be kept: to measure, to relearn from, to show before questions.",
)
@click.option("--unseen", metavar="FILE", help="Text of the kind of the forget set that no model saw, for membership.")
@click.option("--base", metavar="CHECKPOINT", help="The model before the edit: what there is to bring back.")
@click.option(
    "--reference",
    metavar="CHECKPOINT",
    help="A model that never saw the forget set, the control: what an attack brings to anyone.",
)
@click.option("--max-examples", type=click.IntRange(min=2), metavar="N", help="Take the first N examples of each set.")
@click.option(
    "--batch-size",
    type=COUNT,
    default=16,
    show_default=True,
    metavar="N",
    help="Examples a pass, and a step of relearning.",
)
@click.option(
    "--max-new-tokens",
    type=COUNT,
    metavar="N",
    help="Also let the models write answers of up to N tokens, for ROUGE-L; slow.",
)
@click.option(
    "--steps",
    type=COUNT,
    default=64,
    show_default=True,
    metavar="N",
    help="Of relearning; measured after 0, 1, 2, 4, 8 ... N.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of relearning and of the solved examples.")
@prompt_template
@computing
@output("the report (attack.json, examples.jsonl, report.html, attack.png)")
@json_option
@quiet
def command(model: str, output: Path, as_json: bool, quiet: bool, **settings: Any) -> None:
    """Attack an edited MODEL: does what was forgotten come back?

    quantize: 8 and 4 bits, nf4. relearn: a few steps of fine-tuning on part of the forget set, and on the retain set. membership: can one tell that
    it was trained on? paraphrase: asked in other words (key paraphrased_question), and after solved examples. Without a kind: all that the given
    files allow. MODEL may be a checkpoint or MODEL+ADAPTER.
    """

    def stage(name: str) -> AbstractContextManager[Advance | None]:
        return progress(name, unit="sets" if name.endswith("measured") else "steps", quiet=quiet)

    report = editkit.attack(model, output, stage=stage, **settings)
    show(report, "attacks", output, "report.html", as_json=as_json, quiet=quiet)
