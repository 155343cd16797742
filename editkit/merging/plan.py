"""What a merge will do, resolved for every tensor of the output before the first one is read.

>>> part = Part(0, "model.norm.weight", {"weight": 0.5})
>>> Target("model.norm.weight", "model.norm.weight", (part,), {"normalize": True}).parts[0].settings["weight"]
0.5
"""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Model(NamedTuple):
    """One input besides the base.

    source: a checkpoint (folder, file, Hub id). adapters: LoRA folders that are added to it in turn (`model+lora`). vector: `source` is
    a change of the base (adapter, saved vector) or a checkpoint tuned from it, not just any checkpoint. mask: what this
    localization does not select stays as in the base.
    """

    source: str
    adapters: tuple[str, ...] = ()
    vector: bool = False
    mask: str | None = None


class Part(NamedTuple):
    """What one model gives to one tensor: `name` in the model, and settings of its own such as weight and density."""

    model: int
    name: str
    settings: Mapping[str, Any]


class Target(NamedTuple):
    """One tensor of the output. base: its name in the base model, None where there is no base. settings: of the method."""

    name: str
    base: str | None
    parts: tuple[Part, ...]
    settings: Mapping[str, Any]


class Rule(NamedTuple):
    """A setting as it was given: where it stands, for which names, its value, and how many tensors (of each model) follow it."""

    place: str
    filter: str | None
    value: Any
    tensors: int


class Plan(NamedTuple):
    """A whole merge.

    like: index of the model whose files that are no weights, and whose layout, the output takes; None is the base.
    config: keys of config.json with new values (num_hidden_layers of renumbered slices); a dotted key is inside a part
    (text_config.num_hidden_layers). files: other files of the output with new text (chat_template.jinja). dtype: precision
    ("BF16") that the inputs are read in first, None for their own; out_dtype: of the output, None for that of `like`.
    rules: what was given for settings. notes: one line for each thing that is done unlike mergekit. compatible: do as mergekit does instead.
    """

    method: str
    base: str | None
    models: tuple[Model, ...]
    targets: tuple[Target, ...]
    like: int | None = None
    config: Mapping[str, Any] = {}
    files: Mapping[str, str] = {}
    rules: tuple[Rule, ...] = ()
    dtype: str | None = None
    out_dtype: str | None = None
    seed: int = 0
    notes: tuple[str, ...] = ()
    compatible: bool = False
