"""What several adapters must have in common to be one: a base, and for each module a shape and a kind.

>>> same_base("org/model", "/home/ada/model"), same_base("org/model", "other/model"), same_base("model", None)
(True, False, True)
"""

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from editkit.checkpoint.adapter import Adapter, without_folders
from editkit.checkpoint.ties import same_bytes
from editkit.errors import EditError, listed
from editkit.vectors.difference import tuned_from


class Module(NamedTuple):
    """The matrix that the factors of a module make, and whether that is an embedding."""

    out: int
    inner: int
    embedding: bool


def same_base(one: str | None, other: str | None) -> bool:
    """Whether two names may be of one model: equal, unknown, or a path and another name that end alike."""
    if one is None or other is None or one == other:
        return True
    both_hub = all(name.count("/") == 1 and name[0] not in "./~" for name in (one, other))
    return not both_hub and PurePosixPath(one).name == PurePosixPath(other).name


def check_bases(adapters: Sequence[Adapter]) -> None:
    """Raise EditError where two adapters say that they were made for different bases, by hash or else by name."""
    first, other = adapters[0], []
    known = [tuned_from(one.checkpoint.provenance) for one in adapters]
    for one, origin in zip(adapters, known, strict=True):
        by_hash = known[0] and origin
        if known[0][0][1] != origin[0][1] if by_hash else not same_base(first.base, one.base):
            other.append(f"{one.label} ({one.base})")
    if other:
        raise EditError(
            f"{first.label} was made for {first.base}, not so {listed(other)}: combine adapters of one base, or say "
            "--allow-other-base where these are the same model"
        )


def check_modules(adapters: Sequence[Adapter], *, same_rank: bool) -> dict[str, Module]:
    """All modules that any of the adapters has, in the order of the first that has it.

    Raises EditError that lists the modules of other shapes or kinds; with `same_rank`, ranks that differ; base tensors that
    adapters brought along with other values; and another order of rows and columns (GPT-2's Conv1D).
    """
    modules: dict[str, Module] = {}
    ranks: dict[str, dict[str, int]] = {}
    shapes = []
    for adapter in adapters:
        tensors = adapter.checkpoint.tensors
        for path, change in adapter.modules.items():
            found = Module(tensors[change.b].shape[0], tensors[change.a].shape[1], change.embedding)
            if modules.setdefault(path, found) != found:
                shapes.append(f"{path} {list(found[:2])} in {adapter.label} instead of {list(modules[path][:2])}")
            ranks.setdefault(path, {})[adapter.label] = tensors[change.a].shape[0]
    problems = []
    if shapes:
        problems.append(f"modules of other shapes or kinds: {listed(shapes)}; combine adapters of one base")
    if same_rank and (uneven := [path for path, found in ranks.items() if len(set(found.values())) > 1]):
        first = listed([f"{rank} in {label}" for label, rank in ranks[uneven[0]].items()], limit=5)
        problems.append(f"rank {first} ({listed(uneven, limit=1)}): use cat, svd or one of the _svd methods")
    if len({bool(one.config.get("fan_in_fan_out")) for one in adapters}) > 1:
        problems.append("fan_in_fan_out is true in some and false in others; combine adapters of one base")
    problems += _other_copies(adapters)
    if problems:
        raise EditError(f"these adapters cannot be combined: {listed(problems)}")
    return modules


def embedding_copies(adapters: Sequence[Adapter]) -> Mapping[str, Adapter]:
    """Base tensors that peft saved along with the factors -> the first adapter that has them."""
    return {name: one for one in reversed(adapters) for name in one.copies}


def common_settings(adapters: Sequence[Adapter]) -> dict[str, Any]:
    """The keys of adapter_config.json that the result takes over."""
    configs = [one.config for one in adapters]

    def first(key: str) -> Any:
        return next((config[key] for config in configs if config.get(key) is not None), None)

    return {
        "base_model_name_or_path": without_folders(first("base_model_name_or_path")),
        "fan_in_fan_out": bool(first("fan_in_fan_out")),
        "task_type": first("task_type"),
    }


def _other_copies(adapters: Sequence[Adapter]) -> list[str]:
    kept = embedding_copies(adapters)
    other = [
        f"{one.copies[name]} of {one.label}"
        for one in adapters
        for name in one.copies
        if (first := kept[name]) is not one
        and not same_bytes(first.checkpoint, first.copies[name], one.copies[name], one.checkpoint)
    ]
    return [f"tensors of their bases with other values: {listed(other)}; combine adapters of one base"] if other else []
