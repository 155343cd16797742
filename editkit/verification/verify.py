"""`verify`: whether an output is what its `editkit.json` claims: its bytes, its inputs, and that these give it.

>>> found = verify("edited", inputs={"base": "model"}, recompute=True)  # doctest: +SKIP
>>> found["verdict"], found["rows"][0]  # doctest: +SKIP
('ok', {'what': 'output', 'name': 'config.json', 'state': 'ok', 'why': None})
"""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from editkit.checkpoint.blocks import Progress
from editkit.checkpoint.digests import sha256_of
from editkit.checkpoint.layout import PROVENANCE, REPORTS, Layout
from editkit.checkpoint.provenance import ADAPTER, hashes
from editkit.checkpoint.provenance import SCHEMA as PROVENANCE_SCHEMA
from editkit.checkpoint.reader import locate, open_checkpoint
from editkit.errors import EditError, listed, printable
from editkit.masks.mask import mask_file
from editkit.training.data import read_examples
from editkit.verification.recompute import inside, rebuilt

SCHEMA = "editkit.verification/1"
Source = str | os.PathLike[str]
DATA, TUNED = "data", "tuned"
DOCUMENTS = (".md", ".png")
BESIDE = (*REPORTS.items(), ("vector", "task_vector.safetensors"), ("vector", "adapter_model.safetensors"))
"""Folders that editkit puts into an output and records no hash of, and the file that tells them from others."""


class Row(NamedTuple):
    """what: "output", "input" or "recompute". state: "ok", "differs", "unknown" or "skipped"; why: a phrase, None where ok."""

    what: str
    name: str
    state: str
    why: str | None = None


