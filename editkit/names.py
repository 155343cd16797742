"""Tensor names: the one place that reads meaning out of them.

>>> parse("model.layers.11.self_attn.q_proj.weight")
TensorName(stack='model.layers', layer=11, module='self_attn.q_proj', expert=None)
>>> parse("model.layers.3.block_sparse_moe.experts.5.w1.weight")
TensorName(stack='model.layers', layer=3, module='block_sparse_moe.experts.w1', expert=5)
>>> parse("encoder.block.2.layer.1.DenseReluDense.wi.weight")
TensorName(stack='encoder.block', layer=2, module='layer.1.DenseReluDense.wi', expert=None)
>>> parse("lm_head.weight")
TensorName(stack='', layer=None, module='lm_head', expert=None)
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import translate
from typing import Any, NamedTuple

from editkit.errors import EditError, listed

_LAYER = re.compile(r"^(?P<stack>(?:.*?\.)??(?:layers|layer|h|blocks|block))\.(?P<layer>\d+)\.(?P<rest>.+)$")
_EXPERT = re.compile(r"\.experts\.(\d+)\.")
_WRAPPERS = ("base_model.model.", "model.", "transformer.", "gpt_neox.", "language_model.")
_HEADS = frozenset("lm_head embed_out output".split())
_EMBEDDINGS = frozenset("embed_tokens wte embed_in word_embeddings tok_embeddings shared embeddings".split())
_TABLES = frozenset("wpe embed_positions position_embeddings token_type_embeddings relative_attention_bias".split())
_CONV1D = frozenset(
    "gpt2 imagegpt openai-gpt decision_transformer".split()
)  # model types that store matrices transposed

CONFIG = (
    "model_type",
    "num_attention_heads",
    "n_head",
    "num_key_value_heads",
    "new_decoder_architecture",
    "multi_query",
)
"""The keys of a model's config that `grid` reads."""


class TensorName(NamedTuple):
    """Where a tensor sits: `stack` of layers, `layer` number, `module` inside it, `expert` of a mixture."""

    stack: str
    layer: int | None
    module: str
    expert: int | None


def parse(name: str) -> TensorName:
    """Split a tensor name. A name without a layer keeps its module path and has layer None."""
    found = _LAYER.match(name)
    stack, layer, rest = (found["stack"], int(found["layer"]), found["rest"]) if found else ("", None, name)
    if found is None:
        for wrapper in _WRAPPERS:
            rest = rest.removeprefix(wrapper)
    expert = _EXPERT.search(f".{rest}")
    module = _EXPERT.sub(".experts.", f".{rest}", count=1)[1:].removesuffix(".weight")
    return TensorName(stack, layer, module, int(expert[1]) if expert else None)


def matches(name: str, glob: str) -> bool:
    """Whole-name glob: `*` also crosses dots, and layers.1 never means layers.10.

    >>> matches("model.layers.10.mlp.up_proj.weight", "model.layers.1.*")
    False
    >>> matches("model.layers.10.mlp.up_proj.weight", "*.mlp.*")
    True
    """
    return re.fullmatch(translate(glob), name) is not None


def select(names: Iterable[str], globs: Sequence[str], option: str = "--only") -> list[str]:
    """The names that any of the globs matches, in the order of `names`; all of them where no glob is given.

    Raises EditError that names every glob which matches nothing.
    """
    names = list(names)
    globs = [globs] if isinstance(globs, str) else globs
    if not globs:
        return names
    hits = {glob: [name for name in names if matches(name, glob)] for glob in globs}
    if empty := [glob for glob, found in hits.items() if not found]:
        example = listed(names, limit=3)
        raise EditError(
            f"{option} {listed(map(repr, empty))} matches none of the {len(names)} tensors (such as {example})"
        )
    chosen = {name for found in hits.values() for name in found}
    return [name for name in names if name in chosen]


def embeddings_and_heads(names: Iterable[str]) -> list[str]:
    """Input embeddings first, then output heads: the tensors that a tied model has in common.

    >>> embeddings_and_heads(["lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"])
    ['model.embed_tokens.weight', 'lm_head.weight']
    """
    outside = [name for name in names if parse(name).layer is None and name.endswith(".weight")]
    return [name for kind in (_EMBEDDINGS, _HEADS) for name in outside if name.split(".")[-2] in kind]


def tied_pair(names: Iterable[str]) -> tuple[str | None, str | None]:
    """The input embedding and the output head among `names`, which share one tensor in a tied model.

    >>> tied_pair(["model.embed_tokens.weight", "model.norm.weight"])
    ('model.embed_tokens.weight', None)
    """
    found = embeddings_and_heads(names)
    heads = [name for name in found if name.split(".")[-2] in _HEADS]
    embeddings = [name for name in found if name not in heads]
    return embeddings[0] if embeddings else None, heads[0] if heads else None


