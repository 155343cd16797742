"""Function: does forgetting inside a localization keep more than inside a random selection, or everywhere?

    python benchmarks/localized.py WORKDIR [--shared ../shared] [--seeds 3] [--output localized.json]

tofu-tiny/full knows both sets by heart. It forgets until its token accuracy on the forget set, with the true answer as input,
has fallen to 50 % (to within 1 %); what counts is the token accuracy left on the retain set. Two ways, both confined to a region:

    negation    full - alpha * tau, with tau = base fine-tuned on the forget set - base; alpha found by bisection
    gradient    steps of Adam on -0.4 x forget loss + 2.0 x retain loss, the last one shortened by bisection

The regions are the masks of `editkit localize`, a random one of the same size, one with as many parameters in every layer
(`--control`), and the whole model. Forgetting is measured on the first 50 forget examples, which localization and gradients
use too; retention on the last 200 retain examples, of which the localization (first 100) and the gradients (first 200) see
none. A seed stands for the task vector, the draws of memflex and random, and the order of the gradient steps.

Intervals: 95 % bootstrap over the retain examples, of which each counts with its mean over the seeds; differences are paired.
Task vectors, localizations and outcomes stay in WORKDIR and are not made again.
"""

import argparse
import json
import random
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch

import editkit
from editkit.masks.mask import Mask
from editkit.training.data import read_examples
from editkit.training.encoding import IGNORED, Tokens, collate, encode
from editkit.training.loading import file_tensors, load_model, load_tokenizer
from editkit.training.masking import selection

Tensors = Mapping[str, torch.Tensor]

SETS = ("forget", "retain")
METHODS: dict[str, tuple[str, ...]] = {  # what each is given
    "memflex": SETS, "salun": SETS[:1], "wagle": SETS, "fisher": SETS, "snip": SETS[:1], "path": (*SETS, "base"),
    "magnitude": ("base",), "random": (),
}  # fmt: skip
DRAWN = ("memflex", "random")
FULL, DEFAULT, BUDGETS = "full", "element 5%", ("element 5%", "element 10%", "element 20%", "tensor 20%")
LEVEL, NEAR, STRONGEST, MOST_STEPS = 0.5, 0.01, 64.0, 40
TRAINING: dict[str, Any] = {"steps": 60, "lr": 5e-4, "batch_size": 16}
LR, RATES = 2e-3, {FULL: 4e-4, "magnitude": 6e-3, "random": 6e-3}  # each such that 10 to 40 steps forget enough
BATCH_SIZE, FORGET_WEIGHT, RETAIN_WEIGHT = 16, -0.4, 2.0


