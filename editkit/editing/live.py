"""A loaded model edited in place: its weights go to base - alpha * mask * tau and come back, without a file and without a copy.

>>> with open_checkpoint("model") as base, LiveEdit(load_model(base), base) as live:  # doctest: +SKIP
...     for alpha in (0.5, 1.0, 1.5):
...         live.apply(planned(base, tau, alpha, {}, [], None))

Every value is the one that `negate` would write, rounded to the dtype of the file first and to that of the model then, as
loading that file would. Blocks of the base are read from its files at every point, so that no point depends on another one.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from editkit.arithmetic.apply import Applied
from editkit.arithmetic.codec import working_dtype
from editkit.checkpoint.blocks import Block, Scratch, blocks, ordered_map
from editkit.checkpoint.header import TensorInfo
from editkit.checkpoint.reader import Checkpoint
from editkit.checkpoint.ties import tied_copies
from editkit.editing.stream import Subtraction, edit_block, masked_rows
from editkit.errors import EditError, listed
from editkit.training.loading import file_parts

if TYPE_CHECKING:
    import torch


class LiveEdit:
    """`net`, as transformers loaded it from `base`, on any device and in any dtype; the `with` block ends with its old weights.

    net: a whole model, without an adapter. threads: default all cores.
    """

    def __init__(self, net: Any, base: Checkpoint, *, threads: int | None = None) -> None:
        self._base, self._threads = base, threads
        self._homes, self._mixed = homes(net, base)
        self._moved: set[str] = set()
        self._scratch = Scratch()

    def __enter__(self) -> "LiveEdit":
        return self

    def __exit__(self, *_: object) -> None:
        self.restore()

    def check(self, edit: Subtraction) -> None:
        """Raise EditError where the loaded model could not follow `edit`; nothing is moved."""
        if mixed := [name for name in edit.alphas if name in self._mixed]:
            raise EditError(
                f"transformers computes parameters of its own from {listed(mixed)} of {self._base.label}, which cannot be "
                "moved in place: leave them out with --only"
            )
        copies = set(tied_copies(self._base))
        shared = [names for names in self._shared(self._homes).values() if len(names) > 1]
        if together := [
            name for names in shared if edit.alphas.keys() & names and not copies.issuperset(names) for name in names
        ]:
            raise EditError(
                f"{listed(together)} are one tensor in the loaded model, and {self._base.label} does not say so: set "
                "tie_word_embeddings in its config.json, or leave them out with --only"
            )
        if lost := [name for name in edit.alphas if name not in self._homes and self._is_moved(edit, name)]:
            raise EditError(
                f"transformers has no parameter for {listed(lost)} of {self._base.label}, which the vector changes: leave "
                "them out with --only"
            )

    def apply(self, edit: Subtraction) -> Applied:
        """Move the model to `edit`, from wherever it is; what `edit` leaves alone is as in the base.

        Returns what was asked for and what arrived in the numbers of the files. Raises EditError as `check` does, and for
        NaN or Inf; the `with` block then still restores all.
        """
        self.check(edit)
        self._restore(self._moved - edit.alphas.keys())
        self._moved = {name for name in edit.alphas if name in self._homes}

        def work(block: Block) -> tuple[str, np.ndarray]:
            info = block.info
            before = self._scratch.read("base", self._base, info.name, block, working_dtype(info.dtype))
            stored, _, applied = edit_block(block, before, edit, self._scratch)
            self._write(block, stored)
            return info.name, applied

        parts = [Applied(edit.alphas[name], sums) for name, sums in self._over(self._moved, work)]
        return Applied.total(parts)

    def restore(self) -> None:
        """Go back to the base: what was moved is read from its files again."""
        self._restore(self._moved)
        self._moved = set()

    def _restore(self, names: Iterable[str]) -> None:
        def work(block: Block) -> None:
            raw = np.empty(block.nbytes, np.uint8)
            self._base.read_into(block.info.name, block.offset, raw)
            self._write(block, raw)

        self._over(names, work)

    def _over(self, names: Iterable[str], work: Callable[[Block], Any]) -> list[Any]:
        """Results of `work` on all blocks of these tensors, of tied ones the first."""
        named = set(names)
        firsts = [same[0] for same in self._shared(name for name in self._base.tensors if name in named).values()]
        items = (block for name in firsts for block in blocks(self._base.tensors[name]))
        with ordered_map(work, items, self._threads) as results:
            return list(results)

    def _write(self, block: Block, raw: np.ndarray) -> None:
        """Bytes of a block of the file into the model, in the model's dtype."""
        import torch

        values = torch.from_numpy(raw).view(getattr(torch, block.info.item.torch))
        matrix = self._homes[block.info.name]
        if matrix.dim() == 1:
            first = block.first * block.info.columns
            matrix[first : first + values.numel()].copy_(values)
        else:
            matrix[block.first : block.last].copy_(values.view(block.shape))

    def _shared(self, names: Iterable[str]) -> dict[Any, list[str]]:
        """Those of the names that the model has, by the memory that they stand for."""
        found: dict[Any, list[str]] = {}
        for name in names:
            if (home := self._homes.get(name)) is not None and home.numel():
                found.setdefault((home.data_ptr(), home.shape, home.stride()), []).append(name)
        return found

    def _is_moved(self, edit: Subtraction, name: str) -> bool:
        """Whether mask * tau has an element that is not zero; stops at the first block that has one."""
        for block in blocks(info := self._base.tensors[name]):
            before = self._scratch.read("base", self._base, name, block, working_dtype(info.dtype))
            if masked_rows(block, before, edit)[0].any():
                return True
        return False


