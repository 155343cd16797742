"""`bake`: add a LoRA adapter to its base, `w = w_base + scale * B @ A`, with no model in memory.

What peft calls `merge_and_unload`, which rounds the product B @ A to the dtype of the base before it adds it; here the sum
is rounded, once. In a 16-bit base a part of a small adapter is lost to that rounding either way; the result says how much.
"""

from typing import Any

from editkit.checkpoint.adapter import open_adapter
from editkit.editing.negate import Negation, Source, subtract_vector


def bake(
    model: Source, adapter: Source, output: Source | None = None, *, scale: float = 1.0, **settings: Any
) -> Negation:
    """Write `model` + `scale` * `adapter` to the folder `output`, with its diff report in `output`/diff.

    >>> result = bake("model", "my-lora", "baked")  # doctest: +SKIP
    >>> result.total["projection"]  # doctest: +SKIP
    1.0

    adapter: a folder that peft wrote, or a Hub id; its own scale (lora_alpha / r, rsLoRA, patterns) comes on top of `scale`.
    settings: those arguments of `negate` that do not concern alpha, such as only, mask, rounding, report, patch, shard_size
    and dry_run. What the adapter does not touch stays as it is, byte for byte. In the result alpha is -scale.

    Raises EditError (nothing is left behind) where `adapter` is no plain LoRA adapter, or one for another model.
    """
    open_adapter(adapter).checkpoint.close()
    strength = {"scale": scale}
    return subtract_vector("bake", strength, model, adapter, output, alpha=-scale, **settings)
