"""Checkpoints as transformers models, and their weights back under the names of the files.

>>> with open_checkpoint("model") as base:  # doctest: +SKIP
...     model = load_model(base)
...     sorted(file_tensors(model, base)) == sorted(base)
True
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from editkit.checkpoint.reader import Checkpoint
from editkit.errors import EditError, first_line, listed
from editkit.training.trainer import quiet_transformers

if TYPE_CHECKING:
    import torch

_NAMES: WeakKeyDictionary[Any, dict[int, list[str]]] = WeakKeyDictionary()
"""Of every loaded model: the names of each parameter, several where it is tied, by its id."""


def split(source: str | os.PathLike[str]) -> tuple[str, str | None]:
    """MODEL+ADAPTER as its two parts; a path that exists is one part, whatever its name.

    >>> split("models/base")
    ('models/base', None)
    >>> split("org/name+my-lora")
    ('org/name', 'my-lora')
    """
    text = os.fspath(source)
    if "+" not in text or Path(text).expanduser().exists():
        return text, None
    places = [place for place, character in enumerate(text) if character == "+"]
    there = [place for place in places if Path(text[:place]).expanduser().exists()]
    place = there[0] if there else places[-1]
    if not text[place + 1 :]:
        raise EditError(f"{text} names no adapter: give MODEL+ADAPTER, or MODEL alone")
    return text[:place], text[place + 1 :]


def load_config(base: Checkpoint) -> Any:
    """The transformers config of `base`. Raises EditError where it has none, and where the weights are quantized."""
    from transformers import AutoConfig

    if base.quantization:
        raise EditError(f"{base.label} is quantized ({base.quantization}): give the checkpoint in full precision")
    if base.config is None or "model_type" not in base.config:
        raise EditError(f"{base.label} has no config.json of a model: give the folder of a whole model")
    try:
        return AutoConfig.from_pretrained(base.path, trust_remote_code=False)
    except (ImportError, KeyError, OSError, ValueError) as error:
        raise EditError(
            f"{base.label} is of a kind that transformers does not load by itself ({first_line(error)})"
        ) from error


def context_of(config: Any) -> int | None:
    """The most tokens that a model of this config reads, None where it does not say."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def vocabulary_of(base: Checkpoint) -> tuple[int, dict[str, int]]:
    """How many tokens the model has, and which its tokenizer knows by which id: equal for models that read texts alike."""
    return load_config(base).get_text_config().vocab_size, load_tokenizer(base).get_vocab()


def load_tokenizer(base: Checkpoint) -> Any:
    """The tokenizer of `base`. Raises EditError where transformers cannot load one."""
    from transformers import AutoTokenizer

    with quiet_transformers():
        try:
            return AutoTokenizer.from_pretrained(base.path, trust_remote_code=False)
        except Exception as error:  # tokenizer files fail in a dozen ways, all of them the files' fault
            raise EditError(
                f"{base.label} has no tokenizer that transformers can load ({first_line(error)})"
            ) from error


def load_model(base: Checkpoint, dtype: str = "float32") -> Any:
    """The causal language model in `base`, held in `dtype` in main memory.

    Raises EditError where transformers cannot load it, where it is an encoder, and lists all weights that the files lack.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    config = load_config(base)
    with quiet_transformers():
        try:
            found: Any = AutoModelForCausalLM.from_pretrained(
                base.path, config=config, dtype=getattr(torch, dtype), output_loading_info=True
            )
        except (ImportError, KeyError, OSError, RuntimeError, ValueError) as error:
            raise EditError(
                f"{base.label} is no model of text that transformers can load ({first_line(error)})"
            ) from error
    model, info = found
    if model.config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(model.config, "is_decoder", False):
        raise EditError(
            f"{base.label} is a {model.config.model_type} whose tokens see those after them: give a model that writes from left to right"
        )
    if missing := sorted(info["missing_keys"]):
        raise EditError(f"{base.label} lacks the weights {listed(missing)}, which its config asks for: copy it again")
    return model


def file_tensors(model: Any, base: Checkpoint) -> "dict[str, torch.Tensor]":
    """The model's weights under the names and in the shapes of the files that it was loaded from.

    transformers may hold weights under other names or fused; its own conversion is undone here. A tied head that the
    files do not name is left out, since the embedding carries it. Tensors of the files that the model does not have are
    not in the result. Raises EditError that lists every weight which cannot be joined to the files.
    """
    return _joined(model, base, model.state_dict())


def file_parts(model: Any, base: Checkpoint, name: str, tensor: "torch.Tensor") -> "dict[str, torch.Tensor]":
    """What belongs to one parameter, such as its gradient, under the names and in the shapes of the files.

    >>> file_parts(model, base, "model.norm.weight", gradient)  # doctest: +SKIP
    {'model.norm.weight': tensor([...])}

    name: as in `model.named_parameters()`. tensor: of the parameter's shape. Fused experts come as one tensor for each, a
    tied weight under every name that the files have for it. Raises EditError as `file_tensors` does.
    """
    if model not in _NAMES:
        found: dict[int, list[str]] = {}
        for other, one in model.named_parameters(remove_duplicate=False):
            found.setdefault(id(one), []).append(other)
        _NAMES[model] = found
    return _joined(model, base, dict.fromkeys(_NAMES[model][id(model.get_parameter(name))], tensor))


def _joined(model: Any, base: Checkpoint, state: "dict[str, torch.Tensor]") -> "dict[str, torch.Tensor]":
    from transformers.core_model_loading import revert_weight_conversion

    prefix = f"{model.base_model_prefix}."  # which the files of a bare model, such as GPT-2, do not have
    state = {
        name if name in base.tensors else name.removeprefix(prefix): tensor
        for name, tensor in revert_weight_conversion(model, state).items()
    }
    joined = {name: tensor for name, tensor in state.items() if name in base.tensors}
    carried = {tensor.data_ptr() for tensor in joined.values()}
    lost = [name for name, tensor in state.items() if name not in joined and tensor.data_ptr() not in carried]
    lost += [f"{name} (shape)" for name, tensor in joined.items() if tuple(tensor.shape) != base.tensors[name].shape]
    if lost:
        raise EditError(f"transformers holds weights that {base.label} does not have under these names: {listed(lost)}")
    return joined