def stored_transposed(name: str, config: Mapping[str, Any]) -> bool:
    """Whether a matrix is stored [in, out], as in the layers of GPT-2 (Conv1D). `config` is that of the model.

    >>> stored_transposed("h.0.attn.c_attn.weight", {"model_type": "gpt2"})
    True
    """
    return config.get("model_type") in _CONV1D and parse(name).layer is not None


def lookup_table(name: str) -> bool:
    """Whether a matrix is an embedding of tokens, positions or the like: its rows are picked, not multiplied with.

    >>> lookup_table("transformer.wpe.weight"), lookup_table("embed_out.weight")
    (True, False)
    """
    leaf = name.removesuffix(".weight").split(".")[-1]
    known = leaf in _EMBEDDINGS | _TABLES
    return known or (parse(name).layer is None and "embed" in leaf and "proj" not in leaf and leaf not in _HEADS)


class Grid(NamedTuple):
    """How a matrix falls into equal parts, row by row: `rows` x `columns` of them, each one `unit` ("head", "expert").

    `fused` names the projections that share the matrix, with how many parts each has in turn; () where it is one.
    """

    rows: int
    columns: int
    unit: str
    fused: tuple[tuple[str, int], ...] = ()

    def labels(self) -> list[dict[str, Any]]:
        """What each part is called, in order.

        >>> Grid(1, 4, "head", (("q", 2), ("k", 1), ("v", 1))).labels()[1:3]
        [{'projection': 'q', 'head': 1}, {'projection': 'k', 'head': 0}]
        """
        if not self.fused:
            return [{self.unit: index} for index in range(self.rows * self.columns)]
        return [{"projection": part, self.unit: index} for part, count in self.fused for index in range(count)]


def grid(name: str, shape: Sequence[int], config: Mapping[str, Any] | None) -> Grid | None:
    """Attention heads or fused experts inside one tensor; None where it has no such parts or the config does not say.

    >>> grid("model.layers.0.self_attn.o_proj.weight", (64, 64), {"num_attention_heads": 8})
    Grid(rows=1, columns=8, unit='head', fused=())
    """
    if len(shape) == 3 and "experts" in name:
        return Grid(shape[0], 1, "expert")
    config = _tower(name, config or {})
    heads = _count(config, "num_attention_heads", "n_head")
    if heads is None or len(shape) != 2:
        return None
    keys = _count(config, "num_key_value_heads") or heads
    leaf = name.removesuffix(".weight").rsplit(".", 1)[-1]
    rows = {"q_proj": heads, "k_proj": keys, "v_proj": keys, "qkv_proj": heads + 2 * keys}
    columns = {"o_proj": heads, "out_proj": heads, "dense": heads if "attention" in name else 0}
    if ".attn.c_" in name:
        transposed = config.get("model_type") in _CONV1D
        rows, columns = {"c_proj": heads}, {"c_attn": 3 * heads}
        if not transposed:
            rows, columns = {}, {"c_proj": heads}
    elif not (config.get("new_decoder_architecture") or config.get("multi_query")):
        rows["query_key_value"] = heads
    fused: tuple[tuple[str, int], ...] = ()
    if leaf == "qkv_proj":
        fused = (("q", heads), ("k", keys), ("v", keys))
    elif leaf == "c_attn":
        fused = (("q", heads), ("k", heads), ("v", heads))
    if (count := rows.get(leaf, 0)) and shape[0] % count == 0:
        return Grid(count, 1, "head", fused)
    if (count := columns.get(leaf, 0)) and shape[1] % count == 0:
        return Grid(1, count, "head", fused)
    return None


def _tower(name: str, config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a config that describes the tower a tensor is in: `vision_tower...` has `vision_config`."""
    towers = {key.removesuffix("_config"): part for key, part in config.items() if key.endswith("_config")}
    for tower, part in towers.items():
        if tower != "text" and any(piece.startswith(tower) for piece in name.split(".")):
            return part if isinstance(part, Mapping) else {}
    text = towers.get("text")
    return text if isinstance(text, Mapping) else config


def _count(config: Mapping[str, Any], *keys: str) -> int | None:
    """The first of the keys that the config has, where it is a whole number above zero."""
    found = next((config[key] for key in keys if key in config), None)
    return found if isinstance(found, int) and not isinstance(found, bool) and found > 0 else None
