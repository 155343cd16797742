"""DARE: drop differences at random and scale up the rest. Yu et al. 2023 (https://arxiv.org/abs/2311.03099).

    d_j <- d_j * [u < density] / density,    u uniform;
    w = w_base + lambda * sum_j weight_j * d_j   (dare_linear), or with the disjoint mean of TIES (dare_ties)

so that the mean over seeds of dare_linear is the merge without drops. Draws depend on the seed, the tensor's name, the place of the
model and the index of the element alone. mergekit draws from torch's global state, in the order in which tensors are
worked on, and scales by |d|_1 before over after, which is near 1 / density for a large tensor and far from it for a small
one: a tensor of one element is then never scaled, and its mean is density * d.
"""

import numpy as np
from numba import njit

from editkit.arithmetic.draws import splitmix
from editkit.merging.method import Method, Setting, Stack, Steps, Terms
from editkit.merging.methods import consensus, task_arithmetic
from editkit.merging.methods.sparsity import Steps as Drops
from editkit.merging.methods.sparsity import dropping, rescaled
from editkit.merging.methods.task_arithmetic import SETTINGS, WEIGHT
from editkit.merging.rules import number, truth


def dare_linear(terms: Terms) -> Steps:
    """No pass."""
    drop = yield from dropped(terms)
    return dropping(drop, task_arithmetic.task_arithmetic(terms))


def dare_ties(terms: Terms) -> Steps:
    """The same with sign election."""
    drop = yield from dropped(terms)
    return dropping(drop, consensus.consensus(terms))


def dropped(terms: Terms) -> Drops:
    """Zeros at random, and the rest scaled."""
    densities = terms.each("density")
    keys = [terms.key(j) for j in range(len(densities))]
    scaled = terms.settings["rescale"] and not terms.precision

    def drop(stack: Stack) -> None:
        for key, density, model in zip(keys, densities, stack.models, strict=True):
            if density < 1:
                factor = 1 / density if scaled and density > 0 else 1.0
                _drop(model.reshape(-1), key, np.uint64(stack.first), np.uint64(density * 2**53), factor)

    return (yield from rescaled(drop)) if terms.settings["rescale"] and terms.precision else drop


def remark(terms: Terms) -> str | None:
    """On the factor."""
    if terms.settings["rescale"] and (terms.each("density") < 1).any():
        return "what is left after random drops is divided by the probability to stay, as in the paper; mergekit scales to the sum of |d|"
    return None


@njit(cache=True, nogil=True)
def _drop(values, key, first, limit, factor):
    factor = values.dtype.type(factor)
    for i in range(values.size):
        stays = splitmix(key, first + np.uint64(i)) >> np.uint64(11) < limit
        values[i] = values[i] * factor if stays else values.dtype.type(0)


RANDOM = {**SETTINGS, "rescale": Setting(truth, True)}
DENSITY = {**WEIGHT, "density": Setting(number(0, 1), 1.0)}
LINK = "https://arxiv.org/abs/2311.03099"
DARE_LINEAR = Method(
    "DARE", LINK, dare_linear, RANDOM, DENSITY, remark=lambda terms: task_arithmetic.remark(terms) or remark(terms)
)
DARE_TIES = Method(
    "DARE with TIES", LINK, dare_ties, RANDOM, DENSITY, remark=lambda terms: consensus.remark(terms) or remark(terms)
)
