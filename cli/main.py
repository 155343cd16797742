"""The command group, and the one place where errors turn into a line on stderr and an exit code."""

import logging
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import FrameType
from typing import Any

import click

import editkit

# editkit's own threads use all cores, and those of BLAS would only wait for each other. numpy reads this when it is loaded.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

COMMANDS = (
    "inspect",
    "diff",
    "localize",
    "localize compare",
    "negate",
    "task-vector",
    "conflicts",
    "merge",
    "bake",
    "extract-lora",
    "patch create",
    "patch apply",
    "patch undo",
    "patch verify",
    "patch info",
    "verify",
    "finetune",
    "unlearn",
    "eval",
    "attack",
    "sweep",
    "run",
    "demo",
)
BAD_INPUT, BUG, SIGNALLED = 2, 70, 128  # and the number of the signal
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Commands(click.Group):
    """Loads `editkit_cli.<command>` when it is asked for; the modules themselves import nothing heavy."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        module = name.replace("-", "_").replace(" ", "_")
        return import_module(f".{module}", __package__).command if name in COMMANDS else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if (name := " ".join(args[:2])) in COMMANDS and len(
            args
        ) > 1:  # two words; a model of the second's name is ./compare
            return name, self.get_command(ctx, name), args[2:]
        if (inner := [one for one in COMMANDS if one.startswith(f"{args[0]} ")]) and args[0] not in COMMANDS:
            raise click.UsageError(f"'{args[0]}' has commands of its own: {', '.join(inner)}", ctx)
        return super().resolve_command(ctx, args)

    def make_context(self, *args: Any, **settings: Any) -> click.Context:
        with _quiet_on_a_closed_pipe():
            return super().make_context(*args, **settings)

    def invoke(self, ctx: click.Context) -> Any:
        with _quiet_on_a_closed_pipe():
            return super().invoke(ctx)

    def main(self, *args: Any, **settings: Any) -> Any:
        _steady_streams()
        logging.getLogger("matplotlib").setLevel(logging.ERROR)  # its cache in a home that is read-only is no news
        try:
            with _unwinding():
                code = super().main(*args, **{**settings, "standalone_mode": False})
        except editkit.EditError as error:
            code = fail(error, error.exit_code)
        except click.Abort:
            code = SIGNALLED + signal.SIGINT
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()
            code = BAD_INPUT
        except click.ClickException as error:
            code = fail(f"{error.format_message().rstrip('.')}{_help_of(error)}", error.exit_code)
        except OSError as error:  # no permission, a full disk
            place = error.filename or "the standard output, as it seems" if error.errno else None
            code = fail(f"{error.strerror}: {place}" if place else error, BAD_INPUT)
        except Exception as error:
            # The traceback stays: a run of hours must not have to be repeated to report what went wrong.
            traceback.print_exc()
            code = fail(f"this is a bug in editkit, please report it with the lines above: {error!r}", BUG)
        sys.exit(code if isinstance(code, int) else 0)


def fail(message: object, code: int) -> int:
    """Say what went wrong in one line, without what a stranger's file could tell a terminal to do."""
    click.echo(f"editkit: {editkit.errors.printable(' '.join(str(message).split()))}", err=True)
    return code


def _steady_streams() -> None:
    """Give closed streams a place to go, before a file gets their number, and let no character be too rare to print."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace" if name == "stdout" else "backslashreplace")


@contextmanager
def _quiet_on_a_closed_pipe() -> Iterator[None]:
    """End like a program that SIGPIPE ends, as in `editkit diff ... | head`; click would say 1, the code of a verdict."""
    try:
        yield
    except BrokenPipeError:
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
        )  # the interpreter flushes it once more at the end
        raise SystemExit(SIGNALLED + signal.SIGPIPE) from None


@contextmanager
def _unwinding() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end a run as Ctrl-C does, through every clean-up, and no second signal end the clean-up."""

    def stop(number: int, frame: FrameType | None) -> None:
        for each in before:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(SIGNALLED + number)

    before = {each: signal.getsignal(each) for each in STOPPING}
    before = {each: handler for each, handler in before.items() if handler != signal.SIG_IGN}  # as under nohup
    for each in before:
        signal.signal(each, stop)
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _help_of(error: click.ClickException) -> str:
    context = getattr(error, "ctx", None)
    return f". See '{context.command_path} --help'." if context else ""


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="\b\nExamples:\n"
    "  editkit demo\n"
    "  editkit negate MODEL --forget forget.jsonl --vector-base BASE --alpha 1.0 -o EDITED\n"
    "  editkit unlearn MODEL --forget forget.jsonl --retain retain.jsonl -o EDITED\n"
    "  editkit localize MODEL --forget forget.jsonl --retain retain.jsonl -o LOC\n"
    "  editkit diff MODEL EDITED -o report\n"
    "  editkit eval EDITED --base MODEL --forget forget.jsonl --retain retain.jsonl -o EVAL\n"
    "\n\b\nExit codes:\n"
    "  0      done\n"
    "  1      nothing changed, a --fail-if rule holds, --mask found a change outside, --exit-code found differences,\n"
    "         no point of a sweep meets --choose, verify found a difference or nothing to go by, patch verify a MODEL\n"
    "         that is neither side, or a gate of a recipe failed\n"
    "  2      bad input: one line on stderr says what, where and what to do; nothing is left behind\n"
    "         (localize, unlearn, eval and run may keep finished work for --resume, and then say so)\n"
    "  70     a bug in editkit, with its traceback\n"
    "  128+n  ended by signal n: 130 Ctrl-C, 143 SIGTERM, 129 SIGHUP (nothing is left behind but what --resume needs),\n"
    "         141 a closed pipe",
)
@click.version_option(editkit.__version__, prog_name="editkit", message="%(prog)s %(version)s")
def main() -> None:
    """Edit the weights of language models (safetensors), see what changed, and gate on it.

    A MODEL or CHECKPOINT is a folder, a lone .safetensors file, a Hugging Face Hub id, or id@revision.
    """
