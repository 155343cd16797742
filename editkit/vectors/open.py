"""Whatever holds a task vector, opened as one: a tuned checkpoint, a LoRA adapter, or a saved vector."""

import os

from editkit.checkpoint.reader import Checkpoint, open_checkpoint
from editkit.errors import EditError
from editkit.vectors.dense import SavedVector, saved_vector_record
from editkit.vectors.difference import DifferenceVector
from editkit.vectors.vector import TaskVector


def open_vector(
    source: str | os.PathLike[str],
    base: Checkpoint,
    *,
    vector_base: str | os.PathLike[str] | Checkpoint | None = None,
    allow_other_base: bool = False,
) -> TaskVector:
    """The task vector in `source`, under the tensor names of `base`.

    A folder with adapter_config.json is a LoRA adapter; a file that says so is a saved vector; all else is a checkpoint
    tuned from `vector_base` (default: from `base`). allow_other_base: also one that says it was made for other weights.
    Raises EditError where `source` is none of these.
    """
    tuned = open_checkpoint(source)
    if not tuned.lone and (tuned.path / "adapter_config.json").exists():
        tuned.close()
        from editkit.checkpoint.adapter import open_adapter
        from editkit.vectors.lowrank import LowRankVector

        if vector_base is not None:
            raise EditError(f"{source} is an adapter, which needs no base of its own: leave --vector-base out")
        return LowRankVector(open_adapter(source), base, allow_other_base=allow_other_base)
    if saved_vector_record(tuned) is not None:
        if vector_base is not None:
            raise EditError(f"{source} is a saved task vector, which has its base in it: leave --vector-base out")
        return SavedVector(base, tuned, allow_other_base=allow_other_base)
    origin = open_checkpoint(vector_base) if isinstance(vector_base, str | os.PathLike) else vector_base
    if origin is not None and saved_vector_record(origin) is not None:
        raise EditError(f"{vector_base} is a task vector, not a checkpoint that {source} could have been tuned from")
    return DifferenceVector(base, tuned, origin, allow_other_base=allow_other_base)
