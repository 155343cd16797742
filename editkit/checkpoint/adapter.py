"""LoRA adapters as peft saves them, read without peft: which factors change which module, and how strongly.

>>> adapter = open_adapter("my-lora")  # doctest: +SKIP
>>> adapter.modules["model.layers.0.self_attn.q_proj"].scale  # doctest: +SKIP
2.0

Settings whose change to the weights is more than `scale * B @ A` are refused by name, never approximated.
"""

import json
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple

from editkit.checkpoint.layout import load_json
from editkit.checkpoint.provenance import public_name
from editkit.checkpoint.reader import Checkpoint, open_checkpoint
from editkit.errors import EditError, listed

CONFIG = "adapter_config.json"
_PREFIX = "base_model.model."
_FACTOR = re.compile(r"(?P<module>.+)\.(?:lora_(?P<linear>[AB])\.weight|lora_embedding_(?P<embedding>[AB]))")
_COPY = re.compile(r"(?P<module>.+?)(?:\.base_layer)?\.(?P<leaf>weight|bias)")
# Initialisations after which the base is what it was. The others (pissa, olora, corda, loftq, lora_ga ...) move part of
# the base into the factors, so that the factors mean nothing without that other base.
_INIT = (None, True, False, "gaussian", "eva", "orthogonal")
_EXPLAINED = {
    "alora_invocation_tokens": "aLoRA",
    "arrow_config": "Arrow routing",
    "kasa_config": "KaSA",
    "layer_replication": "replicated layers",
    "lora_bias": "LoRA with bias",
    "modules_to_save": "whole modules beside the factors",
    "monteclora_config": "MonteCLoRA",
    "target_parameters": "LoRA on parameters, such as fused experts",
    "trainable_token_indices": "trained tokens",
    "use_bdlora": "block-diagonal LoRA",
    "use_dora": "DoRA",
    "use_qalora": "QALoRA",
}
# Everything else that is set is refused, so that a setting of a later peft is not silently ignored.
_WITHOUT_EFFECT = frozenset(
    "auto_mapping base_model_name_or_path bias eva_config exclude_modules inference_mode init_lora_weights "
    "layers_pattern layers_to_transform lora_dropout megatron_core peft_type peft_version qalora_group_size revision "
    "runtime_config target_modules task_type".split()
)
_READ = frozenset("r lora_alpha rank_pattern alpha_pattern use_rslora fan_in_fan_out".split())
_DEFAULTS = {"r": 8, "lora_alpha": 8}
_KINDS = {"bias", "init_lora_weights", "peft_type"}  # of _WITHOUT_EFFECT: some of their values are refused


