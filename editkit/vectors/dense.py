"""Task vectors saved as one safetensors file under the base's tensor names; a tensor that is not there is zero."""

import json
from typing import Any

import numpy as np

from editkit.checkpoint.blocks import Block, Scratch
from editkit.checkpoint.provenance import public_name
from editkit.checkpoint.reader import Checkpoint
from editkit.errors import EditError, listed
from editkit.vectors.vector import misfits

FORMAT = "editkit.task_vector/1"
"""Value of the key `format` in the JSON that the file's header metadata keeps under `editkit`."""


def saved_vector_record(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """What a saved task vector says of itself (format, base, base_sha256, tuned ...); None for other checkpoints."""
    for metadata in checkpoint.metadata.values():
        if "editkit" in metadata:
            try:
                record = json.loads(metadata["editkit"])
            except ValueError:
                continue
            if isinstance(record, dict) and str(record.get("format", "")).startswith("editkit.task_vector/"):
                if record["format"] != FORMAT:
                    raise EditError(
                        f"{checkpoint.label} has the format {record['format']}: this editkit reads {FORMAT}"
                    )
                return record
    return None


class SavedVector:
    """A task vector file. It belongs to the base whose weight files have the hashes that it recorded."""

    def __init__(self, base: Checkpoint, saved: Checkpoint, *, allow_other_base: bool = False) -> None:
        self.saved, self.allow_other_base = saved, allow_other_base
        self.record = saved_vector_record(saved) or {}
        self.inputs = [saved]
        self.names = [name for name in base.tensors if name in saved.tensors]
        self._scratch = Scratch()

    def check(self, base: Checkpoint, names: list[str]) -> None:
        unknown = [name for name in self.saved.tensors if name not in base.tensors]
        problems = [f"{self.saved.label} changes tensors that {base.label} lacks: {listed(unknown)}"] if unknown else []
        problems += misfits(base, self.saved, {name: name for name in names})
        if problems:
            raise EditError("; ".join(problems) + ": this task vector was made for another model")
        recorded = self.record.get("base_sha256")
        if self.allow_other_base:
            return
        if not isinstance(recorded, dict) or not all(isinstance(one, str) for one in recorded.values()):
            raise EditError(
                f"{self.saved.label} does not record the hashes of its base: make it anew with editkit task-vector, or say "
                "--allow-other-base (which is then recorded)"
            )
        if sorted(base.sha256().values()) != sorted(recorded.values()):
            raise EditError(
                f"{self.saved.label} was made from {self.record.get('base')}, whose weight files differ from those of "
                f"{base.label}: give that base, or say --allow-other-base (which is then recorded)"
            )

    def rows(self, name: str, first: int, last: int, base: np.ndarray) -> np.ndarray:
        return self._scratch.read("saved", self.saved, name, Block(self.saved.tensors[name], first, last), base.dtype)

    def origin(self) -> dict[str, Any]:
        made = {key: value for key, value in self.record.items() if key != "format"}
        other = {"allow_other_base": True} if self.allow_other_base else {}
        return {"kind": "saved", "file": public_name(self.saved), "record": made, **other}
