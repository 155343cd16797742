"""Arcee Fusion: take over what is most important, keep the base elsewhere (https://github.com/arcee-ai/mergekit).

    importance_i = |w_i - base_i| * KL(softmax(row of w) | softmax(row of base));
    w_i where importance_i >= median + 1.5 * (upper quartile - lower quartile), else base_i

Quartiles are those of the whole tensor. mergekit estimates them from a million random elements where there are more; here they are exact.
"""

import numpy as np
from numba import njit

from editkit.merging.method import Method, Stack, Steps, Terms
from editkit.merging.methods.ranks import cuts

_EPS = 1e-8


def arcee_fusion(terms: Terms) -> Steps:
    """One pass for the divergence of each row, two for the quartiles."""
    divergence = np.concatenate((yield lambda stack: [_divergence(stack.models[0], stack.base)]))

    def importance(stack: Stack) -> np.ndarray:
        assert stack.base is not None
        rows = divergence[stack.first // terms.columns :][: len(stack.base), None]
        return (np.abs(stack.models[0].astype(np.float64) - stack.base) * rows).astype(np.float32)

    ranks = [terms.numel - int(share * (terms.numel - 1)) for share in (0.25, 0.5, 0.75)]
    [quartiles] = yield from cuts(lambda stack, row: importance(stack), 1, lambda positive: [ranks])
    lower, median, upper = (float(cut.value) for cut in quartiles)
    threshold = np.float32(median + 1.5 * (upper - lower))

    def block(stack: Stack) -> np.ndarray:
        taken = importance(stack) >= threshold
        return np.where(taken, stack.models[0], np.asarray(stack.base))

    return block


@njit(cache=True, nogil=True)
def _divergence(model, base):
    rows, columns = model.shape
    found = np.empty(rows)
    for row in range(rows):
        top, base_top = np.float64(model[row].max()), np.float64(base[row].max())
        total, base_total = 0.0, 0.0
        for c in range(columns):
            total += np.exp(model[row, c] - top)
            base_total += np.exp(base[row, c] - base_top)
        kl = 0.0
        for c in range(columns):
            p = np.exp(model[row, c] - top) / total + _EPS
            q = np.exp(base[row, c] - base_top) / base_total + _EPS
            kl += p * np.log(p / q)
        found[row] = max(kl, 0.0)  # below zero it is rounding
    return found


METHOD = Method("Arcee Fusion", "https://github.com/arcee-ai/mergekit", arcee_fusion, most=1, deltas=False)
