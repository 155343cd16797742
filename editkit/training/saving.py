"""What was trained, rounded once to the dtypes of the files and written in their layout.

>>> with open_checkpoint("model") as base:  # doctest: +SKIP
...     write_trained(file_tensors(net, base), base, None, CheckpointWriter(base, "edited"), record)
(6500000, 6432001)
"""

from typing import TYPE_CHECKING, Any

from editkit.checkpoint import provenance
from editkit.checkpoint.reader import Checkpoint
from editkit.checkpoint.writer import CheckpointWriter
from editkit.errors import EditError, NothingChanged
from editkit.masks.mask import Mask
from editkit.training.masking import refuse_moved, selection

if TYPE_CHECKING:
    import torch


def write_trained(
    trained: "dict[str, torch.Tensor]",
    layout: Checkpoint,
    mask: Mask | None,
    writer: CheckpointWriter,
    record: dict[str, Any],
) -> tuple[int, int]:
    """Write the trained tensors over those of `layout`, with `record` as provenance; `writer` is entered here.

    Returns how many elements were trained (with a mask: are selected), and are now different. Raises EditError for elements outside
    the mask that moved and values that the dtype cannot hold, NothingChanged where all is as before; then nothing is written.
    """
    import torch

    total = changed = 0
    with writer:
        for name, info in layout.tensors.items():
            if name not in trained or not info.numel:
                writer.copy(name)
                continue
            before, values = layout[name], trained[name].detach().cpu()
            after = values.to(before.dtype)
            if mask is not None:
                chosen = selection(mask, info)
                refuse_moved(name, before.to(values.dtype), values, chosen)
                after = torch.where(chosen, after, before)  # F64 has bits that training does not hold
            if not after.isfinite().all() and before.isfinite().all():
                raise EditError(
                    f"the training ended with values in {name} that {info.dtype} cannot hold: lower the learning rate"
                )
            total += info.numel if mask is None else mask.selected(info)
            changed += int((before != after).sum())
            writer.write(name, 0, after.reshape(-1).view(torch.uint8).numpy())
        if not changed:
            raise NothingChanged(
                "the training changed no weight after rounding: give more steps or a higher learning rate"
            )
        provenance.save(record, writer.folder, writer.sha256())
    return total, changed
