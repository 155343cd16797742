"""Gradients of the loss of examples, summed per parameter as they appear and freed at once.

The loss of an example is the mean over its answer's tokens, and the sums run over examples, so that neither padding nor the
batch size has a say. "signed" adds up the gradients g_i themselves, "absolute" |g_i|, "squared" g_i^2; the last two need
every example's own gradient and take the examples one by one.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from editkit.arithmetic.draws import key_of
from editkit.checkpoint.blocks import Progress
from editkit.errors import EditError
from editkit.localization.accumulators import Accumulators
from editkit.localization.labels import randomized
from editkit.training.encoding import IGNORED, Tokens, collate

if TYPE_CHECKING:
    import torch

HALF = "half"
"""The sums over every other example of the forget set, for the stability of the selection."""
SAVING = 0.05  # share of the time that saves may take
_REMEDY = "look for NaN in the weights with editkit diff MODEL MODEL, or compute with --dtype float32"


@dataclass
class Set:
    """Examples of one kind. label: "forget" or "retain". numbers: where each stands in its file, `shown`, in `unit`s.

    losses: of each example, by its index, in nats per token; the mean over the draws of its labels.
    """

    label: str
    rows: list[Tokens]
    numbers: list[int]
    unit: str
    shown: str
    losses: dict[int, float] = field(default_factory=dict)

    @cached_property
    def keys(self) -> list[str]:
        """What tells each example from all others, wherever it stands in the file: its tokens, and which copy of them it is."""
        seen: Counter[str] = Counter()
        texts = [str(row.ids) for row in self.rows]
        return [f"{text} {seen.update([text]) or seen[text]}" for text in texts]


class Item(NamedTuple):
    """One batch: which examples of which set, under which draw of labels, at which point of the path (None: no path)."""

    set: Set
    indices: list[int]
    draw: int
    point: float | None

    @property
    def even(self) -> bool:
        return self.indices[0] % 2 == 0


class Labelling(NamedTuple):
    """How labels are made: `fraction` of the answer's tokens replaced (None: none), drawn from `seed`, `draws` times."""

    fraction: float | None
    vocabulary: int
    seed: int
    draws: int = 1


def batches(sets: Sequence[Set], size: int, draws: int = 1, point: float | None = None) -> Iterator[Item]:
    """All examples, `draws` times: of every set the even ones and then the odd ones, the longest first."""
    for one in sets:
        for draw in range(draws):
            for start in (0, 1):
                order = sorted(range(start, len(one.rows), 2), key=lambda index: (-len(one.rows[index].ids), index))
                for first in range(0, len(order), size):
                    yield Item(one, order[first : first + size], draw, point)


