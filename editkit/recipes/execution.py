"""The calls of a plan, made in an order that suits what they need: what is finished is taken, what failed stops only what depends on it."""

import json
from collections.abc import Callable, Container, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any

from editkit import __version__
from editkit.errors import EditError
from editkit.recipes import lookup
from editkit.recipes.arguments import Joined, Output, Place, Value, fitted, misfit
from editkit.recipes.calls import RESULT, Stage, Work, kept, perform, result_of
from editkit.recipes.engines import Submit, lost, threads_of
from editkit.recipes.functions import output_name, parameters
from editkit.recipes.plan import Call, Plan, shown, within
from editkit.recipes.vocabulary import misread

Record = dict[str, Any]
Observe = Callable[[Mapping[str, Any]], None]
PICTURES = (".png", ".svg")


class Absent(EditError):
    """An output or a result that a call did not leave, which its record explains."""


class Execution:
    """records: of every call, by key, as in run.json."""

    def __init__(self, plan: Plan, folder: Path, observe: Observe) -> None:
        self.plan, self.folder, self._observe = plan, folder, observe
        self.records: dict[str, Record] = {}
        self._names = {**plan.places.called, f"{folder}/": ""}
        self.result = cache(lambda key: result_of(folder / plan.calls[key].folder))
        for call in plan.calls.values():
            self._look(call)

    def _look(self, call: Call) -> None:
        """What is there of a call from earlier runs."""
        found, why = None, None
        try:
            found = kept(self.folder / call.folder, call.key)
        except EditError as error:
            why = f"made again: {error}"
        self.records[call.key] = {
            "step": call.step,
            "function": call.function,
            "cell": call.cell,
            "label": call.label,
            "key": call.key,
            "state": "would run",
            "why": why,
            "needs": call.needs,
            "arguments": {name: shown(value) for name, value in call.arguments.items()},
            **_nothing(),
        }
        if found is not None:
            self._settle(call, found, cached=True)

    def run(self, submit: Submit, jobs: int, *, resume: bool, stage: Stage, local: bool) -> None:
        """Make all calls that are not there. local: they are made in this process, which can show how far each one is."""
        waiting = [key for key, record in self.records.items() if record["state"] == "would run"]
        running: dict[Future[Any], str] = {}
        total, threads = len(waiting), threads_of(jobs)
        for record in self.records.values():
            if record["state"] != "would run":
                self._observe(record)
        with nullcontext() if local else stage("calls") as progress:
            while waiting or running:
                for key in self._ready(waiting):
                    waiting.remove(key)
                    call = self.plan.calls[key]
                    if (work := self._work(call, resume, threads)) is None:
                        continue
                    self._observe({**self.records[key], "state": "running"})
                    future = submit(perform, work, *([_labelled(stage, call)] if local else []))
                    running[future] = key
                    if future.done():
                        break
                done, _ = wait(running, return_when=FIRST_COMPLETED) if running else (set(), None)
                for future in done:
                    self._finish(self.plan.calls[running.pop(future)], future)
                if progress:
                    progress(total - len(waiting) - len(running), total)

    def _ready(self, waiting: list[str]) -> list[str]:
        return [
            key for key in waiting if all(self.records[one]["state"] not in _OPEN for one in self.records[key]["needs"])
        ]

    def _work(self, call: Call, resume: bool, threads: int | None) -> Work | None:
        """What is to be done for a call, None where that cannot be said, which its record then tells."""
        record = self.records[call.key]
        stopped = [one for one in map(self.records.__getitem__, call.needs) if one["state"] in ("failed", "not run")]
        if stopped:
            self._stop(record, "not run", f"it needs {stopped[0]['label']}, which {_DID[stopped[0]['state']]}")
            return None
        try:
            arguments = self._arguments(call)
        except EditError as error:
            self._stop(record, "not run" if isinstance(error, Absent) else "failed", str(error))
            return None
        record["state"] = "running"
        said = {key: record[key] for key in ("step", "function", "key", "arguments")}
        name = output_name(call.function, call.step)
        inputs = {path: self.plan.places.contents[path] for path in _paths(call.arguments, self.plan.places.contents)}
        folder = self.folder / call.folder
        return Work(call.function, arguments, folder, name, inputs, said, self._names, resume, threads)

    def _arguments(self, call: Call) -> dict[str, Any]:
        """Those of the function, now that all is known of them. Raises EditError for what one of them cannot be."""
        known, found = parameters(call.function), {}
        for name, value in call.arguments.items():
            found[name] = fitted(self.bound(value), known[name].annotation)
            if wrong := misfit(found[name], known[name].annotation) or misread(call.function, name, found[name]):
                raise EditError(f"{name} {wrong}")
        return found

    def bound(self, value: Any) -> Any:
        """A value with what other calls made. Raises EditError for what they did not make."""
        if isinstance(value, Output):
            return str(self._path(value))
        if isinstance(value, Value):
            folder = self.folder / self.plan.calls[value.key].folder
            if self.records[value.key]["state"] not in _SETTLED or not (folder / RESULT).exists():
                raise self._absent(value)
            try:
                return lookup.lookup(self.result(value.key), lookup.parse(value.path))
            except EditError as error:
                raise EditError(f"${{{value.step}: {value.path}}}: {error}") from error
        if isinstance(value, Joined):
            text = "".join(str(self.bound(one)) for one in value.parts)
            first, *rest = value.parts
            inside = isinstance(first, Output) and all(isinstance(one, str) for one in rest) and rest[0][:1] == "/"
            if inside and not Path(text).exists():
                raise EditError(f"the output of {self.records[first.key]['label']} has no {''.join(rest)[1:]}")
            return text
        if isinstance(value, Place):
            return value.path
        if isinstance(value, Mapping):
            return {self.bound(key): self.bound(one) for key, one in value.items()}
        if isinstance(value, list):
            return [self.bound(one) for one in value]
        return str(value) if isinstance(value, str) else value

    def _path(self, output: Output) -> Path:
        path = self.folder / output.path
        if not path.exists():
            raise self._absent(output)
        return path

    def _absent(self, one: Output | Value) -> Absent:
        record = self.records[one.key]
        if did := _DID.get(record["state"]):
            return Absent(f"{record['label']} {did}")  # why is said once, of the call itself
        return Absent(f"{record['label']} left nothing: {record['why']}")

    def _finish(self, call: Call, future: "Future[Any]") -> None:
        error = future.exception()
        if error is not None:
            if lost(error):
                raise EditError(
                    f"the process of {call.label} ended without a word: what is finished is kept. Often the memory ran out, so run it again with fewer "
                    "--jobs; a script must call editkit.run under if __name__ == '__main__'"
                ) from error
            raise error
        found = future.result()
        if "failed" in found:
            self._stop(self.records[call.key], "failed", found["failed"])
        else:
            self._settle(call, found, cached=False)
            self._observe(self.records[call.key])

    def _stop(self, record: Record, state: str, why: str) -> None:
        record |= {"state": state, "why": why}
        self._observe(record)

    def _settle(self, call: Call, found: Record, *, cached: bool) -> None:
        files = [f"{call.folder}/{name}" for name in found["files"]]
        output = found["output"]
        self.records[call.key] |= {
            "state": "gate failed" if found["gate"] else "cached" if cached else "computed",
            "why": found["gate"] or self.records[call.key]["why"],
            "seconds": found["seconds"],
            "cached": cached,
            "output": f"{call.folder}/{output}" if output else None,
            "pages": [name for name in files if name.endswith(".html")],
            "pictures": [name for name in files if name.endswith(PICTURES)],
            "summary": found["summary"],
            "warnings": found["warnings"],
        }