class Testbed:
    """The model, which every edit starts from anew, its examples as tokens, and the regions of its parameters."""

    def __init__(self, shared: Path, work: Path) -> None:
        models, data = shared / "models" / "tofu-tiny", shared / "data" / "tofu"
        self.base, self.full, self.work = models / "base", models / "full", work
        self.files = {name: data / f"{name}.jsonl" for name in SETS}
        self.checkpoint = editkit.open_checkpoint(self.full)
        self.net = load_model(self.checkpoint).eval()
        self.net.config.use_cache = False
        self.weights = file_tensors(self.net, self.checkpoint)
        self.start = {name: tensor.clone() for name, tensor in self.weights.items()}
        tokenizer = load_tokenizer(self.checkpoint)
        forget, retain = (encode(read_examples(path), tokenizer).rows for path in self.files.values())
        self.forget, self.retain = forget[:100], retain[:200]
        self.forgetting = sorted(forget[:50], key=lambda row: len(row.ids))
        self.retention = sorted(retain[-200:], key=lambda row: len(row.ids))

    def set(self, start: Tensors, way: Tensors, far: float) -> None:
        """Set the weights to start + far * way."""
        for name, tensor in self.weights.items():
            tensor.copy_(torch.add(start[name], way[name], alpha=far))

    def tuned(self, seed: int) -> Path:
        """The base, fine-tuned on the forget set."""
        path = self.work / f"tuned-{seed}"
        if not path.exists():
            editkit.finetune(self.base, self.files["forget"], path, seed=seed, **TRAINING)
        return path

    def located(self, method: str, budget: str, seed: int) -> Path:
        """The folder of a localization, with its control."""
        seed = seed if method in DRAWN else 0
        place = self.work / f"{method} {budget} {seed}".replace(" ", "-").replace("%", "")
        if not place.exists():
            inputs = {**self.files, "base": self.base}
            asked: dict[str, Any] = {name: inputs[name] for name in METHODS[method]}
            asked |= dict(zip(("granularity", "budget"), budget.split(), strict=True))
            if budget.startswith(
                "tensor"
            ):  # an embedding is a sixth of all parameters: it would end the filling of a budget
                asked["only"] = ["model.layers.*_proj.weight"]
            asked |= {"batch_size": 16, "max_examples": 100, "seed": seed, "control": True}
            editkit.localize(self.full, place, method=method, **asked)
        return place

    def mask(self, region: str, seed: int) -> Path:
        """A region is "METHOD GRANULARITY BUDGET", or that and "control"."""
        method, granularity, budget, *control = region.split()
        return self.located(method, f"{granularity} {budget}", seed).joinpath(*control)

    def selected(self, region: str, seed: int) -> Tensors:
        """True where an edit may go."""
        if region == FULL:
            return {name: torch.ones_like(tensor, dtype=torch.bool) for name, tensor in self.weights.items()}
        mask = Mask(self.mask(region, seed), self.checkpoint)
        with mask.file:
            return {name: selection(mask, self.checkpoint.tensors[name]) for name in self.weights}

    def share(self, region: str, seed: int) -> float:
        """Selected parameters, per cent of all."""
        chosen = self.selected(region, seed).values()
        return 100 * sum(int(one.sum()) for one in chosen) / sum(one.numel() for one in chosen)

    def accuracy(self, rows: Sequence[Tokens]) -> np.ndarray:
        """Share of the answer's tokens that are the most likely ones, for each example."""
        found: list[float] = []
        with torch.no_grad():
            for first in range(0, len(rows), 50):
                batch = collate(rows[first : first + 50])
                labels = batch.pop("labels")[:, 1:]
                inside = labels != IGNORED
                right = (self.net(**batch).logits[:, :-1].argmax(-1) == labels) & inside
                found += (right.sum(1) / inside.sum(1)).tolist()
        return np.array(found)

    def known(self) -> float:
        """Accuracy on what is to be forgotten."""
        return float(self.accuracy(self.forgetting).mean())


def settle(bed: Testbed, start: Tensors, way: Tensors, low: float, high: float) -> float:
    """Set the weights to start + x * way with the x between low and high at which the accuracy is LEVEL; returns x."""
    for _ in range(12):
        middle = (low + high) / 2
        bed.set(start, way, middle)
        known = bed.known()
        if abs(known - LEVEL) <= NEAR:
            break
        low, high = (middle, high) if known > LEVEL else (low, middle)
    return middle


def negation(bed: Testbed, region: str, seed: int) -> float | None:
    """Negate the task vector within the selection; returns alpha, None where none up to STRONGEST forgets enough."""
    with editkit.open_checkpoint(bed.base) as before, editkit.open_checkpoint(bed.tuned(seed)) as after:
        way = {name: (before[name] - after[name]) * chosen for name, chosen in bed.selected(region, seed).items()}
    low, high = 0.0, 0.5
    while high <= STRONGEST:
        bed.set(bed.start, way, high)
        if bed.known() <= LEVEL:
            return settle(bed, bed.start, way, low, high)
        low, high = high, 2 * high
    return None


