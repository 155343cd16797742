"""SCE: select, calculate, erase. Wan et al. 2024, FuseChat (https://arxiv.org/abs/2408.07990).

    keep the elements of the differences whose variance over the models is among the `select_topk` largest;
    weight_j = mean(d_j^2) / sum_j mean(d_j^2);
    w = w_base + sum_agree weight_j d_j / sum_agree weight_j,   for the sign elected as in `consensus.py`

The share is one of the elements that differ between the models at all. mergekit gives all models the same weight where the
mean squares add up to less than 1e-6, which they do after most fine-tuning; here only where they are all zero.
"""

import numpy as np

from editkit.merging.method import Method, Setting, Stack, Steps, Terms
from editkit.merging.methods.consensus import elect
from editkit.merging.methods.ranks import EVERYTHING, between, cuts
from editkit.merging.methods.sparsity import Steps as Drops
from editkit.merging.rules import number, truth


def sce(terms: Terms) -> Steps:
    """Two passes for the threshold, where there is one, and one for the weights."""
    drop = yield from _selected(terms.settings["select_topk"])

    def squares(stack: Stack) -> np.ndarray:
        drop(stack)
        return np.array([np.vdot(one, one) for one in stack.models.astype(np.float64, copy=False)])

    found = (yield squares) / terms.numel
    even = found.sum() < 1e-6 if terms.precision else not found.any()
    weights = np.full(len(found), 1 / len(found)) if even else found / found.sum()

    def block(stack: Stack) -> np.ndarray:
        drop(stack)
        return elect(stack, np.ones(len(weights)), weights, weights)

    return block


def _selected(share: float) -> Drops:
    def ranks(positive: np.ndarray) -> list[list[int]]:
        return [[int(positive[0] * share)]]

    floor = EVERYTHING
    if share < 1:
        [[floor]] = yield from cuts(lambda stack, row: _variance(stack), 1, ranks)

    def drop(stack: Stack) -> None:
        if share < 1:
            variance = _variance(stack)
            for model in stack.models:
                between(variance, model, stack.first, floor)

    return drop


def _variance(stack: Stack) -> np.ndarray:
    return np.var(stack.models, axis=0, dtype=np.float64).astype(np.float32)


METHOD = Method(
    "SCE",
    "https://arxiv.org/abs/2408.07990",
    sce,
    {"select_topk": Setting(number(0, 1), 1.0), "int8_mask": Setting(truth, False)},
)
