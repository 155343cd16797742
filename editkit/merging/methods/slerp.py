"""SLERP: on the arc from the base to one model. Shoemake 1985 (https://en.wikipedia.org/wiki/Slerp).

    w = sin((1 - t) theta) / sin(theta) * w_base + sin(t theta) / sin(theta) * w_1,    theta = angle(w_base, w_1)

of the whole tensor seen as one vector. Where the cosine is above 0.9995 or below -0.9995 it is the straight line, as in
mergekit: a fine-tuned model is as a rule so near its base that SLERP is linear interpolation there.
"""

import numpy as np

from editkit.merging.method import Method, Setting, Steps, Terms
from editkit.merging.methods.angles import spherical
from editkit.merging.methods.combination import combine, gram
from editkit.merging.rules import number

_STRAIGHT = 0.9995
_ZERO = 1e-8  # a vector that is not longer has no direction


def slerp(terms: Terms) -> Steps:
    """One pass for the angle."""
    t = terms.settings["t"]
    products = yield lambda stack: gram([np.asarray(stack.base), *stack.models])
    lengths = np.sqrt(np.diag(products))
    lengths[lengths <= _ZERO] = 1
    cosine = np.clip(products[0, 1] / lengths.prod(), -1, 1)
    of_base, of_model = (1 - t, t) if abs(cosine) > _STRAIGHT else spherical(t, cosine)
    return lambda stack: combine(stack, [of_model], of_base)


METHOD = Method("SLERP", "https://en.wikipedia.org/wiki/Slerp", slerp, {"t": Setting(number())}, most=1, deltas=False)
