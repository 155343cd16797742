"""Masks in training: only what a mask selects may move, and the written result is proof of it.

A mask has the names and shapes of the files, training moves the model's parameters, which may be fused or tied. The mask is
brought to the parameters through the conversion that brings them back to the files; what comes back is then compared with
the base under the mask of the files itself, which never went that way.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from editkit.checkpoint.blocks import blocks
from editkit.checkpoint.header import TensorInfo
from editkit.checkpoint.reader import Checkpoint
from editkit.errors import EditError, listed
from editkit.masks.mask import Mask
from editkit.training.loading import file_parts

if TYPE_CHECKING:
    import torch

    Fixed = dict[str, torch.Tensor | None]


def fixed_elements(model: Any, base: Checkpoint, mask: Mask) -> "Fixed":
    """The elements of each parameter that must not move, bool of its shape; None where all of them may.

    >>> fixed_elements(model, base, Mask("loc", base))  # doctest: +SKIP
    {'model.norm.weight': None, 'lm_head.weight': tensor([[True, False, ...]])}

    A parameter without any selected element has no entry. Raises EditError that lists what is selected and never trained,
    and the copies of a tied weight that are not selected alike.
    """
    found: Fixed = {}
    trained: set[str] = set()
    problems = []
    for name, parameter in model.named_parameters():
        parts = file_parts(model, base, name, parameter.detach())
        trained |= parts.keys()
        if not any(mask.selected(base.tensors[part]) for part in parts):
            continue
        if all(values.is_set_to(parameter.detach()) for values in parts.values()):
            chosen, *others = [selection(mask, base.tensors[part]) for part in parts]
            if not all(chosen.equal(other) for other in others):
                problems.append(f"{listed(parts)} are one tensor in {base.label} (tied) and must be selected alike")
        else:
            chosen = _converted(model, base, mask, name, parameter.detach())
        found[name] = None if chosen.all() else ~chosen
    if lost := [name for name in mask.names if name not in trained and mask.selected(base.tensors[name])]:
        problems.append(f"training never moves {listed(lost)}, leave them out")
    if problems:
        raise EditError(f"{mask.file.label} is no mask for training {base.label}: {'; '.join(problems)}")
    return found


@contextmanager
def fixing(model: Any, fixed: "Fixed") -> Iterator[None]:
    """While it lasts, parameters without an entry in `fixed` are frozen and gradients of fixed elements are set to zero.

    They are zero as soon as they are there, hence in the norm that gradients are clipped by, and Adam, which has never seen
    another gradient of them, has no momentum to move them with. A frozen parameter takes no memory of the optimizer at all.
    """
    frozen = [one for name, one in model.named_parameters() if name not in fixed and one.requires_grad]

    def hook(name: str) -> Any:
        def clear(parameter: Any) -> None:
            fixed[name] = outside = fixed[name].to(parameter.device)  # type: ignore[union-attr]  # moves once
            parameter.grad.masked_fill_(outside, 0)

        return clear

    hooks = [
        model.get_parameter(name).register_post_accumulate_grad_hook(hook(name))
        for name, outside in fixed.items()
        if outside is not None
    ]
    try:
        for parameter in frozen:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)
        for one in hooks:
            one.remove()


def selection(mask: Mask, info: TensorInfo) -> "torch.Tensor":
    """Which elements of a tensor of the files are selected, bool of its shape."""
    import torch

    chosen = np.empty(info.numel, np.bool_)
    for block in blocks(info):
        rows, columns = block.shape
        first = block.first * info.columns
        chosen[first : first + rows * columns].reshape(block.shape)[:] = mask.chosen(info.name, block)
    return torch.from_numpy(chosen).reshape(info.shape)


def refuse_moved(name: str, before: "torch.Tensor", after: "torch.Tensor", chosen: "torch.Tensor") -> None:
    """Raise EditError where the two, of one dtype, differ in their bits in an element that is not `chosen`."""
    import torch

    bits = [one.reshape(-1, 1).contiguous().view(torch.uint8) for one in (before, after)]
    moved = (bits[0] != bits[1]).any(1) & ~chosen.reshape(-1)
    if count := int(moved.sum()):
        raise EditError(
            f"the training moved {count} elements of {name} outside the mask (the first at {int(moved.nonzero()[0])}), so that "
            "nothing was written: please report this"
        )


def _converted(model: Any, base: Checkpoint, mask: Mask, name: str, values: "torch.Tensor") -> "torch.Tensor":
    """The selection of a parameter that the files hold in parts: the mask follows the indices of its elements there."""
    import torch

    places = file_parts(model, base, name, torch.arange(values.numel(), device=values.device).reshape(values.shape))
    chosen, seen = (torch.zeros(values.numel(), dtype=torch.bool) for _ in range(2))
    moved_only = sum(place.numel() for place in places.values()) == values.numel()
    for part, held in file_parts(model, base, name, values).items():
        place = places[part]
        moved_only &= bool(held.equal(values.reshape(-1)[place]))
        chosen[place] = selection(mask, base.tensors[part])
        seen[place] = True
    if not (moved_only and seen.all()):
        raise EditError(
            f"transformers computes {name} from what {base.label} holds, so that no mask can be followed to it: leave "
            f"{listed(places)} out of the mask"
        )
    return chosen.reshape(values.shape)
