"""The command group, and the one place where errors turn into a line on stderr and an exit code."""

import sys
import traceback
from importlib import import_module
from typing import Any

import click

import editkit

COMMANDS = ("inspect", "diff", "negate", "task-vector", "finetune", "demo")
BAD_INPUT, BUG, INTERRUPTED = 2, 70, 130


class Commands(click.Group):
    """Loads `editkit_cli.<command>` when it is asked for; the modules themselves import nothing heavy."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        return import_module(f".{name.replace('-', '_')}", __package__).command if name in COMMANDS else None

    def main(self, *args: Any, **settings: Any) -> Any:
        try:
            code = super().main(*args, **{**settings, "standalone_mode": False})
        except editkit.EditError as error:
            code = fail(error, error.exit_code)
        except click.Abort:
            code = INTERRUPTED
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()
            code = BAD_INPUT
        except click.ClickException as error:
            code = fail(f"{error.format_message().rstrip('.')}{_help_of(error)}", error.exit_code)
        except OSError as error:  # no permission, a full disk; click itself ends quietly on a broken pipe
            code = fail(f"{error.strerror}: {error.filename}" if error.filename else error, BAD_INPUT)
        except Exception as error:
            # The traceback stays: a run of hours must not have to be repeated to report what went wrong.
            traceback.print_exc()
            code = fail(f"this is a bug in editkit, please report it with the lines above: {error!r}", BUG)
        sys.exit(code if isinstance(code, int) else 0)


def fail(message: object, code: int) -> int:
    """Say what went wrong in one line."""
    click.echo(f"editkit: {' '.join(str(message).split())}", err=True)
    return code


def _help_of(error: click.ClickException) -> str:
    context = getattr(error, "ctx", None)
    return f". See '{context.command_path} --help'." if context else ""


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="\b\nExamples:\n"
    "  editkit demo\n"
    "  editkit negate MODEL --forget forget.jsonl --vector-base BASE --alpha 1.0 -o EDITED\n"
    "  editkit diff MODEL EDITED -o report\n"
    "\n\b\nExit codes:\n"
    "  0    done\n"
    "  1    nothing changed, a --fail-if rule holds, or --exit-code found differences\n"
    "  2    bad input: one line on stderr says what, where and what to do; nothing is left behind\n"
    "  70   a bug in editkit, with its traceback\n"
    "  130  interrupted",
)
@click.version_option(editkit.__version__, prog_name="editkit", message="%(prog)s %(version)s")
def main() -> None:
    """Edit the weights of language models (safetensors), see what changed, and gate on it.

    A MODEL or CHECKPOINT is a folder, a lone .safetensors file, a Hugging Face Hub id, or id@revision.
    """