def verify(
    output: Source,
    *,
    inputs: Mapping[str, Source] | None = None,
    recompute: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Compare the output of an edit with what it says of itself, as a dictionary of schema `editkit.verification/1`.

    inputs: where the inputs are, by their role ("base", "vector 1", "model 1 mask", "data") or name; "tuned" is the vector where there
    is one only. A mask may be the folder of a localization. Those that are not given are looked for beside the output, in it and
    in the working folder; one that is found so and has other weights is another one, and unknown.
    recompute: run the command again on the inputs, in a folder beside the output that is removed, and compare all bytes.

    `verdict` is "ok" where the files of the output have the recorded sha256 (or come out of `recompute`) and nothing differs,
    "differs" where something does, "unknown" where nothing says what the output was, or where `recompute` could not be done.
    Raises EditError where there is no provenance to compare with, and for a name in `inputs` that it does not have.
    """
    layout = locate(output)
    if layout is None:
        raise EditError(f"{output} is not on this machine: download it first")
    record = _record(layout)
    rows = list(_output(layout, record))
    found = dict(_inputs(layout, record, dict(inputs or {}), rows))
    if recompute:
        rows.append(Row("recompute", str(record["command"]), *rebuilt(layout, record, found, threads, progress)))
    states = {(row.what, row.state) for row in rows}
    if any(state == "differs" for _, state in states):
        verdict = "differs"
    else:
        nothing_said = ("output", "unknown") in states and ("recompute", "ok") not in states
        verdict = "unknown" if nothing_said or ("recompute", "skipped") in states else "ok"
    return {
        "schema": SCHEMA,
        "output": printable(layout.label),
        "command": record["command"],
        "editkit": record.get("editkit"),
        "verdict": verdict,
        "rows": [row._asdict() for row in rows],
    }


def _record(layout: Layout) -> dict[str, Any]:
    record = layout.provenance
    if record is None:
        raise EditError(
            f"{layout.label} has no {PROVENANCE}, which says what it was made from: give an output of editkit"
        )
    claimed, schema = record.get("inputs"), record.get("schema")
    kind, _, version = PROVENANCE_SCHEMA.partition("/")
    if (said := re.fullmatch(rf"{kind}/([0-9]+)", str(schema))) and int(said[1]) > int(version):
        raise EditError(
            f"{layout.shown(PROVENANCE)} is of a newer editkit ({schema}, this one reads {PROVENANCE_SCHEMA}): update editkit"
        )
    sound = schema == PROVENANCE_SCHEMA and isinstance(record.get("command"), str)
    sound = sound and isinstance(claimed, list) and all(_sound(one) for one in claimed)
    if not sound or not _hashes(record.get("output", {})):
        raise EditError(f"{layout.shown(PROVENANCE)} is damaged: take that of the original output")
    return record


def _sound(one: Any) -> bool:
    named = isinstance(one, dict) and isinstance(one.get("name"), str) and isinstance(one.get("role"), str | None)
    return named and _hashes(one.get("files"))


def _hashes(files: Any) -> bool:
    return isinstance(files, dict) and all(isinstance(digest, str) for digest in files.values())


def _output(layout: Layout, record: Mapping[str, Any]) -> Iterator[Row]:
    claimed = record.get("output")
    if not claimed:
        for file in layout.files:
            yield Row("output", file, "unknown", "this output was written without the hashes of its files")
        return
    for file, digest in claimed.items():
        path = layout.folder / file
        if not inside(file) or not path.is_file():
            yield Row("output", file, "differs", "it is not there")
        elif (now := sha256_of(path)) != digest:
            yield Row("output", file, "differs", f"its sha256 is {now} instead of {digest}")
        else:
            yield Row("output", file, "ok")
    for file in _later(layout.folder, claimed):
        yield Row("output", file, "differs", "the output had no such file")


def _later(folder: Path, claimed: Mapping[str, str]) -> Iterator[str]:
    """Files and links that the output did not have: all but provenance, documents, hidden ones and what is BESIDE."""
    beside = {name for name, mark in BESIDE if (folder / name / mark).is_file()}
    beside -= {Path(file).parts[0] for file in claimed if inside(file)}
    for path in sorted(folder.rglob("*")):
        file = path.relative_to(folder)
        known = str(file) == PROVENANCE or str(file) in claimed or file.parts[0] in beside
        idle = path.suffix in DOCUMENTS or any(part.startswith(".") for part in file.parts)
        if not (known or idle) and (path.is_symlink() or not path.is_dir()):
            yield str(file)


def _inputs(
    layout: Layout, record: Mapping[str, Any], given: dict[str, Source], rows: list[Row]
) -> Iterator[tuple[str, Path]]:
    """Rows for all inputs; yields role and place of those that are what they were."""
    claimed = [(one.get("role") or one["name"], one["name"], one["files"]) for one in record["inputs"]]
    data = [(DATA, DATA, {DATA: record[DATA]})] if isinstance(record.get(DATA), str) else []
    shown_as = {role: name if role == name else f"{role} ({name})" for role, name, _ in [*claimed, *data]}
    names = {name for role, name, _ in [*claimed, *data] for name in (role, name)}
    vectors = [role for role in shown_as if role.startswith("vector ")]
    if TUNED in given and TUNED not in names and len(vectors) == 1:
        given = {vectors[0] if name == TUNED else name: place for name, place in given.items()}
    if unknown := [name for name in given if name not in names]:
        raise EditError(
            f"{layout.label} was not made from {listed(unknown)}: its inputs are {listed(shown_as.values()) or 'none'}"
        )
    for role, name, files in [*claimed, *data]:
        place, shown = given.get(role, None if name in shown_as else given.get(name)), shown_as[role]
        if place is None:
            found = _nearby(layout, role, name, files) if role != DATA else None
            if found is None:
                rows.append(Row("input", shown, "unknown", f"it was not found: give --input '{role}=PATH'"))
                continue
            place = found
        elif not _same(place, role, files):
            rows.append(Row("input", shown, "differs", f"{os.fspath(place)} has another sha256"))
            continue
        rows.append(Row("input", shown, "ok"))
        yield role, Path(place)


def _nearby(layout: Layout, role: str, name: str, files: Mapping[str, str]) -> Path | None:
    """The input of this name, where the output or the user is at home, if it is still what it was."""
    if not inside(name):
        return None
    beside = layout.folder.absolute().parent, layout.folder.resolve().parent  # which differ for a link
    for folder in (*beside, Path.cwd(), layout.folder, layout.folder / "vector"):
        place = folder / name
        try:
            if place.exists() and _same(place, role, files):
                return place
        except EditError:
            continue
    return None


def _same(place: Source, role: str, files: Mapping[str, str]) -> bool:
    """Whether an input is what it was; what its files are called does not matter."""
    if role == DATA:
        return [read_examples(place).sha256] == [*files.values()]
    with open_checkpoint(mask_file(place) if role.split(" ")[-1] == "mask" else place) as checkpoint:
        now = hashes(checkpoint) if ADAPTER in files else checkpoint.sha256()  # older records have weights alone
    return sorted(now.values()) == sorted(files.values())
