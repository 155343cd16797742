"""The methods of `unlearn` on small models: what they forget, what they keep, and whether their defaults need any tuning.

    python benchmarks/unlearn.py models WORKDIR      a GPT-2-style and a tied Qwen2-style model that know 60 + 120 rows of TOFU by heart
    python benchmarks/unlearn.py stories WORKDIR     example files for stories260k, which knows one sentence by heart
    python benchmarks/unlearn.py defaults WORKDIR [--only METHOD ...] [--on MODEL ...] [--jobs 2]
    python benchmarks/unlearn.py methods WORKDIR [--only METHOD ...] [--seeds 0 1 2] [--jobs 2]
    python benchmarks/unlearn.py table WORKDIR

`defaults`: one run each with nothing set, on tofu-tiny/full, stories260k (also with `unseen` text, for SGA and TAU), and the two of `models`.
`methods`: tofu-tiny/full forgets 200 rows and keeps 400, with the settings in METHODS, against tofu-tiny/retain. All is measured on the
saved files (`unlearn_measures.py`); the first seed also calibrated: mixed with the original until 95 % of retain accuracy is kept.
`table` prints what there is, as Markdown.

A cell is a process of its own, on one core, and a line of WORKDIR/{defaults,methods}.jsonl when it is finished: a benchmark that was stopped goes
on with the cells that are missing, which those with other settings are too. --fresh also measures again what another state of
editkit/unlearning gave. Needs the optional folder ../shared (--shared).
"""

import argparse
import hashlib
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from typing import Any, NamedTuple

import unlearn_inputs as inputs
import unlearn_measures as measures
import unlearn_tables as tables

_QUALITY = {
    "lr": 1e-4,
    "retain_weight": 2.0,
    "eval_every": 5,
    "steps": 200,
    "stop": ("ma(forget) <= 0.28 and ma(retain) >= 0.98",),
}
"""Slowly, to a little above the level of never-seen text, where the truth ratios are most like those of a model that never saw it."""
METHODS: dict[str, dict[str, Any]] = {
    "me+gd": {}, "npo+gd": {}, "ga+gd": {}, "ga": {}, "ga+kl": {}, "idk+gd": {}, "idk+ap": {}, "dpo+gd": {}, "wga+gd": {},
    "undial+gd": {}, "rmu+rmu": {}, "sga": {}, "tau": {}, "negation": {}, "memflex": {"control": True},
    "npo+gd, slowly": {"method": "npo+gd", **_QUALITY}, "simnpo+gd, slowly": {"method": "simnpo+gd", "beta": 0.5, **_QUALITY},
    "npo+kl, slowly": {"method": "npo+kl", **_QUALITY},
}  # fmt: skip
"""What each is tuned to, beyond its defaults. A name that is no method gives its method too."""
SEEDS = (0, 1, 2)
DEFAULTS = ("me+gd", "npo+gd", "memflex", "tau")
TOFU, STORIES = "tofu-tiny", "stories260k"
UNEDITED, NEVER = "unedited", "never saw F"
"""tofu-tiny/full and tofu-tiny/retain as they are."""


class Case(NamedTuple):
    """A model and example files. others: sets that are only measured. methods: those that are run on it with nothing set."""

    model: Path
    forget: Path
    retain: Path
    unseen: Path | None = None
    others: tuple[Path, ...] = ()
    methods: tuple[str, ...] = DEFAULTS


def cases(shared: Path, work: Path) -> dict[str, Case]:
    tofu, made, told = shared / "data" / "tofu", work / "models", work / "stories"
    stories = Case(
        shared / "models" / STORIES, told / "forget.jsonl", told / "retain.jsonl",
        others=tuple(told / f"{name}.jsonl" for name in ("held-out", "other-openings", "unseen")),
    )  # fmt: skip
    return {
        TOFU: Case(shared / "models" / TOFU / "full", tofu / "forget.jsonl", tofu / "retain.jsonl"),
        STORIES: stories,
        f"{STORIES}, unseen": stories._replace(unseen=told / "unseen.jsonl", methods=("sga", "tau")),
        **{name: Case(made / name, made / "forget.jsonl", made / "retain.jsonl") for name in ("gpt2", "qwen2")},
    }


