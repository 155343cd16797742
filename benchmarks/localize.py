"""Gradients and thresholds of `localize`: time and memory against a bare forward and backward pass over the same examples.

    python benchmarks/localize.py gradients MODEL --forget F --retain R [--examples 100] [--batch-size 8] [--runs 5]
    python benchmarks/localize.py memory MODEL --forget F --retain R
    python benchmarks/localize.py threshold WORKDIR [--elements 1e9] [--runs 3]

`gradients`: all in one process, in turn. The straightforward version takes the examples one by one, keeps every example's
gradients and averages them at the end; it runs on examples as they are, and padded to 500 tokens, as the code published with
MemFlex does it (github.com/zjunlp/KnowUnDo, pretrain/). `memory`: peak resident memory of a process each, accumulators
in main memory. `threshold`: selects 5 % of random scores in a file of WORKDIR (4 bytes each), against one pass that
adds them up. Printed: median (minimum to maximum) over the runs, and the ratio of the medians.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

PADDED = 500  # tokens


class Case:
    """A model and batches of examples, as `localize` makes them."""

    def __init__(self, model: str, forget: str, retain: str, examples: int, batch_size: int) -> None:
        from editkit.checkpoint.reader import open_checkpoint
        from editkit.localization.examples import encoded, read_sets
        from editkit.localization.gradients import batches
        from editkit.localization.subject import load
        from editkit.training.loading import load_tokenizer

        base = open_checkpoint(model)
        self.subject = load(base, None, base, (), "float32", "cpu")
        self.net, tokenizer = self.subject.net, load_tokenizer(base)
        limits: dict[str, Any] = {
            "context": None,
            "max_length": None,
            "prompt_template": None,
        }
        vocabulary = self.net.config.vocab_size
        self.vocabulary = vocabulary
        self.sets = [
            encoded(label, one, tokenizer, vocabulary=vocabulary, **limits)
            for label, one in read_sets(forget, retain, examples).items()
        ]
        self.items = list(batches(self.sets, batch_size))
        self.examples = sum(len(one.rows) for one in self.sets)

    def bare(self, items: Sequence[Any]) -> None:
        """Forward and backward, and nothing else."""
        from editkit.training.encoding import collate

        for item in items:
            self.net.zero_grad(set_to_none=True)
            self.net(**collate([item.set.rows[index] for index in item.indices])).loss.backward()

    def localize(self, items: Sequence[Any], mode: str = "signed") -> None:
        """The gradients of `localize`, with the sums in main memory."""
        from editkit.localization.accumulators import Accumulators
        from editkit.localization.gradients import Gradients, Labelling

        self.net.zero_grad(set_to_none=True)
        sums = Accumulators(self.subject.parameters, [one.label for one in self.sets], "cpu", Path())
        sums.save = lambda state: None  # type: ignore[method-assign]
        labelling = Labelling(None, self.vocabulary, 0)
        Gradients(self.net, self.subject.parameters, sums, mode, labelling, None).run(items, 0, {}, None)

    def straightforward(self, pad_to: int | None) -> None:
        """One example at a time, a copy of all its gradients each, and their mean at the end."""
        import torch

        from editkit.training.encoding import collate

        for one in self.sets:
            kept: dict[str, list[torch.Tensor]] = {}
            for row in one.rows:
                batch = collate([row])
                if pad_to:
                    fill = {"input_ids": 0, "attention_mask": 0, "labels": -100}
                    more = max(0, pad_to - len(row.ids))
                    batch = {key: torch.nn.functional.pad(batch[key], (0, more), value=fill[key]) for key in batch}
                self.net.zero_grad()
                self.net(**batch).loss.backward()
                for name, parameter in self.net.named_parameters():
                    kept.setdefault(name, []).append(parameter.grad.detach().clone())
            for copies in kept.values():
                torch.stack(copies).mean(0)


def in_turn(cases: dict[str, Callable[[], None]], runs: int) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(runs):
        for name, run in cases.items():
            started = time.perf_counter()
            run()
            found[name].append(time.perf_counter() - started)
    return found


def told(times: dict[str, list[float]], against: str, per: float, unit: str) -> None:
    base = statistics.median(times[against])
    for name, spent in times.items():
        low, middle, high = (value / per * 1e3 for value in (min(spent), statistics.median(spent), max(spent)))
        ratio = statistics.median(spent) / base
        print(
            f"{name:<44} {middle:8.2f} ms {unit} ({low:.2f} to {high:.2f}, n = {len(spent)})  {ratio:.2f} x {against}"
        )


def gradients(model: str, forget: str, retain: str, examples: int, batch_size: int, runs: int) -> None:
    case = Case(model, forget, retain, examples, batch_size)
    alone = list(_single(case))
    case.bare(case.items[:2])
    main = {"bare pass": lambda: case.bare(case.items), "localize": lambda: case.localize(case.items)}
    told(in_turn(main, runs), "bare pass", case.examples, "per example")
    single = {
        "bare pass, one by one": lambda: case.bare(alone),
        "localize, squared": lambda: case.localize(case.items, "squared"),
    }
    told(in_turn(single, runs), "bare pass, one by one", case.examples, "per example")
    slow = {
        "localize": lambda: case.localize(case.items),
        "straightforward": lambda: case.straightforward(None),
        f"straightforward, padded to {PADDED}": lambda: case.straightforward(PADDED),
    }
    told(in_turn(slow, max(1, runs // 2)), "localize", case.examples, "per example")


def _single(case: Case) -> Any:
    from editkit.localization.gradients import batches

    return batches(case.sets, 1)


def memory(model: str, forget: str, retain: str, examples: int, batch_size: int) -> None:
    peaks = {}
    for kind in ("bare", "localize"):
        command = [sys.executable, __file__, "peak", model, "--forget", forget, "--retain", retain]
        command += ["--examples", str(examples), "--batch-size", str(batch_size), "--kind", kind]
        peaks[kind] = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-3])
        if kind == "localize":
            *_, sums, largest = (
                int(word)
                for word in subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-3:]
            )
    print(
        f"bare pass {peaks['bare'] / 1e6:.0f} MB, localize {peaks['localize'] / 1e6:.0f} MB, more by {(peaks['localize'] - peaks['bare']) / 1e6:.0f} MB"
    )
    print(f"accumulators {sums / 1e6:.0f} MB, largest tensor {largest / 1e6:.0f} MB")


def peak(model: str, forget: str, retain: str, examples: int, batch_size: int, kind: str) -> None:
    """Bytes: peak resident memory of this process, size of the accumulators, of the largest tensor."""
    case = Case(model, forget, retain, examples, batch_size)
    case.bare(case.items) if kind == "bare" else case.localize(case.items)
    sizes = [parameter.numel() for parameter in case.subject.parameters.values()]
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, 4 * 2 * sum(sizes), 4 * max(sizes))


def threshold(folder: Path, elements: int, runs: int) -> None:
    from editkit.arithmetic.draws import uniform
    from editkit.checkpoint.blocks import Block, Scratch, blocks, ordered_map
    from editkit.checkpoint.reader import open_checkpoint
    from editkit.checkpoint.single import SingleFileWriter
    from editkit.masks.threshold import chosen_bits, thresholds

    rows, columns, tensors = 4096, 4096, -(-elements // (1 << 24))
    path = folder / f"scores-{tensors}.safetensors"
    if not path.exists():
        shapes = {f"layers.{index}.weight": ("F32", (rows, columns)) for index in range(tensors)}
        with SingleFileWriter(path, shapes, {}) as writer:
            draws = np.empty((rows, columns), np.float32)
            for index, name in enumerate(shapes):
                uniform(index, 0, draws)
                writer.write(name, 0, draws.reshape(-1).view(np.uint8))
    scores, scratch = open_checkpoint(path), Scratch()
    infos = list(scores.tensors.values())
    groups, total = dict.fromkeys(scores.tensors, ""), sum(info.numel for info in infos)

    def read(block: Block) -> np.ndarray:
        return scratch.read("scores", scores, block.info.name, block, np.float32)

    def one_pass() -> None:
        work = (block for info in infos for block in blocks(info))
        with ordered_map(lambda block: float(read(block).sum()), work, None) as results:
            sum(results)

    def select() -> None:
        found, _ = thresholds(infos, read, {"": total // 20}, groups)
        chosen = sum(int(np.unpackbits(bits).sum()) for _, bits in chosen_bits(infos, read, found, groups))
        assert chosen == total // 20

    one_pass()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times = in_turn({"one pass": one_pass, "threshold and mask": select}, runs)
    extra = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(f"{total:,} scores, {total // 20:,} selected; {extra / 1e3:.0f} MB more than one pass")
    told(times, "one pass", total / 1e9, "per 1e9 elements")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["gradients", "memory", "threshold", "peak"])
    parser.add_argument("place", help="the model, or the folder for scores")
    parser.add_argument("--forget")
    parser.add_argument("--retain")
    parser.add_argument("--examples", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--elements", type=float, default=1e9)
    parser.add_argument("--kind", default="localize")
    given = parser.parse_args()
    if given.what == "threshold":
        return threshold(Path(given.place), int(given.elements), given.runs)
    if not given.forget or not given.retain:
        parser.error("give --forget and --retain")
    shared = (given.place, given.forget, given.retain, given.examples, given.batch_size)
    if given.what == "gradients":
        return gradients(*shared, given.runs)
    if given.what == "memory":
        return memory(*shared)
    return peak(*shared, given.kind)


if __name__ == "__main__":
    main()
