"""Budgets: how much a localization may select, and the units that it does.

>>> parse_budget("5%"), parse_budget("4")
(Budget(share=0.05, count=None), Budget(share=None, count=4))
>>> scores = {"a": np.array([3.0, 1.0]), "b": np.array([2.0, -1.0])}
>>> groups = {"a": "layers", "b": "layers"}
>>> best_units(scores, {"a": 10, "b": 40}, {"layers": 45}, groups)
{'a': array([ True, False]), 'b': array([False, False])}
>>> best_units(scores, {"a": 10, "b": 40}, {"layers": 45}, groups, fill=True)
{'a': array([ True,  True]), 'b': array([False, False])}
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite

import numpy as np

from editkit.errors import EditError


@dataclass(frozen=True)
class Budget:
    """A share of the parameters (0 to 1, exclusive) or a number of units; the other one is None."""

    share: float | None
    count: int | None

    def __str__(self) -> str:
        return f"{self.share * 100:g}%" if self.share is not None else str(self.count)


def parse_budget(text: str | int) -> Budget:
    """`5%` or `5 %`: a share of the parameters; `4`: so many units. Raises EditError for anything else."""
    said = str(text).strip()
    try:
        if said.endswith("%"):
            share = float(said[:-1]) / 100
            if isfinite(share) and 0 < share < 1:
                return Budget(share, None)
            raise EditError(
                f"budget {said} selects {'everything' if share >= 1 else 'nothing'}: give more than 0% and less than 100%"
            )
        count = int(said)
    except ValueError:
        raise EditError(
            f"budget {said!r} is neither a share such as 5% nor a whole number of units such as 4"
        ) from None
    if count < 1:
        raise EditError(f"budget {count} selects nothing: give at least 1, or a share such as 5%")
    return Budget(None, count)


def best_units(
    scores: Mapping[str, np.ndarray],
    costs: Mapping[str, int],
    limits: Mapping[str, int],
    groups: Mapping[str, str],
    *,
    fill: bool = False,
) -> dict[str, np.ndarray]:
    """The units with the highest scores in every group: name -> bool [units].

    scores: name -> [units]. costs: name -> what one of its units takes of the limit, its elements or 1. groups: name -> group,
    limits: group -> limit. Units are taken in the order of their scores until the next one would be over the limit; with `fill`
    such a one is passed over. Equal scores go by their place, the first one first; a score of zero or below is never taken.
    """
    chosen = {name: np.zeros(len(values), np.bool_) for name, values in scores.items()}
    for group, limit in limits.items():
        names = [name for name in scores if groups[name] == group]
        lengths = [len(scores[name]) for name in names]
        values = np.concatenate([scores[name] for name in names])
        owner = np.repeat(np.arange(len(names)), lengths)
        cost = np.array([costs[name] for name in names])[owner]
        order = np.argsort(-values, kind="stable")
        order = order[values[order] > 0]
        taken = np.zeros(len(values), np.bool_)
        while len(order):
            fitting = int(np.searchsorted(np.cumsum(cost[order]), limit, side="right"))
            taken[order[:fitting]] = True
            limit -= int(cost[order[:fitting]].sum())
            order = order[fitting:][cost[order[fitting:]] <= limit] if fill else order[:0]
        for name, mine in zip(names, np.split(taken, np.cumsum(lengths)[:-1]), strict=True):
            chosen[name] = mine
    return chosen