def gradient(bed: Testbed, region: str, seed: int) -> float | None:
    """Train within the selection; returns how many steps that took, None where MOST_STEPS are not enough."""
    bed.set(bed.start, bed.start, 0.0)
    selected, order = bed.selected(region, seed), random.Random(seed)
    adam = torch.optim.Adam(bed.net.parameters(), lr=RATES.get(region.split()[0], LR))
    for step in range(MOST_STEPS):
        before = {name: tensor.clone() for name, tensor in bed.weights.items()}
        bed.net.zero_grad()
        for weight, rows in ((FORGET_WEIGHT, bed.forget), (RETAIN_WEIGHT, bed.retain)):
            (weight * bed.net(**collate(order.sample(rows, BATCH_SIZE))).loss).backward()
        for name, parameter in bed.net.named_parameters():
            parameter.grad.mul_(selected[name])
        adam.step()
        if bed.known() <= LEVEL:
            way = {name: tensor - before[name] for name, tensor in bed.weights.items()}
            return step + settle(bed, before, way, 0.0, 1.0)
    return None


WAYS = {"negation": (negation, "alpha"), "gradient": (gradient, "steps")}


def outcome(bed: Testbed, way: str, region: str, seed: int) -> dict[str, Any]:
    """How far one edit had to go, and the accuracies then: `far` (None: never got there), `forget`, `retain` (by example)."""
    path = bed.work / f"{way} {region} {seed}.json".replace(" ", "-").replace("%", "")
    if not path.exists():
        far = WAYS[way][0](bed, region, seed)
        found = {"far": far, "forget": bed.known(), "retain": bed.accuracy(bed.retention).tolist()}
        path.write_text(json.dumps(found))
        print(f"{way}, {region}, seed {seed}: {far}, {np.mean(found['retain']):.3f}", file=sys.stderr, flush=True)
    return json.loads(path.read_text())


class Kept(NamedTuple):
    """What an edit within a region left of the retain set. each: mean over the seeds, by example; seeds: mean over examples."""

    far: list[float | None]
    each: np.ndarray
    seeds: list[float]


def keep(bed: Testbed, way: str, region: str, seeds: int) -> Kept:
    found = [outcome(bed, way, region, seed) for seed in range(seeds)]
    retain = np.array([one["retain"] for one in found])
    return Kept([one["far"] for one in found], retain.mean(0), retain.mean(1).tolist())


def bootstrap(values: np.ndarray) -> tuple[float, float, float]:
    """Mean in per cent, and the ends of its 95 % interval."""
    drawn = np.random.default_rng(0).integers(len(values), size=(10_000, len(values)))
    low, high = np.quantile(values[drawn].mean(1), [0.025, 0.975])
    return 100 * float(values.mean()), 100 * float(low), 100 * float(high)


def against(kept: Kept, other: Kept) -> str:
    """The paired difference in points; no better: its interval holds 0."""
    if None in kept.far + other.far or np.array_equal(kept.each, other.each):
        return "-"
    mean, low, high = bootstrap(kept.each - other.each)
    verdict = "better" if low > 0 else "worse" if high < 0 else "no better"
    return f"{mean:+.1f} [{low:+.1f}, {high:+.1f}] {verdict}"


def row(kept: Kept) -> str:
    """How far, what is kept, and the spread over the seeds."""
    far = [one for one in kept.far if one is not None]
    if None in kept.far:
        return f"level not reached by {len(kept.far) - len(far)} of {len(kept.far)} seeds | - | -"
    mean, low, high = bootstrap(kept.each)
    spread = f"{100 * min(kept.seeds):.1f} to {100 * max(kept.seeds):.1f}"
    return f"{np.mean(far):.2f} ({min(far):.2f} to {max(far):.2f}) | {mean:.1f} [{low:.1f}, {high:.1f}] | {spread}"


def methods_table(bed: Testbed, way: str, seeds: int) -> tuple[str, dict[str, Kept]]:
    """All methods at the default budget; the controls of each are for negation only, which is quick."""
    found = {region: keep(bed, way, region, seeds) for region in (FULL, *(f"{name} {DEFAULT}" for name in METHODS))}
    lines = [
        f"| {way} | {WAYS[way][1]}: mean (min to max) | retain accuracy, % [95 %] | seeds, min to max | "
        "to random, points [95 %] | to the full model, points [95 %] | to its control, points [95 %] |",
        "|---|---|---|---|---|---|---|",
    ]
    for region, kept in found.items():
        has_control = way == "negation" and region not in (FULL, f"random {DEFAULT}")
        control = keep(bed, way, f"{region} control", seeds) if has_control else kept
        others = found[f"random {DEFAULT}"], found[FULL], control
        lines.append(f"| {region} | {row(kept)} | {' | '.join(against(kept, other) for other in others)} |")
    return "\n".join(lines), found