class Gradients:
    """Runs batches through `net` and adds their gradients to `accumulators`, saving now and then.

    mode: "signed", "absolute" or "squared". move: called with the point of the path before a batch at another one.
    """

    def __init__(
        self,
        net: Any,
        parameters: Mapping[str, "torch.nn.Parameter"],
        accumulators: Accumulators,
        mode: str,
        labelling: Labelling,
        move: Callable[[float], None] | None,
    ) -> None:
        self._net, self._parameters, self._accumulators, self._mode = net, parameters, accumulators, mode
        self._labelling, self._move = labelling, move
        self._point: float | None = None
        self._device = next(iter(parameters.values())).device
        self._into: list[str] = []
        self._saved, self._cost = time.monotonic(), 0.0

    def run(self, items: Sequence[Item], done: int, state: Mapping[str, Any], progress: Progress | None) -> None:
        """Add the gradients of `items`, of which the first `done` are in the sums already.

        `state` is saved along, with `done`. Raises EditError that names example and tensor where a gradient is not finite.
        """
        total, finished = sum(len(item.indices) for item in items), sum(len(item.indices) for item in items[:done])
        with self._hooked():
            for number, item in enumerate(items[done:], done + 1):
                self._add(item)
                finished += len(item.indices)
                if number < len(items) and time.monotonic() - self._saved > self._cost / SAVING:
                    self.save({**state, "done": number}, items[:number])
                if progress:
                    progress(finished, total)
        self._check(items)

    @contextmanager
    def _hooked(self) -> Iterator[None]:
        handles = [
            parameter.register_post_accumulate_grad_hook(self._hook(name))
            for name, parameter in self._parameters.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def save(self, state: Mapping[str, Any], items: Sequence[Item]) -> None:
        """Save the sums with `state` and the losses so far, if they are sound."""
        started = time.monotonic()
        self._check(items)
        losses = {item.set.label: sorted(item.set.losses.items()) for item in items}
        self._accumulators.save({**state, "losses": losses})
        self._saved = time.monotonic()
        self._cost = self._saved - started

    def losses(self, one: Set, size: int) -> list[float]:
        """The loss of every example of a set, in nats per token, with the weights as they are and true labels."""
        import torch

        found: dict[int, float] = {}
        with torch.no_grad():
            for item in batches([one], size):
                values = self._losses([one.rows[index] for index in item.indices])
                found.update(zip(item.indices, values.tolist(), strict=True))
        return [found[index] for index in range(len(one.rows))]

    def _add(self, item: Item) -> None:
        if self._move and item.point is not None and item.point != self._point:
            self._move(item.point)
            self._point = item.point
        self._into = [item.set.label, *([HALF] if item.set.label == "forget" and item.even else [])]
        rows = [self._labelled(item, index) for index in item.indices]
        groups = [(item.indices, rows)]
        if self._mode != "signed":
            groups = [([index], [row]) for index, row in zip(item.indices, rows, strict=True)]
        for indices, group in groups:
            losses = self._backward(group)
            for index, loss in zip(indices, losses, strict=True):
                item.set.losses[index] = item.set.losses.get(index, 0.0) + loss / self._labelling.draws

    def _labelled(self, item: Item, index: int) -> Tokens:
        row, (fraction, vocabulary, seed, _) = item.set.rows[index], self._labelling
        if fraction is None:
            return row
        return randomized(
            row, fraction, vocabulary, key_of(seed, f"{item.set.label}\0{item.set.keys[index]}\0{item.draw}")
        )

    def _backward(self, rows: Sequence[Tokens]) -> list[float]:
        losses = self._losses(rows)
        losses.sum().backward()
        return losses.detach().tolist()

    def _losses(self, rows: Sequence[Tokens]) -> "torch.Tensor":
        """The mean loss over the answer's tokens of each row: [rows], in nats."""
        import torch
        from torch.nn.functional import cross_entropy

        batch = {name: tensor.to(self._device) for name, tensor in collate(rows).items()}
        labels = torch.full_like(batch["labels"], IGNORED)
        labels[:, :-1] = batch.pop("labels")[:, 1:]
        try:
            logits = self._net(**batch, use_cache=False).logits.float()
        except torch.OutOfMemoryError as error:
            raise EditError(f"the device ran out of memory at {len(rows)} examples: lower --batch-size") from error
        each = cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none")
        return each.view(labels.shape).sum(1) / (labels != IGNORED).sum(1)

    def _hook(self, name: str) -> Callable[["torch.Tensor"], None]:
        targets = {label: sums[name] for label, sums in self._accumulators.sums.items()}

        def add(parameter: "torch.Tensor") -> None:
            if not self._into:  # `_check` looks at the gradients itself
                return
            gradient, parameter.grad = parameter.grad, None
            assert gradient is not None
            for label in self._into:
                if label in targets:
                    self._include(gradient, targets[label])

        return add

    def _include(self, gradient: "torch.Tensor", target: "torch.Tensor") -> None:
        gradient = gradient.to(target.device, target.dtype)
        if self._mode == "signed":
            target.add_(gradient)
        elif self._mode == "absolute":
            target.add_(gradient.abs())
        else:
            target.addcmul_(gradient, gradient)

    def _check(self, items: Sequence[Item]) -> None:
        """Raise EditError where sums are not finite, with the first example to blame: NaN and Inf stay in a sum for good."""
        if not (bad := self._accumulators.not_finite()):
            return
        self._into = []
        for item in items:
            if self._move and item.point is not None:
                self._move(item.point)
            for index in item.indices:
                self._losses([self._labelled(item, index)]).sum().backward()
                found = [
                    name
                    for name, one in self._parameters.items()
                    if one.grad is not None and not one.grad.isfinite().all()
                ]
                for parameter in self._parameters.values():
                    parameter.grad = None
                if found:
                    raise EditError(
                        f"{item.set.shown}: {item.set.unit} {item.set.numbers[index]} has a gradient with NaN or Inf in "
                        f"{len(found)} parameters, such as {found[0]}: {_REMEDY}"
                    )
        raise EditError(f"the sums of gradients have NaN or Inf in {len(bad)} parameters, such as {bad[0]}: {_REMEDY}")
