"""The commands in docs/commands.md, generated from `--help`: `python -m editkit_cli.reference docs/commands.md` writes them anew."""

import sys
from pathlib import Path

import click

from .main import main

BEGIN, END = "<!-- commands: written by `make docs` -->\n", "<!-- /commands -->\n"


def reference() -> str:
    """A table of the commands, then the help of each."""
    parent = click.Context(main, info_name="editkit", terminal_width=100, **main.context_settings)
    rows, helps = [], []
    for name in main.list_commands(parent):
        command = main.get_command(parent, name)
        assert command is not None
        context = click.Context(command, parent=parent, info_name=name, terminal_width=100)
        rows.append(f"| [`editkit {name}`](#editkit-{name.replace(' ', '-')}) | {command.get_short_help_str(200)} |\n")
        helps.append(f"\n## editkit {name}\n\n```text\n{command.get_help(context)}\n```\n")
    return "".join(["| command | what it does |\n|---|---|\n", *rows, *helps])


def renewed(page: str) -> str:
    """The page with the part between the two marks written anew."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{reference()}{END}{after}"


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(renewed(path.read_text("utf-8")), "utf-8")
