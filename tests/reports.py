"""Handmade reports of schema editkit.diff/1 for the tests of diffing: nothing here comes from the library."""

import math
import random

LLAMA = {
    "input_layernorm": (2048,),
    "self_attn.q_proj": (2048, 2048),
    "self_attn.k_proj": (256, 2048),
    "self_attn.v_proj": (256, 2048),
    "self_attn.o_proj": (2048, 2048),
    "post_attention_layernorm": (2048,),
    "mlp.gate_proj": (5632, 2048),
    "mlp.up_proj": (5632, 2048),
    "mlp.down_proj": (2048, 5632),
}
INTEGER = ("I64", "I32", "U8", "BOOL")


def tensor(
    name, *, shape=(4, 8), dtype="BF16", layer=None, stack="", module=None, expert=None, base_l2=10.0, **measures
):
    """A row of `tensors`: unchanged unless `changed` is given; `l2` sets rel_l2 unless that is given."""
    numel = math.prod(shape)
    changed = measures.get("changed", 0)
    row = {"name": name, "dtype": dtype, "shape": list(shape), "numel": numel, "layer": layer, "stack": stack}
    row |= {"module": module or name.removesuffix(".weight"), "expert": expert, "changed": changed}
    row["changed_fraction"] = changed / numel if numel else 0.0
    l2 = measures.get("l2", 0.0)
    row |= {"l2": l2, "rel_l2": l2 / base_l2 if base_l2 else None, "max_abs": 0.0, "mean": 0.0, "cosine": 1.0}
    row |= {"sign_flips": 0, "crossed_int8": 0, "crossed_int4": 0}
    row |= dict.fromkeys(("nan_before", "nan_after", "inf_before", "inf_after"), 0)
    if dtype in INTEGER:
        row |= dict.fromkeys(
            ("l2", "rel_l2", "max_abs", "mean", "cosine", "sign_flips", "crossed_int8", "crossed_int4")
        )
        row |= dict.fromkeys(("nan_before", "nan_after", "inf_before", "inf_after"))
    return row | measures


def total(rows, base_l2=10.0):
    """The measures of several rows together; relative to a base of `base_l2` each."""

    def add(key):
        known = [row[key] for row in rows if row[key] is not None]
        return sum(known) if known else None

    numel, changed = sum(row["numel"] for row in rows), sum(row["changed"] for row in rows)
    norms = [row["l2"] for row in rows if row["l2"] is not None]
    l2 = math.sqrt(sum(x * x for x in norms)) if norms else None
    known = {"l2": l2, "rel_l2": l2 / (base_l2 * math.sqrt(len(norms))) if norms else None}
    known |= {"max_abs": max((row["max_abs"] or 0 for row in rows), default=0.0), "mean": 0.0, "cosine": 0.9999}
    counts = ("sign_flips", "crossed_int8", "crossed_int4", "nan_before", "nan_after", "inf_before", "inf_after")
    return (
        {"tensors": len(rows), "tensors_changed": sum(row["changed"] > 0 for row in rows), "numel": numel}
        | {"changed": changed, "changed_fraction": changed / numel if numel else None}
        | known
        | {key: add(key) for key in counts}
    )


