"""Quantization as an attack: an edit of small changes may fall within one step of a coarse grid, and what was forgotten comes back.

Zhang et al. 2025, "Catastrophic failure of LLM unlearning via quantization" (arXiv 2410.16454): 21 % of the knowledge is left at full
precision, 83 % at 4 bits. Weights are quantized and dequantized in place, as files of that format would give them:

    intB, per row    step = max |w| / (2^(B-1) - 1)         w' = step * round(w / step)
    intB, group g    the same over each g weights in a row in a line; the last group of a row may be shorter
    nf4              blocks of 64 weights, row after row: s = max |w|, w' = s * (the nearest of 16 levels to w / s)

round() goes to the nearest integer, halves to the even one; a row of zeros stays zero. The levels of nf4 are quantiles of a normal
distribution (QLoRA, arXiv 2305.14314, appendix E); its scales are kept in float32 here, not quantized once more.

>>> import torch
>>> rounded(torch.tensor([[0.7, -0.24, 0.05, 0.1]]), bits=4)
tensor([[ 0.7000, -0.2000,  0.0000,  0.1000]])
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from editkit.errors import EditError

if TYPE_CHECKING:
    import torch

NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
BLOCK = 64  # weights with one scale, of nf4


class Scheme(NamedTuple):
    """One way to quantize. apply: a matrix [outputs, inputs] of floats -> what is left of it, float32."""

    name: str
    label: str
    apply: "Callable[[torch.Tensor], torch.Tensor]"


def rounded(weight: "torch.Tensor", bits: int, group: int | None = None) -> "torch.Tensor":
    """Round to the nearest of `2^bits - 1` steps, symmetric, the largest |w| of each row (or of each group in a row) being the last.

    weight: [rows, columns], of any floating dtype; the result is float32.
    """
    import torch

    rows, columns = weight.shape
    width = min(group or columns, columns)
    # Zeros fill the last group, where they change no maximum.
    values = torch.nn.functional.pad(weight.float(), (0, -columns % width)).view(rows, -1, width)
    step = values.abs().amax(-1, keepdim=True) / (2 ** (bits - 1) - 1)
    codes = torch.where(step > 0, values / step, 0).round()
    return (codes * step).view(rows, -1)[:, :columns]


def normal_float(weight: "torch.Tensor") -> "torch.Tensor":
    """The nearest of the 16 levels of NF4, in blocks of 64 over the rows of `weight`, one after the other; float32."""
    import torch

    levels = torch.tensor(NF4, device=weight.device)
    flat = weight.float().reshape(-1)
    values = torch.nn.functional.pad(flat, (0, -flat.numel() % BLOCK)).view(-1, BLOCK)
    scale = values.abs().amax(-1, keepdim=True)
    codes = torch.bucketize(torch.where(scale > 0, values / scale, 0), (levels[1:] + levels[:-1]) / 2)
    return (levels[codes] * scale).view(-1)[: flat.numel()].view(weight.shape)


SCHEMES = (
    Scheme("int8", "8 bit, per row", lambda weight: rounded(weight, 8)),
    Scheme("int4", "4 bit, per row", lambda weight: rounded(weight, 4)),
    Scheme("int4-128", "4 bit, groups of 128", lambda weight: rounded(weight, 4, 128)),
    Scheme("int4-32", "4 bit, groups of 32", lambda weight: rounded(weight, 4, 32)),
    Scheme("nf4", "nf4, blocks of 64", normal_float),
)


def matrices(net: Any) -> "dict[str, torch.Tensor]":
    """The weights of the linear layers but the output head, [outputs, inputs] each, as views of the model's own memory.

    Embeddings, norms, biases, routers and the head stay as they are, as in the files of GPTQ, AWQ and bitsandbytes. A Conv1D (GPT-2) holds
    its weight the other way round. A layer whose weight is the head's or an embedding's (tied) is left out. Experts that
    transformers holds as one tensor [experts, rows, columns] are taken with the rows in which they are stored.
    """
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    ends = (net.get_output_embeddings(), net.get_input_embeddings())
    kept = {one.weight.data_ptr() for one in ends if one is not None}
    found = {}
    for name, module in net.named_modules():
        if isinstance(module, nn.Linear | Conv1D) and module.weight.data_ptr() not in kept:
            found[name] = module.weight.detach().T if isinstance(module, Conv1D) else module.weight.detach()
    for name, parameter in net.named_parameters():
        if parameter.dim() == 3 and "expert" in name:
            found[name] = parameter.detach().view(-1, parameter.shape[-1])
    if not found:
        raise EditError(f"{type(net).__name__} has no linear layers to quantize: leave the attack quantize out")
    return found


@contextmanager
def quantized(net: Any, scheme: Scheme) -> Iterator[int]:
    """While it lasts, the linear layers of `net` are quantized; gives the number of weights that are. Then every bit is as before.

    The weights from before are kept in main memory meanwhile. What is quantized is float32 arithmetic, rounded once to the dtype of
    the weights.
    """
    import torch

    weights = matrices(net)
    before = {name: weight.to("cpu", copy=True) for name, weight in weights.items()}
    try:
        with torch.no_grad():
            for weight in weights.values():
                weight.copy_(scheme.apply(weight))
        yield sum(weight.numel() for weight in weights.values())
    finally:
        with torch.no_grad():
            for name, weight in weights.items():
                weight.copy_(before[name])
