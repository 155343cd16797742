"""What a merge method is: a few lines of numbers between the settings of one tensor and the new values of one block.

A method gets the `Terms` of a tensor and returns a function from a `Stack`, which is one block of it, to new values. Where it has to
see the whole tensor first, it is a generator: it yields a measurement (a function of a block), and is sent what the
measurements of all blocks add up to. So a norm, an angle or a threshold takes one pass over the tensor, and no more memory
than a block:

>>> def halfway_in_length(terms):
...     squares = yield lambda stack: np.square(stack.models, dtype=np.float64).sum((1, 2))
...     share = 1 / (1 + np.sqrt(squares[1] / squares[0]))
...     return lambda stack: share * stack.models[0] + (1 - share) * stack.models[1]
"""

from collections.abc import Callable, Generator, Mapping
from typing import Any, NamedTuple

import numpy as np

from editkit.arithmetic.draws import key_of


class Terms(NamedTuple):
    """What is known of a tensor before it is read.

    name: what its random draws depend on. rows, columns, numel: of its matrix view. settings: of the method, complete.
    models: settings of each model, complete. precision: None, or the dtype in which mergekit would calculate, which is then imitated.
    """

    name: str
    rows: int
    columns: int
    numel: int
    settings: Mapping[str, Any]
    models: tuple[Mapping[str, Any], ...]
    seed: int = 0
    precision: str | None = None

    def each(self, setting: str) -> np.ndarray:
        """A setting of every model: float64 [models]."""
        return np.array([one[setting] for one in self.models], np.float64)

    def key(self, model: int) -> np.uint64:
        """Of the random draws for one model, as `arithmetic/draws.py` takes it."""
        return np.uint64(key_of(self.seed, f"{self.name}\0{model}"))


class Stack(NamedTuple):
    """One block of a tensor in all models, float32 or float64, the method's to change.

    base: [rows, columns], None where the merge has no base. models: [models, rows, columns], values or differences to the
    base (`Method.deltas`). first: index of the first element in the tensor. out: [rows, columns], for the result.
    """

    base: np.ndarray | None
    models: np.ndarray
    first: int
    out: np.ndarray


Combine = Callable[[Stack], np.ndarray]
"""The new values of a block, [rows, columns]."""
Steps = Generator[Callable[[Stack], Any], Any, Combine]
"""Measurements, whose results over the blocks are added up with `+=` in their order, and in the end a `Combine`."""


class Setting(NamedTuple):
    """A setting: `read` gives its value or raises ValueError with what is wrong. default: None where it must be given."""

    read: Callable[[Any], Any]
    default: Any = None


class Method(NamedTuple):
    """A merge method.

    label, link: its name for people, where it is from. merge: see above. settings: of the whole merge; model_settings: of each model
    besides the base. base: whether one is "required", "optional", or "unused", which makes it a model like the others.
    fewest, most: number of models besides the base. deltas: models come as differences to the base where there is one, and a
    merge without any difference is the base. remark: what is done unlike mergekit with such terms, in one sentence.
    """

    label: str
    link: str
    merge: Callable[[Terms], Combine | Steps]
    settings: Mapping[str, Setting] = {}
    model_settings: Mapping[str, Setting] = {}
    base: str = "required"
    fewest: int = 1
    most: int | None = None
    deltas: bool = True
    remark: Callable[[Terms], str | None] = lambda terms: None