def budgets_table(bed: Testbed, methods: Sequence[str], seeds: int) -> tuple[str, dict[str, Kept]]:
    """Negation at several budgets, and what `editkit diff --mask` says of the first seed's edit."""
    found = {FULL: keep(bed, "negation", FULL, seeds)}
    lines = [
        "| negation | alpha: mean (min to max) | retain accuracy, % [95 %] | seeds, min to max | selected, % | to the random mask, points [95 %] | elements changed inside, outside the mask |",
        "|---|---|---|---|---|---|---|",
        f"| {FULL} | {row(found[FULL])} | 100 | | |",
    ]
    for budget in BUDGETS:
        for method in methods:
            region = f"{method} {budget}"
            # the tensors of one layer hardly ever fill its share: their control is too small, or the selection itself
            chance = f"random {budget}" if budget.startswith("tensor") else f"{region} control"
            found |= {name: keep(bed, "negation", name, seeds) for name in (region, chance)}
            for name in (region, chance):
                shares = [bed.share(name, seed) for seed in range(seeds)]
                share = f"{min(shares):.1f} to {max(shares):.1f}"
                ends = share, against(found[name], found[chance]), audit(bed, name, found[name].far[0])
                lines.append(f"| {name} | {row(found[name])} | {' | '.join(ends)} |")
    return "\n".join(dict.fromkeys(lines)), found


def audit(bed: Testbed, region: str, alpha: float | None) -> str:
    """The edit of seed 0 as files, and how many of their elements differ from the model's."""
    if alpha is None:
        return "-"
    mask = bed.mask(region, 0)
    with TemporaryDirectory(dir=bed.work) as folder:
        edited = Path(folder) / "edited"
        editkit.negate(bed.full, bed.tuned(0), edited, alpha=alpha, vector_base=bed.base, mask=mask, report=False)
        found = editkit.diff(bed.full, edited, mask=mask)["mask"]
    return f"{found['changed_inside']:,}, {found['changed_outside']:,}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workdir", type=Path)
    parser.add_argument("--shared", type=Path, default=Path(__file__).resolve().parents[2] / "shared")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, help="write the figures as JSON here")
    options = parser.parse_args()
    if not (options.shared / "models" / "tofu-tiny").exists():
        sys.exit(f"{options.shared} has no models/tofu-tiny, which this benchmark needs: give --shared")
    options.workdir.mkdir(parents=True, exist_ok=True)
    bed = Testbed(options.shared, options.workdir.resolve())
    print(
        f"Token accuracy before: {bed.known():.1%} on n = {len(bed.forgetting)} forget examples, to fall to {LEVEL:.0%};"
    )
    print(
        f"{bed.accuracy(bed.retention).mean():.1%} on n = {len(bed.retention)} retain examples. {options.seeds} seeds.\n"
    )
    table, negated = methods_table(bed, "negation", options.seeds)
    print(table, end="\n\n", flush=True)
    reached = [name for name in METHODS if name != "random" and None not in negated[f"{name} {DEFAULT}"].far]
    best = max(reached, key=lambda name: negated[f"{name} {DEFAULT}"].each.mean())
    table, budgets = budgets_table(bed, list(dict.fromkeys(["memflex", best])), options.seeds)
    print(table, end="\n\n", flush=True)
    table, trained = methods_table(bed, "gradient", options.seeds)
    print(table)
    if options.output:
        figures = {
            way: {name: {"far": one.far, "retain": one.seeds, "interval": bootstrap(one.each)} for name, one in found.items()}
            for way, found in (("negation", negated | budgets), ("gradient", trained))
        }  # fmt: skip
        options.output.write_text(json.dumps({"level": LEVEL, **figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
