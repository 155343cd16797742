"""Path: what each parameter's way from a base checkpoint to the model did to the loss.

Integrated gradients (Sundararajan et al. 2017, https://arxiv.org/abs/1703.01365), in weights instead of inputs:

    a_i = -tau_i * mean_t dL/dw_i(w_base + t * tau),    tau = w - w_base,    t at K midpoints of 0 ... 1

The a_i of all parameters add up to L(w_base) - L(w), the drop of the loss on the way, so that a_i is in nats: positive where
the parameter's change lowered the loss. G_F and G_R are here the means over t.

    score = a_i of the forget set, minus a_i of the retain set where there is one

The score of a unit is the sum over its elements. It says which parameters carry the knowledge; gradients at the model alone
say where a step would act on it, which is something else.

>>> known = Statistics(delta=np.array([[2.0]]), forget=np.array([[-3.0]]), retain=np.array([[-1.0]]))
>>> score(known), score(known._replace(retain=None))
(array([[4.]]), array([[6.]]))
"""

import numpy as np

from editkit.localization.method import Method, Statistics


def score(known: Statistics) -> np.ndarray:
    """-tau G_F, less -tau G_R."""
    return -known.delta * (known.forget if known.retain is None else known.forget - known.retain)


METHOD = Method(score, accumulate=("signed",), base=True, additive=True, weights=True)
