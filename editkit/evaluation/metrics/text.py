"""Whether generations are still language: repetition, distinct n-grams, perplexity under the base model.

>>> repetition("a b a b a b a".split()), distinct("a b a b".split())
(0.5, 0.6666666666666666)
"""

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from editkit.evaluation.metrics.statistics import known


def distinct(tokens: Sequence[Hashable], n: int = 2) -> float | None:
    """distinct-n (Li et al. 2016, 1510.03055, per text): different n-grams over all n-grams; None for fewer than n tokens."""
    grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return len(set(grams)) / len(grams) if grams else None


def repetition(tokens: Sequence[Hashable], n: int = 4) -> float | None:
    """The share of n-grams that occurred before in the text (rep-n of Welleck et al. 2020, 1908.04319); None for fewer than n tokens."""
    different = distinct(tokens, n)
    return None if different is None else 1 - different


def perplexity(nlls: ArrayLike) -> float | None:
    """`exp(mean NLL)` over examples, unknown ones left out; None where there is none."""
    found = known(nlls)
    with np.errstate(over="ignore"):
        return float(np.exp(found.mean())) if found.size else None
