"""The straight way from a base checkpoint to a model: gradients at points of it, until their attributions add up.

>>> midpoints(5)
[0.1, 0.3, 0.5, 0.7, 0.9]
>>> [round(t, 4) for t in midpoints(15, new=True)][:4]
[0.0333, 0.1667, 0.2333, 0.3667]
"""

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from editkit.checkpoint.reader import Checkpoint
from editkit.localization.evidence import CARRIED, CARRIED_RETAIN, Evidence, GradientMeans
from editkit.localization.gradients import Set
from editkit.localization.method import Method
from editkit.localization.subject import Subject
from editkit.masks.units import Units
from editkit.training.loading import load_model

if TYPE_CHECKING:
    import torch

FIRST, MOST = 5, 135
"""Midpoints of the first try, and of the last. Three times as many contain the ones before, which are used again."""
TOLERANCE = 0.01


def midpoints(count: int, new: bool = False) -> list[float]:
    """(k + 1/2) / count for k = 0 ... count - 1; with `new` without those among count / 3 midpoints."""
    return [(k + 0.5) / count for k in range(count) if not (new and k % 3 == 1)]


class Walk:
    """Sets all weights of a loaded model to w_base + t * (w - w_base), tensor by tensor from the files of both."""

    def __init__(self, subject: Subject, base: Checkpoint) -> None:
        self._subject, self._base, self._layout = subject, base, subject.layout
        everything = dict(subject.net.named_parameters())
        # A tied tensor may stand under several names in the model's files, and under one of them in the base's.
        self._files = {
            home: file for file, home in subject.homes.items() if file in subject.whole and file in base.tensors
        }
        self._fused: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        if fused := everything.keys() - self._files.keys():  # transformers alone knows how to put them together
            before = dict(load_model(base).named_parameters())
            self._fused = {
                name: (before[name].detach(), everything[name].detach().cpu().float().clone()) for name in fused
            }

    def move(self, t: float) -> None:
        """Go to the point t: the base at 0, the model at 1."""
        import torch

        for name, parameter in self._subject.net.named_parameters():
            if name in self._fused:
                start, end = self._fused[name]
            else:
                start, end = (one[self._files[name]].float() for one in (self._base, self._layout))
            parameter.data.copy_(torch.lerp(start, end, t))

    def ends(self, losses: Callable[[Set], list[float]], sets: Sequence[Set]) -> list[dict[str, list[float]]]:
        """The loss of every example of each set, in nats per token, first at the base and then at the model."""
        found = []
        for end in (0, 1):
            self.move(end)
            found.append({one.label: losses(one) for one in sets})
        return found


def completeness(
    means: GradientMeans,
    subject: Subject,
    base: Checkpoint,
    method: Method,
    points: int,
    ends: Sequence[Mapping[str, list[float]]],
    threads: int | None,
) -> dict[str, Any]:
    """Whether the attributions of all parameters add up to the drop of the loss, as those of infinitely many points do.

    `points`, `complete` (None where --only leaves parameters out, and where no loss changes on the way), and for each set
    `attributed` and `drop` in nats per token, with `error`, their difference as a share of the larger drop of the two sets.
    ends: of `Walk.ends`.
    """
    units = {info.name: Units("tensor", 1, info.rows, 1) for info in subject.tensors}
    sums = Evidence(method, subject.layout, units, gradients=means, base=base).measure(subject.tensors, threads)
    found: dict[str, Any] = {"points": points, "complete": None, "forget": None, "retain": None}
    drops = {label: fmean(ends[0][label]) - fmean(ends[1][label]) for label in ends[0]}
    largest = max(map(abs, drops.values()))
    everything = {name for name, _ in subject.net.named_parameters()} == subject.parameters.keys()
    for label, place in (("forget", CARRIED), ("retain", CARRIED_RETAIN)):
        if label in drops:
            attributed = sum(float(one[:, place].sum()) for one in sums.values())
            error = abs(attributed - drops[label]) / largest if everything and largest else None
            found[label] = {"attributed": attributed, "drop": drops[label], "error": error}
    if everything and largest:
        found["complete"] = all(found[label]["error"] <= TOLERANCE for label in drops)
    return found
