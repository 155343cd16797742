"""Fisher: parameters that matter to the forget set far more than to the retain set.

Selective synaptic dampening, Foster et al. 2023 (https://arxiv.org/abs/2308.07707), selects where I_F > alpha * I_R with the
diagonal of the Fisher information I = mean g_i^2, of every example's own gradient. A budget takes the largest ratios:

    score = I_F / (I_R + 1e-20)

1e-20, the square of a gradient of 1e-10, keeps the order by I_F where the retain set has no gradient at all.

>>> score(Statistics(forget=np.array([[4.0, 1.0]]), retain=np.array([[2.0, 1.0]])))
array([[2., 1.]])
"""

import numpy as np

from editkit.localization.method import Method, Statistics


def score(known: Statistics) -> np.ndarray:
    """I_F / I_R."""
    return known.forget / (known.retain + 1e-20)


METHOD = Method(score, accumulate=("squared",), retain=True)