def report(tensors, *, edit=None, **lists):
    """The whole dict around rows made by `tensor`."""
    kinds = {kind: lists.pop(kind, []) for kind in ("added", "removed", "reshaped", "retyped", "settings")}

    def grouped(key):
        groups = {}
        for row in tensors:
            groups.setdefault(key(row), []).append(row)
        return groups.items()

    counts = [sum(row["changed"] for row in tensors) // 3] * 3
    made = {
        "schema": "editkit.diff/1",
        "base": {"name": "tiny-base", "sha256": {"model.safetensors": "ab" * 32}},
        "edited": {"name": "tiny-edited", "sha256": None},
        "summary": total(tensors) | {kind: len(items) for kind, items in kinds.items()},
        "layers": [
            {"stack": stack, "layer": layer, **total(rows)}
            for (stack, layer), rows in grouped(lambda row: (row["stack"], row["layer"]))
        ],
        "modules": [{"module": module, **total(rows)} for module, rows in grouped(lambda row: row["module"])],
        "tensors": tensors,
        "histogram": {"log2_edges": [-14, -13, -12, -11], "counts": counts, "zeros": 100, "n": 100 + sum(counts)}
        | {"sampling": "1 row in 16"},
        **kinds,
    }
    return made | ({"edit": edit} if edit else {}) | lists


def llama(layers=22, *, edited=True, seed=0):
    """The report of a negation on a Llama of `layers` layers: mid layers change most, norms not at all, heads included."""
    dice = random.Random(seed)
    rows = [tensor("model.embed_tokens.weight", shape=(32000, 2048), module="embed_tokens", base_l2=120.0)]
    for layer in range(layers):
        depth = math.exp(-(((layer - 0.7 * layers) / (0.25 * layers)) ** 2))
        for module, shape in LLAMA.items():
            name = f"model.layers.{layer}.{module}.weight"
            place = {"layer": layer, "stack": "model.layers", "module": module, "shape": shape}
            if "norm" in module:
                rows.append(tensor(name, **place))
                continue
            numel = math.prod(shape)
            strength = (0.002 + 0.03 * depth) * (2.0 if "down" in module else 1.0) * dice.uniform(0.7, 1.3)
            changed = int(numel * min(0.99, 0.08 + 18 * strength * dice.uniform(0.8, 1.2)))
            base_l2 = 0.02 * math.sqrt(numel)
            row = tensor(
                name, **place, base_l2=base_l2, changed=changed, l2=strength * base_l2, mean=1e-7 * dice.uniform(-1, 1),
                max_abs=0.02 * strength * dice.uniform(8, 12), cosine=1 - strength**2 / 2, sign_flips=int(changed * strength / 3),
                crossed_int8=int(changed * min(0.9, 12 * strength)), crossed_int4=int(changed * min(0.4, 0.9 * strength)),
            )  # fmt: skip
            if "self_attn" in module:
                count = 32 if module[10] in "qo" else 4
                row["heads"] = [
                    {"head": head, "numel": numel // count, "changed": changed // count, "l2": row["l2"] / math.sqrt(count) * factor}
                    | {"changed_fraction": changed / numel, "rel_l2": row["rel_l2"] * factor, "max_abs": row["max_abs"] * factor}
                    | {key: int(row[key] / count * min(factor, 2)) for key in ("crossed_int8", "crossed_int4")}
                    for head in range(count)
                    for factor in [dice.lognormvariate(0, 0.4)]
                ]  # fmt: skip
            if edited:
                requested = row["l2"] * dice.uniform(1.0, 1.002)
                row["edit"] = {
                    "alpha": 1.0,
                    "requested_l2": requested,
                    "applied_l2": row["l2"],
                    "projection": -0.998,
                    "expected_projection": -1.0,
                }
            rows.append(row)
    rows.append(tensor("model.norm.weight", shape=(2048,), module="norm"))
    rows.append(
        tensor("lm_head.weight", shape=(32000, 2048), module="lm_head", base_l2=120.0, changed=900_000, l2=0.24)
    )
    rows[-1] |= {"max_abs": 6e-4, "crossed_int8": 90_000, "crossed_int4": 900, "sign_flips": 4_000, "cosine": 0.999998}
    made = report(rows)
    changed = made["summary"]["changed"]
    made["summary"]["rel_l2"] = made["summary"]["l2"] / (0.02 * math.sqrt(made["summary"]["numel"]))
    for row in made["layers"]:
        asked = [other["edit"] for other in rows if other["layer"] == row["layer"] and "edit" in other]
        if asked:
            norms = {key: math.sqrt(sum(one[key] ** 2 for one in asked)) for key in ("requested_l2", "applied_l2")}
            row["edit"] = {
                "alpha": 1.0,
                **norms,
                "projection": -0.998,
                "expected_projection": -1.0,
                "lost_to_rounding": 0.117,
            }
        row["rel_l2"] = row["l2"] / (0.02 * math.sqrt(row["numel"]))
    bins = [round(changed / 16 * math.exp(-(((x + 13.5) / 2.4) ** 2)) / 4.25) for x in range(-64, 32)]
    zeros = (made["summary"]["numel"] - changed) // 16
    made["histogram"] = {"log2_edges": list(range(-64, 33)), "counts": bins, "n": sum(bins) + zeros}
    made["histogram"] |= {"zeros": zeros, "sampling": "1 row in 16"}
    if edited:
        l2 = made["summary"]["l2"]
        made["edit"] = {"command": "negate", "alpha": 1.0, "requested_l2": l2 * 1.001, "applied_l2": l2}
        made["edit"] |= {"projection": -0.998, "expected_projection": -1.0, "lost_to_rounding": 0.117}
    return made
