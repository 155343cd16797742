"""README and docs: links lead somewhere, commands are accepted, Python runs, and what is made from code is as the code is."""

import ast
import doctest
import importlib.util
import re
import shutil
import sys
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest
import yaml
from editkit_cli.main import COMMANDS
from editkit_cli.reference import renewed
from memorised import memorised
from test_house import ROOT, parse, shown

import editkit
from editkit.merging.config import read_config
from editkit.merging.document import read_document
from editkit.recipes.document import read_recipe

DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
LINK = re.compile(r'\[[^][]*(?:\[[^][]*\][^][]*)*\]\(([^()\s]+)(?: "(\w+)")?\)')


def load_hook():
    """The hook of mkdocs, which is in no package."""
    spec = importlib.util.spec_from_file_location("docstrings", DOCS / "docstrings.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["docstrings"] = module
    spec.loader.exec_module(module)
    return module


HOOK = load_hook()


@cache
def prose(path):
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```", "", path.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)


def anchors(path):
    """Headings as GitHub and the site name them."""
    headings = re.findall(r"^#+ (.+)$", prose(path), re.MULTILINE)
    return [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]


def blocks(path, *languages):
    return re.findall(rf"^```(?:{'|'.join(languages)})\n(.*?)^```", path.read_text("utf-8"), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("path", PAGES, ids=shown)
def test_links_lead_to_a_file_and_a_heading(path):
    for target, _ in LINK.findall(prose(path)):
        if re.match(r"https?://", target):
            continue
        place, _, anchor = target.partition("#")
        leads = (path.parent / place).resolve() if place else path
        assert leads.is_file() and leads.is_relative_to(ROOT), f"{shown(path)}: {target}"
        if DOCS in path.parents and leads.suffix not in (".py", ".yaml"):
            assert DOCS in leads.parents, f"{shown(path)}: {target} is no page of the site"
        assert not anchor or anchor in anchors(leads), f"{shown(path)}: {target}"


@pytest.mark.parametrize("path", PAGES, ids=shown)
def test_headings_of_a_page_have_different_names(path):
    assert len(set(anchors(path))) == len(anchors(path))
    assert len(re.findall("^# ", prose(path), re.MULTILINE)) == 1


@pytest.mark.parametrize("path", PAGES, ids=shown)
def test_links_to_code_stand_where_the_site_shows_the_code(path):
    """Anywhere else on a page of the site they would lead nowhere."""
    alone = {found[1] for found in HOOK.LINK.finditer(path.read_text("utf-8"))}
    for target, _ in LINK.findall(prose(path)):
        if DOCS in path.parents and target.endswith((".py", ".yaml")):
            assert target.lstrip("./") in alone, f"{shown(path)}: {target} is within a text"


def commands(path):
    lines = re.sub(r"\\\n\s*", " ", "\n".join(blocks(path, "bash", "sh", "yaml"))).splitlines()
    lines = [line.strip().removeprefix("- run: ") for line in lines]
    return [line for line in lines if line.startswith("editkit ")]


@pytest.mark.parametrize("path", PAGES, ids=shown)
def test_commands_are_accepted(path):
    for line in commands(path):
        parse(line)
    for name in re.findall(r"`editkit ([\w-]+)", prose(path)):
        assert name in {one.split()[0] for one in COMMANDS}, f"{shown(path)}: editkit {name}"


def test_every_command_is_in_the_readme_and_in_a_how_to():
    names = {name.split()[0] for name in COMMANDS}
    assert {line.split()[1] for line in commands(ROOT / "README.md")} >= names
    pages = [DOCS / "index.md", *sorted((DOCS / "howto").glob("*.md"))]
    assert {line.split()[1] for page in pages for line in commands(page)} >= names


@pytest.mark.parametrize("path", PAGES, ids=shown)
def test_python_compiles_and_names_what_exists(path):
    for block in blocks(path, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "editkit":
                assert node.attr in editkit.__all__, f"editkit.{node.attr}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the blocks of Python find: a small model that knows forget and retain, the one before, adapters, a config."""
    place = tmp_path_factory.mktemp("python")
    known = memorised()
    for name, source in {"model": "model", "before": "new", "never-saw": "new"}.items():
        shutil.copytree(known / source, place / name)
    for name in ("forget.jsonl", "retain.jsonl"):
        shutil.copy(known / name, place)
    for seed, name in enumerate(("my-lora", "lora-a", "lora-b")):
        editkit.finetune(
            place / "before", place / "retain.jsonl", place / name, lora=2, steps=2, seed=seed, device="cpu"
        )
    config = {"merge_method": "linear", "models": [{"model": "model", "parameters": {"weight": 1}}]}
    (place / "merge.yaml").write_text(yaml.safe_dump(config))
    return place


@pytest.mark.parametrize("name", ["docs/howto/python.md", "README.md", "docs/formats.md"])
def test_python_runs(name, folder, monkeypatch, capsys):
    """The blocks of a page one after the other; the last page uses what the first one made."""
    monkeypatch.chdir(folder)
    shutil.rmtree("edited", ignore_errors=True)
    names: dict[str, object] = {}
    for block in blocks(ROOT / name, "python"):
        exec(compile(block, name, "exec"), names)
    assert capsys.readouterr().out


def test_configs_and_recipes_are_accepted(tmp_path):
    merges = recipes = 0
    for path in PAGES:
        for place, block in enumerate(blocks(path, "yaml")):
            file = tmp_path / f"{path.stem}-{place}.yaml"
            file.write_text(block)
            if "merge_method" in block:
                merges += bool(read_config(read_document(file)))
            elif "editkit: 1" in block:
                assert not read_recipe(file).problems
                recipes += 1
    assert merges and recipes


def test_the_hook_does_as_its_examples_say():
    assert doctest.testmod(HOOK).attempted and not doctest.testmod(HOOK).failed


def sources(page):
    return {found[1] for found in HOOK.LINK.finditer((DOCS / page).read_text("utf-8"))}


@pytest.mark.parametrize(
    ("page", "folder", "support"),
    [
        ("methods/localization.md", "editkit/localization/methods", ""),
        ("methods/unlearning.md", "editkit/unlearning/objectives", "tokens"),
        ("methods/merging.md", "editkit/merging/methods", "angles combination ranks sparsity"),
        ("methods/metrics.md", "editkit/evaluation/metrics", ""),
        ("recipes.md", "recipes", ""),
    ],
)
def test_every_method_metric_and_recipe_has_its_place(page, folder, support):
    there = {shown(path) for suffix in ("py", "yaml") for path in (ROOT / folder).glob(f"*.{suffix}")}
    there -= {f"{folder}/{name}.py" for name in ["__init__", *support.split()]}
    assert sources(page) >= there


def test_every_public_name_is_described_where_it_is_defined():
    text = (DOCS / "api.md").read_text("utf-8")
    assert set(anchors(DOCS / "api.md")) >= {name.lower() for name in editkit.__all__ if name != "__version__"}
    for path, name in re.findall(r"^\[.*\]\(\.\./(\S+) \"(\w+)\"\)$", text, re.MULTILINE):
        assert HOOK.documented(path, name)
    for heading, path, name in re.findall(r'^### (\w+)\n\n\[.*\]\(\.\./(\S+)\.py "(\w+)"\)$', text, re.MULTILINE):
        assert getattr(import_module(path.replace("/", ".")), name) is getattr(editkit, heading)


def test_the_commands_are_those_of_help():
    page = (DOCS / "commands.md").read_text("utf-8")
    assert renewed(page) == page, "run `make docs`"


class Loader(yaml.SafeLoader):
    """Of mkdocs.yml, which calls a function."""


Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda *_: None)


def named(nav):
    return (
        [nav]
        if isinstance(nav, str)
        else [page for one in (nav.values() if isinstance(nav, dict) else nav) for page in named(one)]
    )


def test_every_page_is_in_the_navigation_once():
    config = yaml.load((ROOT / "mkdocs.yml").read_text("utf-8"), Loader)
    assert sorted(named(config["nav"])) == sorted(str(path.relative_to(DOCS)) for path in PAGES[1:])


def test_every_picture_is_shown_somewhere():
    shown_ones = {(path.parent / target).resolve() for path in PAGES for target, _ in LINK.findall(prose(path))}
    assert {path for path in (DOCS / "images").rglob("*") if path.is_file()} <= shown_ones


def test_the_site_is_built_without_warnings_and_loads_nothing_from_elsewhere(tmp_path):
    pytest.importorskip("material", reason="needs the extra docs")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path)))  # strict: a warning is an error
    loads = r'<(?:script|img|iframe)[^>]*\ssrc="(?:https?:)?//|<link[^>]*rel="(?:stylesheet|preload|preconnect)"[^>]*href="(?:https?:)?//'
    for page in Path(tmp_path).rglob("*.html"):
        assert not re.search(loads, page.read_text("utf-8")), page
        assert ">>> " not in re.sub(r"<pre.*?</pre>", "", page.read_text("utf-8"), flags=re.DOTALL), page
