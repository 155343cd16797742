"""The command that made an output, run again on the same inputs into a folder that is removed, and compared byte by byte.

What its record claims is compared with the record of the second run, but for NOT_COMPARED.
"""

import filecmp
import os
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from editkit import __version__
from editkit.adapters.combine import combine
from editkit.checkpoint import disk
from editkit.checkpoint.blocks import Progress
from editkit.checkpoint.layout import PROVENANCE, Layout, load_json
from editkit.editing.bake import bake
from editkit.editing.negate import negate
from editkit.errors import EditError, first_line, listed
from editkit.merging.merge import execute
from editkit.merging.record import restored

Inputs = Mapping[str, Path]
Record = Mapping[str, Any]
NOT_COMPARED = frozenset(
    "editkit versions inputs output plan.base plan.models plan.rules vector.tuned vector.base vector.adapter vector.file "
    "vector.allow_other_base".split()
)
"""Of a record: what was there by chance, names (inputs may be called otherwise now; their hashes are compared), and
`plan.rules`, which are for the eye: what is merged follows from the settings in the plan, of which they are the source."""


def _negate(record: Record, inputs: Inputs, output: Path, **running: Any) -> None:
    settings = {"alpha": record["alpha"], "alpha_for": record["alpha_for"], "data_sha256": record.get("data")}
    settings |= {"vector_base": inputs.get("vector 2"), **_kept(record, inputs)}
    negate(inputs["base"], inputs["vector 1"], output, **settings, **running)


def _bake(record: Record, inputs: Inputs, output: Path, **running: Any) -> None:
    bake(inputs["base"], inputs["vector 1"], output, scale=record["scale"], **_kept(record, inputs), **running)


def _kept(record: Record, inputs: Inputs) -> dict[str, Any]:
    """What the commands that add and subtract vectors have in common. The inputs were compared: no base is another one."""
    kept = {key: record[key] for key in ("only", "rounding", "shard_size") if key in record}
    return {
        **kept,
        "mask": inputs.get("mask"),
        "seed": record.get("seed") or 0,
        "allow_other_base": True,
        "report": False,
    }


def _merge(record: Record, inputs: Inputs, output: Path, **running: Any) -> None:
    plan = restored(record["plan"], lambda role: os.fspath(inputs[role]))._replace(rules=())  # those are for the eye
    execute(plan, output, shard_size=record.get("shard_size"), allow_other_base=True, report=False, **running)


def _combine(record: Record, inputs: Inputs, output: Path, **running: Any) -> None:
    adapters: dict[Any, float] = {
        inputs[f"adapter {number}"]: weight for number, weight in enumerate(record["weights"], 1)
    }
    settings = {key: record[key] for key in ("method", "rank", "density", "allow_other_base")}
    combine(adapters, output, seed=record["seed"] or 0, **settings, **running)


AGAIN: dict[str, Callable[..., None]] = {
    "negate": _negate,
    "bake": _bake,
    "merge": _merge,
    "combine-adapters": _combine,
}
"""Commands that give the same bytes again (of singular values: on the same kind of processor), as functions of record,
inputs, output and how to run."""


def rebuilt(
    layout: Layout, record: Record, inputs: Inputs, threads: int | None, progress: Progress | None
) -> tuple[str, str | None]:
    """State and reason: whether `record`, done again on `inputs`, gives the weights and files of the output."""
    command = record["command"]
    if command not in AGAIN:
        return "skipped", f"{command} is not done again: what comes out depends on the machine too"
    roles = [one.get("role") for one in record["inputs"]]
    if missing := [role for role in roles if role not in inputs]:
        return "skipped", f"there is no {listed(missing)} to do it with"
    home = layout.folder.resolve()
    with disk.staged(home.parent / f"{home.name}.verify") as folder:
        again = folder / home.name
        try:
            AGAIN[command](record, inputs, again, threads=threads, progress=progress)
        except EditError as error:
            return "differs", f"the command fails: {error}"
        except KeyError as error:
            return "skipped", f"its provenance lacks {error}, as that of older versions does"
        except (AttributeError, IndexError, TypeError, ValueError) as error:  # of a record that editkit did not write
            return "differs", f"its provenance is damaged and cannot be carried out ({first_line(error)})"
        claimed = [file for file in record.get("output") or layout.files if inside(file)]
        differ = [file for file in claimed if not _alike(again / file, layout.folder / file)]
        false = _false_claims(record, load_json(again / PROVENANCE, again.name) or {})
    if not differ and not false:
        return "ok", None
    other = (
        ""
        if record.get("editkit") == __version__
        else f" (made by editkit {record.get('editkit')}, this is {__version__})"
    )
    said = [f"{listed(differ)} come out with other bytes"] if differ else []
    said += [f"it claims another {listed(false)} than the command records"] if false else []
    return "differs", "; ".join(said) + other


def _false_claims(record: Record, again: Record) -> list[str]:
    """The keys of a record that the second run has not, or with another value. What an older record lacks is no claim."""
    claimed, found = _claims(record), _claims(again)
    return [key for key, value in claimed.items() if key not in found or found[key] != value]


def _claims(record: Record) -> dict[str, Any]:
    flat: dict[str, Any] = {"inputs' roles": sorted(one["role"] for one in record["inputs"])}
    for key, value in record.items():
        inner = value if key in ("plan", "vector") and isinstance(value, dict) else None
        flat |= {key: value} if inner is None else {f"{key}.{name}": one for name, one in inner.items()}
    return {key: value for key, value in flat.items() if key not in NOT_COMPARED}


def inside(file: str) -> bool:
    """Whether a path in a record stays in its folder."""
    path = PurePosixPath(file)
    return bool(path.name) and not path.is_absolute() and ".." not in path.parts


def _alike(one: Path, other: Path) -> bool:
    return one.is_file() and other.is_file() and filecmp.cmp(one, other, shallow=False)
