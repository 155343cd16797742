"""Planted knowledge: does a localization find the four matrices that were taught the forget set?

    python benchmarks/planted.py WORKDIR [--shared ../shared] [--plantings 5] [--examples 100] [--output planted.json]

A ground truth, made from tofu-tiny/retain, which never saw the forget set. Four of its 42 layer matrices, drawn by seed, are
fine-tuned on the forget set while all else stands still; all else is fine-tuned on background and retain text while the four
stand still. Every method then names four of the 42, so that recall and precision are the same: right ones of four.

    open      first the four, then all else at the same learning rate for as many steps. The four still move farther, since
              few weights that learn much move steadily: the size of the change gives them away.
    hidden    first all else, at a learning rate FASTER times as high, then the four: all move nearly as far.

Plantings and localizations stay in WORKDIR (100 MB a planting) and are not made again.
"""

import argparse
import json
import random
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

PLANTED, MATRICES = 4, "model.layers.*_proj.weight"
TRAINING: dict[str, Any] = {"steps": 250, "lr": 1e-3, "batch_size": 8}
FASTER, BACKGROUND, RETAIN = 2.5, 200, 400  # the last two in examples
KINDS = ("open", "hidden")
PROBING: dict[str, Any] = {"steps": 20, "lr": 3e-4, "batch_size": 16}  # the short run of the method without a base
BLIND, ONE_SET = ("magnitude", "random"), ("salun", "snip")  # what looks at no examples, and at no retain set


class Row(NamedTuple):
    """A row of the table. base: what `path` starts from, or the magnitude of the change is taken to."""

    name: str
    method: str
    base: str | None = None


ROWS = (
    Row("path from the retain model", "path", "retain"),
    Row("path from a shortly unlearned copy (no base)", "path", "unlearned"),
    Row("magnitude of the change, abs(tau)", "magnitude", "retain"),
    Row("magnitude", "magnitude"),
    *(Row(method, method) for method in ("memflex", "salun", "wagle", "fisher", "snip", "random")),
)


def rows_for(kind: str) -> tuple[Row, ...]:
    """The path without a base is tried on the open plantings only."""
    return tuple(row for row in ROWS if kind == "open" or row.base in (None, "retain"))


class Planting:
    """One planting in a folder of its own. planted: the names of its four matrices."""

    def __init__(self, kind: str, seed: int, folder: Path, shared: Path, examples: int) -> None:
        from editkit import open_checkpoint

        self.kind, self.seed, self.folder, self.examples = kind, seed, folder / f"{kind}-{seed}", examples
        self.start, data = shared / "models" / "tofu-tiny" / "retain", shared / "data" / "tofu"
        self.forget, self.retain, self.background = (
            data / f"{name}.jsonl" for name in ("forget", "retain", "background")
        )
        self.model = self.folder / "model"
        with open_checkpoint(self.start) as start:
            self.tensors = list(start.tensors)
        self.matrices = [name for name in self.tensors if name.endswith("_proj.weight")]
        self.planted = sorted(random.Random(seed).sample(self.matrices, PLANTED))

    def make(self) -> None:
        """Teach the four the forget set, and all else what the model knew before."""
        self.folder.mkdir(parents=True, exist_ok=True)
        others = [name for name in self.tensors if name not in self.planted]
        four, rest = (write_mask(self.folder / f"mask-{len(one)}.safetensors", one) for one in (self.planted, others))
        drawn, text = random.Random(self.seed), self.folder / "text.jsonl"
        known = drawn.sample(rows_of(self.background), BACKGROUND) + drawn.sample(rows_of(self.retain), RETAIN)
        text.write_text("".join(json.dumps(row) + "\n" for row in known))
        if self.kind == "open":
            self.tune(self.start, self.forget, "half-way", mask=four)
            self.tune(self.folder / "half-way", text, "model", mask=rest)
        else:
            self.tune(self.start, text, "half-way", mask=rest, lr=FASTER * TRAINING["lr"])
            self.tune(self.folder / "half-way", self.forget, "model", mask=four)

    def tune(self, model: Path, data: Path, output: str, **settings: Any) -> Path:
        """Fine-tune into the planting's folder, unless it was done before."""
        from editkit import finetune

        if not (self.folder / output).exists():
            finetune(model, data, self.folder / output, **{**TRAINING, "seed": self.seed, **settings})
        return self.folder / output

    def base(self, name: str) -> Path:
        """What a path starts from. "retain" is the truth; "unlearned" is made of the planted model alone.

        It is the model, minus what a short run on the forget set adds to it.
        """
        from editkit import negate

        if name == "retain":
            return self.start
        more, unlearned = self.tune(self.model, self.forget, "more", **PROBING), self.folder / name
        if not unlearned.exists():
            negate(self.model, more, unlearned, alpha=1.0, report=False)
        return unlearned

    def localize(self, row: Row) -> dict[str, Any]:
        """The report of a localization at tensor granularity, made unless it was before."""
        from editkit import localize

        place = self.folder / "-".join(["loc", row.method, *filter(None, [row.base])])
        if not place.exists():
            asked: dict[str, Any] = {"base": self.base(row.base) if row.base else None}
            if row.method not in BLIND:
                asked |= {"forget": self.forget, "batch_size": 16, "max_examples": self.examples}
                asked |= {} if row.method in ONE_SET else {"retain": self.retain}
            if row.method != "path":  # that its attributions add up can be checked over all tensors only
                asked["only"] = [MATRICES]
            asked |= {"granularity": "tensor", "budget": PLANTED, "seed": self.seed}
            localize(self.model, place, method=row.method, **asked)
        return json.loads((place / "localization.json").read_text())

    def ranking(self, report: dict[str, Any]) -> list[str]:
        """The 42 matrices, the highest score first."""
        scores = {one["name"]: one["score_mean"] for one in report["tensors"] if one["name"] in self.matrices}
        return sorted(scores, key=lambda name: (-scores[name], name))


