"""Sums of gradients: one float32 number per parameter and set, on the device, in main memory, or in a file.

A run that is killed goes on from the last save. Saves are whole: the sums are written to one of two files in turn, and the
small file that says which one counts is replaced last.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from editkit.checkpoint import disk
from editkit.checkpoint.unfinished import STATE
from editkit.errors import EditError

if TYPE_CHECKING:
    import torch

PLACES = ("auto", "none", "cpu", "disk")
_STEP = 1 << 24  # elements copied at a time


class Accumulators:
    """`sums[label][parameter]` is a float32 tensor of the parameter's shape, zero at first.

    labels: the sets, such as "forget" and "retain". place: "none" on the parameters' device, "cpu" in main memory, "disk" in
    files of `folder` that are mapped to memory. Same sums, same bytes in all places.
    """

    def __init__(
        self, parameters: Mapping[str, "torch.nn.Parameter"], labels: Sequence[str], place: str, folder: Path
    ) -> None:
        self._folder = folder
        self._size = sum(parameter.numel() for parameter in parameters.values())
        device = next(iter(parameters.values())).device
        self._flat = {label: self._buffer(label, place, device) for label in labels}
        shapes = {name: parameter.shape for name, parameter in parameters.items()}
        pieces = {label: flat.split([shape.numel() for shape in shapes.values()]) for label, flat in self._flat.items()}
        self.sums = {
            label: {name: piece.view(shapes[name]) for name, piece in zip(shapes, pieces[label], strict=True)}
            for label in labels
        }

    def _buffer(self, label: str, place: str, device: Any) -> "torch.Tensor":
        import torch

        if place == "none":
            return torch.zeros(self._size, device=device)
        if place == "cpu":
            return torch.zeros(self._size)
        path = self._folder / f"{label}.sums"
        path.unlink(missing_ok=True)
        with open(path, "wb") as file:  # with its blocks: a full disk must show here, not when a page of it is written
            disk.allocate(file.fileno(), 4 * self._size)
        return torch.from_numpy(np.memmap(path, np.float32, "r+", shape=(self._size,)))

    def not_finite(self) -> list[str]:
        """The parameters with a sum that is NaN or Inf."""
        if all(bool(flat.sum().isfinite()) for flat in self._flat.values()):
            return []
        names = next(iter(self.sums.values()))
        return [name for name in names if not all(sums[name].isfinite().all() for sums in self.sums.values())]

    def save(self, state: Mapping[str, Any]) -> None:
        """Keep the sums as they are, together with `state`, for `load` after a kill."""
        slot = 1 - self._saved().get("slot", 1)
        for label, flat in self._flat.items():
            with open(self._folder / f"{label}.{slot}", "wb") as file:
                for start in range(0, self._size, _STEP):
                    piece = flat[start : start + _STEP].cpu().numpy()
                    disk.write_at(file.fileno(), memoryview(piece).cast("B"), 4 * start)
        fresh = self._folder / f"{STATE}.new"
        fresh.write_text(json.dumps({**state, "slot": slot}))
        os.replace(fresh, self._folder / STATE)

    def load(self) -> dict[str, Any]:
        """Take the sums of the last save and return its state; {} and zeros where nothing was saved."""
        import torch

        state = self._saved()
        for label, flat in self._flat.items() if state else ():
            path = self._folder / f"{label}.{state['slot']}"
            if not path.exists() or path.stat().st_size != 4 * self._size:
                raise EditError(f"{self._folder.name} is damaged ({path.name}): remove it and begin again")
            with open(path, "rb") as file:
                for start in range(0, self._size, _STEP):
                    count = min(_STEP, self._size - start)
                    flat[start : start + count] = torch.from_numpy(np.fromfile(file, np.float32, count))
        return state

    def _saved(self) -> dict[str, Any]:
        path = self._folder / STATE
        try:
            return json.loads(path.read_text()) if path.exists() else {}
        except ValueError as error:
            raise EditError(f"{self._folder.name} is damaged ({path.name}): remove it and begin again") from error


def choose_place(offload: str, elements: int, sets: int, device: str) -> str:
    """Where the sums of `sets` sets over `elements` parameters go; "auto" takes the fastest place with room to spare.

    Raises EditError for an unknown place.
    """
    import psutil
    import torch

    if offload not in PLACES:
        raise EditError(f"offload {offload!r} is unknown: say {', '.join(PLACES)}")
    if offload != "auto":
        return offload
    need = 4 * elements * sets
    if device == "cuda" and 2 * need < torch.cuda.mem_get_info()[0]:
        return "none"
    return "cpu" if 2 * need < psutil.virtual_memory().available else "disk"
