"""The long part of a localization: gradients of all examples, in a folder from which a run that was killed goes on."""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from editkit.checkpoint import disk
from editkit.checkpoint.blocks import Progress
from editkit.checkpoint.reader import Checkpoint
from editkit.errors import EditError, listed
from editkit.localization.accumulators import STATE, Accumulators, choose_place
from editkit.localization.evidence import GradientMeans
from editkit.localization.gradients import HALF, Gradients, Labelling, Set, batches
from editkit.localization.labels import parse_labels
from editkit.localization.settings import Settings
from editkit.localization.subject import Subject
from editkit.localization.walk import FIRST, MOST, Walk, completeness, midpoints


class GradientsKept(EditError):
    """What went wrong after all gradients were gathered, which are saved: another budget, or room on the disk, may do."""


def unfinished_folder(output: Path) -> Path:
    """`.NAME.unfinished` beside `output`."""
    place = output.expanduser().resolve()
    return place.with_name(f".{place.name}.unfinished")


@contextmanager
def unfinished(output: Path, settings: Mapping[str, Any], resume: bool) -> Iterator[Path]:
    """The folder `.NAME.unfinished` beside `output`. It stays where the run is interrupted, and with GradientsKept.

    settings: what the gradients depend on. Raises EditError where there is such a folder already and `resume` is False, or
    where it was begun with other settings.
    """
    folder = unfinished_folder(output)
    made: list[Path] = []
    with disk.writing(str(output)):
        disk.make_parents(folder, made)
        folder.mkdir(exist_ok=True)
    try:
        guard = disk.lock(folder, needed=True)
    except OSError as error:
        raise EditError(f"{output} is being made by another run: wait for it, or give another output") from error
    try:
        _check_begun(folder, output, settings, resume)
        if not (folder / STATE).exists():
            (folder / "settings.json").write_text(json.dumps(settings))
        try:
            yield folder
        except GradientsKept:
            raise
        except EditError:
            (folder / STATE).unlink(missing_ok=True)
            raise
        (folder / STATE).unlink(missing_ok=True)
    finally:
        if not (folder / STATE).exists():
            shutil.rmtree(folder, ignore_errors=True)
        os.close(guard)
        disk.remove_made(made)


def _check_begun(folder: Path, output: Path, settings: Mapping[str, Any], resume: bool) -> None:
    if not (folder / STATE).exists():
        return
    if not resume:
        raise EditError(f"{output} was begun and not finished: go on with --resume, or remove {folder.name} beside it")
    try:
        begun = json.loads((folder / "settings.json").read_text())
    except (OSError, ValueError) as error:
        raise EditError(f"{folder.name} is damaged (settings.json): remove it and begin again") from error
    if other := [key for key in {**begun, **settings} if begun.get(key) != settings.get(key)]:
        raise EditError(
            f"{output} was begun with other settings ({listed(sorted(other))}): give the same ones, or remove {folder.name} beside it"
        )


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
