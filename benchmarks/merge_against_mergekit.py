"""Every merge method against mergekit itself, on the same YAML: random two-layer models, in fp64, fp32 and bf16.

    python benchmarks/merge_against_mergekit.py WORKDIR --mergekit PATH/TO/python

mergekit is best installed in an environment of its own, whose python runs all of its merges in one process. Printed as Markdown: for each
method the largest difference over all tensors, in units of the last place (of the largest input there) and absolute, and the share
of elements that differ at all, as editkit merges by default and with `compatible`. Random methods have no common draws: for
them the sum of |difference to the base| is compared. WORKDIR needs 20 MB.
"""

import argparse
import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MODELS = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", {"num_key_value_heads": 2}),
    "gpt2": ("GPT2Config", "GPT2LMHeadModel", {}),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", {"num_key_value_heads": 2}),
    "mixtral": (
        "MixtralConfig",
        "MixtralForCausalLM",
        {"num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
}
WEIGHTS = [{"weight": 0.6}, {"weight": 0.3}]
SPARSE = [{"weight": 0.6, "density": 0.5}, {"weight": 0.3, "density": 0.7}]
CASES: dict[str, tuple[list[Mapping[str, Any]], Mapping[str, Any], bool]] = {  # settings of models, of all, with base
    "linear": (WEIGHTS, {}, False),
    "slerp": ([{}], {"t": 0.4}, True),
    "nuslerp": (WEIGHTS, {}, True),
    "multislerp": (WEIGHTS, {}, True),
    "karcher": ([{}, {}], {}, False),
    "task_arithmetic": (WEIGHTS, {}, True),
    "ties": (SPARSE, {}, True),
    "dare_linear": (SPARSE, {}, True),
    "dare_ties": (SPARSE, {}, True),
    "della": (SPARSE, {}, True),
    "della_linear": (SPARSE, {}, True),
    "breadcrumbs": (SPARSE, {}, True),
    "breadcrumbs_ties": (SPARSE, {}, True),
    "model_stock": ([{}, {}], {}, True),
    "sce": ([{}, {}], {"select_topk": 0.5}, True),
    "arcee_fusion": ([{}], {}, True),
    "nearswap": ([{}], {"t": 0.001}, True),
    "passthrough": ([{"scale": 0.5}], {}, False),
}
DTYPES = (
    "float64",
    "float32",
    "bfloat16",
)  # of the merge; the first reads float32 models, to tell rounding from all else
REASONS = {
    "linear, task_arithmetic, nearswap": "mergekit rounds each step to the dtype of the merge, editkit once",
    "slerp, nuslerp, multislerp, karcher": "the same, and mergekit adds up norms and angles in the dtype of the merge, or in float32; "
    "on a mixture of experts it takes all experts of a layer for one vector",
    "ties, breadcrumbs": "in bf16 the differences are rounded before their sizes are compared, so that many are equal, and torch's sort "
    "puts equal ones in any order; on a mixture of experts it ranks all experts of a layer together",
    "dare, della": "other random draws; editkit divides by the probability to stay, mergekit scales to the sum of |d|",
    "model_stock": "t stays in [0, 1]: where two changes point apart, mergekit turns their mean round",
    "sce": "mergekit gives all models one weight where their mean squares add up to less than 1e-6",
    "arcee_fusion": "mergekit's divergence in the dtype of the merge is in part rounding noise, and moves elements near the threshold",
}
RANDOM = {"dare_linear", "dare_ties", "della", "della_linear"}
RUN = """
import sys, yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
for line in sys.stdin:
    config, out = line.rstrip("\\n").split("\\t")
    try:
        run_merge(MergeConfiguration.model_validate(yaml.safe_load(open(config))), out, options=MergeOptions(copy_tokenizer=False))
    except Exception as error:
        open(out + ".error", "w").write(f"{type(error).__name__}: {error}")
"""


def make(folder: Path, name: str, dtype: str) -> list[Path]:
    """A base and two models tuned from it: 5 % noise on random weights of deviation 0.02, biases and norms included."""
    import torch
    import transformers

    config_class, model_class, extra = MODELS[name]
    common = {"vocab_size": 128, "bos_token_id": 0, "eos_token_id": 1, "tie_word_embeddings": False}
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    if name == "gpt2":
        sizes, common = (
            {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 32},
            {**common, "tie_word_embeddings": True},
        )
    config = getattr(transformers, config_class)(**sizes, **common, **extra)
    generator = torch.Generator().manual_seed(0)
    model = getattr(transformers, model_class)(config)
    folders = [folder / f"{name}-{dtype}-{part}" for part in ("base", "one", "two")]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.02 + (parameter.ndim == 1))
        start = [parameter.clone() for parameter in model.parameters()]
        for number, place in enumerate(folders):
            for parameter, before in zip(model.parameters(), start, strict=True):
                noise = torch.randn(parameter.shape, generator=generator) * 0.001 * (number > 0)
                parameter.copy_(before + noise)
            if not place.exists():
                model.to(getattr(torch, dtype)).save_pretrained(place)
                model.float()
    return folders


