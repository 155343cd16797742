"""`editkit unlearn MODEL --forget F --retain R --method NAME -o OUT`."""

import os
import shlex
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import click

import editkit

from .main import fail
from .options import allow_other_base, computing, examples, mask, output, patch, prompt_template, quiet
from .options import as_json as json_option
from .progress import Advance, line, progress
from .reporting import show

FORGET_LOSSES = ("ga", "sga", "npo", "simnpo", "dpo", "idk", "me", "max-entropy", "rmu", "wga", "undial")
RETAIN_LOSSES = ("none", "gd", "kl", "ap", "rmu")
COUNT = click.IntRange(min=1)
TRAINING = ("unlearn", "random mask", "all parameters")


@click.command(
    epilog=examples(
        "editkit unlearn model --forget forget.jsonl --retain retain.jsonl --reference never-saw -o edited",
        "editkit unlearn model --forget forget.jsonl --retain retain.jsonl --method me+gd --lora 16 -o my-lora",
        "editkit unlearn model --forget forget.jsonl --retain retain.jsonl --method memflex --control -o edited",
        "editkit unlearn model --forget forget.jsonl --retain retain.jsonl --stop 'ma_max(forget) <= 0.33' --stop 'ppl(retain) > 1.2x' -o edited",
        "editkit unlearn model --forget first.jsonl --forget second.jsonl --retain retain.jsonl -o edited",
    )
)
@click.argument("model")
@click.option(
    "--forget",
    required=True,
    multiple=True,
    metavar="FILE",
    help="What is to be forgotten; of several files each goes on from the last result.",
)
@click.option("--retain", metavar="FILE", help="What is to be kept: for the retain loss, and to see what else is lost.")
@click.option(
    "--unseen", metavar="FILE", help="Text of the kind of the forget set that no model saw; says when to stop."
)
@click.option("--reference", metavar="MODEL", help="A model that never saw the forget set; says when to stop.")
@click.option(
    "--method",
    metavar="NAME",
    help="sga, tau, negation, memflex, or FORGET+RETAIN of the losses below.  [default: npo+gd; npo without --retain]",
)
@click.option(
    "--forget-loss",
    type=click.Choice(FORGET_LOSSES),
    help="In place of --method; or what sga, tau and memflex ascend on.  [default: of the method]",
)
@click.option(
    "--retain-loss",
    type=click.Choice(RETAIN_LOSSES),
    help="In place of that of the method.  [default: of the method; gd with --forget-loss and --retain]",
)
@click.option("--forget-weight", type=float, metavar="W", help="Of the forget loss.  [default: of the method]")
@click.option("--retain-weight", type=float, metavar="W", help="Of the retain loss.  [default: of the method]")
@click.option("--beta", type=float, metavar="BETA", help="Of losses that have one.  [default: of the loss]")
@click.option("--preset", type=click.Choice(["paper"]), help="Take the published settings; what you give goes first.")
@click.option("--lora", type=COUNT, metavar="RANK", help="Train a LoRA adapter instead of all weights.")
@mask("Move only what this mask selects")
@allow_other_base()
@click.option("--only", multiple=True, metavar="GLOB", help="Move only tensors with such a whole name; repeatable.")
@click.option(
    "--control", is_flag=True, help="Run once more with a random mask and once without one, to be measured beside."
)
@click.option(
    "--refusals", metavar="FILE", help="Answers for idk, dpo and ap, one per line of a .txt file.  [default: our own]"
)
@click.option("--epochs", type=COUNT, metavar="N", help="At most so many passes over the forget set.")
@click.option(
    "--steps",
    type=COUNT,
    metavar="N",
    help="At most so many steps, in place of --epochs.  [default: from the forget set; mostly a rule ends it]",
)
@click.option("--lr", type=float, metavar="RATE", help="Learning rate.  [default: from the size of the model]")
@click.option("--batch-size", type=COUNT, metavar="N", help="Examples of each set a step.  [default: 16]")
@click.option("--grad-accum", type=COUNT, metavar="N", help="Read each batch in N parts, to save memory.")
@click.option("--grad-checkpointing", is_flag=True, help="Compute activations twice, to save memory.")
@click.option("--weight-decay", type=float, metavar="RATE", help="Of AdamW.  [default: none]")
@click.option("--rectify", is_flag=True, help="Take from the forget gradient what goes against the retain gradient.")
@click.option(
    "--alpha",
    type=float,
    metavar="ALPHA",
    help="How much of the vector tau and negation subtract.  [default: of the method]",
)
@click.option(
    "--anchor",
    type=click.Choice(["phase", "original"]),
    help="What they subtract it from: the start of the phase, or MODEL.  [default: phase]",
)
@click.option(
    "--stop",
    multiple=True,
    metavar="RULE",
    help="Stop where RULE holds; repeatable.  [default: 'ma(forget) <= level' above --floor; none for idk and dpo]",
)
@click.option(
    "--floor",
    type=float,
    metavar="SHARE",
    help="Keep no model with less of its MA on the retain set than this.  [default: 0.95]",
)
@click.option("--eval-every", type=COUNT, metavar="N", help="Steps between two looks.  [default: 5]")
@click.option("--max-length", type=click.IntRange(min=2), metavar="N", help="Cut examples at N tokens.")
@prompt_template
@click.option(
    "--save",
    "save_as",
    type=click.Choice(["adapter", "checkpoint", "vector"]),
    help="What is written.  [default: checkpoint; adapter with --lora]",
)
@patch
@click.option("--seed", type=int, default=0, show_default=True, help="Of the order of the examples, and what is drawn.")
@computing
@click.option("--resume", is_flag=True, help="Go on with an interrupted run to the same output.")
@output("the edited model, with its reports in OUT/unlearning and OUT/diff,")
@json_option
@quiet
def command(model: str, output: Path, as_json: bool, quiet: bool, **settings: Any) -> None:
    """Train MODEL until it knows of the forget set what a model knows that never saw it.

    RULE is STAT(SET) <|<=|>|>= NUMBER [and ...], of forget and retain: 'ma_max(forget) <= 0.33', 'ppl(retain) > 1.2x' (times the
    value before), 'ma(forget) <= level' (that of never-seen text). STAT is ma (memorization accuracy), ma_p95, ma_max, accuracy, nll, ppl,
    probability; with a reference exposure, ks and log10_p of forget too. The best model so far is kept where none holds.
    """
    first = os.environ.get("RANK", "0") == "0"  # of the processes that accelerate launched
    shown = Shown(quiet or not first)
    try:
        report = editkit.unlearn(model, output, stage=shown.stage, observe=shown.observe, **settings)
    except (KeyboardInterrupt, SystemExit):
        from editkit.checkpoint.unfinished import unfinished_folder

        if first and (kept := unfinished_folder(output)).exists():
            fail(f"interrupted: go on with --resume (what was done is in {kept.name} beside {output})", 0)
        raise
    if first:
        show(report, "unlearning", output, "unlearning/report.html", as_json=as_json, quiet=quiet)
        if settings["save_as"] == "vector" and not (as_json or quiet):
            click.echo(
                f"To add it: editkit negate {shlex.quote(model)} {shlex.quote(str(output))} --alpha -1 -o EDITED"
            )


