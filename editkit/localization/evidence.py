"""From sums of gradients to scores: blocks of gradients are joined with the weights that they belong to.

A score is a pure function of what is known of an element (see `method.py`); here are the two passes that apply it: one that
measures every unit (cosine, mean size, attribution), one that scores.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from editkit.arithmetic.draws import key_of, uniform
from editkit.checkpoint.blocks import Block, Scratch, blocks, ordered_map
from editkit.checkpoint.header import TensorInfo
from editkit.checkpoint.reader import Checkpoint
from editkit.errors import EditError
from editkit.localization.gradients import HALF
from editkit.localization.method import Method, Statistics
from editkit.localization.subject import Subject
from editkit.masks.units import Units

if TYPE_CHECKING:
    import torch

OTHER = "other"
"""The examples of the forget set that are not in HALF."""
DOT, FORGET2, RETAIN2, FORGET, RETAIN, CARRIED, CARRIED_RETAIN = range(7)
_CACHED = 2  # fused parameters whose parts stay in memory


class GradientMeans:
    """Means over examples of what was accumulated, block by block under the names of the files. Threads may ask at once.

    counts: label -> how often an example was added (examples x draws x points of the path).
    """

    def __init__(
        self, subject: Subject, sums: Mapping[str, Mapping[str, "torch.Tensor"]], counts: Mapping[str, int]
    ) -> None:
        self._sums, self.counts, self._subject = sums, counts, subject
        self._parts = lru_cache(_CACHED * len(sums))(lambda label, name: subject.parts(name, sums[label][name]))

    def rows(self, label: str, block: Block) -> np.ndarray:
        """float32, of the block's shape."""
        if label == OTHER:  # of sums, so that nothing is left where the other examples have no gradient
            rest = self._sum("forget", block) - self._sum(HALF, block)
            return rest / np.float32(self.counts["forget"] - self.counts[HALF])
        return self._sum(label, block) / np.float32(self.counts[label])

    def _sum(self, label: str, block: Block) -> np.ndarray:
        name = block.info.name
        home, whole = self._subject.homes[name], name in self._subject.whole
        values = self._sums[label][home] if whole else self._parts(label, home)[name]
        rows, columns = block.shape
        first = block.first * block.info.columns
        return values.reshape(-1)[first : first + rows * columns].cpu().numpy().reshape(rows, columns)


