"""Merge, extract-lora, combination of adapters and patches on 1.1 B-parameter bf16 Llamas, against mergekit, peft and `cp`.

    python benchmarks/merge.py WORKDIR --mergekit BIN [--runs 3] [--only merge extract adapters patch]

BIN is the folder with mergekit-yaml and mergekit-extract-lora, best in an environment of its own; the peft that is compared
with is the one that is installed. Every command runs as a whole process, in turn with the others, page cache warm. Printed: median
(minimum to maximum) over the runs, and the ratio of the medians to the peer. Two models are a base and one tuned from it, five
a base and four. The same YAML goes to both. WORKDIR needs 24 GB.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from spine import measure, shapes

TUNED, ADAPTERS, RANK, LAYERS = 4, 8, 16, 22
METHODS = {
    "task_arithmetic": ("{weight: 0.5}", "", (2, 5)),
    "slerp": ("{}", "parameters: {t: 0.4}\n", (2,)),
    "dare_ties": ("{weight: 0.5, density: 0.5}", "", (2, 5)),
    "ties": ("{weight: 0.5, density: 0.5}", "", (2, 5)),
}
"""Method -> parameters of each model, of all, and with how many models."""
PEFT = """
import sys
from peft import PeftModel
from transformers import AutoModelForCausalLM
base, output, *adapters = sys.argv[1:]
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapters[0], adapter_name="a0")
for number, adapter in enumerate(adapters[1:], 1):
    model.load_adapter(adapter, adapter_name=f"a{number}")
