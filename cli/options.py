"""Options and wording shared by the commands."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


class NamedFile(click.ParamType):
    """NAME=FILE as a pair. form, example: what the error says."""

    name = "name=file"

    def __init__(self, form: str = "NAME=FILE", example: str = "world_facts=facts.jsonl") -> None:
        self.form, self.example = form, example

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        name, _, path = str(value).partition("=")
        if not name or not path:
            self.fail(f"{value!r} is not {self.form}, such as {self.example}", param, ctx)
        return name, path


class Assigned(click.ParamType):
    """KEY=VALUE as a pair: a number, true, false, null, a list with commas, what YAML has in [ ] or { }, else the text as it is.

    example: what the error says.
    """

    name = "key=value"
    named: ClassVar = {"true": True, "false": False, "null": None}

    def __init__(self, example: str) -> None:
        self.example = example

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, Any]:
        key, sign, text = str(value).partition("=")
        if not key or not sign:
            self.fail(f"{value!r} is not KEY=VALUE, such as {self.example}", param, ctx)
        return key, self._value(text.strip(), param, ctx)

    def _value(self, text: str, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if text[:1] in ("[", "{"):
            import yaml

            try:
                return yaml.safe_load(text)
            except (yaml.YAMLError, ValueError, RecursionError) as error:
                self.fail(f"{text!r} is no YAML ({getattr(error, 'problem', error)})", param, ctx)
        if "," in text:
            return [self._value(one.strip(), param, ctx) for one in text.split(",")]
        for kind in (int, float):
            try:
                return kind(text)
            except ValueError:
                continue
        return self.named.get(text, text)


def output(what: str, *, required: bool = True) -> Callable[[F], F]:
    """`-o/--output PATH`, given as `output: Path`. `what` goes there, such as "the edited checkpoint"."""
    path = click.Path(path_type=Path)
    return click.option("-o", "--output", type=path, required=required, help=f"Where {what} goes; must not exist yet.")


def as_json(function: F) -> F:
    """`--json`, given as `as_json: bool`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout instead of a table.")(function)


def quiet(function: F) -> F:
    """`-q/--quiet`, given as `quiet: bool`."""
    return click.option("-q", "--quiet", is_flag=True, help="No progress, no summary; errors still show.")(function)


def patch(function: F) -> F:
    """`--patch FILE`, given as `patch: str | None`."""
    said = "Write a patch too, of which `editkit patch undo OUT FILE` makes MODEL again; ends in .editpatch."
    return click.option("--patch", metavar="FILE", help=said)(function)


def rounding(function: F) -> F:
    """`--rounding`, given as `rounding: str`."""
    ways = click.Choice(["nearest", "stochastic"])
    return click.option("--rounding", type=ways, default="nearest", show_default=True, help="To the dtype.")(function)


def shard_size(function: F) -> F:
    """`--shard-size BYTES`, given as `shard_size: int | None`."""
    said = "Write new shards of this size.  [default: MODEL's own]"
    return click.option("--shard-size", type=int, metavar="BYTES", help=said)(function)


def threads(function: F) -> F:
    """`--threads N`, given as `threads: int | None`."""
    count = click.IntRange(min=1)
    return click.option("--threads", type=count, metavar="N", help="Worker threads.  [default: all cores]")(function)


def mask(what: str) -> Callable[[F], F]:
    """`--mask LOC`, given as `mask: str | None`. `what`: what is done with it, as the help says."""
    return click.option("--mask", metavar="LOC", help=f"{what}; a folder that localize wrote, or its mask.safetensors.")


def allow_other_base(what: str = "a mask") -> Callable[[F], F]:
    """`--allow-other-base`, given as `allow_other_base: bool`. `what` is then accepted."""
    return click.option("--allow-other-base", is_flag=True, help=f"Accept {what} that was made for another base.")


def prompt_template(function: F) -> F:
    """`--prompt-template TEXT`, given as `prompt_template: str | None` with its line breaks."""

    def broken(context: click.Context, parameter: click.Parameter, text: str | None) -> str | None:
        return text and text.replace("\\n", "\n")

    said = "Text with {question} and {answer}; \\n is a line break."
    return click.option("--prompt-template", metavar="TEXT", callback=broken, help=said)(function)


def computing(function: F) -> F:
    """`--dtype` and `--device`, given as `dtype: str | None` and `device: str`."""
    dtypes, devices = click.Choice(["float32", "bfloat16", "float16"]), click.Choice(["auto", "cpu", "cuda", "mps"])
    where = click.option("--device", type=devices, default="auto", show_default=True, help="Where it is computed.")
    return click.option("--dtype", type=dtypes, help="Of the computation.  [default: auto]")(where(function))


def sets(what: str) -> Callable[[F], F]:
    """`--set NAME=FILE`, repeatable, given as `sets: tuple[tuple[str, str], ...]`."""
    return click.option("--set", "sets", multiple=True, type=NamedFile(), metavar="NAME=FILE", help=what)


def readers(function: F) -> F:
    """`--embedding-model` and `--nli-model`, given as `embedding_model` and `nli_model: str | None`."""
    nli = click.option("--nli-model", metavar="MODEL", help="Classifier with a label 'entailment', for the entailment.")
    said = "Sentence encoder, for the cosine similarity."
    return click.option("--embedding-model", metavar="MODEL", help=said)(nli(function))


def examples(*lines: str) -> str:
    """The epilog of a command: `@click.command(epilog=examples("editkit inspect MODEL"))`."""
    return "\n".join(["\b", "Examples:", *(f"  {line}" for line in lines)])
