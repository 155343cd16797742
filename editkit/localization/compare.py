"""`compare`: what two localizations have in common, per layer and module, beside what chance would give."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from editkit.checkpoint.blocks import blocks
from editkit.checkpoint.header import TensorInfo
from editkit.errors import EditError, listed
from editkit.localization.outcome import CONTROL, REPORT
from editkit.localization.report import SCHEMA
from editkit.localization.selection import Overlap
from editkit.masks.mask import Mask

Source = str | os.PathLike[str]


class Localized(NamedTuple):
    """What a mask asks of the checkpoint that it belongs to, as the report describes it."""

    label: str
    tensors: dict[str, TensorInfo]
    config: dict[str, Any] | None


def compare(one: Source, other: Source) -> dict[str, Any]:
    """How far two localizations of one model agree: their rows `all`, `layers`, `modules` and `tensors`.

    >>> compare("loc", "loc-of-another-seed")["all"]["jaccard"]  # doctest: +SKIP
    0.41

    Each row has, in elements, `numel`, `one`, `other` (selected by each) and `both`; `jaccard` = both / either, None where neither
    selects anything; and `expected_of_random`, the Jaccard of random selections with the same share of every tensor.
    Raises EditError for folders without a localization, and for localizations of other tensors.
    """
    reports = [_report(place) for place in (one, other)]
    described = [_described(place, report) for place, report in zip((one, other), reports, strict=True)]
    left, right = described
    _refuse_unlike(left, right)
    if not _alike(reports):
        raise EditError(f"{left.label} and {right.label} are of different models, without a tensor in common")
    tied = {copy for report in reports for copy in report["tied"]}
    tensors = {name: info for name, info in {**right.tensors, **left.tensors}.items() if name not in tied}
    masks = [
        Mask(place, cast(Any, known), allow_other_base=True)
        for place, known in zip((one, other), described, strict=True)
    ]
    try:
        places = {row["name"]: row for report in reports for row in report["tensors"]}
        rows = [_row(places[info.name], info, *masks) for info in tensors.values()]
    finally:
        for mask in masks:
            mask.file.close()
    return {
        "one": left.label,
        "other": right.label,
        "all": _joined(rows, [])[0],
        "layers": _joined(rows, ["stack", "layer"]),
        "modules": _joined(rows, ["module"]),
        "tensors": [_finished(row) for row in rows],
    }


def _report(place: Source) -> dict[str, Any]:
    folder = Path(place).expanduser().resolve()
    if folder.name == CONTROL and not (folder / REPORT).exists():  # the report beside it describes its tensors
        folder = folder.parent
    try:
        report = json.loads((folder / REPORT).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise EditError(
            f"{place} is no localization (localization.json cannot be read): give folders of editkit localize"
        ) from error
    if not isinstance(report, dict) or report.get("schema") != SCHEMA:
        raise EditError(f"{place} has a localization.json of another version: this editkit reads {SCHEMA}")
    return report


def _described(place: Source, report: Mapping[str, Any]) -> Localized:
    try:
        infos = {
            row["name"]: TensorInfo(row["name"], "F32", tuple(row["shape"]), "", 0, 0) for row in report["tensors"]
        }
        copies = {copy: infos[name] for copy, name in report["tied"].items() if name in infos}
        return Localized(os.fspath(place), infos | copies, report["model"]["config"])
    except (AttributeError, KeyError, TypeError) as error:
        raise EditError(f"{place} has a localization.json that is damaged ({error!r}): localize again") from error


def _refuse_unlike(left: Localized, right: Localized) -> None:
    both = [name for name in left.tensors if name in right.tensors]
    shapes = {name: [list(one.tensors[name].shape) for one in (left, right)] for name in both}
    if unlike := [f"{name} is {one} and {other}" for name, (one, other) in shapes.items() if one != other]:
        raise EditError(f"{left.label} and {right.label} are of different models: {listed(unlike)}")


def _alike(reports: list[dict[str, Any]]) -> bool:
    """Whether the models are the same, or have a tensor in common."""
    left, right = ({row["name"] for row in report["tensors"]} for report in reports)
    hashes = [(report["model"]["sha256"], report["adapter"]) for report in reports]
    return hashes[0] == hashes[1] or not left.isdisjoint(right)


def _row(place: Mapping[str, Any], info: TensorInfo, one: Mask, other: Mask) -> dict[str, Any]:
    counts = np.zeros(3, np.int64)
    for block in blocks(info):
        left, right = (np.broadcast_to(mask.chosen(info.name, block), block.shape) for mask in (one, other))
        counts += [np.count_nonzero(left), np.count_nonzero(right), np.count_nonzero(left & right)]
    chosen = dict(zip(("one", "other", "both"), counts.tolist(), strict=True))
    expected = chosen["one"] * chosen["other"] / info.numel
    return {
        **{key: place[key] for key in ("name", "stack", "layer", "module", "numel")},
        **chosen,
        "expected_both": expected,
    }


def _joined(rows: list[dict[str, Any]], keys: list[str]) -> list[dict[str, Any]]:
    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        group = groups.setdefault(tuple(row[key] for key in keys), {key: row[key] for key in keys})
        for key in ("numel", "one", "other", "both", "expected_both"):
            group[key] = group.get(key, 0) + row[key]
    return [_finished(group) for group in groups.values()]


def _finished(row: dict[str, Any]) -> dict[str, Any]:
    """Counts as a row of the result, with Jaccard."""
    shared = Overlap.of(row["both"], row["one"] + row["other"], row["expected_both"])
    return {**{key: value for key, value in row.items() if key != "expected_both"}, **shared._asdict()}
