"""`run`: make the calls of a recipe that are not there yet, and write one table and one page of what they found."""

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from editkit import __version__
from editkit.checkpoint import disk
from editkit.diffing.rendering import plain
from editkit.errors import EditError, listed
from editkit.recipes.arguments import without_folders
from editkit.recipes.calls import Stage
from editkit.recipes.document import Recipe, read_recipe
from editkit.recipes.engines import engine as open_engine
from editkit.recipes.execution import Absent, Execution, Observe, other_versions
from editkit.recipes.names import left_behind
from editkit.recipes.plan import Plan, plan_recipe
from editkit.recipes.references import references
from editkit.recipes.table import SCHEMA as TABLE
from editkit.recipes.table import plain_value, tabulate, to_csv

SCHEMA = "editkit.run/1"
RUN, STEPS = "run.json", "steps"


def run(
    recipe: str | os.PathLike[str] | Mapping[str, Any],
    output: str | os.PathLike[str] | None = None,
    *,
    settings: Mapping[str, Any] | None = None,
    engine: str = "processes",
    jobs: int = 1,
    resume: bool = False,
    dry_run: bool = False,
    stage: Stage = lambda name: nullcontext(),
    observe: Observe = lambda call: None,
) -> dict[str, Any]:
    """Run a recipe, a YAML file or a dictionary, and leave all that it makes in the folder `output`.

    >>> found = run("recipes/negate.yaml", "negated", settings={"alpha": 0.5})  # doctest: +SKIP
    >>> found["exit_code"], found["table"]["rows"][0]["values"]["forget MA"]["value"]  # doctest: +SKIP
    (0, 0.31)

    output: by default NAME-run in the working directory; an earlier run there is gone on with: what is finished and has the same
    content key is not made again. settings: values in place of the recipe's own, of its settings or of variables of its matrix;
    relative paths in them are relative to the working directory. engine: "processes", of which `jobs` run at once (1: in this one), or "ray", a
    cluster at RAY_ADDRESS or on this machine. With several jobs each gets its share of the cores. resume: let an interrupted call go on with its own unfinished
    work, which is removed otherwise. dry_run: check and plan, and write nothing. stage: called with the name of each part of
    the work, gives a context with its progress function. observe: told every call that begins or is settled.

    Returns what is in run.json (schema `editkit.run/1`, see docs). A call that fails stops what depends on it and is in `failures`, a gate that fails is in
    `gates`; `exit_code` is 2, 1 or 0. Raises EditError for a recipe that is wrong, with all that is wrong, before anything is written.
    """
    started = time.monotonic()
    read = read_recipe(recipe, settings)
    plan = plan_recipe(read)
    shown_output = os.fspath(output) if output is not None else f"{read.name}-run"
    folder = Path(shown_output).expanduser().resolve()
    _refuse_other_content(folder, shown_output, read.name)
    disk.refuse_inputs(folder, shown_output, _outside(plan, folder))
    with open_engine(engine, jobs) as submit, nullcontext() if dry_run else _alone(folder, shown_output):
        execution = Execution(plan, folder, observe)
        if not dry_run:
            execution.run(submit, jobs, resume=resume, stage=stage, local=engine == "processes" and jobs == 1)
        found = _described(read, plan, execution, dry_run) | {"engine": engine, "jobs": jobs}
        found["seconds"] = round(time.monotonic() - started, 3)
        if not dry_run:
            with disk.writing(shown_output):
                _write(found, folder)
    return found


def _refuse_other_content(folder: Path, name: str, recipe: str) -> None:
    if folder.exists() and not folder.is_dir():
        raise EditError(f"{name} is a file: give a folder")
    there = {path.name for path in folder.iterdir() if not path.name.startswith(".")} if folder.is_dir() else set()
    if there - {STEPS} and not {RUN, STEPS} <= there:
        raise EditError(f"{name} is not empty and holds no earlier run: give another folder")
    if (other := _recipe_of(folder)) not in (None, recipe):
        raise EditError(f"{name} holds a run of the recipe {other}: give another folder than for {recipe}")