class Evidence:
    """All that is known of the elements of `layout`, and the scores that `method` makes of it.

    units: tensor name -> its units. base: for methods that look at w - w_base. half: the part of the forget set that is
    taken for the whole (HALF, OTHER), to see how stable the selection is.
    """

    def __init__(
        self,
        method: Method,
        layout: Checkpoint,
        units: Mapping[str, Units],
        *,
        gradients: GradientMeans | None = None,
        base: Checkpoint | None = None,
        seed: int = 0,
        mu: float | None = None,
        half: str | None = None,
    ) -> None:
        self.method, self.layout, self.units = method, layout, units
        self._gradients, self._base, self._seed, self._mu = gradients, base, seed, mu
        self._forget, self._cosines, self._scratch = half or "forget", dict[str, np.ndarray](), Scratch()

    def measure(self, infos: Sequence[TensorInfo], threads: int | None) -> dict[str, np.ndarray]:
        """Sums over every unit, float64 [units, 7]: of F R, F^2, R^2, |F|, |R|, and of -tau F and -tau R for a path.

        Also gives `scores` the cosines that it needs. Unknown sums are NaN.
        """

        def sums(block: Block) -> tuple[Block, np.ndarray]:
            known, units = self.statistics(block), self.units[block.info.name]
            found = np.full((7, units.count), np.nan)
            f, r, tau = known.forget, known.retain, known.delta
            products = {FORGET: f, RETAIN: r, FORGET2: _times(f, f), RETAIN2: _times(r, r), DOT: _times(f, r)}
            if self.method.additive:
                products |= {CARRIED: _times(tau, f), CARRIED_RETAIN: _times(tau, r)}
            for place, values in products.items():
                if values is not None:
                    found[place] = 0
                    units.add(block, np.abs(values) if place in (FORGET, RETAIN) else values, found[place])
            return block, found * np.where(np.arange(7) >= CARRIED, -1, 1)[:, None]

        totals = {info.name: np.zeros((7, self.units[info.name].count)) for info in infos}
        with ordered_map(sums, (block for info in infos for block in blocks(info)), threads) as results:
            for block, found in results:
                totals[block.info.name] += found
        self._cosines = {name: np.nan_to_num(cosine(found)).astype(np.float32) for name, found in totals.items()}
        return {name: found.T for name, found in totals.items()}

    def statistics(self, block: Block) -> Statistics:
        """What is known of the elements of a block."""
        name = block.info.name
        weights = delta = None
        if self.method.weights:
            weights = self._scratch.read("weights", self.layout, name, block, np.float32)
        if weights is not None and self._base is not None:
            before = self._scratch.read("base", self._base, name, block, np.float32)
            delta = np.subtract(weights, before, out=before)
        forget = retain = None
        if self._gradients is not None:
            forget = self._gradients.rows(self._forget, block)
            retain = self._gradients.rows("retain", block) if "retain" in self._gradients.counts else None
        cosines = self._cosines.get(name)
        spread = None if cosines is None else self.units[name].spread(block, cosines)
        return Statistics(weights, delta, forget, retain, spread, None, self._mu)

    def scores(self, block: Block) -> np.ndarray:
        """One float32 score per element, of the block's shape. Raises EditError where one is not finite."""
        known = self.statistics(block)
        if not self.method.accumulate:
            known = known._replace(draws=self._draws(block))
        with np.errstate(over="ignore", invalid="ignore"):
            values = self.method.score(known).astype(np.float32, copy=False)
        if not np.isfinite(values).all():
            raise EditError(
                f"{block.info.name} gets scores that are NaN or Inf: check its weights (editkit inspect, editkit diff)"
            )
        return values

    def _draws(self, block: Block) -> np.ndarray:
        """One draw for each element, or for each unit: means over many elements would all be near one half."""
        units, key = self.units[block.info.name], key_of(self._seed, block.info.name)
        alone = units.granularity == "element"
        draws = np.empty(block.shape if alone else units.count, np.float32)
        uniform(key, block.first * block.info.columns if alone else 0, draws)
        return draws if alone else np.broadcast_to(units.spread(block, draws), block.shape)

    def score_units(
        self, infos: Sequence[TensorInfo], threads: int | None, done: Callable[[Block, np.ndarray], None] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, float]]:
        """Scores of all units, name -> float64 [units], and the highest score of an element of every tensor.

        `done` is called with the elements' scores of each block.
        """

        def reduce(block: Block) -> tuple[Block, np.ndarray, float]:
            values, units = self.scores(block), self.units[block.info.name]
            if done is not None:
                done(block, values)
            into = np.zeros(units.count)
            units.add(block, values, into)
            return block, into, float(values.max())

        totals = {info.name: np.zeros(self.units[info.name].count) for info in infos}
        highest = {info.name: -np.inf for info in infos}
        with ordered_map(reduce, (block for info in infos for block in blocks(info)), threads) as results:
            for block, found, best in results:
                totals[block.info.name] += found
                highest[block.info.name] = max(highest[block.info.name], best)
        if not self.method.additive:
            for info in infos:
                totals[info.name] /= info.numel // self.units[info.name].count
        return totals, highest


def cosine(sums: np.ndarray) -> np.ndarray:
    """F.R / |F| |R| of sums [7, ...]; NaN where one of them is zero or unknown."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return sums[DOT] / np.sqrt(sums[FORGET2] * sums[RETAIN2])


def _times(a: np.ndarray | None, b: np.ndarray | None) -> np.ndarray | None:
    return None if a is None or b is None else np.multiply(a, b, dtype=np.float64)