class LowRank(NamedTuple):
    """The change of one module's weight: `scale * B @ A`, [out, in]; of an embedding its transpose, [tokens, width].

    a, b: names of the factors in the adapter, of shapes [rank, in] and [out, rank].
    """

    a: str
    b: str
    scale: float
    embedding: bool


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter. `modules` maps module paths of the base model to their change.

    copies: base tensor name -> name in the adapter, of base tensors that peft saved along (embeddings, when targeted).
    """

    checkpoint: Checkpoint
    config: dict[str, Any]
    modules: dict[str, LowRank]
    copies: dict[str, str]

    @property
    def label(self) -> str:
        """What the user typed."""
        return self.checkpoint.label

    @property
    def base(self) -> str | None:
        """The base model as the adapter names it: a Hub id, or a path on the machine that trained it."""
        return self.config.get("base_model_name_or_path") or None


def base_reference(base: Checkpoint) -> str:
    """What adapter_config.json calls `base`: a Hub id as it is, a local folder or file as ./NAME.

    peft and transformers ask the Hub for a bare NAME, and for a repository called None where there is null; for ./NAME they
    look in the working directory, and else say at once that it is none.
    """
    return public_name(base) if base.layout.hub else f"./{public_name(base)}"


def without_folders(reference: str | None) -> str | None:
    """A reference to a base for others to read: absolute paths and those from home as ./NAME.

    >>> without_folders("/home/ada/model"), without_folders("org/model"), without_folders("models/tuned/one")
    ('./model', 'org/model', 'models/tuned/one')
    """
    for path in (PurePosixPath(reference or ""), PureWindowsPath(reference or "")):
        if path.is_absolute() or path.parts[:1] == ("~",):
            return f"./{path.name}"
    return reference


def is_adapter(source: str | os.PathLike[str]) -> bool:
    """Whether `source` is a local folder with an adapter in it."""
    return (Path(source).expanduser() / CONFIG).is_file()


def settings_that_differ(base: Checkpoint, edited: Checkpoint) -> list[dict[str, Any]]:
    """What two adapters say differently of the change that their factors make: rows of name, base and edited.

    Empty where one of the two is no folder with an adapter. What only training needed is left out, such as dropout.
    """
    if base.lone or edited.lone:
        return []
    old, new = (load_json(one.path / CONFIG, one.label) for one in (base, edited))
    if old is None or new is None:
        return []
    rows = []
    for name in dict.fromkeys([*old, *new]):
        if name in _KINDS or name not in _WITHOUT_EFFECT:
            values = [config.get(name, _DEFAULTS.get(name)) for config in (old, new)]
            # Text, so that NaN equals itself and the order of patterns counts; unset, false and empty mean the same.
            if len({json.dumps(value or None if name not in _DEFAULTS else value) for value in values}) > 1:
                rows.append({"name": name, "base": values[0], "edited": values[1]})
    return rows


def open_adapter(source: str | os.PathLike[str]) -> Adapter:
    """Open a folder (or Hub id) with `adapter_config.json` and `adapter_model.safetensors`. No tensor is read.

    Raises EditError with every setting and tensor that is not supported, and every factor that is absent or misshapen.
    """
    checkpoint = open_checkpoint(source)
    config = load_json(checkpoint.path / CONFIG, checkpoint.label)
    if config is None:
        raise EditError(f"{checkpoint.label} has no {CONFIG}: give the folder that peft's save_pretrained wrote")
    if refused := _refused(config):
        raise EditError(
            f"{checkpoint.label} is not a plain LoRA adapter: {listed(refused)}; where peft can merge it "
            "(merge_and_unload), give the merged checkpoint instead"
        )
    modules, copies, problems = _modules(checkpoint, config)
    if problems or not modules:
        raise EditError(
            f"{checkpoint.label} cannot be used as an adapter: {listed(problems or ['it holds no LoRA factors'])}"
        )
    return Adapter(checkpoint, config, modules, copies)


def _refused(config: dict[str, Any]) -> list[str]:
    if config.get("peft_type") != "LORA":
        return [f"its peft_type is {config.get('peft_type')!r}"]
    refused = []
    if config.get("bias") not in (None, "none"):
        refused.append(f"bias={config['bias']!r} (trained biases)")
    if (init := config.get("init_lora_weights")) not in _INIT:
        refused.append(f"init_lora_weights={init!r} (its factors may stand for a changed base)")
    for key, value in config.items():
        if value and key not in _READ | _WITHOUT_EFFECT:
            refused.append(f"{key} ({_EXPLAINED.get(key, 'not known to editkit')})")
    return refused


def _modules(checkpoint: Checkpoint, config: dict[str, Any]) -> tuple[dict[str, LowRank], dict[str, str], list[str]]:
    factors: dict[tuple[str, bool], dict[str, str]] = {}
    copies: dict[str, str] = {}
    problems = []
    for name in checkpoint.tensors:
        bare = name.removeprefix(_PREFIX)
        if bare != name and (found := _FACTOR.fullmatch(bare)):
            side = found["linear"] or found["embedding"]
            factors.setdefault((found["module"], found["embedding"] is not None), {})[side] = name
        elif bare != name and "lora_" not in bare and (found := _COPY.fullmatch(bare)):
            copies[f"{found['module']}.{found['leaf']}"] = name
        else:
            problems.append(f"tensor {name} is not understood")
    modules = {}
    for (module, embedding), pair in factors.items():
        if absent := {"A", "B"} - set(pair):
            problems.append(f"{module} has no factor {absent.pop()}")
            continue
        a, b = (checkpoint.tensors[pair[side]] for side in "AB")
        if len(a.shape) != 2 or len(b.shape) != 2:
            problems.append(f"{module} has factors of shapes {list(a.shape)} and {list(b.shape)} (a convolution?)")
            continue
        if not (a.item.floating and b.item.floating):
            problems.append(f"{module} has factors of dtype {a.dtype} and {b.dtype}")
            continue
        try:
            rank, scale = _rank_and_scale(module, config)
        except (re.error, TypeError, ValueError, ZeroDivisionError, AttributeError) as error:
            why = "r and lora_alpha must be numbers, r above 0"
            if isinstance(error, re.error):
                why = f"a pattern is no regular expression, {error}"
            problems.append(f"{CONFIG} gives no rank and scale for {module}: {why}")
            continue
        if not a.shape[0] == b.shape[1] == rank:
            problems.append(f"{module} has rank {rank} in {CONFIG}, {a.shape[0]} and {b.shape[1]} in its factors")
            continue
        modules[module] = LowRank(a.name, b.name, scale, embedding)
    return modules, copies, problems


def _rank_and_scale(module: str, config: dict[str, Any]) -> tuple[int, float]:
    rank = _patterned(config.get("rank_pattern"), module, config.get("r", _DEFAULTS["r"]))
    alpha = _patterned(config.get("alpha_pattern"), module, config.get("lora_alpha", _DEFAULTS["lora_alpha"]))
    scale = alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
    if not math.isfinite(scale):
        raise ValueError(f"its scale is {scale}")
    return rank, scale


def _patterned(patterns: dict[str, Any] | None, module: str, default: Any) -> Any:
    # As in peft: patterns are regular expressions for the end of the path, the first that matches wins.
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return (patterns or {}).get(module, default)
