"""Random labels: part of the answer's tokens replaced by any others, so that memorised examples have a gradient again.

MemFlex (https://arxiv.org/abs/2407.01920) replaces about 40 % of them, in the input and in the labels, three times over. A
model that has memorised an example has a loss near zero on it, and a gradient that is mostly noise.

>>> row = Tokens([0, 5, 6, 7, 8], [-100, -100, 6, 7, 8])
>>> randomized(row, 1.0, vocabulary=4, key=3).labels[:2]
[-100, -100]
>>> parse_labels("true"), parse_labels("random:0.4")
(None, 0.4)
"""

import numpy as np

from editkit.arithmetic.draws import uniform
from editkit.errors import EditError
from editkit.training.encoding import IGNORED, Tokens


def parse_labels(text: str) -> float | None:
    """The share of `random:SHARE`; None for `true`. Raises EditError for anything else."""
    if text == "true":
        return None
    kind, _, share = text.partition(":")
    try:
        fraction = float(share)
    except ValueError:
        fraction = -1.0
    if kind != "random" or not 0 < fraction <= 1:
        raise EditError(
            f"labels {text!r} are unknown: say true, or random:SHARE with a share of the tokens such as random:0.4"
        )
    return fraction


def randomized(row: Tokens, fraction: float, vocabulary: int, key: int) -> Tokens:
    """`row` with each token in the loss replaced, with probability `fraction`, by one of the `vocabulary`, all alike likely.

    At least one is replaced. `key` is the source of all randomness.
    """
    places = [index for index, label in enumerate(row.labels) if label != IGNORED]
    draws = np.empty((2, len(places)), np.float32)
    uniform(key, 0, draws)
    replaced = draws[0] <= max(fraction, draws[0].min())
    tokens = np.minimum((draws[1] * vocabulary).astype(np.int64), vocabulary - 1)
    ids, labels = list(row.ids), list(row.labels)
    for index, hit, token in zip(places, replaced, tokens.tolist(), strict=True):
        if hit:
            ids[index] = labels[index] = token
    return Tokens(ids, labels)
