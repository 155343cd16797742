"""Model Breadcrumbs: neither the smallest differences nor the largest. Davari and Belilovsky 2023 (https://arxiv.org/abs/2312.06795).

    of n elements drop the int(gamma n) largest, then keep the int(density n) largest;
    w = w_base + lambda * sum_j weight_j * d_j   (breadcrumbs), or with the disjoint mean of TIES (breadcrumbs_ties)

Fewer of the largest are dropped where `density` would not be reached otherwise; with density 1 none is. mergekit leaves nothing of
a tensor with density * n < 1; here one element stays. Of equally large elements the last ones count as larger, as in mergekit.
"""

from editkit.merging.method import Method, Setting, Steps, Terms
from editkit.merging.methods import consensus, task_arithmetic
from editkit.merging.methods.sparsity import Steps as Drops
from editkit.merging.methods.sparsity import dropping, largest, rescaled
from editkit.merging.methods.task_arithmetic import SETTINGS, WEIGHT
from editkit.merging.rules import number, truth


def breadcrumbs(terms: Terms) -> Steps:
    """Two passes for the thresholds."""
    drop = yield from _dropped(terms)
    return dropping(drop, task_arithmetic.task_arithmetic(terms))


def breadcrumbs_ties(terms: Terms) -> Steps:
    """The same with sign election."""
    drop = yield from _dropped(terms)
    return dropping(drop, consensus.consensus(terms))


def _dropped(terms: Terms) -> Drops:
    pairs = [
        kept(density, gamma, terms.numel, least=0 if terms.precision else 1)
        for density, gamma in zip(terms.each("density"), terms.each("gamma"), strict=True)
    ]
    drop = yield from largest(pairs, last=True)
    if terms.settings["rescale"]:
        drop = yield from rescaled(drop)
    return drop


def kept(density: float, gamma: float, numel: int, least: int = 1) -> tuple[int, int] | None:
    """Over which rank and down to which the elements stay; None for all of them.

    >>> kept(0.5, 0.1, 10), kept(0.95, 0.1, 10), kept(0.5, 0.01, 1)
    ((1, 6), (1, 10), (0, 1))
    """
    if density >= 1:
        return None
    count = max(int(density * numel), least) if density > 0 else 0
    over = min(int(gamma * numel), numel - count)
    return over, over + count


SPARSE = {**SETTINGS, "rescale": Setting(truth, False)}
SPARSITY = {**WEIGHT, "density": Setting(number(0, 1), 1.0), "gamma": Setting(number(0, 1), 0.01)}
LINK = "https://arxiv.org/abs/2312.06795"
BREADCRUMBS = Method("Model Breadcrumbs", LINK, breadcrumbs, SPARSE, SPARSITY, remark=task_arithmetic.remark)
BREADCRUMBS_TIES = Method(
    "Model Breadcrumbs with TIES", LINK, breadcrumbs_ties, SPARSE, SPARSITY, remark=consensus.remark
)