class Cell(NamedTuple):
    """One run, or a model as it is. kind: the benchmark."""

    kind: str
    on: str
    name: str
    seed: int
    settings: dict[str, Any]

    @property
    def title(self) -> str:
        return f"{self.on}, {self.name}, seed {self.seed}"


def wanted(options: argparse.Namespace, what: dict[str, Case]) -> list[Cell]:
    if options.command == "defaults":
        return [
            Cell("defaults", on, name, 0, {})
            for on in options.on or what
            for name in what[on].methods
            if name in (options.only or what[on].methods)
        ]
    runs = [
        Cell("methods", TOFU, name, seed, METHODS[name]) for seed in options.seeds for name in options.only or METHODS
    ]
    return [Cell("methods", TOFU, NEVER, 0, {}), Cell("methods", TOFU, UNEDITED, 0, {}), *runs]


def state() -> str:
    """Which state of editkit/unlearning this is."""
    import editkit

    assert editkit.__file__
    files = sorted((Path(editkit.__file__).parent / "unlearning").rglob("*.py"))
    texts = b"".join(file.read_bytes() for file in files if "rendering" not in file.parts)
    return hashlib.sha256(texts).hexdigest()[:12]


def finished(work: Path, kind: str) -> list[tuple[Cell, dict[str, Any]]]:
    """The cells of a benchmark and what came of each; of one that was measured twice the later line counts."""
    place = work / f"{kind}.jsonl"
    lines = [json.loads(line) for line in place.read_text("utf-8").splitlines()] if place.exists() else []
    return list({json.dumps(line["cell"]): (Cell(*line["cell"]), line) for line in lines}.values())


def run_cells(cells: Sequence[Cell], work: Path, shared: Path, jobs: int, fresh: bool) -> int:
    """Run those that are missing, side by side; returns how many failed."""
    known = finished(work, cells[0].kind)
    now = state()
    done = [cell for cell, line in known if not fresh or line["state"] in (None, now)]
    missing = [cell for cell in cells if cell not in done]
    print(f"{len(cells) - len(missing)} of {len(cells)} cells are there", file=sys.stderr)
    lock, environment = Lock(), {**os.environ, "OMP_NUM_THREADS": "1"}

    def one(cell: Cell) -> int:
        command = [sys.executable, __file__, "cell", str(work), "--shared", str(shared), "--cell", json.dumps(cell)]
        ended = subprocess.run(command, env=environment, capture_output=True, text=True)
        with lock:
            if ended.returncode:
                print(f"{cell.title}: failed\n{ended.stderr[-2000:]}", file=sys.stderr, flush=True)
                return 1
            line = ended.stdout.splitlines()[-1]
            with (work / f"{cell.kind}.jsonl").open("a", encoding="utf-8") as file:
                file.write(line + "\n")
            print(f"{cell.title}: {tables.short(json.loads(line))}", file=sys.stderr, flush=True)
        return 0

    first = [cell for cell in missing if cell.name == NEVER]  # the others are compared with it
    if any(map(one, first)):
        return len(missing)
    with ThreadPoolExecutor(jobs) as pool:
        return sum(pool.map(one, [cell for cell in missing if cell not in first]))


def run_cell(cell: Cell, work: Path, shared: Path) -> dict[str, Any]:
    """The line of one cell."""
    case, data = cases(shared, work)[cell.on], shared / "data" / "tofu"
    never = shared / "models" / TOFU / "retain"
    found: dict[str, Any] = {"cell": cell, "state": None if cell.name in (NEVER, UNEDITED) else state()}
    if cell.kind == "methods":
        ratios = next((line["truth ratios"] for one, line in finished(work, cell.kind) if one.name == NEVER), None)
        if found["state"] is None:
            return found | measures.tofu(never if cell.name == NEVER else case.model, data, ratios)
        with TemporaryDirectory(dir=work) as place:
            edited = Path(place) / "edited"
            found |= unlearned(cell, case, edited, reference=never)
            if edited.exists():
                found |= measures.tofu(edited, data, ratios)
                found |= measures.calibrated(case.model, edited, data) if cell.seed == SEEDS[0] else {}
        return found
    files = {one.stem: one for one in (case.forget, case.retain, *case.others)}
    found["before"] = measures.plain(case.model, files)
    with TemporaryDirectory(dir=work) as place:
        edited = Path(place) / "edited"
        found |= unlearned(cell, case, edited, unseen=case.unseen)
        if edited.exists():
            found["after"] = measures.plain(edited, files)
    return found


