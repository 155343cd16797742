"""Which tensor of which model goes into which tensor of the output: names, layers, and their new numbers.

A merge of whole models keeps the names of its base (else of its first model). Slices put layers of several models on top of
each other: the layers are numbered anew, what comes before them (embeddings) is made from the models of the first slice,
what comes after them (last norm, output head) from those of the last one, as in mergekit. All names come from the files, so
that no tensor is dropped because a table does not know it.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from editkit.checkpoint.reader import Checkpoint
from editkit.errors import listed
from editkit.merging.plan import Plan
from editkit.names import embeddings_and_heads, parse, tied_pair

COUNTS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
"""Names of the number of layers in config.json."""
PER_LAYER = frozenset(
    "layer_types mlp_layer_types layers_block_type indexer_types no_rope_layers attention_layers block_configs "
    "num_key_value_heads_per_layer num_attention_heads_per_layer".split()
)
"""Lists in config.json with one entry per layer, which follow their layers."""
NUMBERED = frozenset(
    "mlp_only_layers moe_layers first_k_dense_replace full_attn_idxs full_attention_idxs global_attention_blocks "
    "cross_attention_layers kv_source_layers attn_layer_indices attn_layer_period attn_layer_offset num_kv_shared_layers".split()
)
"""Keys in config.json that speak of layers by their number, and would lie after a renumbering."""


class Row(NamedTuple):
    """One tensor of the output. names: what each entry of slice number `slice` calls it. t: its place in the slice, from 0 to 1."""

    name: str
    slice: int
    names: tuple[str, ...]
    t: float


class Range(NamedTuple):
    """Layers `first` to `last` - 1 of a checkpoint."""

    model: Checkpoint
    first: int
    last: int


class Shape(NamedTuple):
    """What the names of a checkpoint say: stacks of layers with their sizes, layer -> rest of the name -> name, and the rest."""

    stacks: dict[str, int]
    layers: dict[int, dict[str, str]]
    outside: list[str]

    @property
    def size(self) -> int:
        """The number of layers of a model that has one stack of them."""
        return sum(self.stacks.values())


def shape_of(model: Checkpoint) -> Shape:
    """Layers are those of the last stack where there are several; nobody slices such a model."""
    numbers: dict[str, set[int]] = {}
    layers: dict[int, dict[str, str]] = {}
    outside = []
    for name in model.tensors:
        place = parse(name)
        if place.layer is None:
            outside.append(name)
            continue
        numbers.setdefault(place.stack, set()).add(place.layer)
        rest = name.removeprefix(f"{place.stack}.{place.layer}.")
        layers.setdefault(place.layer, {})[rest] = name
    stacks = {stack: len(found) for stack, found in numbers.items()}
    part, key = layer_count(model.config)
    if len(stacks) == 1 and key is not None:
        [stack] = stacks  # layers beyond the count are no part of it, such as those of multi-token prediction
        stacks[stack] = min(stacks[stack], part[key])
    return Shape(stacks, layers, outside)


def layer_count(config: Mapping[str, Any] | None) -> tuple[Mapping[str, Any], str | None]:
    """The part of a config that says the number of layers, and under which key."""
    whole = config or {}
    parts = [part for part in (whole.get("text_config"), whole) if isinstance(part, Mapping)]
    found = ((part, key) for part in parts for key in COUNTS if type(part.get(key)) is int)
    return next(found, (whole, None))


def whole_models(donor: Checkpoint, models: Sequence[Checkpoint], problems: list[str]) -> list[Row]:
    """A row for every tensor of `donor`, made from tensors of the same name in all models."""
    stacks, shared, rows = shape_of(donor).stacks, embeddings_and_heads(donor.tensors), []
    for name in donor.tensors:
        place = parse(name)
        t = 0.0 if place.layer is None else _share(place.layer, stacks[place.stack])
        rows.append(Row(name, 0, tuple(counterpart(name, shared, model) for model in models), t))
    problems += _absent(rows, [models])
    for model in {model.label: model for model in models}.values():
        problems += _extra(donor, model, list(model.tensors))
    return rows


def stacked(like: Checkpoint, slices: Sequence[Sequence[Range]], problems: list[str]) -> list[Row]:
    """A row for every tensor of a model made of slices: those outside layers that `like` has, and the layers of the slices."""
    models = {model.label: model for model in [like, *(one.model for part in slices for one in part)]}
    shapes = {label: shape_of(model) for label, model in models.items()}
    if several := [label for label, shape in shapes.items() if len(shape.stacks) != 1]:
        problems.append(f"slices need one stack of layers, which {listed(several)} does not have: merge whole models")
        return []
    shared, rows, number = embeddings_and_heads(like.tensors), [], 0
    for name in shapes[like.label].outside:
        index = 0 if _comes_first(name) or (like.tied and name in shared) else len(slices) - 1
        rows.append(Row(name, index, tuple(counterpart(name, shared, one.model) for one in slices[index]), 0.0))
    [stack] = shapes[like.label].stacks
    for index, part in enumerate(slices):
        size = part[0].last - part[0].first
        for step in range(size):
            layers = [(one.first + step, shapes[one.model.label].layers.get(one.first + step, {})) for one in part]
            for rest in dict.fromkeys(rest for _, held in layers for rest in held):
                names = tuple(held.get(rest, f"{stack}.{layer}.{rest}") for layer, held in layers)
                rows.append(Row(f"{stack}.{number}.{rest}", index, names, _share(step, size)))
            number += 1
    problems += _absent(rows, [[one.model for one in part] for part in slices])
    for model in models.values():
        problems += _extra(like, model, shapes[model.label].outside)
    return rows


def counterpart(name: str, shared: Sequence[str], model: Checkpoint) -> str:
    """What `model` calls a tensor: where it keeps embedding and head (`shared`) in one tensor, this stands for both."""
    if name in model.tensors or name not in shared:
        return name
    return next(iter(embeddings_and_heads(model.tensors)), name)


def _share(layer: int, count: int) -> float:
    """How far a layer is on the way from the first, 0, to the last of its stack, 1."""
    return min(layer / (count - 1), 1.0) if count > 1 else 1.0


def _absent(rows: Iterable[Row], models: Sequence[Sequence[Checkpoint]]) -> list[str]:
    """What the models, which are given for each slice, do not have of what the rows take from them."""
    lacking: dict[str, list[str]] = {}
    for row in rows:
        for model, name in zip(models[row.slice], row.names, strict=True):
            if name not in model.tensors:
                lacking.setdefault(model.label, []).append(name)
    return [f"{label} lacks {len(names)} of the tensors: {listed(names, limit=5)}" for label, names in lacking.items()]


def _extra(donor: Checkpoint, model: Checkpoint, names: Iterable[str]) -> list[str]:
    """What a model has and the output would not. A head that is the embedding once more, as tied models have it, is not missed."""
    ties = embeddings_and_heads(model.tensors) if donor.tied and model.tied else []
    extra = [name for name in names if name not in donor.tensors and name not in ties]
    return [f"{model.label} has tensors that {donor.label} lacks: {listed(extra, limit=5)}"] if extra else []


def _comes_first(name: str) -> bool:
    """Whether a tensor outside the layers comes before them: embeddings of tokens and positions, with their norms."""
    parts = parse(name).module.split(".")
    return any(part in ("wte", "wpe") or "embed" in part for part in parts) and tied_pair([name])[1] is None


def renumbered(like: Checkpoint, slices: Sequence[Sequence[Range]], problems: list[str]) -> dict[str, Any]:
    """What changes in the config of `like` (dotted key -> value) where slices make another stack of layers than it has."""
    sources = [(part[0].model, layer) for part in slices for layer in range(part[0].first, part[0].last)]
    part, count = layer_count(like.config)
    unmoved = [layer for _, layer in sources] == list(range(shape_of(like).size))
    if count is None or (unmoved and all(model.label == like.label for model, _ in sources)):
        return {}
    if numbers := sorted(key for key in NUMBERED & part.keys() if part[key]):
        problems.append(
            f"{like.label}/config.json speaks of layers by number ({listed(numbers)}): slices would make it untrue"
        )
    inside = "text_config." if part is not like.config else ""
    changed: dict[str, Any] = {f"{inside}{count}": len(sources)}
    for key in sorted(key for key in PER_LAYER & part.keys() if isinstance(part[key], list)):
        lists = [(layer_count(model.config)[0].get(key), layer) for model, layer in sources]
        values = [one[layer] for one, layer in lists if isinstance(one, list) and layer < len(one)]
        changed[f"{inside}{key}"] = values
        if len(values) < len(sources):
            problems.append(
                f"{key} in config.json has no entry for {len(sources) - len(values)} of the layers in slices"
            )
    return changed


def stacked_layers(plan: Plan) -> list[dict[str, Any]]:
    """Runs of layers of the output that come from neighbouring layers of the same models; [] where all layers stay in their place."""
    found: dict[int, dict[int, int]] = {}
    for target in plan.targets:
        layer = parse(target.name).layer
        for part in target.parts if layer is not None else ():
            place = parse(part.name).layer
            if place is not None:
                found.setdefault(layer, {})[part.model] = place  # type: ignore[arg-type]
    runs: list[dict[str, Any]] = []
    last: dict[int, int] | None = None
    for number, places in sorted(found.items()):
        if last is not None and {model: place + 1 for model, place in last.items()} == places:
            runs[-1]["layers"][1] = number
            for one in runs[-1]["of"]:
                one["layers"][1] += 1
        else:
            of = [
                {"model": os.path.basename(plan.models[model].source), "layers": [place, place]}
                for model, place in places.items()
            ]
            runs.append({"layers": [number, number], "of": of})
        last = places
    moved = len(runs) > 1 or any(one["layers"] != run["layers"] for run in runs for one in run["of"])
    return runs if moved else []
