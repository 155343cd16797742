"""What is localized: the weights of a model, or the factors of an adapter on it, as parameters to take gradients of."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from editkit.checkpoint.header import TensorInfo
from editkit.checkpoint.reader import Checkpoint
from editkit.checkpoint.ties import tied_copies
from editkit.errors import EditError
from editkit.names import select
from editkit.training.loading import file_parts, load_model
from editkit.training.lora import adapter_tensors
from editkit.training.trainer import quiet_transformers

if TYPE_CHECKING:
    import torch

_BUFFERS = (".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias", ".inv_freq")
"""Ends of the names of causal masks and rotary frequencies, which older files hold beside the weights."""
Parts = Callable[[str, "torch.Tensor"], dict[str, "torch.Tensor"]]


@dataclass(frozen=True)
class Subject:
    """A loaded model and the tensors that are localized.

    net: the model, with gradients for `parameters` alone (by their names in it). layout: the checkpoint whose tensors are
    localized, the model's or the adapter's. tensors: those of them that are considered, in the order of the files.
    parts: (parameter, values of its shape) -> the values under the names and in the shapes of the files. homes: name in the
    files -> parameter, also of those that are not considered. whole: those whose tensor is the parameter as it is, neither cut out of it nor turned.
    """

    net: Any
    layout: Checkpoint
    tensors: list[TensorInfo]
    parameters: dict[str, "torch.nn.Parameter"]
    parts: Parts
    homes: dict[str, str]
    whole: set[str]


def considered(layout: Checkpoint, only: Sequence[str]) -> list[TensorInfo]:
    """The tensors that a localization may select: floating, not empty, named by --only, and of tied copies the first."""
    copies = tied_copies(layout)
    named = dict.fromkeys(copies[0] if name in copies else name for name in select(layout.tensors, only))
    found = [
        info
        for name, info in layout.tensors.items()
        if name in named and info.item.floating and info.numel and not name.endswith(_BUFFERS)
    ]
    if not found:
        raise EditError(f"{layout.label}: --only leaves no floating-point tensor to localize")
    return found


def load(
    base: Checkpoint, adapter: str | None, layout: Checkpoint, only: Sequence[str], dtype: str, device: str
) -> Subject:
    """Load the model, and the adapter if there is one, to `device`, ready for gradients.

    Raises EditError as `load_model` does, and where none of the tensors is a parameter of the model.
    """
    net = load_model(base, dtype)
    tensors = considered(layout, only)
    wanted = {info.name for info in tensors}
    if adapter is None:
        candidates: Mapping[str, Any] = dict(net.named_parameters())

        def parts(name: str, values: "torch.Tensor") -> "dict[str, torch.Tensor]":
            return file_parts(net, base, name, values)
    else:
        from peft import PeftModel

        with quiet_transformers():
            net = PeftModel.from_pretrained(net, layout.path, is_trainable=True)
        candidates = {name: tensor for name, tensor in net.named_parameters() if tensor.requires_grad}
        named = {tensor.data_ptr(): name for name, tensor in adapter_tensors(net).items()}
        stored = {name: named[tensor.data_ptr()] for name, tensor in candidates.items()}

        def parts(name: str, values: "torch.Tensor") -> "dict[str, torch.Tensor]":
            return {stored[name]: values}

    homes, whole = _join(candidates, parts)
    reached = homes.keys() & wanted
    parameters = {name: candidates[name] for name in candidates if name in {homes[file] for file in reached}}
    if not reached:
        raise EditError(f"{layout.label}: none of the {len(wanted)} tensors is a parameter of the model: check --only")
    net.requires_grad_(False)
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    net.config.use_cache = False
    net.eval()
    net.to(device)
    return Subject(net, layout, [info for info in tensors if info.name in reached], parameters, parts, homes, whole)


def _join(parameters: "Mapping[str, torch.Tensor]", parts: Parts) -> tuple[dict[str, str], set[str]]:
    """From the names of the files to parameters, and those names whose tensor is the whole parameter, as it is."""
    homes: dict[str, str] = {}
    whole = set()
    for name, parameter in parameters.items():
        for file, part in parts(name, parameter.data).items():
            homes[file] = name
            same = (part.data_ptr(), part.shape, part.stride())
            if same == (parameter.data_ptr(), parameter.shape, parameter.stride()):
                whole.add(file)
    return homes, whole
