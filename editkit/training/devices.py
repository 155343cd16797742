"""Where a model computes, and in which precision.

>>> unfit("float32", "auto", steps=None), unfit("int4", "auto", steps=0)
([], ['steps is 0, must be at least 1', "dtype is 'int4', must be one of float32, bfloat16, float16"])
"""

from editkit.checkpoint.reader import Checkpoint
from editkit.errors import EditError, listed

DTYPES = ("float32", "bfloat16", "float16")
DEVICES = ("auto", "cpu", "cuda", "mps")


def unfit(dtype: str | None, device: str, **counts: int | None) -> list[str]:
    """What is wrong with these settings; counts are None or at least 1."""
    wrong = [
        f"{name} is {value}, must be at least 1" for name, value in counts.items() if value is not None and value < 1
    ]
    if dtype is not None and dtype not in DTYPES:
        wrong.append(f"dtype is {dtype!r}, must be one of {listed(DTYPES)}")
    if device not in DEVICES:
        wrong.append(f"device is {device!r}, must be one of {listed(DEVICES)}")
    return wrong


def place_of(device: str) -> str:
    """The device, "auto" as the best one there is. Raises EditError for one that this machine does not have."""
    import torch

    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        return next(name for name, found in there.items() if found)
    if not there[device]:
        raise EditError(f"device {device} is not available on this machine: leave --device out to take what is there")
    return device


def precision(base: Checkpoint, place: str) -> str:
    """The dtype to compute in: bfloat16 for 16-bit weights on a GPU that has it, else float32."""
    import torch

    halves = any(info.dtype in ("BF16", "F16") for info in base.tensors.values())
    return "bfloat16" if place == "cuda" and halves and torch.cuda.is_bf16_supported() else "float32"
