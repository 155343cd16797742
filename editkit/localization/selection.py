"""From scores to a mask: the best elements or units within a budget, and the file that edits, training and audits read."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from editkit.checkpoint.header import TensorInfo
from editkit.checkpoint.single import SingleFileWriter
from editkit.localization.evidence import Evidence
from editkit.masks.budget import best_units
from editkit.masks.mask import FORMAT
from editkit.masks.threshold import chosen_bits, thresholds
from editkit.masks.units import Units
from editkit.names import parse

Entries = Iterable[tuple[TensorInfo, np.ndarray]]
"""Tensor after tensor with its entry in the mask: bool [units], or packed bits, lowest first, uint8 [ceil(numel / 8)]."""


def layer_of(name: str) -> str:
    """The layer of a tensor, as the name of a group: "model.layers.3"; outside of layers every tensor is its own."""
    place = parse(name)
    return f"{place.stack}.{place.layer}" if place.layer is not None else name


class Written(NamedTuple):
    """What a mask file selects. selected: name -> elements. rows: name -> selected elements in each of its rows."""

    selected: dict[str, int]
    rows: dict[str, np.ndarray]


def write_mask(
    path: Path,
    infos: Sequence[TensorInfo],
    entries: Entries,
    units: Mapping[str, Units],
    copies: Mapping[str, str],
    record: Mapping[str, Any],
) -> Written:
    """Write the mask file `path`. copies: further names of tied tensors -> the name whose entry they share."""
    element = record["granularity"] == "element"
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {
        info.name: ("U8", (-(-info.numel // 8),)) if element else ("BOOL", (units[info.name].count,)) for info in infos
    }
    shapes |= {copy: shapes[name] for copy, name in copies.items() if name in shapes}
    written = Written({}, {})
    metadata = {"editkit": json.dumps({"format": FORMAT, **record})}
    with SingleFileWriter(path, shapes, metadata) as writer:
        for info, entry in entries:
            for name in (info.name, *(copy for copy, name in copies.items() if name == info.name)):
                writer.write(name, 0, entry.view(np.uint8))
            if element:
                written.rows[info.name] = _per_row(info, entry)
                written.selected[info.name] = int(written.rows[info.name].sum())
            else:
                written.selected[info.name] = int(entry.sum()) * (info.numel // units[info.name].count)
    return written


def random_entries(
    evidence: Evidence, infos: Sequence[TensorInfo], selected: Mapping[str, int], granularity: str, threads: int | None
) -> Entries:
    """A random mask with as many parameters in every layer as `selected` (name -> elements); `evidence` draws the scores.

    Whole units rarely add up to the same number: then as many as fit, in random order.
    """
    groups = {info.name: layer_of(info.name) for info in infos}
    wanted = dict.fromkeys(groups.values(), 0)
    for name, count in selected.items():
        wanted[groups[name]] += count
    if granularity == "element":
        found, _ = thresholds(infos, evidence.scores, wanted, groups, threads)
        return chosen_bits(infos, evidence.scores, found, groups, threads)
    costs = {info.name: info.numel // evidence.units[info.name].count for info in infos}
    chosen = best_units(evidence.score_units(infos, threads)[0], costs, wanted, groups, fill=True)
    return [(info, chosen[info.name]) for info in infos]


class Overlap(NamedTuple):
    """Shared elements over those in either mask, and what random masks with the same share of every tensor would have.

    Both are None where both masks select nothing.
    """

    jaccard: float | None
    expected_of_random: float | None

    @classmethod
    def of(cls, both: float, either_way: float, expected: float) -> "Overlap":
        """From elements in both masks, those in one plus those in the other, and those expected in both."""
        if not either_way:
            return cls(None, None)
        return cls(both / (either_way - both), expected / (either_way - expected))


def overlap(one: Entries, other: Entries, sizes: Mapping[str, int]) -> Overlap:
    """How much two masks have in common. Their entries come in the same order.

    sizes: name -> elements behind one value of an entry of units; 1 for packed bits.
    """
    counts = np.zeros(4)  # in both, in one, in the other, expected in both
    for (info, left), (_, right) in zip(one, other, strict=True):
        left, right = (np.unpackbits(bits) if bits.dtype == np.uint8 else bits for bits in (left, right))
        both, first, second = (sizes[info.name] * int(np.count_nonzero(bits)) for bits in (left & right, left, right))
        counts += (both, first, second, first * second / info.numel)
    return Overlap.of(float(counts[0]), float(counts[1] + counts[2]), float(counts[3]))


def _per_row(info: TensorInfo, bits: np.ndarray) -> np.ndarray:
    """Selected elements in every row of the first axis; a vector is one row."""
    rows = info.shape[0] if len(info.shape) > 1 else 1
    width = info.numel // rows
    counts = np.empty(rows, np.int64)
    step = max(1, (1 << 24) // width)
    for first in range(0, rows, step):
        last = min(first + step, rows)
        begin, end = first * width, last * width
        chunk = np.unpackbits(bits[begin // 8 : -(-end // 8)], bitorder="little")[begin % 8 :][: end - begin]
        counts[first:last] = chunk.reshape(last - first, width).sum(1)
    return counts
