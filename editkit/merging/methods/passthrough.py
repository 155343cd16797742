"""Passthrough: a tensor of one model as it is, or times `scale`, to put layers of models together (https://github.com/arcee-ai/mergekit).

    w = scale * w_1

Without a scale tensors are copied byte for byte.
"""

from editkit.merging.method import Combine, Method, Setting, Terms
from editkit.merging.methods.combination import combine
from editkit.merging.rules import number


def passthrough(terms: Terms) -> Combine:
    """One pass."""
    scale = terms.models[0]["scale"]
    return lambda stack: combine(stack, [scale])


METHOD = Method(
    "passthrough",
    "https://github.com/arcee-ai/mergekit",
    passthrough,
    {},
    {"scale": Setting(number(), 1.0)},
    base="unused",
    most=1,
    deltas=False,
)
