"""One call: made in whatever process, and kept in a folder of its own, so that it is never made again.

The folder has the output, result.json (what the function returned) and call.json, which is written last: it says of every file which sha256 it had.
"""

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from editkit import __version__
from editkit.checkpoint import disk
from editkit.checkpoint.blocks import Progress
from editkit.checkpoint.digests import sha256_of
from editkit.checkpoint.unfinished import unfinished_folder
from editkit.diffing.rendering import to_json
from editkit.errors import EditError, GateFailed, NothingChanged, first_line, listed
from editkit.recipes.functions import function, takes
from editkit.recipes.outcome import as_json, gate, plainly, summary, warnings_of
from editkit.recipes.places import content

Stage = Callable[[str], AbstractContextManager[Progress | None]]
SCHEMA = "editkit.call/1"
CALL, RESULT = "call.json", "result.json"
_KINDS = {
    "seconds": int | float, "gate": str | None, "summary": str, "warnings": list, "output": str | None, "files": dict
}  # fmt: skip
"""What call.json must have."""


@dataclass(frozen=True)
class Work:
    """A call that can be sent to another process. arguments: with real paths. output: the name of what it writes in `folder`, or None.

    inputs: path -> content of what it reads, see `places.content`. said: what call.json says of it beforehand. names: what places are called in texts, see `plainly`. resume: go on with its unfinished work where there is some. threads: None for all cores.
    """

    function: str
    arguments: Mapping[str, Any]
    folder: Path
    output: str | None
    inputs: Mapping[Path, str]
    said: Mapping[str, Any]
    names: Mapping[str, str]
    resume: bool
    threads: int | None


def perform(work: Work, stage: Stage | None = None) -> dict[str, Any]:
    """Make a call and keep it; returns its call.json, or {"failed": sentence} where the input was bad, and then nothing is kept.

    A verdict that fails a gate is a result, with the sentence as `gate`; so is that nothing changed, which has no output.
    """
    try:
        with disk.writing(str(work.folder)):
            _clear(work)
            work.folder.mkdir(parents=True, exist_ok=True)
        started = time.monotonic()
        failed_gate, result = None, None
        try:
            with _given(work, stage) as given:
                result = as_json(function(work.function)(**work.arguments, **given), work.names)
        except (NothingChanged, GateFailed) as error:
            failed_gate = plainly(str(error), work.names)
        seconds = time.monotonic() - started
        if changed := [path.name for path, before in work.inputs.items() if content(path) != before]:
            raise EditError(f"{listed(changed)} changed while it was read: run it again")
        if result is not None:
            failed_gate = gate(work.function, result)
            with disk.writing(str(work.folder)):
                (work.folder / RESULT).write_text(to_json(result), "utf-8")
        written = work.output if work.output and (work.folder / work.output).exists() else None
        record = {
            "schema": SCHEMA,
            "editkit": __version__,
            **work.said,
            "seconds": round(seconds, 3),
            "gate": failed_gate,
            "summary": summary(work.function, result) if result is not None else "",
            "warnings": warnings_of(result) if result is not None else [],
            "output": written,
            "files": _listing(work.folder),
        }
        with disk.writing(str(work.folder)):
            _keep(record, work.folder)
        return record
    except EditError as error:
        return {"failed": plainly(str(error), work.names)}
    except OSError as error:
        return {"failed": plainly(f"{error.filename or work.folder}: {error.strerror or error}", work.names)}
    except Exception as error:  # a fault of ours stops what depends on it, not the other cells
        return {"failed": plainly(f"an unexpected {type(error).__name__}: {first_line(error)}", work.names)}


@contextmanager
def _given(work: Work, stage: Stage | None) -> Iterator[dict[str, Any]]:
    """The arguments that are the runner's."""
    given: dict[str, Any] = {}
    if work.output is not None:
        given["output"] = work.folder / work.output
    if work.threads is not None and takes(work.function, "threads"):
        given["threads"] = work.threads
    if work.resume and takes(work.function, "resume"):
        given["resume"] = True
    if stage is not None and takes(work.function, "stage"):
        yield {**given, "stage": stage}
    elif stage is not None and takes(work.function, "progress"):
        with stage(work.function) as progress:
            yield {**given, "progress": progress}
    else:
        yield given


def _clear(work: Work) -> None:
    """Remove what an interrupted or damaged call left, but for what it is to go on with."""
    if not work.folder.exists():
        return
    if not (work.resume and takes(work.function, "resume")):
        return disk.remove_staged(work.folder)
    (work.folder / CALL).unlink(missing_ok=True)
    for path in work.folder.iterdir():
        if path != unfinished_folder(work.folder / str(work.output)):
            disk.remove_staged(path) if path.is_dir() else path.unlink()


def _files(folder: Path) -> dict[str, Path]:
    """All files of a call but call.json, by name."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != CALL)
    return {path.relative_to(folder).as_posix(): path for path in files}


def _listing(folder: Path) -> dict[str, Any]:
    return {name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)} for name, path in _files(folder).items()}


def _keep(record: Mapping[str, Any], folder: Path) -> None:
    draft = folder / f".{CALL}"
    draft.write_text(to_json(record), "utf-8")
    disk.sync(draft)
    os.replace(draft, folder / CALL)


def kept(folder: Path, key: str) -> dict[str, Any] | None:
    """The call.json of a finished call, None where there is none. Raises EditError, with what is wrong, where it cannot be used."""
    try:
        record = json.loads((folder / CALL).read_text("utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise EditError(f"{CALL} cannot be read") from error
    try:
        if record["editkit"] != __version__ or record["key"] != key:
            raise EditError(f"{CALL} is of another call")
        if not all(isinstance(record[name], kinds) for name, kinds in _KINDS.items()):
            raise EditError(f"{CALL} is damaged")
        known = {name: (one["bytes"], one["sha256"]) for name, one in record["files"].items()}
    except (AttributeError, KeyError, TypeError) as error:
        raise EditError(f"{CALL} is damaged") from error
    for name, (size, digest) in known.items():
        path = folder / name
        if not path.is_file():
            raise EditError(f"{name} is gone")
        if path.stat().st_size != size or sha256_of(path) != digest:
            raise EditError(f"{name} was changed")
    if added := _files(folder).keys() - known.keys():
        raise EditError(f"{min(added)} was added")
    return record


def result_of(folder: Path) -> Any:
    """What a finished call returned."""
    return json.loads((folder / RESULT).read_text("utf-8"))