def unlearned(cell: Cell, case: Case, edited: Path, **more: Any) -> dict[str, Any]:
    """Unlearn into the folder `edited`, which is not there afterwards where no step was worth keeping.

    seconds, processor seconds: of all of it, localization, measuring and saving included. MB: the process at its largest.
    """
    import editkit

    settings = {"method": cell.name, **cell.settings, **more}
    started, worked = time.perf_counter(), time.process_time()
    try:
        report = editkit.unlearn(
            case.model, edited, forget=case.forget, retain=case.retain, seed=cell.seed, device="cpu", **settings
        )
    except editkit.NothingChanged as error:
        return {"outcome": "nothing changed", "ended": str(error), "seconds": time.perf_counter() - started}
    task = report["tasks"][0]
    return {
        "seconds": time.perf_counter() - started,
        "processor seconds": time.process_time() - worked,
        "MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 if sys.platform == "darwin" else 1024) * 1.024,
        "steps": task["points"][-1]["step"],
        "chosen step": task["points"][task["chosen"]]["step"],
        "outcome": task["outcome"],
        "ended": task["ended"],
        "level": report["level"]["ma"],
        "settings": report["settings"],
        "controls": {
            one["name"]: {
                f"{row['set']} {row['label']}": row["after"]["value"]
                for row in one["result"]
                if row["quantity"] == "ma"
            }
            | {"steps": one["steps"], "outcome": one["outcome"]}
            for one in report["controls"]
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["models", "stories", "defaults", "methods", "table", "cell"])
    parser.add_argument("workdir", type=Path)
    parser.add_argument("--shared", type=Path, default=Path(__file__).resolve().parents[2] / "shared")
    parser.add_argument("--only", nargs="+", metavar="METHOD")
    parser.add_argument("--on", nargs="+", metavar="MODEL", help="of defaults: some of the models")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    options = parser.parse_args()
    work, shared = options.workdir.resolve(), options.shared.resolve()
    work.mkdir(parents=True, exist_ok=True)
    if options.command == "table":
        nothing_set = finished(work, "defaults")
        tuned = [(one, line) for one, line in finished(work, "methods") if one.settings == METHODS.get(one.name, {})]
        print(tables.defaults(nothing_set), tables.methods(tuned, UNEDITED, NEVER), sep="\n\n")
        if len(states := {line["state"] for _, line in nothing_set + tuned} - {None}) > 1:
            print(
                f"\nThese cells are of {len(states)} states of editkit/unlearning: --fresh measures the older ones again."
            )
        return
    if not (shared / "models" / TOFU).exists():
        sys.exit(f"{options.shared} has no models/{TOFU}, which this benchmark needs: give --shared")
    if options.command == "cell":
        print(json.dumps(run_cell(Cell(*json.loads(options.cell)), work, shared)))
        return
    if options.command == "models":
        return inputs.make_models(work / "models", shared)
    if options.command == "stories":
        inputs.make_stories(work / "stories", shared)
        known = measures.plain(
            shared / "models" / STORIES, {one.stem: one for one in (work / "stories").glob("*.jsonl")}
        )
        return print(", ".join(f"{key} {value:.3g}" for key, value in known.items()))
    what = cases(shared, work)
    allowed = METHODS if options.command == "methods" else {name for one in what.values() for name in one.methods}
    strange = [*(set(options.only or ()) - set(allowed)), *(set(options.on or ()) - set(what))]
    cells = [] if strange else wanted(options, what)
    if not cells:
        sys.exit(
            f"no cell is called for by {', '.join(strange) or 'these'}: there are {', '.join(sorted(allowed))}; on {'; '.join(what)}"
        )
    lacking = {path for cell in cells for path in (what[cell.on].model, what[cell.on].retain) if not path.exists()}
    if lacking:
        sys.exit(f"{', '.join(sorted(map(str, lacking)))} not there: run the commands models and stories first")
    sys.exit(1 if run_cells(cells, work, shared, options.jobs, options.fresh) else 0)


if __name__ == "__main__":
    main()