def _recipe_of(folder: Path) -> str | None:
    """Of which recipe there is a run."""
    try:
        return str(json.loads((folder / RUN).read_text("utf-8"))["recipe"]["name"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _outside(plan: Plan, folder: Path) -> list[Path]:
    """The inputs but for those that earlier steps made there."""
    return [path for path in plan.places.contents if not path.resolve().is_relative_to(folder / STEPS)]


@contextmanager
def _alone(folder: Path, name: str) -> Iterator[None]:
    """No second run in the same folder."""
    with disk.writing(name):
        (folder / STEPS).mkdir(parents=True, exist_ok=True)
    try:
        guard = disk.lock(folder / STEPS, needed=True)
    except OSError as error:
        raise EditError(f"{name} is being made by another run: wait for it, or give another output") from error
    try:
        yield
    finally:
        os.close(guard)


def _described(recipe: Recipe, plan: Plan, execution: Execution, dry_run: bool) -> dict[str, Any]:
    """run.json, but for how it was run."""
    places = {name: index for index, name in enumerate(recipe.steps)}
    calls = sorted(execution.records.values(), key=lambda call: places[call["step"]])
    failures = [f"{call['label']}: {call['why']}" for call in calls if call["state"] == "failed"]
    gates = [f"{call['label']}: {call['why']}" for call in calls if call["state"] == "gate failed"]
    table = None
    if recipe.table and not dry_run:
        rows, wrong = _looked_up(recipe, plan, execution)
        table = tabulate(rows, list(recipe.table), list(recipe.matrix), recipe.over)
        for row in table["rows"]:
            row["cell"] = without_folders(row["cell"])
        failures += wrong
    found = {
        "schema": SCHEMA,
        "editkit": __version__,
        "dry_run": dry_run,
        "exit_code": 2 if failures else 1 if gates else 0,
        "recipe": {"name": recipe.name, "title": recipe.title, "header": recipe.header, "text": recipe.text},
        "settings": {
            name: {"value": without_folders(plan.chosen[name]), "given": one.given}
            for name, one in recipe.settings.items()
        },
        "matrix": {name: without_folders(one.value) for name, one in recipe.matrix.items()},
        "steps": [_step(recipe, plan, name) for name in recipe.steps],
        "calls": calls,
        "table": table,
        "notes": list(_notes(recipe, plan, execution)),
        "failures": failures,
        "gates": gates,
    }
    return plain(found)


def _step(recipe: Recipe, plan: Plan, name: str) -> dict[str, Any]:
    made = [call for call in plan.calls.values() if call.step == name]
    needs = {plan.calls[key].step for call in made for key in call.needs}
    if not made:
        needs = {one.name for _, one in references(recipe.steps[name].arguments)} & recipe.steps.keys()
    variables = {variable for call in made for variable in call.cell}
    return {
        "step": name,
        "function": recipe.steps[name].function,
        "needs": [one for one in recipe.steps if one in needs],
        "variables": [one for one in recipe.matrix if one in variables],
        "needed": bool(made),
    }


def _looked_up(recipe: Recipe, plan: Plan, execution: Execution) -> tuple[list[Any], list[str]]:
    """The cells with what every column finds; and a sentence for a column that is in none of the results there are."""
    rows, had = [], set[str]()
    missed: dict[str, str] = {}
    for cell, columns in plan.rows:
        found: dict[str, Any] = {}
        for name, value in columns.items():
            try:
                found[name] = plain_value(execution.bound(value))
                had.add(name)
            except EditError as error:
                found[name] = {"status": f"unknown: {error}"}
                if not isinstance(error, Absent):
                    missed.setdefault(name, str(error))
        rows.append((cell, found))
    wrong = [f"{recipe.document.place('table', name)}: {why}" for name, why in missed.items() if name not in had]
    return rows, wrong


def _notes(recipe: Recipe, plan: Plan, execution: Execution) -> Iterator[str]:
    if left := left_behind(recipe, plan.asked):
        given = listed(name for name, one in recipe.settings.items() if one.given)
        yield f"--set gives {given}, and not {listed(left)}, which stay the recipe's own: give all that belong together"
    if others := list(other_versions(execution.folder, plan)):
        versions = sorted({version for _, version in others})
        yield (
            f"{len(others)} finished calls here were made by editkit {listed(versions)} and are not used by {__version__}: "
            f"{listed((name for name, _ in others), 5)}; remove them where they are of no use"
        )
    if named := [one for one in plan.places.named if "@" not in one]:
        yield f"{listed(named)}: taken by name, so that a change on the Hub goes unseen; give NAME@REVISION"


def _write(found: Mapping[str, Any], folder: Path) -> None:
    from editkit.recipes.rendering.page import write_page

    texts = {RUN: json.dumps(found, indent=2, ensure_ascii=False) + "\n"}
    if found["table"] is not None:
        texts["table.json"] = json.dumps({"schema": TABLE, **found["table"]}, indent=2, ensure_ascii=False) + "\n"
        texts["table.csv"] = to_csv(found["table"])
    try:
        for name, text in texts.items():
            draft = folder / f".{name}.partial"
            draft.write_bytes(text.encode("utf-8", "backslashreplace"))
            draft.replace(folder / name)
        write_page(found, folder)
    finally:
        for draft in folder.glob(".*.partial"):
            draft.unlink()
    for name in {"table.json", "table.csv"} - texts.keys():
        (folder / name).unlink(missing_ok=True)