def homes(net: Any, base: Checkpoint) -> "tuple[dict[str, torch.Tensor], list[str]]":
    """Where in the memory of `net` each tensor of `base` is, as a matrix (vectors: as one), and which are nowhere as they are.

    transformers 5 may fuse tensors of the files, such as the experts of a layer, into one parameter: each is then a
    view of a part of it. To find that, the numbers of the parameter's elements go through transformers' own conversion
    to the files, which takes 8 bytes per element of one such parameter at a time.
    """
    import torch

    found: dict[str, torch.Tensor] = {}
    mixed: list[str] = []
    for name, parameter in net.named_parameters():
        values = parameter.detach()
        parts: Mapping[str, Any] = file_parts(net, base, name, values)
        if not all(part.is_set_to(values) for part in parts.values()):
            numbers = torch.arange(values.numel(), device=values.device).reshape(values.shape)
            places = file_parts(net, base, name, numbers)
            views = {file: _view(values, numbers, place) for file, place in places.items()}
            # Elements that are computed, not just moved, are other numbers than those that their places hold.
            parts = {
                file: view if view is not None and view.equal(parts[file]) else None for file, view in views.items()
            }
        for file, part in parts.items():
            matrix = None if part is None else _matrix(part, base.tensors[file])
            if matrix is None:
                mixed.append(file)
            else:
                found[file] = matrix
    return found, mixed


def _view(values: "torch.Tensor", numbers: "torch.Tensor", places: "torch.Tensor") -> "torch.Tensor | None":
    """The elements of `values` with the numbers `places`, as a view; None where memory does not have them in even steps."""
    corner = (0,) * places.dim()
    first = int(places[corner])
    nexts = [(*corner[:axis], 1, *corner[axis + 1 :]) for axis in range(places.dim())]
    steps = [int(places[at]) - first if size > 1 else 1 for at, size in zip(nexts, places.shape, strict=True)]
    last = first + sum(step * (size - 1) for step, size in zip(steps, places.shape, strict=True))
    if not values.is_contiguous() or min(steps) < 1 or last >= values.numel():
        return None
    if not numbers.as_strided(places.shape, steps, first).equal(places):
        return None
    return values.as_strided(places.shape, steps, values.storage_offset() + first)


def _matrix(part: "torch.Tensor", info: TensorInfo) -> "torch.Tensor | None":
    """A view with the rows of the file; None where memory does not have them so."""
    try:
        return part.view(-1) if part.dim() < 2 else part.view(info.rows, info.columns)
    except RuntimeError:
        return None
