"""Reports of localizations that nobody ran, of every kind that a page has to show."""

import math
import random

from reports import LLAMA
from test_diffing_page import EVIL, Page

from editkit.localization.rendering.html import to_html

GPT2 = {
    "ln_1": (768,),
    "attn.c_attn": (768, 2304),
    "attn.c_proj": (768, 768),
    "mlp.c_fc": (768, 3072),
    "mlp.c_proj": (3072, 768),
}
MOE = {"self_attn.q_proj": (256, 256), "mlp.gate": (8, 256)}


def tensor(name, selected=0, *, shape=(4, 8), stack="", layer=None, module=None, expert=None, units=1, **measures):
    """A row of `tensors`; its measures are unknown unless given."""
    numel = math.prod(shape)
    row = {
        "name": name,
        "shape": list(shape),
        "stack": stack,
        "layer": layer,
        "module": module or name,
        "expert": expert,
    }
    row |= {"numel": numel, "units": units, "units_selected": round(units * selected / numel), "selected": selected}
    row |= {"selected_fraction": selected / numel, "score_mean": None, "score_max": None, "cosine": None}
    unknown = ("mean_abs_forget", "mean_abs_retain", "attribution_forget", "attribution_retain")
    return row | dict.fromkeys(unknown) | measures


def grouped(tensors, *keys):
    groups = {}
    for row in tensors:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    for group, rows in groups.items():
        numel, selected = (sum(row[key] for row in rows) for key in ("numel", "selected"))
        yield dict(zip(keys, group, strict=True)) | {
            "numel": numel,
            "selected": selected,
            "selected_fraction": selected / numel,
        }


def report(tensors, *, histogram=None, threshold=None, top_units=(), settings=None, **parts):
    """The whole dict around rows made by `tensor`."""
    total = {key: sum(row[key] for row in tensors) for key in ("numel", "selected", "units", "units_selected")}
    data = {"sha256": "cd" * 32, "examples": 400, "tokens": 12345}
    return {
        "schema": "editkit.localization/1",
        "editkit": "0.1",
        "model": {"name": "tiny-llama", "sha256": {"model.safetensors": "ab" * 32}},
        "adapter": None,
        "base": None,
        "forget": {"name": "forget.jsonl", **data, "loss": 1.25, "loss_sd": 0.5},
        "retain": {"name": "retain.jsonl", **data, "examples": 3600, "loss": 2.5, "loss_sd": 0.75},
        "overlap": 0,
        "settings": {"method": "memflex", "granularity": "row", "budget": "5%", "per_layer_budget": False, "mu": None, "sigma": None}
        | {"accumulate": "signed", "labels": "random:0.4", "draws": 3, "only": [], "seed": 0, "dtype": "float32", "batch_size": 8}
        | (settings or {}),
        "path": None,
        "summary": {**total, "selected_fraction": total["selected"] / total["numel"] if total["numel"] else 0.0, "threshold": threshold},
        "layers": list(grouped(tensors, "stack", "layer")),
        "modules": list(grouped(tensors, "module")),
        "tensors": tensors,
        "top_units": list(top_units),
        "histogram": histogram or {"log2_edges": [-3, -2, -1, 0], "counts": [8, 4, 2], "selected": [0, 1, 2], "zero_or_below": 5},
        "control": None,
        "stability": None,
        "warnings": [],
    } | parts  # fmt: skip