def rows_of(path: Path) -> list[dict[str, str]]:
    rows = map(json.loads, path.read_text("utf-8").splitlines())
    return [{key: row[key] for key in ("question", "answer")} for row in rows]


def write_mask(path: Path, names: Iterable[str]) -> Path:
    """A mask of whole tensors."""
    import numpy as np
    from safetensors.numpy import save_file

    save_file(dict.fromkeys(names, np.ones(1, np.bool_)), path)
    return path


def moved(planting: Planting) -> float:
    """Root mean square change of the planted matrices, over that of the other 38."""
    from editkit import diff

    rows = {row["name"]: row for row in diff(planting.start, planting.model, only=MATRICES)["tensors"]}
    means = []
    for names in (set(planting.planted), rows.keys() - planting.planted):
        means.append((sum(rows[n]["l2"] ** 2 for n in names) / sum(rows[n]["numel"] for n in names)) ** 0.5)
    return means[0] / means[1]


def examine(planting: Planting, say: Callable[[str], None]) -> dict[str, Any]:
    """Everything that the tables show of one planting."""
    say(f"{planting.kind} planting {planting.seed}: {', '.join(planting.planted)}")
    planting.make()
    found: dict[str, Any] = {"kind": planting.kind, "seed": planting.seed, "planted": planting.planted}
    found |= {"moved": moved(planting), "hits": {}, "places": {}}
    for row in rows_for(planting.kind):
        report = planting.localize(row)
        order = planting.ranking(report)
        found["hits"][row.name] = len(set(order[:PLANTED]) & set(planting.planted))
        found["places"][row.name] = sorted(order.index(name) + 1 for name in planting.planted)
        if row == ROWS[0]:
            mask = {one["name"] for one in report["tensors"] if one["selected"]}
            found |= {"path": report["path"], "hits_of_all_tensors": len(mask & set(planting.planted))}
        say(f"  {row.name}: {found['hits'][row.name]} of {PLANTED}, at the places {found['places'][row.name]}")
    return found


def tables(found: list[dict[str, Any]], examples: int) -> str:
    """Both tables, in Markdown."""
    lines = [
        f"\n{found[0]['kind']}: n = {len(found)} plantings; localized with the first {examples} examples of each set.\n",
        "| planting | change of a weight, planted / others (root mean squares) | drop of the forget loss, nats per token | "
        f"attributed by path | error | points | planted ones among the best {PLANTED} of all tensors |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in found:
        path, forget = one["path"], one["path"]["forget"]
        lines.append(
            f"| {one['seed']} | {one['moved']:.2f} | {forget['drop']:.3f} | {forget['attributed']:.3f} | "
            f"{forget['error']:.2%} | {path['points']} | {one['hits_of_all_tensors']} |"
        )
    numbers = " | ".join(str(one["seed"]) for one in found)
    lines += ["", f"| right ones of {PLANTED}, planting | {numbers} | recall = precision: mean (min to max) |"]
    lines.append("|---|" + "---|" * (len(found) + 1))
    for row in rows_for(found[0]["kind"]):
        hits = [one["hits"][row.name] for one in found]
        shares = [hit / PLANTED for hit in hits]
        spread = f"{fmean(shares):.2f} ({min(shares):.2f} to {max(shares):.2f})"
        lines.append(f"| {row.name} | {' | '.join(map(str, hits))} | {spread} |")
    lines.append(f"| by chance |{' |' * len(found)} {PLANTED / 42:.2f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workdir", type=Path)
    parser.add_argument("--shared", type=Path, default=Path(__file__).resolve().parents[2] / "shared")
    parser.add_argument("--plantings", type=int, default=5)
    parser.add_argument("--examples", type=int, default=100, help="of each set, for the localizations")
    parser.add_argument("--output", type=Path, help="write the figures as JSON here")
    options = parser.parse_args()
    if not (options.shared / "models" / "tofu-tiny").exists():
        sys.exit(f"{options.shared} has no models/tofu-tiny, which this benchmark needs: give --shared")
    found = []
    for kind in KINDS:
        plantings = (
            Planting(kind, seed, options.workdir.resolve(), options.shared, options.examples)
            for seed in range(options.plantings)
        )
        made = [examine(one, lambda text: print(text, file=sys.stderr, flush=True)) for one in plantings]
        print(tables(made, options.examples), flush=True)
        found += made
    if options.output:
        settings = {"training": TRAINING, "faster": FASTER, "probing": PROBING, "examples": options.examples}
        options.output.write_text(json.dumps({**settings, "plantings": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
