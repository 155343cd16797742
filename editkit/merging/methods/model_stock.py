"""Model Stock: the base, and the mean of models tuned from it, as near as their angle says. Jang et al. 2024 (https://arxiv.org/abs/2403.19522).

    t = n cos / (1 + (n - 1) cos),    w = t * mean_j w_j + (1 - t) * w_base

with cos the mean cosine of the differences to the base, two by two: of whole tensors, or with `filter_wise` of their rows. The
paper has t in [0, 1]. Where models moved in opposite directions mergekit also takes a negative t, which turns their change
round, and one above 1; here t stays in [0, 1]. mergekit takes lengths below 1e-3 for longer than they are.
"""

import numpy as np

from editkit.merging.method import Method, Setting, Stack, Steps, Terms
from editkit.merging.methods.combination import combine, gram, row_grams
from editkit.merging.rules import truth


def model_stock(terms: Terms) -> Steps:
    """One pass for the angles; with `filter_wise` none, for a block has whole rows."""
    if terms.settings["filter_wise"] and terms.rows > 1:
        return lambda stack: _by_row(stack, _share(terms, row_grams(stack.models)))
    share = float(_share(terms, (yield lambda stack: gram(stack.models))))
    return lambda stack: combine(stack, np.full(len(stack.models), share / len(stack.models)))


def _share(terms: Terms, products: np.ndarray) -> np.ndarray:
    """t, from products [..., n, n]."""
    count = products.shape[-1]
    first, second = np.triu_indices(count, 1)
    lengths = np.sqrt(np.diagonal(products, axis1=-2, axis2=-1))
    both = lengths[..., first] * lengths[..., second]
    both = np.maximum(both, 1e-6) if terms.precision else np.where(both > 0, both, 1)
    cosine = np.clip(products[..., first, second] / both, -1, 1).mean(-1)
    below = 1 + (count - 1) * cosine
    t = np.where(np.abs(below) < 1e-6, 0, count * cosine / np.where(np.abs(below) < 1e-6, 1, below))
    return t if terms.precision else np.clip(t, 0, 1)


def _by_row(stack: Stack, share: np.ndarray) -> np.ndarray:
    assert stack.base is not None
    after = (stack.base + share[:, None] * stack.models.mean(0, dtype=np.float64)).astype(stack.base.dtype)
    return np.where(after == stack.base, stack.base, after)


METHOD = Method(
    "Model Stock",
    "https://arxiv.org/abs/2403.19522",
    model_stock,
    {"filter_wise": Setting(truth, False)},
    fewest=2,
)
