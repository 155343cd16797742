"""What peft's methods do with tensors of one shape: trim the small values, drop some at random, elect signs, add up.

TIES (Yadav et al. 2023, https://arxiv.org/abs/2306.01708): keep the share `density` of each tensor with the largest
magnitude, elect for each element the sign of the sum, average those that have it. DARE (Yu et al. 2023,
https://arxiv.org/abs/2311.03099): keep each element with the probability `density` and divide it by that, so that the mean stays.

As in peft, signs are elected without weights, and the average divides by the number of tensors. Unlike in peft, a tensor of
negative weight is negated before the election, not after, and where the sum is exactly zero no sign wins (there, plus does).

>>> import numpy as np
>>> one, other = np.array([[3.0, -2.0, 0.1]]), np.array([[1.0, 4.0, -3.0]])
>>> tensors = [lambda first, last: one[first:last], lambda first, last: other[first:last]]
>>> Mix(tensors, (1, 3), [1.0, 1.0], method="ties", density=0.7, seed=0, name="w").rows(0, 1)
array([[ 3.,  4., -3.]])
"""

from collections.abc import Callable, Sequence
from functools import reduce

import numpy as np

from editkit.arithmetic import ranking
from editkit.arithmetic.draws import key_of, uniform

ReadRows = Callable[[int, int], np.ndarray]
SPARSE = ("ties", "dare_linear", "dare_ties", "magnitude_prune")
"""The methods with a density; "linear" adds up all there is."""
_BLOCK = 1 << 20  # elements of one tensor at a time, while thresholds are looked for


class Mix:
    """The mixture of `tensors` of one `shape`, by rows. Each reads its rows [first, last), and is not changed.

    weights: one for each tensor. density: share that is kept of each. seed, name: what random drops depend on, besides the
    place in the tensor and the tensor's index.
    """

    def __init__(
        self,
        tensors: Sequence[ReadRows],
        shape: tuple[int, ...],
        weights: Sequence[float],
        *,
        method: str,
        density: float | None,
        seed: int,
        name: str,
    ) -> None:
        self.method, self.tensors, self.shape, self.weights = method, tensors, shape, weights
        self.density = 1.0 if density is None else density
        self._keys = [key_of(seed, f"{name}\0{index}") for index in range(len(tensors))]
        trims = method in ("ties", "magnitude_prune") and self.density < 1
        self._least = [self._threshold(read) if trims else 0.0 for read in tensors]

    def rows(self, first: int, last: int) -> np.ndarray:
        values = [self._sparse(index, first, last) for index in range(len(self.tensors))]
        if "ties" not in self.method:
            return reduce(np.add, (weight * one for weight, one in zip(self.weights, values, strict=True)))
        signed = [one * (-1 if weight < 0 else 1) for weight, one in zip(self.weights, values, strict=True)]
        elected = np.sign(reduce(np.add, signed))
        agreeing = [np.sign(one) * elected > 0 for one in signed]
        kept = reduce(
            np.add, (abs(w) * one * said for w, one, said in zip(self.weights, signed, agreeing, strict=True))
        )
        return kept / np.maximum(reduce(np.add, (said.astype(kept.dtype) for said in agreeing)), 1)

    def _sparse(self, index: int, first: int, last: int) -> np.ndarray:
        values = self.tensors[index](first, last)
        if self.method.startswith("dare"):
            drawn = np.empty(values.shape, np.float32)
            uniform(self._keys[index], first * self.shape[1], drawn)
            return np.where(drawn <= self.density, values, 0) / (self.density or 1)
        return np.where(_scores(values) >= self._least[index], values, 0) if self._least[index] else values

    def _threshold(self, read: ReadRows) -> float:
        """The magnitude of the last element that is kept: of several equal ones all are."""
        rows, columns = self.shape
        step = max(1, _BLOCK // columns)
        spans = [(first, min(first + step, rows)) for first in range(0, rows, step)]
        high = reduce(np.add, (ranking.upper(_scores(read(*span))).astype(np.int64) for span in spans))
        count = min(int(self.density * rows * columns), int(high.sum()))
        if count == 0:
            return float("inf")
        top, above = ranking.position(high, count)
        low = reduce(np.add, (ranking.lower(_scores(read(*span)), top).astype(np.int64) for span in spans))
        return ranking.value_of(top, ranking.position(low, count - above)[0])


def _scores(values: np.ndarray) -> np.ndarray:
    return np.abs(values).astype(np.float32, copy=False)
