"""A localization method: which gradient statistics it needs, and the scores that it makes of them.

>>> method("snip").accumulate, method("memflex").retain
(('signed', 'absolute', 'squared'), True)
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np

from editkit.errors import EditError, listed

NAMES = ("memflex", "salun", "wagle", "fisher", "snip", "path", "magnitude", "random")


class Statistics(NamedTuple):
    """What is known of some elements: float32 arrays of one shape [rows, columns], None where a method does not ask.

    weights: w. delta: w - w_base. forget, retain: means over the examples of gradients g_i, of |g_i|, or of g_i^2, as
    accumulated. cosine: of the forget and retain gradients of the unit that an element belongs to, broadcastable.
    draws: uniform in (0, 1]. mu: the method's constant.
    """

    weights: Any = None
    delta: Any = None
    forget: Any = None
    retain: Any = None
    cosine: Any = None
    draws: Any = None
    mu: Any = None


class Method(NamedTuple):
    """score: Statistics -> one score per element, the higher the sooner selected; zero and below is never selected.

    accumulate: ways to add up gradients, the first one by default; () needs none. retain, base, weights: needs a retain set, a
    base checkpoint, w (or w - w_base where a base is given). labels, draws: how labels are made by default. additive: a unit's score is the sum of its elements', not
    their mean. mu: default of its constant.
    """

    score: Callable[[Statistics], np.ndarray]
    accumulate: tuple[str, ...]
    retain: bool = False
    base: bool = False
    labels: str = "true"
    draws: int = 1
    weights: bool = False
    additive: bool = False
    mu: float | None = None


def method(name: str) -> Method:
    """The method of this name. Raises EditError for an unknown one."""
    if name not in NAMES:
        raise EditError(f"method {name!r} is unknown: choose one of {listed(NAMES)}")
    return import_module(f"editkit.localization.methods.{name}").METHOD
