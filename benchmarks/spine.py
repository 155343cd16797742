"""Negate and diff on a 1.1 B-parameter bf16 Llama (random weights, 500 MB shards), against mergekit and `cat`.

    python benchmarks/spine.py WORKDIR [--mergekit PATH/TO/mergekit-yaml] [--runs 5] [--layers 22]

Every command runs as a whole process, in turn with the others, page cache warm; wall time and peak resident memory are
the operating system's own. Printed: median (minimum to maximum) over the runs, and the ratio of the medians. mergekit is
best installed in an environment of its own. WORKDIR needs 10 GB. With --layers 44 the model is nearly twice as large.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from math import prod
from pathlib import Path

HIDDEN, INNER, KEYS, VOCABULARY, SHARD = 2048, 5632, 256, 32000, 500_000_000


def shapes(layers: int) -> dict[str, tuple[int, ...]]:
    """TinyLlama-1.1B's tensors, in the order in which transformers saves them."""
    found: dict[str, tuple[int, ...]] = {
        "lm_head.weight": (VOCABULARY, HIDDEN),
        "model.embed_tokens.weight": (VOCABULARY, HIDDEN),
    }
    for layer in range(layers):
        start = f"model.layers.{layer}."
        found |= {
            start + "input_layernorm.weight": (HIDDEN,),
            start + "mlp.down_proj.weight": (HIDDEN, INNER),
            start + "mlp.gate_proj.weight": (INNER, HIDDEN),
            start + "mlp.up_proj.weight": (INNER, HIDDEN),
            start + "post_attention_layernorm.weight": (HIDDEN,),
            start + "self_attn.k_proj.weight": (KEYS, HIDDEN),
            start + "self_attn.o_proj.weight": (HIDDEN, HIDDEN),
            start + "self_attn.q_proj.weight": (HIDDEN, HIDDEN),
            start + "self_attn.v_proj.weight": (KEYS, HIDDEN),
        }
    return found | {"model.norm.weight": (HIDDEN,)}