def model(
    layers=22,
    shapes=None,
    *,
    stack="model.layers",
    granularity="row",
    path=False,
    retain=True,
    outside=True,
    experts=0,
    seed=0,
):
    """A localization in a model of `layers` layers, where the middle of the MLPs stands out."""
    dice, rows = random.Random(seed), []
    places = [("model.embed_tokens.weight", (32000, 2048), {"module": "embed_tokens"})] if outside else []
    for layer in range(layers):
        for module, shape in (shapes or LLAMA).items():
            places.append(
                (f"{stack}.{layer}.{module}.weight", shape, {"stack": stack, "layer": layer, "module": module})
            )
        for expert in range(experts):
            place = {"stack": stack, "layer": layer, "module": "mlp.experts.w1", "expert": expert}
            places.append((f"{stack}.{layer}.mlp.experts.{expert}.w1.weight", (512, 256), place))
    if outside:
        places += [
            ("model.norm.weight", (2048,), {"module": "norm"}),
            ("lm_head.weight", (32000, 2048), {"module": "lm_head"}),
        ]
    for name, shape, place in places:
        depth = math.exp(-(((place.get("layer", -9) - 0.6 * layers) / (0.2 * layers)) ** 2))
        strength = 4e-5 * (1 + 9 * depth) * (3 if "down" in name or "w1" in name else 1) * dice.lognormvariate(0, 0.4)
        numel, count = (
            math.prod(shape),
            {"row": shape[0] if len(shape) > 1 else 1, "tensor": 1, "element": math.prod(shape)}[granularity],
        )
        part = max(0.0, min(0.6, (strength - 1.5e-4) * 700)) if len(shape) > 1 else 0.0
        chosen = (count if part > 0.4 else 0) if granularity == "tensor" else int(part * count)
        measures = {"score_mean": strength * 0.7, "score_max": strength * dice.uniform(2, 9)}
        measures |= {
            "mean_abs_forget": strength,
            "mean_abs_retain": strength * dice.uniform(0.6, 1.2) if retain else None,
        }
        measures |= {"cosine": max(-0.2, min(0.98, 0.8 - 0.7 * depth + dice.gauss(0, 0.1))) if retain else None}
        if path:
            measures |= {"attribution_forget": 0.001 * dice.gauss(1, 3) + (0.5 if chosen else 0), "cosine": None}
            measures |= {"attribution_retain": 0.001 * dice.gauss(1, 2) if retain else None}
        rows.append(tensor(name, chosen * numel // count, shape=shape, units=count, **place, **measures))
    units = sum(row["units"] for row in rows)
    chosen = sum(row["units_selected"] for row in rows)
    bins = [round(units * 0.14 * math.exp(-(((x + 13.5) / 2.4) ** 2) / 1.6)) for x in range(-40, 8)]
    left, picked = chosen, []
    for n in reversed(bins):
        picked.append(min(n, left))
        left -= picked[-1]
    first = next((index for index, n in enumerate(reversed(picked)) if n), 0)
    top = sorted((row for row in rows if row["selected"]), key=lambda row: -row["score_max"])[:20]
    top = [
        {"name": row["name"], "unit": "tensor" if granularity == "tensor" else "row", "index": 0 if granularity == "tensor" else dice.randrange(500)}
        | {"numel": row["numel"] // row["units"], "selected": row["numel"] // row["units"], "score": row["score_max"]}
        for row in top
    ]  # fmt: skip
    if granularity == "element":
        top = [{**unit, "numel": 2048, "selected": 1900 - 41 * index, "score": None} for index, unit in enumerate(top)]
    made = report(
        rows, threshold=2.0 ** (first - 40 + 0.4), top_units=top, settings={"granularity": granularity},
        histogram={"log2_edges": list(range(-40, 9)), "counts": bins, "selected": picked[::-1], "zero_or_below": units - sum(bins)},
        stability={"jaccard": 0.612, "expected_of_random": 0.0256, "halves": [200, 200]},
    )  # fmt: skip
    made["control"] = {"mask": "control/mask.safetensors", "seed": 0, "selected": made["summary"]["selected"]}
    if path:
        made["path"] = {"points": 32, "forget": {"attributed": 2.812, "drop": 2.808, "error": 0.00142}, "retain": None}
        made["settings"] |= {"method": "path", "labels": "true", "draws": 1, "budget": "4"}
        made["base"] = {"name": "tiny-base", "sha256": None}
        if retain:
            made["path"]["retain"] = {"attributed": 0.05, "drop": 0.0502, "error": 0.004}
    if not retain:
        made["retain"] = None
    return made


def paper():
    """MemFlex with the paper's thresholds, on an adapter, with a warning."""
    made = model(granularity="tensor")
    made["settings"] |= {"budget": None, "mu": 0.5, "sigma": 2e-4}
    made["summary"]["threshold"] = None
    made["adapter"] = {"name": "tiny-adapter", "sha256": {"adapter_model.safetensors": "ef" * 32}}
    made["warnings"] = ["12 examples are in both sets."]
    return made


def bare():
    """No gradients, no data, no layers: a random mask."""
    made = report([tensor("a.weight", 8), tensor("b", shape=())], settings={"method": "random", "accumulate": None})
    for row in made["tensors"]:
        del row["attribution_forget"], row["attribution_retain"]  # only those of a path have them
    return made | {
        "forget": None,
        "retain": None,
        "overlap": None,
        "histogram": {"log2_edges": [], "counts": [], "selected": [], "zero_or_below": 0},
    }


VARIANTS = {
    "rows": model,
    "elements": lambda: model(granularity="element"),
    "80 layers": lambda: model(80),
    "gpt2 without retain": lambda: model(12, GPT2, stack="transformer.h", outside=False, retain=False),
    "experts": lambda: model(6, MOE, experts=8),
    "path": lambda: model(6, granularity="tensor", path=True),
    "path without retain": lambda: model(6, granularity="tensor", path=True, retain=False),
    "paper": paper,
    "no layers": lambda: report([tensor(f"w{i}", i, cosine=0.1, mean_abs_forget=0.01 * i) for i in range(40)]),
    "two stacks": lambda: report(
        [tensor(f"{s}.{i}.fc", i, stack=s, layer=i, module="fc") for s in ("enc", "dec") for i in range(3)]
    ),
    "bare": bare,
    "hostile": lambda: hostile(EVIL),
}


def hostile(names):
    rows = [tensor(name, 8, cosine=0.1, mean_abs_forget=0.2) for name in names]
    rows += [tensor(f"h.0.{name}", 8, stack=f"h{name}", layer=0, module=name) for name in names]
    top = [{"name": name, "unit": "row", "index": 3, "numel": 8, "selected": 8, "score": 1.0} for name in names]
    made = report(rows, top_units=top, warnings=names, settings={"only": names})
    for part, name in zip(("model", "forget", "retain", "adapter", "base"), names, strict=False):
        made[part] = (made[part] or {}) | {
            "name": name,
            "sha256": made["forget"]["sha256"] if part in ("forget", "retain") else {name: "ab"},
        }
    return made


def small():
    """48 of 160 parameters: 8 + 24 of a module in two layers, 16 of the head; one tensor without a cosine."""
    layer = {"stack": "model.layers", "module": "mlp.down"}
    return report(
        [
            tensor("model.layers.0.mlp.down.weight", 8, layer=0, cosine=0.5, mean_abs_forget=0.002, units=4, **layer),
            tensor("model.layers.1.mlp.down.weight", 24, layer=1, cosine=0.1, mean_abs_forget=0.006, units=4, **layer),
            tensor(
                "model.layers.0.attn.weight", layer=0, stack="model.layers", module="attn", mean_abs_forget=0.0, units=4
            ),
            tensor("lm_head.weight", 16, shape=(8, 8), units=8, cosine=-0.25, mean_abs_forget=0.2),
        ],
        threshold=0.25,
        stability={"jaccard": 0.75, "expected_of_random": 0.176, "halves": [200, 199]},
        control={"mask": "control/mask.safetensors", "seed": 7, "selected": 36},
    )


def page(made):
    return Page(to_html(made))