class Shown:
    """What a run says on its way: the losses of the last step, and the last look."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._name = self._losses = self._look = ""

    def stage(self, name: str) -> AbstractContextManager[Advance | None]:
        """The progress of one part of the work."""
        self._name, self._losses, self._look = name, "", ""
        unit = "steps" if name in TRAINING else "bytes" if name == "patch" else "texts"
        return progress(name, unit=unit, quiet=self._quiet, text=self._text)

    def observe(self, found: Mapping[str, Any]) -> None:
        """Hear a line of the log."""
        if values := found.get("values"):
            self._losses = self._losses if found["step"] else ""
            self._look = _told({"MA": values["ma(forget)"], "retention": values["retention"]})
            if not self._quiet:
                line(f"{self._where(found)}: {self._text()}")
        else:
            self._losses = f"loss: {_told({role: found.get(f'{role}_loss') for role in ('forget', 'retain')})}"

    def _where(self, found: Mapping[str, Any]) -> str:
        """The run beside others, the set beside others, the phase and the step."""
        among = [name for name, alone in ((self._name, "unlearn"), (found["task"], "forget")) if name != alone]
        landed = ["landed"] if found["mix"] is not None else []
        return ", ".join([*among, found["phase"], f"step {found['step']}", *landed])

    def _text(self) -> str:
        return "; ".join(filter(None, (self._losses, self._look)))


def _told(values: Mapping[str, float | None]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in values.items() if value is not None)
