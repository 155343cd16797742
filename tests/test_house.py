"""The house rules: who may import whom, what a library never does, and that the documents say what the code does."""

import ast
import itertools
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
from editkit_cli.main import COMMANDS, main

import editkit

ROOT = Path(__file__).parents[1]
LIBRARY = sorted((ROOT / "editkit").rglob("*.py"))
ROOMS = {  # room -> what it may import besides itself
    "errors": "",
    "names": "errors",
    "arithmetic": "errors",
    "checkpoint": "errors names arithmetic",
    "vectors": "errors names arithmetic checkpoint",
    "masks": "errors names arithmetic checkpoint",
    "diffing": "errors names arithmetic checkpoint masks",
    "patching": "errors names arithmetic checkpoint",
    "training": "errors names arithmetic checkpoint masks",
    "localization": "errors names arithmetic checkpoint masks vectors diffing training",
    "merging": "errors names arithmetic checkpoint masks vectors diffing patching",
    "adapters": "errors names arithmetic checkpoint masks vectors merging",
    "editing": "errors names arithmetic checkpoint masks vectors diffing patching training",
    "evaluation": "errors names arithmetic checkpoint masks vectors diffing patching training localization editing",
    "unlearning": "errors names arithmetic checkpoint masks vectors diffing patching training localization editing evaluation",
    "attacks": "errors names arithmetic checkpoint masks vectors diffing patching training localization editing evaluation",
    "sweeps": "errors names arithmetic checkpoint masks vectors diffing patching training localization editing evaluation",
    "verification": "errors names arithmetic checkpoint masks vectors diffing patching training localization merging adapters "
    "editing evaluation unlearning attacks sweeps",
    "recipes": "errors names arithmetic checkpoint diffing localization merging editing evaluation unlearning sweeps",
    "demo": "errors names arithmetic checkpoint training editing sweeps recipes",
}
HEAVY = {"torch", "transformers", "peft", "matplotlib", "datasets", "scipy", "jinja2", "huggingface_hub", "accelerate"}
HEAVY |= {"pandas", "pyarrow", "ray", "rich", "yaml"}


