"""TIES: trim, elect signs, merge. Yadav et al. 2023 (https://arxiv.org/abs/2306.01708).

    of every w_j - w_base keep the `density` largest elements by size; then the disjoint mean of `consensus.py`;
    w = w_base + lambda * d

At least one element of a tensor stays. Of elements that are equally large the first ones stay, as in mergekit, which compares
differences rounded to the dtype of the merge, so that in bf16 many are equal. The paper has all weights 1 and
trims over the whole model; mergekit, and so this, trims tensor by tensor.
"""

from editkit.merging.method import Method, Setting, Steps, Terms
from editkit.merging.methods.consensus import consensus, remark
from editkit.merging.methods.sparsity import dropping, largest, rescaled
from editkit.merging.methods.task_arithmetic import SETTINGS, WEIGHT
from editkit.merging.rules import number, truth


def ties(terms: Terms) -> Steps:
    """Two passes for the thresholds."""
    drop = yield from largest([trimmed(density, terms.numel) for density in terms.each("density")])
    if terms.settings["rescale"]:
        drop = yield from rescaled(drop)
    return dropping(drop, consensus(terms))


def trimmed(density: float, numel: int) -> tuple[int, int] | None:
    """From which rank to which the elements stay; None for all of them."""
    if density >= 1:
        return None
    return (0, max(1, int(density * numel)) if density > 0 else 0)


METHOD = Method(
    "TIES",
    "https://arxiv.org/abs/2306.01708",
    ties,
    {**SETTINGS, "normalize": Setting(truth, True), "rescale": Setting(truth, False)},
    {**WEIGHT, "density": Setting(number(0, 1), 1.0)},
    remark=remark,
)
