"""A point of a sweep against a bare evaluation, and against writing and loading a checkpoint for every point.

    python benchmarks/sweep.py MODEL VECTOR --forget F --retain R [--vector-base B] [--mask LOC] [--runs 7] [--batch-size 16]

All in one process, in turn. "evaluation": teacher-forced passes over both sets with the weights as they are. "sweep point": the weights are
moved to another alpha, then the same passes, then forgetting and retention with their intervals. "move": the weights alone.
"restore": back to the base. "checkpoint a point": `negate` without a report, load, tokenize, the same passes. Printed: median
(minimum to maximum) over the runs, and the ratios of the medians to the evaluation, also in processor time, which other programs
on the machine disturb less.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any


def main(arguments: argparse.Namespace) -> None:
    from editkit.checkpoint.reader import open_checkpoint
    from editkit.editing.live import LiveEdit
    from editkit.editing.negate import negate
    from editkit.editing.stream import planned
    from editkit.evaluation.sets import read
    from editkit.evaluation.similarity import Readers
    from editkit.evaluation.subject import opened
    from editkit.masks.mask import Mask
    from editkit.sweeps.evaluating import Evaluation
    from editkit.sweeps.scores import derived, measured, metrics_for
    from editkit.vectors.open import open_vector

    examples = read(arguments.forget, arguments.retain, {}, None)
    evaluation = Evaluation(
        examples, metrics_for((), (), ()), arguments.batch_size, 200, None, Readers(None, None, arguments.device)
    )
    alphas = count(1)  # always another one: nothing is ever where it should go already
    with (
        open_checkpoint(arguments.model) as base,
        opened(arguments.model, device=arguments.device) as subject,
        TemporaryDirectory() as place,
    ):
        tau = open_vector(arguments.vector, base, vector_base=arguments.vector_base)
        mask = Mask(arguments.mask, base) if arguments.mask else None
        plan = planned(base, tau, 1.0, {}, (), mask)
        sets = evaluation.prepare(subject)
        with LiveEdit(subject.net, base) as live:
            unedited = evaluation.measure(subject, sets)

            def move() -> None:
                alpha = 0.1 + next(alphas) / 1000
                live.apply(plan._replace(alphas=dict.fromkeys(plan.alphas, alpha)))

            def point() -> None:
                move()
                data = evaluation.measure(subject, sets)
                derived(data, unedited), measured(data, evaluation.metrics)

            def from_disk() -> None:
                out = Path(place) / str(next(alphas))
                negate(
                    arguments.model,
                    arguments.vector,
                    out,
                    alpha=0.5,
                    vector_base=arguments.vector_base,
                    mask=arguments.mask,
                    report=False,
                )
                with opened(out, device=arguments.device) as other:
                    evaluation.measure(other, evaluation.prepare(other))

            cases: dict[str, Callable[[], Any]] = {
                "evaluation": lambda: evaluation.measure(subject, sets),
                "sweep point": point,
                "move": move,
                "restore": live.restore,
                "checkpoint a point": from_disk,
            }
            times: dict[str, list[float]] = {name: [] for name in cases}
            busy: dict[str, list[float]] = {name: [] for name in cases}
            point()
            for _ in range(arguments.runs):
                for name, run in cases.items():
                    started, worked = time.perf_counter(), time.process_time()
                    run()
                    times[name].append(time.perf_counter() - started)
                    busy[name].append(time.process_time() - worked)
    size = sum(info.nbytes for info in base.tensors.values())
    print(
        f"{len(base.tensors)} tensors, {size / 1e6:.1f} MB; n = {sum(map(len, examples.values()))} examples, batches of {arguments.batch_size}"
    )
    for name, spent in times.items():
        low, middle, high = min(spent), statistics.median(spent), max(spent)
        ratio, work = (statistics.median(one[name]) / statistics.median(one["evaluation"]) for one in (times, busy))
        print(
            f"{name:<20} {middle * 1e3:9.1f} ms ({low * 1e3:.1f} to {high * 1e3:.1f}, n = {len(spent)})  "
            f"{ratio:.3f} x evaluation, {work:.3f} x in processor time"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("vector")
    for name in ("forget", "retain"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("vector-base", "mask"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--batch-size", type=int, default=16)
    main(parser.parse_args())