def config_of(method: str, folders: list[Path], dtype: str) -> dict[str, Any]:
    """The YAML, as a dictionary."""
    models, settings, based = CASES[method]
    sources = folders[1:] if based else folders[-len(models) :]
    entries = [{"model": str(source), "parameters": dict(own)} for source, own in zip(sources, models, strict=False)]
    if method == "slerp" or method in ("arcee_fusion", "nearswap", "model_stock"):
        entries.insert(0, {"model": str(folders[0])})
    base = {"base_model": str(folders[0])} if based else {}
    return {"merge_method": method, **base, "models": entries, "parameters": dict(settings), "dtype": dtype}


def compared(ours: Path, theirs: Path, folders: list[Path], random: bool) -> str:
    """One cell of the table."""
    import torch
    from safetensors.torch import load_file

    one, other, before, *tuned = (load_all(path, load_file) for path in (ours, theirs, *folders))
    other = unfused(other)
    if absent := [name for name in other if name not in one]:
        return f"absent: {absent[:2]}"
    if random:
        sums = [sum((side[n].double() - before[n].double()).abs().sum() for n in other) for side in (one, other)]
        return f"sum of changes {float(sums[0] / sums[1]):.3f} times theirs"
    worst_ulp, worst, differ, count = 0.0, 0.0, 0, 0
    for name in other:
        a, b = one[name].double(), other[name].double()
        size = torch.stack([side[name].double().abs() for side in (before, *tuned)]).amax(0).clamp(min=1e-30)
        step = torch.finfo(other[name].dtype).eps * 2 ** torch.floor(torch.log2(size))
        gap = (a - b).abs()
        worst_ulp, worst = max(worst_ulp, float((gap / step).max())), max(worst, float(gap.max()))
        differ, count = differ + int((gap > 0).sum()), count + gap.numel()
    return "equal" if not differ else f"{worst_ulp:.3g} ulp, {worst:.2g} ({differ / count:.2%})"


def unfused(tensors: dict[str, Any]) -> dict[str, Any]:
    """mergekit's names and shapes of a mixture of experts, which are those of transformers 5, as they are in the files."""
    found = {}
    for name, tensor in tensors.items():
        start, _, kind = name.replace(".mlp.", ".block_sparse_moe.").partition(".experts.")
        for number, expert in enumerate(tensor if kind in ("gate_up_proj", "down_proj") else ()):
            parts = {"w2": expert} if kind == "down_proj" else dict(zip(("w1", "w3"), expert.chunk(2), strict=True))
            found |= {f"{start}.experts.{number}.{key}.weight": part for key, part in parts.items()}
        if not kind:
            found[name.replace(".mlp.gate.", ".block_sparse_moe.gate.")] = tensor
    return found


def load_all(path: Path, load: Any) -> dict[str, Any]:
    return {name: tensor for file in sorted(path.glob("*.safetensors")) for name, tensor in load(file).items()}


def main() -> None:
    from editkit.errors import EditError
    from editkit.merging.merge import merge

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workdir", type=Path)
    parser.add_argument("--mergekit", required=True, help="python of an environment with mergekit")
    parser.add_argument("--methods", nargs="*", default=list(CASES))
    parser.add_argument("--models", nargs="*", default=list(MODELS))
    given = parser.parse_args()
    given.workdir.mkdir(parents=True, exist_ok=True)
    jobs = []
    for name in given.models:
        for dtype in DTYPES:
            folders = make(given.workdir, name, "float32" if dtype == "float64" else dtype)
            for method in given.methods:
                place = given.workdir / f"{name}-{dtype}-{method}"
                place.with_suffix(".yaml").write_text(json.dumps(config_of(method, folders, dtype)))
                jobs.append((method, name, dtype, place, folders))
    left = [place for _, _, _, place, _ in jobs if not place.exists()]
    lines = "".join(f"{place.with_suffix('.yaml')}\t{place}\n" for place in left)
    subprocess.run([given.mergekit, "-c", RUN], input=lines, text=True, check=True, capture_output=True)
    columns = [f"{name} {dtype}" for name in given.models for dtype in DTYPES]
    for compatible in (False, True):
        print(f"\n{'With' if compatible else 'Without'} `compatible`:\n\n| method | {' | '.join(columns)} |")
        print("|---" * (len(columns) + 1) + "|")
        for method in given.methods:
            cells = []
            for wanted, _, _, place, folders in jobs:
                if wanted != method:
                    continue
                ours = place.with_name(f"{place.name}-ours-{compatible:d}")
                try:
                    merge(None, place.with_suffix(".yaml"), ours, compatible=compatible, report=False)
                    error = Path(f"{place}.error")
                    cells.append(
                        error.read_text()[:60] if error.exists() else compared(ours, place, folders, method in RANDOM)
                    )
                except EditError as error:
                    cells.append(f"refused: {error}")
            print(f"| {method} | {' | '.join(cells)} |", flush=True)
    print("\nWhy they differ:\n\n" + "\n".join(f"- {methods}: {reason}." for methods, reason in REASONS.items()))


if __name__ == "__main__":
    main()