def shown(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imports(tree: ast.AST) -> set[str]:
    """Full names of everything imported in a tree; relative imports do not occur in the library."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import of {node.module}"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def at_import_time(node: ast.AST) -> list[ast.AST]:
    """The statements that run when the module is imported: no function bodies, nothing under TYPE_CHECKING."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        return []
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
        return []
    return [node, *(inner for child in ast.iter_child_nodes(node) for inner in at_import_time(child))]


@pytest.mark.parametrize("path", LIBRARY, ids=shown)
def test_imports_go_down_the_table_only(path):
    room = path.relative_to(ROOT / "editkit").parts[0].removesuffix(".py")
    if room == "__init__":
        return
    allowed = {room, *ROOMS[room].split()}
    for name in imports(ast.parse(path.read_text("utf-8"))):
        if name.startswith("editkit.") and name != "editkit.__version__":
            assert name.split(".")[1] in allowed, f"{shown(path)} imports {name}"
        assert name.split(".")[0] not in ("click", "editkit_cli", "tests"), f"{shown(path)} imports {name}"


@pytest.mark.parametrize("path", LIBRARY, ids=shown)
def test_the_library_neither_prints_nor_configures_nor_seeds(path):
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("print", "breakpoint", "input", "exit", "sys.exit"), f"{shown(path)}:{node.lineno}"
            assert not re.fullmatch(
                r"(logging\.(basicConfig|disable|getLogger)|(np|numpy|torch|random)(\.random)?\.(manual_)?seed"
                r"|(transformers\.)?set_seed|warnings\.(simplefilter|filterwarnings))",
                called,
            ) or _undone(called, path), f"{shown(path)}:{node.lineno} calls {called}"


def _undone(called: str, path: Path) -> bool:
    """Global state may change for the length of a block that gives it back."""
    given_back = "catch_warnings" if called.startswith("warnings.") else "setstate" if "seed" in called else "?"
    return given_back in path.read_text("utf-8")


@pytest.mark.parametrize("path", LIBRARY, ids=shown)
def test_heavy_packages_are_imported_where_they_are_used(path):
    tree = ast.parse(path.read_text("utf-8"))
    for node in at_import_time(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            heavy = {name.split(".")[0] for name in imports(node)} & HEAVY
            assert not heavy, f"{shown(path)}:{node.lineno} imports {heavy} when it is imported"


def test_files_are_short_and_say_what_they_are():
    for path in [*LIBRARY, *sorted((ROOT / "cli").glob("*.py"))]:
        text = path.read_text("utf-8")
        assert len(text.splitlines()) <= 400, f"{shown(path)} is too long"
        assert path.stem not in ("utils", "helpers", "misc", "common"), shown(path)
        assert not text or ast.get_docstring(ast.parse(text)), f"{shown(path)} does not say what it is"


def test_every_package_is_installed():
    listed = re.search(r"^packages = \[(.*?)\]", (ROOT / "pyproject.toml").read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert listed is not None
    there = {".".join(path.parent.relative_to(ROOT).parts) for path in LIBRARY if path.name == "__init__.py"}
    assert set(re.findall(r'"([\w.]+)"', listed[1])) == there | {"editkit_cli"}
    assert there == {".".join(path.parent.relative_to(ROOT).parts) for path in LIBRARY}, "a folder lacks __init__.py"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=ROOT, check=True)


def test_public_names_are_lazy_and_all_there():
    for name in editkit.__all__:
        assert getattr(editkit, name) is not None
    with pytest.raises(AttributeError):
        editkit.nothing_like_this  # noqa: B018
    loaded = run("-c", "import editkit, sys; print(*sys.modules)").stdout.split()
    assert not {"numpy", "numba", *HEAVY} & set(loaded)


def test_help_is_quick_and_imports_nothing_heavy():
    code = "import sys; sys.argv = ['editkit', '--help']; from editkit_cli.main import main\ntry: main()\n"
    code += "except SystemExit: print('LOADED', *sys.modules)"
    loaded = run("-c", code).stdout.split("LOADED")[1].split()
    assert not {"numpy", "numba", *HEAVY} & set(loaded)

    def seconds(*arguments: str) -> float:
        """Of the processor, which others that are busy do not lengthen as they do the time until the end."""
        spent = []
        for _ in range(3):
            before = os.times()
            run(*arguments)
            after = os.times()
            spent.append(after.children_user - before.children_user + after.children_system - before.children_system)
        return min(spent)

    assert seconds("-m", "editkit_cli", "--help") < 3 * seconds("-c", "import click") + 0.1


GROUP = click.Context(main, info_name="editkit", **main.context_settings)


def command(name: str) -> click.Command:
    found = main.get_command(GROUP, name)
    assert found is not None
    return found


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_are_documented(name):
    one = command(name)
    assert one.help and f"editkit {name}" in (one.epilog or ""), f"{name}: the epilog must have an example"
    for parameter in one.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"editkit {name} {parameter.opts[-1]} is not documented"


def parse(line: str) -> click.Context | None:
    """Let click read a command line, without running it."""
    words = list(itertools.takewhile(lambda word: word not in ("|", ">", "&&"), shlex.split(line, comments=True)))
    words = words[1:] if words[0] == "editkit" else words
    for length in (2, 1):
        if (name := " ".join(words[:length])) in COMMANDS:
            return command(name).make_context(name, words[length:], parent=GROUP)
    assert words[0] in ("--help", "--version"), line
    return None


@pytest.mark.parametrize("name", COMMANDS)
def test_examples_in_the_help_are_accepted(name):
    examples = [line for line in (command(name).epilog or "").splitlines() if line.strip().startswith("editkit ")]
    assert examples
    for line in examples:
        parse(line)


@pytest.mark.parametrize("option", ["accumulate", "labels", "draws"])
def test_defaults_of_the_methods_are_those_in_the_help(option):
    from editkit.localization.method import NAMES, method

    defaults = {name: getattr(method(name), option) for name in NAMES}
    if option == "accumulate":
        defaults = {name: modes[0] for name, modes in defaults.items() if modes}
    usual = {"accumulate": "signed", "labels": "true", "draws": 1}[option]
    others = {name: value for name, value in defaults.items() if value != usual}
    [(name, value)] = others.items()
    said = {
        "accumulate": f"[default: {usual}; {value} for {name}]",
        "labels": f"[default: {value} for {name}, else {usual}]",
        "draws": f"[default: {value} for {name}, else {usual}]",
    }[option]
    assert any(isinstance(one, click.Option) and said in (one.help or "") for one in command("localize").params)