_OPEN, _SETTLED = ("would run", "running"), ("computed", "cached", "gate failed")
_DID = {"failed": "failed", "not run": "was not run"}


def _paths(value: Any, known: Container[Path]) -> Iterator[Path]:
    """The files and folders that a value names; of MODEL+ADAPTER both."""
    if isinstance(value, Place):
        yield from (path for path in map(Path, [value.path, *value.path.split("+")]) if path in known)
    for inner in within(value):
        yield from _paths(inner, known)


def _nothing() -> Record:
    """What is known of a call before it is made."""
    return {
        "seconds": None,
        "cached": False,
        "output": None,
        "pages": [],
        "pictures": [],
        "summary": "",
        "warnings": [],
    }


def _labelled(stage: Stage, call: Call) -> Stage:
    return lambda name: stage(f"{call.label}: {name}")


def other_versions(folder: Path, plan: Plan) -> Iterator[tuple[str, str]]:
    """Finished calls of steps of this plan that another version of editkit made: folder and version."""
    steps = {call.step for call in plan.calls.values()}
    for path in sorted((folder / "steps").glob("*/call.json")):
        try:
            record = json.loads(path.read_text("utf-8"))
            if record["step"] in steps and record["editkit"] != __version__:
                yield path.parent.name, str(record["editkit"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