def make_pair(base: Path, tuned: Path, layers: int) -> None:
    """Random weights of deviation 0.02, and the same with 5 % noise on top."""
    import numpy as np

    from editkit.arithmetic.codec import encode
    from editkit.checkpoint.header import encode as header

    shards: list[dict[str, tuple[int, ...]]] = [{}]
    for name, shape in shapes(layers).items():
        if shards[-1] and 2 * sum(prod(s) for s in [*shards[-1].values(), shape]) > SHARD:
            shards.append({})
        shards[-1][name] = shape
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": INNER,
        "num_hidden_layers": layers, "num_attention_heads": 32, "num_key_value_heads": 4, "vocab_size": VOCABULARY,
        "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    }  # fmt: skip
    rng, weight_map = np.random.default_rng(0), {}
    for folder in (base, tuned):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(config))
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        weight_map |= dict.fromkeys(shard, file)
        with open(base / file, "wb") as one, open(tuned / file, "wb") as other:
            for stream in (one, other):
                stream.write(header({name: ("BF16", shape) for name, shape in shard.items()}, {"format": "pt"}))
            for shape in shard.values():
                weights = rng.standard_normal(shape, np.float32) * np.float32(0.02)
                one.write(encode(weights, "BF16"))
                other.write(encode(weights + rng.standard_normal(shape, np.float32) * np.float32(0.001), "BF16"))
    size = sum(2 * prod(shape) for shape in shapes(layers).values())
    for folder in (base, tuned):
        index = {"metadata": {"total_size": size}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def make_tiny(folder: Path) -> None:
    """A checkpoint of one 64 x 64 matrix: what a command takes on it is its start-up."""
    from editkit.checkpoint.header import encode as header

    folder.mkdir(parents=True)
    raw = header({"w.weight": ("BF16", (64, 64))}, {"format": "pt"})
    (folder / "model.safetensors").write_bytes(raw + bytes(64 * 64 * 2))


def measure(command: Sequence[str], output: Path | None) -> tuple[float, float]:
    """Seconds of wall time and MB of peak resident memory of one run."""
    if output:
        shutil.rmtree(output, ignore_errors=True)
    started = time.perf_counter()
    with open(os.devnull, "w") as nowhere:
        process = subprocess.Popen(command, stdout=nowhere, stderr=subprocess.PIPE)
        assert process.stderr is not None
        said = process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
    if output and not any(output.glob("*.safetensors")):
        sys.exit(f"{' '.join(command)} failed ({status}): {said.decode()[-2000:]}")
    return time.perf_counter() - started, usage.ru_maxrss / (1 if sys.platform == "darwin" else 1024) * 1.024


def differing(one: Path, other: Path) -> tuple[int, int]:
    """Elements whose bits differ between two checkpoints, and all elements."""
    import editkit

    summary = editkit.diff(one, other)["summary"]
    return summary["changed"], summary["numel"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workdir", type=Path)
    parser.add_argument("--mergekit", help="the mergekit-yaml command, in an environment of its own")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--layers", type=int, default=22)
    parser.add_argument("--make", action="store_true", help="only make the pair of models")
    options = parser.parse_args()
    work = options.workdir.resolve()
    base, tuned, ours, theirs = (work / f"{name}-{options.layers}" for name in ("base", "tuned", "editkit", "mergekit"))
    if options.make:
        return make_pair(base, tuned, options.layers)
    if not tuned.exists():  # in a process of its own: a child's peak memory counts from its parent's size
        subprocess.run([sys.executable, __file__, *sys.argv[1:], "--make"], check=True)
    tiny = work / "tiny"
    if not tiny.exists():
        make_tiny(tiny)
    weights = sorted(str(path) for folder in (base, tuned) for path in folder.glob("*.safetensors"))
    editkit = [sys.executable, "-m", "editkit_cli"]
    negate = [*editkit, "negate", str(base), str(tuned), "--alpha", "1.0", "-o", str(ours), "--quiet"]
    commands: dict[str, tuple[list[str], Path | None]] = {
        "cat both": (["cat", *weights], None),
        "editkit --help": ([*editkit, "--help"], None),
        "editkit diff of a tiny pair": ([*editkit, "diff", str(tiny), str(tiny), "--quiet"], None),
        "editkit diff": ([*editkit, "diff", str(base), str(tuned), "--quiet"], None),
        "editkit negate --no-report": ([*negate, "--no-report"], ours),
        "editkit negate": (negate, ours),
    }
    if options.mergekit:
        recipe = work / "negate.yaml"
        recipe.write_text(
            f"merge_method: task_arithmetic\nbase_model: {base}\nmodels:\n  - model: {tuned}\n    parameters: {{weight: -1.0}}\n"
            "parameters: {normalize: false}\ndtype: float32\nout_dtype: bfloat16\n"
        )
        commands["mergekit-yaml"] = ([options.mergekit, str(recipe), str(theirs)], theirs)
        recipe16 = work / "negate16.yaml"
        recipe16.write_text(recipe.read_text().replace("dtype: float32\n", "dtype: bfloat16\n", 1))
        commands["mergekit-yaml, bfloat16"] = (
            [options.mergekit, str(recipe16), str(work / "mergekit16")],
            work / "mergekit16",
        )
    runs: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    for number in range(options.runs + 1):  # the first round warms the page cache and is not counted
        for name, (command, output) in commands.items():
            run = measure(command, output)
            if number:
                runs[name].append(run)
    seconds = {name: statistics.median(wall for wall, _ in found) for name, found in runs.items()}
    print(
        f"{2 * sum(prod(s) for s in shapes(options.layers).values()) / 1e9:.2f} GB a checkpoint, n = {options.runs} runs"
    )
    print(
        "| command | wall, s: median (min to max) | peak memory, MB: median | to mergekit, wall | to mergekit, memory |"
    )
    print("|---|---|---|---|---|")
    memory = {name: statistics.median(size for _, size in found) for name, found in runs.items()}
    peer = min((name for name in runs if name.startswith("mergekit")), key=seconds.__getitem__, default=None)
    for name, found in runs.items():
        walls = [wall for wall, _ in found]
        ratios = f"{seconds[name] / seconds[peer]:.2f} | {memory[name] / memory[peer]:.2f}" if peer else "– | –"
        print(
            f"| {name} | {seconds[name]:.2f} ({min(walls):.2f} to {max(walls):.2f}) | {memory[name]:.0f} | {ratios} |"
        )
    after_start = seconds["editkit diff"] - seconds["editkit diff of a tiny pair"]
    print(f"\ndiff after start-up takes {after_start / seconds['cat both']:.2f} times `cat`")
    if options.mergekit:
        changed, numel = differing(theirs, ours)
        print(f"elements that differ from mergekit's float32 arithmetic: {changed} of {numel}")


if __name__ == "__main__":
    main()
