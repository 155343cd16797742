"""DELLA: drop differences at random, small ones more often. Deep et al. 2024 (https://arxiv.org/abs/2406.11617).

    p_i = density - epsilon + 2 epsilon * rank_i / (n - 1),    d_i <- d_i * [u_i < p_i] / p_i

with rank_i = 0 ... n - 1 the place of |d_i| in its row, smallest first; then as DARE (della_linear) or with the disjoint mean of TIES
(della). A vector is one row, as in mergekit, and so is the last axis of a tensor with more than two, where mergekit takes the
second one. Divided by its own probability every element keeps its mean; mergekit scales whole tensors to |d|_1.
"""

import numpy as np
from numba import njit

from editkit.arithmetic.draws import splitmix
from editkit.errors import EditError
from editkit.merging.method import Method, Setting, Stack, Steps, Terms
from editkit.merging.methods import consensus, dare, task_arithmetic
from editkit.merging.methods.dare import DENSITY, RANDOM
from editkit.merging.methods.sparsity import Steps as Drops
from editkit.merging.methods.sparsity import dropping, rescaled
from editkit.merging.rules import number, truth


def della_linear(terms: Terms) -> Steps:
    """No pass."""
    drop = yield from dropped(terms)
    return dropping(drop, task_arithmetic.task_arithmetic(terms))


def della(terms: Terms) -> Steps:
    """The same with sign election."""
    drop = yield from dropped(terms)
    return dropping(drop, consensus.consensus(terms))


def dropped(terms: Terms) -> Drops:
    """Zeros at random by rank, and the rest scaled."""
    densities, spreads = terms.each("density"), terms.each("epsilon")
    for density, spread in zip(densities, spreads, strict=True):
        if 0 < density < 1 and not (density - spread > 0 and density + spread < 1):
            raise EditError(
                f"density {density:g} with epsilon {spread:g} makes probabilities outside of 0 to 1: give a "
                f"smaller epsilon, below {min(density, 1 - density):g}"
            )
    keys = [terms.key(j) for j in range(len(densities))]
    scaled = bool(terms.settings["rescale"] and not terms.precision)

    def drop(stack: Stack) -> None:
        for key, density, spread, model in zip(keys, densities, spreads, stack.models, strict=True):
            if density <= 0:
                model[:] = 0
            elif density < 1:
                _drop(model, _by_size(model), key, np.uint64(stack.first), density, spread, scaled)

    return (yield from rescaled(drop)) if terms.settings["rescale"] and terms.precision else drop


def _by_size(values: np.ndarray) -> np.ndarray:
    """Column numbers of every row, the smallest |value| first, equal ones in their order: int64 [rows, columns]."""
    sizes = np.abs(values).astype(np.float32, copy=False).view(np.int32).astype(np.int64)
    return np.sort(sizes << 32 | np.arange(values.shape[1]), axis=1) & 0xFFFFFFFF


@njit(cache=True, nogil=True)
def _drop(values, order, key, first, density, spread, scaled):
    rows, columns = values.shape
    for row in range(rows):
        for rank in range(columns):
            column = order[row, rank]
            share = rank / (columns - 1) if columns > 1 else 0.5
            p = density - spread + 2 * spread * share
            stays = splitmix(key, first + np.uint64(row * columns + column)) >> np.uint64(11) < np.uint64(p * 2.0**53)
            kept = values[row, column] / p if scaled else values[row, column]
            values[row, column] = kept if stays else 0.0


SPREAD = {**DENSITY, "epsilon": Setting(number(0, 0.5), 0.15)}
LINK = "https://arxiv.org/abs/2406.11617"
DELLA = Method(
    "DELLA with TIES",
    LINK,
    della,
    {**RANDOM, "normalize": Setting(truth, True)},
    SPREAD,
    remark=lambda terms: consensus.remark(terms) or dare.remark(terms),
)
DELLA_LINEAR = Method(
    "DELLA",
    LINK,
    della_linear,
    RANDOM,
    SPREAD,
    remark=lambda terms: task_arithmetic.remark(terms) or dare.remark(terms),
)
