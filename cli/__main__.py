"""`python -m editkit_cli` is `editkit`."""

from .main import main

main(prog_name="editkit")
