"""Every recipe runs from a clean clone, where there is no folder beside it, on data that editkit invents."""

import shutil
from pathlib import Path

import pytest
import yaml

import editkit
from editkit.recipes.rendering.wording import header

RECIPES = Path(__file__).parents[1] / "recipes"
NAMES = sorted(path.stem for path in RECIPES.glob("*.yaml"))
SMALL = {
    "model": "people/model", "base": "people/base", "reference": "retain-only", "vector_base": "people/base",
    "forget": "people/forget.jsonl", "retain": "people/retain.jsonl", "unseen": "people/unseen.jsonl", "in-distribution": "people/forget.jsonl",
    "others": "people/unseen.jsonl", "first": "people/private.jsonl", "second": "people/public.jsonl",
    "steps": 4, "learning": 4, "relearning": 2, "examples": 8, "rows": 12, "forget_rows": 8, "retain_rows": 8, "unseen_rows": 8, "alphas": [0.25, 1], "seed": [0],
}  # fmt: skip
"""Settings and lists of the matrix, for the recipes that have them."""
OWN = {
    "continual": {"method": ["me+gd"], "steps": 2}, "methods": {"method": ["npo+gd", "memflex"]}, "memorized-sequences": {"method": ["sga", "tau"]}, "memflex": {"method": ["memflex"]},
    "localized-negation": {"method": ["fisher", "random"]}, "robustness": {"method": ["me+gd"]},
    "in-out-distribution": {"known": "people/model"}, "real-world": {"known": "people/background.jsonl"},
}  # fmt: skip


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """The recipes, and people whom a model learned for a moment."""
    place = tmp_path_factory.mktemp("clone")
    shutil.copytree(RECIPES, place / "recipes")
    editkit.invent(place / "people", forget=2, retain=4, unseen=2, background=4, base_steps=40, model_steps=80)
    editkit.finetune(
        place / "people" / "base", place / "people" / "retain.jsonl", place / "retain-only", steps=10, lr=1e-3
    )
    return place


def document(name):
    return yaml.safe_load((RECIPES / f"{name}.yaml").read_text("utf-8"))


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_runs_with_small_settings(name, clone, monkeypatch):
    monkeypatch.chdir(clone)
    known = {**document(name).get("settings", {}), **document(name).get("matrix", {})}
    small = {key: value for key, value in (SMALL | OWN.get(name, {})).items() if key in known}
    run = editkit.run(f"recipes/{name}.yaml", f"{name}-out", settings=small)
    assert not run["failures"] and not run["gates"], run["failures"] + run["gates"]
    assert {one["state"] for one in run["calls"]} == {"computed"}
    missing = [
        (row["cell"], key)
        for row in run["table"]["rows"]
        for key, one in row["values"].items()
        if one["status"] != "ok"
    ]
    assert not missing
    assert {path.name for path in (clone / f"{name}-out").iterdir()} >= {
        "run.json",
        "table.csv",
        "table.json",
        "report.html",
    }
    again = editkit.run(f"recipes/{name}.yaml", f"{name}-out", settings=small)
    assert {one["state"] for one in again["calls"]} == {"cached"} and again["table"] == run["table"]


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_needs_nothing_from_outside_of_the_project(name, clone, monkeypatch):
    monkeypatch.chdir(clone)
    run = editkit.run(f"recipes/{name}.yaml", "nowhere", dry_run=True)
    assert "invent" in {one["function"] for one in run["calls"]} and not (clone / "nowhere").exists()


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_says_what_it_is(name):
    text = (RECIPES / f"{name}.yaml").read_text("utf-8")
    labels = [
        label
        for label, _ in header(
            "\n".join(line.removeprefix("# ") for line in text.splitlines() if line.startswith("# "))
        )
    ]
    assert labels == ["What", "Paper", "Command", "Yours", "Expect", "Time"]
    assert f"editkit run recipes/{name}.yaml" in text
    for section in ("title", "settings", "steps", "table"):
        assert document(name)[section]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_runs_as_it_is(name, clone, monkeypatch):
    monkeypatch.chdir(clone)
    run = editkit.run(f"recipes/{name}.yaml", f"{name}-full")
    assert run["exit_code"] == 0, run["failures"] + run["gates"]