names = [f"a{number}" for number in range(len(adapters))]
model.add_weighted_adapter(names, [0.5] * len(names), "all", combination_type="METHOD", **EXTRA)
model.save_pretrained(output, selected_adapters=["all"])
"""


def make_tuned(base: Path, folder: Path, seed: int) -> None:
    """The base with 5 % noise on top."""
    import numpy as np

    import editkit
    from editkit.arithmetic.codec import decode, encode
    from editkit.checkpoint.blocks import blocks
    from editkit.checkpoint.writer import CheckpointWriter

    rng = np.random.default_rng(seed)
    with editkit.open_checkpoint(base) as opened, CheckpointWriter(opened, folder) as writer:
        for info in opened.tensors.values():
            raw = opened.array(info.name)
            for block in blocks(info):
                values = np.empty(block.shape, np.float32)
                decode(raw[block.offset : block.offset + block.nbytes], info.dtype, values)
                values += rng.standard_normal(block.shape, np.float32) * np.float32(0.001)
                writer.write(info.name, block.offset, encode(values, info.dtype))


def make_adapter(folder: Path, base: Path, seed: int) -> None:
    """A LoRA of rank RANK on all linear layers of the base."""
    import numpy as np
    from safetensors.numpy import save_file

    rng, factors = np.random.default_rng(seed), {}
    for name, shape in shapes(LAYERS).items():
        if len(shape) == 2 and "layers" in name:
            module = f"base_model.model.{name.removesuffix('.weight')}"
            factors[f"{module}.lora_A.weight"] = rng.standard_normal((RANK, shape[1]), np.float32)
            factors[f"{module}.lora_B.weight"] = rng.standard_normal((shape[0], RANK), np.float32) * np.float32(0.01)
    targets = sorted({name.split(".")[-3] for name in factors})
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": RANK, "target_modules": targets, "base_model_name_or_path": str(base)}  # fmt: skip
    folder.mkdir(parents=True)
    save_file(factors, folder / "adapter_model.safetensors", {"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps(config))


def inputs(work: Path) -> tuple[Path, list[Path], list[Path]]:
    """The base, what was tuned from it, and adapters; made where they are not there."""
    base, tuned = work / f"base-{LAYERS}", [work / f"tuned-{LAYERS}"]
    tuned += [work / f"tuned-{LAYERS}-{number}" for number in range(2, TUNED + 1)]
    adapters = [work / f"adapter-{number}" for number in range(ADAPTERS)]
    if not base.exists():
        subprocess.run([sys.executable, Path(__file__).with_name("spine.py"), work, "--make"], check=True)
    for seed, folder in enumerate(tuned):
        if not folder.exists():
            make_tuned(base, folder, seed)
    for seed, folder in enumerate(adapters):
        if not folder.exists():
            make_adapter(folder, base, seed)
    return base, tuned, adapters


Command = tuple[str, Sequence[object], Path]
"""What it is called, the arguments, what it writes."""


def merges(work: Path, base: Path, tuned: Sequence[Path], mergekit: Path) -> dict[str, list[Command]]:
    found: dict[str, list[Command]] = {}
    for method, (each, whole, counts) in METHODS.items():
        for count in counts:
            title, recipe = f"{method}, {count} models", work / f"{method}-{count}.yaml"
            models = "".join(f"  - model: {one}\n    parameters: {each}\n" for one in tuned[: count - 1])
            if method == "slerp":
                models = f"  - model: {base}\n{models}"
            recipe.write_text(f"merge_method: {method}\nbase_model: {base}\nmodels:\n{models}{whole}dtype: bfloat16\n")
            ours, theirs = work / "ours", work / "theirs"
            merge = [sys.executable, "-m", "editkit_cli", "merge", recipe, "-o", ours, "-q"]
            found[title] = [
                ("mergekit-yaml", [mergekit / "mergekit-yaml", recipe, theirs], theirs),
                ("editkit merge", merge, ours),
                ("editkit merge --no-report", [*merge, "--no-report"], ours),
            ]
    return found


def extraction(work: Path, base: Path, tuned: Path, mergekit: Path) -> dict[str, list[Command]]:
    theirs, ours = work / "their-lora", work / "our-lora"
    peer = [mergekit / "mergekit-extract-lora", "--base-model", base, "--model", tuned, "--out-path", theirs, "--max-rank", "32"]  # fmt: skip
    own = [sys.executable, "-m", "editkit_cli", "extract-lora", "--base", base, "--tuned", tuned, "--rank", "32", "-o", ours, "-q"]  # fmt: skip
    return {"extract-lora, rank 32": [("mergekit-extract-lora", peer, theirs), ("editkit extract-lora", own, ours)]}


def combinations(work: Path, base: Path, adapters: Sequence[Path]) -> dict[str, list[Command]]:
    found: dict[str, list[Command]] = {}
    for method, extra in (("cat", "{}"), ("linear", "{}"), ("ties", '{"density": 0.5}')):
        theirs, ours = work / "their-adapter", work / "our-adapter"
        peer = [sys.executable, "-c", PEFT.replace("METHOD", method).replace("EXTRA", extra), base, theirs, *adapters]
        vectors = [word for one in adapters for word in ("--vector", f"{one}=0.5")]
        density = ["--set", "density=0.5"] if method == "ties" else []
        own = [sys.executable, "-m", "editkit_cli", "merge", "--to", "adapter", *vectors, "--method", method, *density, "-o", ours, "-q"]  # fmt: skip
        found[f"{len(adapters)} adapters, {method}"] = [
            ("peft", peer, theirs / "all"),
            ("editkit merge --to adapter", own, ours),
        ]
    return found


EDITS = {"all changed": f"tuned-{LAYERS}", "one layer changed": "one-layer"}


def patches_of(work: Path, base: Path, tuned: Path) -> None:
    """Make what is undone: a patch of every element, and one of a single layer."""
    import editkit

    if not (edited := work / EDITS["one layer changed"]).exists():
        editkit.negate(base, tuned, edited, alpha=1.0, only=["model.layers.3.*"])
    for name in EDITS.values():
        (work / f"{name}.editpatch").unlink(missing_ok=True)
        editkit.create_patch(base, work / name, work / f"{name}.editpatch")


def patches(work: Path) -> dict[str, list[Command]]:
    found: dict[str, list[Command]] = {}
    for title, name in EDITS.items():
        patch, copy, undone = work / f"{name}.editpatch", work / "copy", work / "undone"
        own = [sys.executable, "-m", "editkit_cli", "patch", "undo", work / name, patch, "-o", undone, "-q"]
        commands = [("cp -r", ["cp", "-r", work / name, copy], copy), ("editkit patch undo", own, undone)]
        found[f"patch undo, {title}, patch of {patch.stat().st_size / 1e6:.1f} MB"] = commands
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workdir", type=Path)
    parser.add_argument("--mergekit", type=Path, required=True)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", nargs="+", default=["merge", "extract", "adapters", "patch"])
    parser.add_argument("--make", action="store_true", help="only make the inputs")
    options = parser.parse_args()
    work = options.workdir.resolve()
    if not options.make:  # in a process of its own: a child's peak memory counts from its parent's size
        subprocess.run([sys.executable, __file__, work, "--mergekit", options.mergekit, "--make"], check=True)
    base, tuned, adapters = inputs(work)
    if options.make:
        return patches_of(work, base, tuned[0])
    groups: dict[str, list[Command]] = {}
    if "merge" in options.only:
        groups |= merges(work, base, tuned, options.mergekit)
    if "extract" in options.only:
        groups |= extraction(work, base, tuned[0], options.mergekit)
    if "adapters" in options.only:
        groups |= combinations(work, base, adapters)
    if "patch" in options.only:
        groups |= patches(work)
    print(f"n = {options.runs} runs, wall time s: median (min to max), peak memory MB: median\n")
    print("| what | command | wall | memory | wall to peer | memory to peer |\n|---|---|---|---|---|---|")
    for title, commands in groups.items():
        runs: dict[str, list[tuple[float, float]]] = {name: [] for name, _, _ in commands}
        measure([str(word) for word in commands[-1][1]], commands[-1][2])  # warms the page cache
        for name, command, output in commands * options.runs:
            runs[name].append(measure([str(word) for word in command], output))
        walls = {name: [wall for wall, _ in found] for name, found in runs.items()}
        memory = {name: statistics.median(size for _, size in found) for name, found in runs.items()}
        peer = commands[0][0]
        for name, _, output in commands:
            middle = statistics.median(walls[name])
            ratios = [f"{middle / statistics.median(walls[peer]):.2f}", f"{memory[name] / memory[peer]:.2f}"]
            spread = f"{middle:.2f} ({min(walls[name]):.2f} to {max(walls[name]):.2f})"
            print(f"| {title} | {name} | {spread} | {memory[name]:.0f} | {' | '.join(ratios)} |", flush=True)
            shutil.rmtree(output, ignore_errors=True)


if __name__ == "__main__":
    main()
