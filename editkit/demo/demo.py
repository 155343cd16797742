"""`demo`: the recipe demo.yaml, run into a folder in which everything has a short name, and what is worth showing of it."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from editkit.checkpoint import disk
from editkit.demo.model import one_thread
from editkit.errors import EditError, listed
from editkit.recipes.arguments import folder_of
from editkit.recipes.calls import Stage, result_of
from editkit.recipes.execution import Observe
from editkit.recipes.lookup import lookup
from editkit.recipes.lookup import parse as parse_path
from editkit.recipes.references import Reference, parse
from editkit.recipes.run import RUN, STEPS, run
from editkit.sweeps.choice import Rule, choose
from editkit.sweeps.choice import parse as parse_rule
from editkit.sweeps.report import values

RECIPE = Path(__file__).with_name("demo.yaml")
ENTRIES = (STEPS, RUN, "table.json", "table.csv", "report.html")
FACTS, ASKED = 8, 3  # about each person; people of a group whose answers are shown
ACCURACY = "general/token_accuracy@1"
Found = dict[str, Any]


def run_demo(
    output: str | os.PathLike[str] = "editkit-demo",
    *,
    settings: Mapping[str, Any] | None = None,
    stage: Stage = lambda name: nullcontext(),
    observe: Observe = lambda call: None,
) -> Found:
    """Run the recipe into the folder `output`; models, examples and the outputs of steps have links there: `output`/model, `output`/edited.

    >>> found = run_demo()  # doctest: +SKIP
    >>> found["alpha"], found["knows"][0]  # doctest: +SKIP
    (3.0, {'set': 'forget', 'model': 'model', 'value': 1.0, 'n': 64, 'sd': 0.0})

    settings, stage, observe: as in `run`. An earlier demo in `output` is gone on with, so that only what changed is made again; other content is refused.
    Everything runs on the CPU, in one thread, so that the numbers are nearly the same everywhere.

    Returns `alpha`, the chosen strength; `level`, the forgetting of the reference; `points` of both sweeps; what each model `knows`:
    token accuracies; `answers` before and after; `located` and `changed`, a sentence each; and `calls`: step, function and arguments, with paths
    that can be used. Raises EditError where a step fails; what was finished before is kept.
    """
    place, shown = Path(output).expanduser(), os.fspath(output)
    _refuse_other_content(place, shown)
    with one_thread():
        made = run(RECIPE, place, settings=settings, stage=stage, observe=observe)
    if wrong := [*made["failures"], *made["gates"]]:
        raise EditError(f"the demo stopped: {'; '.join(wrong)} (what is finished is kept in {shown})")
    calls = {call["step"]: call for call in made["calls"]}
    results = {name: result_of(place / folder_of(name, call["key"])) for name, call in calls.items()}
    links = dict(_links(calls, place))
    with disk.writing(shown):
        for path, name in links.items():
            draft = place / f".{name}.partial"
            draft.unlink(missing_ok=True)
            draft.symlink_to(path)
            draft.replace(place / name)
    around, within = (results[name]["report"] for name in ("everywhere", "swept"))
    rule = parse_rule(within["settings"]["choose"])
    names = {path: os.path.join(shown, name) for path, name in links.items()}
    return {
        "output": shown,
        "alpha": within["points"][within["chosen"]]["alpha"],
        "level": around["reference"]["values"]["forgetting"],
        "points": [*_points("everywhere", around, rule), *_points("located", within, rule)],
        "knows": [
            {key: one[key] for key in ("set", "model", "value", "n", "sd")}
            for one in results["scored"]["results"]
            if one["metric"] == ACCURACY
        ],
        "answers": _answers(place / calls["scored"]["output"]),
        "located": calls["located"]["summary"],
        "changed": calls["audited"]["summary"],
        "calls": [
            {key: call[key] for key in ("step", "function")}
            | {"arguments": _resolved(call["arguments"], results, names)}
            for call in made["calls"]
        ],
    }


def _refuse_other_content(place: Path, shown: str) -> None:
    """What is no earlier demo; a folder without any run is refused by `run`."""
    if not (place / STEPS).is_dir():
        return
    known = (path for path in place.iterdir() if not path.is_symlink() and not path.name.startswith("."))
    if foreign := sorted({path.name for path in known} - set(ENTRIES)):
        raise EditError(
            f"{shown} holds {listed(foreign)} besides an earlier demo: move that away, or give another folder"
        )
    if (place / RUN).is_file():
        name = json.loads((place / RUN).read_text("utf-8"))["recipe"]["name"]
        if name != RECIPE.stem:
            raise EditError(f"{shown} holds a run of {name}: give another folder")


def _links(calls: Mapping[str, Any], place: Path) -> Iterator[tuple[str, str]]:
    """What is to be found under a short name, as (path in the folder, name): each output, and all that was invented."""
    for call in calls.values():
        if call["function"] == "invent":
            yield from ((f"{call['output']}/{path.name}", path.name) for path in (place / call["output"]).iterdir())
        else:
            yield call["output"], call["step"]


def _points(where: str, report: Mapping[str, Any], rule: Rule) -> list[Found]:
    """The points of a sweep but for the unedited model. best: by the rule."""
    points = report["points"][1:]
    best = choose(rule, [values(point) for point in points])
    return [
        {"where": where, "alpha": point["alpha"], "best": place == best}
        | {name: point["values"][name] for name in ("forgetting", "retention")}
        for place, point in enumerate(points)
    ]


def _answers(scored: Path) -> list[Found]:
    """The first question about the first person, the second about the second, ...: not chosen by the result."""
    rows = map(json.loads, (scored / "examples.jsonl").read_text("utf-8").splitlines())
    known = {(row["model"], row["set"], row["index"]): row for row in rows}
    return [
        {"set": name, "question": row["prompt"], "truth": row["answer"]}
        | {"before": row["generation"], "after": known["edited", name, index]["generation"]}
        for name in ("forget", "retain")
        for index in range(0, ASKED * (FACTS + 1), FACTS + 1)
        if (row := known.get(("model", name, index)))
    ]


def _resolved(value: Any, results: Mapping[str, Any], names: Mapping[str, str]) -> Any:
    """An argument as run.json has it, with the values that it looks up, and paths as the user can write them."""
    if isinstance(value, Mapping):
        return {key: _resolved(one, results, names) for key, one in value.items()}
    if isinstance(value, list):
        return [_resolved(one, results, names) for one in value]
    if not isinstance(value, str):
        return value
    parts = [
        lookup(results[one.name], parse_path(one.path or "")) if isinstance(one, Reference) else one
        for one in parse(value)
    ]
    text = parts[0] if len(parts) == 1 else "".join(map(str, parts))
    return names.get(text, text) if isinstance(text, str) else text
