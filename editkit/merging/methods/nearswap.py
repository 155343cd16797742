"""NearSwap: take the other model's value where it is near (https://huggingface.co/alchemonaut/QuartetAnemoi-70B-t0.0001).

    s = min(t / |w_1 - w_base|, 1),    w = s * w_1 + (1 - s) * w_base

So elements that differ by up to `t` are taken over, and others move by `t` towards the other model. mergekit takes
differences below 1e-6 for 1e-6, which is seen with a `t` below that only; so does this.
"""

import numpy as np
from numba import njit

from editkit.merging import compatible
from editkit.merging.method import Combine, Method, Setting, Stack, Terms
from editkit.merging.rules import number


def nearswap(terms: Terms) -> Combine:
    """One pass."""
    t = terms.settings["t"]

    def block(stack: Stack) -> np.ndarray:
        assert stack.base is not None
        _nearswap(stack.base.reshape(-1), stack.models[0].reshape(-1), t, stack.out.reshape(-1))
        return stack.out

    def as_mergekit(stack: Stack) -> np.ndarray:
        def r(values: np.ndarray) -> np.ndarray:
            return compatible.rounded(values, terms.precision)

        a, b, one = stack.base, stack.models[0], stack.models.dtype.type
        s = np.clip(r(r(one(1) / np.maximum(r(np.abs(r(a - b))), r(np.array(1e-6, one)))) * one(t)), 0, 1)
        return r(s * b) + r(r(one(1) - s) * a)

    return as_mergekit if terms.precision else block


@njit(cache=True, nogil=True)
def _nearswap(base, model, t, out):
    for i in range(out.size):
        a, b = np.float64(base[i]), np.float64(model[i])
        s = min(t / max(abs(a - b), 1e-6), 1.0)
        out[i] = s * b + (1.0 - s) * a
        out[i] = base[i] if out[i] == base[i] else out[i]


METHOD = Method(
    "NearSwap",
    "https://huggingface.co/alchemonaut/QuartetAnemoi-70B-t0.0001",
    nearswap,
    {"t": Setting(number(0))},
    most=1,
    deltas=False,
)
