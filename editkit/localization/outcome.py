"""The outcome of a localization: scores, masks and what the report says of them."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from editkit.checkpoint.blocks import Block, Progress, counted
from editkit.checkpoint.header import TensorInfo
from editkit.checkpoint.reader import open_checkpoint
from editkit.checkpoint.single import SingleFileWriter
from editkit.checkpoint.ties import tied_copies
from editkit.localization import report
from editkit.localization.choice import Choice, NothingSelected, choose
from editkit.localization.evidence import OTHER, Evidence, GradientMeans
from editkit.localization.gradients import HALF
from editkit.localization.method import method
from editkit.localization.selection import overlap, random_entries, write_mask
from editkit.localization.settings import Settings

SCORES, MASK, REPORT, CONTROL = "scores.safetensors", "mask.safetensors", "localization.json", "control"


class Outcome:
    """Writes scores, mask and control into `folder`, and makes rows of the report of them.

    evidence: what is known of the elements. made_for: `base` (name) and `base_sha256` of the checkpoint, for the masks.
    """

    def __init__(
        self,
        folder: Path,
        settings: Settings,
        infos: Sequence[TensorInfo],
        evidence: Evidence,
        made_for: Mapping[str, Any],
        threads: int | None,
    ) -> None:
        self.folder, self.settings, self.infos, self.evidence = folder, settings, infos, evidence
        self._threads = threads
        self._copies = dict.fromkeys(tied_copies(evidence.layout)[1:], next(iter(tied_copies(evidence.layout)), ""))
        self._record = {"granularity": settings.granularity, "method": settings.method, **made_for}

    def write(self, progress: Progress | None) -> dict[str, Any]:
        """Write scores and mask; returns the report's rows, totals and warnings."""
        settings, infos = self.settings, self.infos
        sums = self.evidence.measure(infos, self._threads) if settings.accumulate else None
        scored, highest = self._write_scores(progress)
        with open_checkpoint(self.folder / SCORES) as saved:

            def read(block: Block) -> np.ndarray:
                values = np.empty(block.shape, np.float32)
                saved.read_into(
                    block.info.name, 4 * block.first * block.info.columns, values.reshape(-1).view(np.uint8)
                )
                return values

            choice = choose(settings, infos, self.evidence, sums, scored, read, self._threads)
            chosen = {} if settings.element else {info.name: entry for info, entry in choice.entries}
            path = self.folder / MASK
            written = write_mask(path, infos, choice.entries, self.evidence.units, self._copies, self._record)
        self.selected = written.selected
        rows = report.tensor_rows(infos, settings, self.evidence.units, sums, scored, highest, chosen, written)
        total = sum(row["units"] for row in rows)
        everything = {key: sum(row[key] for row in rows) for key in ("numel", "selected", "units", "units_selected")}
        fraction = everything["selected"] / everything["numel"]
        return {
            "summary": {**everything, "selected_fraction": fraction, "threshold": choice.threshold},
            "layers": report.joined(rows, "stack", "layer"),
            "modules": report.joined(rows, "module"),
            "tensors": rows,
            "top_units": report.top_units(settings, infos, scored, chosen, written),
            "tied": {copy: name for copy, name in self._copies.items() if name in written.selected},
            "histogram": report.histogram(choice.counts, choice.selected, total),
            "warnings": _warnings(settings, choice, everything["numel"], everything["selected"]),
        }

    def control(self) -> dict[str, Any]:
        """Write a random mask with as many parameters in every layer as the selection; its row of the report."""
        seed = self.settings.seed + 1
        evidence = Evidence(method("random"), self.evidence.layout, self.evidence.units, seed=seed)
        entries = random_entries(evidence, self.infos, self.selected, self.settings.granularity, self._threads)
        (self.folder / CONTROL).mkdir()
        path, record = self.folder / CONTROL / MASK, {**self._record, "method": "random", "seed": seed}
        written = write_mask(path, self.infos, entries, evidence.units, self._copies, record)
        shared = overlap(self._entries(self.folder / MASK), self._entries(path), self._sizes())
        selected = sum(written.selected.values())
        return {"mask": f"{CONTROL}/{MASK}", "seed": seed, "selected": selected, "jaccard": shared.jaccard}

    def stability(self, gradients: GradientMeans, halves: Sequence[int], **known: Any) -> dict[str, Any] | None:
        """Jaccard of the selections from two halves of the forget set, beside that of two random selections.

        None where one of the halves selects nothing.
        """
        settings, choices = self.settings, []
        for half in (HALF, OTHER):
            evidence = Evidence(
                settings.kind, self.evidence.layout, self.evidence.units, gradients=gradients, half=half, **known
            )
            sums = evidence.measure(self.infos, self._threads)
            scored = {} if settings.element else evidence.score_units(self.infos, self._threads)[0]
            try:
                choices.append(choose(settings, self.infos, evidence, sums, scored, evidence.scores, self._threads))
            except NothingSelected:
                return None
        return {**overlap(choices[0].entries, choices[1].entries, self._sizes())._asdict(), "halves": list(halves)}

    def _sizes(self) -> dict[str, int]:
        """Elements behind one value of an entry of a mask."""
        units, element = self.evidence.units, self.settings.element
        return {info.name: 1 if element else info.numel // units[info.name].count for info in self.infos}

    def _entries(self, path: Path) -> Iterator[tuple[TensorInfo, np.ndarray]]:
        with open_checkpoint(path) as mask:
            for info in self.infos:
                entry = mask.array(info.name)
                yield info, entry if self.settings.element else entry.view(np.bool_)

    def _write_scores(self, progress: Progress | None) -> tuple[dict[str, np.ndarray], dict[str, float]]:
        infos, units, element = self.infos, self.evidence.units, self.settings.element
        shapes = {info.name: ("F32", info.shape if element else (units[info.name].count,)) for info in infos}
        advance = counted(progress, sum(info.nbytes for info in infos))
        record = {"format": "editkit.scores/1", **self._record}
        with SingleFileWriter(self.folder / SCORES, shapes, {"editkit": json.dumps(record)}) as writer:

            def done(block: Block, values: np.ndarray) -> None:
                if element:
                    raw = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
                    writer.write(block.info.name, 4 * block.first * block.info.columns, raw)
                advance(block.nbytes)

            scored, highest = self.evidence.score_units(infos, self._threads, done)
            if not element:
                for info in infos:
                    writer.write(info.name, 0, scored[info.name].astype(np.float32).view(np.uint8))
        return scored, highest


def _warnings(settings: Settings, choice: Choice, numel: int, selected: int) -> list[str]:
    if choice.short:
        return [f"{choice.short:,} {settings.granularity}s of the budget are not used: no other score is above zero"]
    if settings.budget is None and selected == numel:
        return ["the thresholds select everything: lower --mu or raise --sigma"]
    wanted = numel * (settings.budget.share or 0.0) if settings.budget else 0.0
    if selected < 0.9 * wanted:
        return [
            f"the budget allows {wanted:,.0f} parameters and {selected:,} are selected: the next {settings.granularity} in the order "
            "of scores has more than are left; a finer --granularity would use them"
        ]
    return []
