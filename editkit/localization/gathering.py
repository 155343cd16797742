"""The long part of a localization: gradients of all examples, in a folder from which a run that was killed goes on."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from editkit.checkpoint.blocks import Progress
from editkit.checkpoint.reader import Checkpoint
from editkit.localization.accumulators import Accumulators, choose_place
from editkit.localization.evidence import GradientMeans
from editkit.localization.gradients import HALF, Gradients, Labelling, Set, batches
from editkit.localization.labels import parse_labels
from editkit.localization.settings import Settings
from editkit.localization.subject import Subject
from editkit.localization.walk import FIRST, MOST, Walk, completeness, midpoints


class Gathered(NamedTuple):
    """Mean gradients; for a path whether its attributions add up (see `completeness`); what saves all sums for --resume."""

    means: GradientMeans
    path: dict[str, Any] | None
    keep: Callable[[], None]


def gather(
    subject: Subject,
    sets: Sequence[Set],
    settings: Settings,
    folder: Path,
    *,
    base: Checkpoint | None,
    offload: str,
    vocabulary: int,
    halves: bool,
    threads: int | None,
    progress: Progress | None,
) -> Gathered:
    """The gradients of all sets. On a path, at three times as many points until the attributions add up, or MOST of them.

    halves: keeps the sums of HALF as well.
    """
    assert settings.accumulate is not None
    labels = [one.label for one in sets] + [HALF] * halves
    device = next(iter(subject.parameters.values())).device.type
    size = sum(parameter.numel() for parameter in subject.parameters.values())
    sums = Accumulators(subject.parameters, labels, choose_place(offload, size, len(labels), device), folder)
    walk = Walk(subject, base) if base is not None and settings.kind.additive else None
    labelling = Labelling(parse_labels(settings.labels), vocabulary, settings.seed, settings.draws)
    run = Gradients(subject.net, subject.parameters, sums, settings.accumulate, labelling, walk.move if walk else None)
    ends = walk.ends(lambda one: run.losses(one, settings.batch_size), sets) if walk else []
    state = sums.load()
    for one in sets:
        one.losses.update({int(index): loss for index, loss in state.get("losses", {}).get(one.label, ())})
    points, done = state.get("points", FIRST if walk else 1), state.get("done", 0)
    while True:
        places = midpoints(points, new=points > FIRST) if walk else [None]
        items = [item for place in places for item in batches(sets, settings.batch_size, settings.draws, place)]
        run.run(items, done, {"points": points}, progress)
        times = settings.draws * points
        counts = {one.label: len(one.rows) * times for one in sets}
        if halves:
            counts[HALF] = -(-len(sets[0].rows) // 2) * times
        means = GradientMeans(subject, sums.sums, counts)
        keep = partial(run.save, {"points": points, "done": len(items)}, items)
        if walk is None or base is None:
            return Gathered(means, None, keep)
        path = completeness(means, subject, base, settings.kind, points, ends, threads)
        if path["complete"] is not False or points >= MOST:
            for one in sets:
                one.losses = dict(enumerate(ends[1][one.label]))
            return Gathered(means, path, keep)
        points, done = 3 * points, 0
