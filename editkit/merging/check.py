"""A plan held against its models: everything that does not fit, said at once and before anything is read or written."""

from collections.abc import Callable, Container, Iterable, Mapping
from types import GeneratorType
from typing import Any

import numpy as np

from editkit.arithmetic.codec import working_dtype
from editkit.arithmetic.dtypes import DTYPES
from editkit.checkpoint.header import TensorInfo
from editkit.checkpoint.reader import Checkpoint
from editkit.checkpoint.shards import placeless
from editkit.checkpoint.ties import same_bytes
from editkit.errors import EditError, listed
from editkit.merging.inputs import Inputs, Work
from editkit.merging.method import Setting, Terms
from editkit.merging.plan import Target
from editkit.names import embeddings_and_heads
from editkit.vectors.vector import refuse_quantized


def checked(inputs: Inputs) -> tuple[list[Work], list[str]]:
    """The work on every tensor, in the order of the output, and what the method does unlike mergekit with such settings.

    Raises EditError that lists models which are quantized or misshapen, settings that are unknown, missing or out of range, a
    wrong number of models, and tied tensors that would not be merged alike.
    """
    plan, copies = inputs.plan, inputs.copies()
    problems, wrong = _problems(inputs), dict[str, list[str]]()
    works, remarks = [], []
    for target in plan.targets:
        said: list[str] = []
        settings = _complete(inputs.method.settings, target.settings, said)
        models = tuple(_complete(inputs.method.model_settings, part.settings, said) for part in target.parts)
        said += _count(inputs, target)
        found = inputs.source(target)
        if found is not None and not said:
            shared = copies[0] if target.name in copies else target.name
            work = _work(inputs, target, found[1], settings, models, shared)
            works.append(work)
            if inputs.merges(target):
                said += _refused(inputs, work.terms)
                remarks.append(None if plan.compatible else inputs.method.remark(work.terms))
        for one in said:
            wrong.setdefault(one, []).append(target.name)
    problems += [f"{one} (for {listed(where, limit=2)})" for one, where in wrong.items()]
    problems += _half_ties(inputs, [one for one in works if one.info.name in copies])
    if problems:
        raise EditError("; ".join(dict.fromkeys(problems)))
    return works, [*(one for one in dict.fromkeys(remarks) if one), *_whole_numbers(inputs)]


def _work(
    inputs: Inputs,
    target: Target,
    info: TensorInfo,
    settings: Mapping[str, Any],
    models: tuple[Mapping[str, Any], ...],
    name: str,
) -> Work:
    plan = inputs.plan
    dtype = (plan.out_dtype or info.dtype) if info.item.floating else info.dtype
    [placed] = placeless({target.name: (dtype, info.shape)}).values()
    precision = inputs.precision(target) if plan.compatible else None
    terms = Terms(name, info.rows, info.columns, info.numel, settings, models, plan.seed, precision)
    if precision:
        return Work(target, placed, terms, np.float64 if precision == "F64" else np.float32)
    read = [plan.dtype] if plan.dtype else inputs.dtypes(target)
    wide = any(working_dtype(one) is np.float64 for one in [dtype, *read] if DTYPES[one].floating)
    return Work(target, placed, terms, np.float64 if wide else np.float32)


def _complete(known: Mapping[str, Setting], given: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
    """The settings with their defaults; adds what is unknown, missing or out of range to `problems`."""
    if unknown := [key for key in given if key not in known]:
        problems.append(f"settings {listed(unknown)} are unknown: there are {listed(known) or 'none'}")
    settings = {}
    for key, setting in known.items():
        value = given.get(key, setting.default)
        if value is None:
            problems.append(f"{key} is missing")
            continue
        try:
            settings[key] = setting.read(value)
        except ValueError as error:
            problems.append(f"{key} {error}")
    return settings


def _count(inputs: Inputs, target: Target) -> list[str]:
    method, count = inputs.method, len(target.parts)
    if count == 0 and target.base is not None:
        return []  # as it is in the base
    problems = []
    if method.base == "required" and target.base is None:
        problems.append(f"{method.label} needs a base model")
    if count < method.fewest or (method.most is not None and count > method.most):
        wanted = (
            f"{method.fewest}" if method.fewest == method.most else f"{method.fewest} to {method.most or 'any number'}"
        )
        problems.append(f"{count} models, where {method.label} takes {wanted}")
    return problems


def _refused(inputs: Inputs, terms: Terms) -> list[str]:
    """What the method itself says against such settings."""
    try:
        steps = inputs.method.merge(terms)
        if isinstance(steps, GeneratorType):
            next(steps, None)
    except EditError as error:
        return [str(error)]
    return []


def _half_ties(inputs: Inputs, works: Iterable[Work]) -> list[str]:
    """Copies of one tied tensor must stay copies."""
    works = list(works)
    names = [one.info.name for one in works]
    ways = {
        repr((one.target.settings, [(part.model, part.settings) for part in one.target.parts], one.info.dtype))
        for one in works
    }
    masks = [inputs.models[part.model].mask for one in works[:1] for part in one.target.parts]
    masked = [
        len({name in mask.names for name in names}) > 1
        or (names[0] in mask.names and not all(same_bytes(mask.file, names[0], name) for name in names))
        for mask in masks
        if mask is not None
    ]
    if len(ways) > 1 or any(masked):
        return [f"{listed(names)} are one tensor in {inputs.like.label} (tied): merge them alike, or none of them"]
    return []


def _problems(inputs: Inputs) -> list[str]:
    """All that is wrong with the models as a whole, and with the tensors that the plan names."""
    problems = _said(refuse_quantized, *(one for role, one in inputs.checkpoints() if not role.endswith("mask")))
    for number, one in enumerate(inputs.models):
        if one.vector is not None and inputs.base is not None:
            named = {target.base for target in inputs.plan.targets for part in target.parts if part.model == number}
            problems += _said(one.vector.check, inputs.base, _floating(inputs.base, one.vector.names, named))
        if one.checkpoint is not None:
            for adapter in one.adapters:
                problems += _said(adapter.check, one.checkpoint, adapter.names)
            if own := _own_heads(inputs.like, one.checkpoint):
                problems.append(
                    f"{inputs.like.label} ties its output head to its embedding, but in {one.checkpoint.label} "
                    f"{listed(own)} differs from it: tie it there too, or untie the other first"
                )
    return problems + _misfits(inputs)


def _floating(base: Checkpoint, names: Iterable[str], wanted: Container[str | None]) -> list[str]:
    return [name for name in names if name in wanted and base.tensors[name].item.floating]


def _said(check: Callable[..., None], *arguments: Any) -> list[str]:
    try:
        check(*arguments)
    except EditError as error:
        return [str(error)]
    return []


def _own_heads(like: Checkpoint, other: Checkpoint) -> list[str]:
    """Heads of `other` that are no copy of its embedding and would be left out of an output with tied ones."""
    shared = embeddings_and_heads(other.tensors) if like.tied else []
    return [name for name in shared[1:] if not same_bytes(other, shared[0], name)]


def _whole_numbers(inputs: Inputs) -> list[str]:
    """What is taken over from one model although others hold something else."""
    differ: dict[str, list[str]] = {}
    for target in inputs.plan.targets:
        found = inputs.source(target)
        if found is None or found[1].item.floating:
            continue
        checkpoint, info = found
        others = list(inputs.tensors(target))
        others += [(one, info.name) for model in inputs.models if model.vector for one in model.vector.inputs]
        if not all(same_bytes(checkpoint, info.name, name, one) for one, name in others if name in one.tensors):
            differ.setdefault(checkpoint.label, []).append(target.name)
    return [
        f"{listed(names)}: whole numbers, which are not merged; those of {label} are taken"
        for label, names in differ.items()
    ]


def _misfits(inputs: Inputs) -> list[str]:
    absent, shapes, whole = [], [], []
    for target in inputs.plan.targets:
        first: TensorInfo | None = None
        for checkpoint, name in inputs.tensors(target):
            info = checkpoint.tensors.get(name)
            if info is None:
                absent.append(f"{name} in {checkpoint.label}")
                continue
            first = first or info
            if info.shape != first.shape:
                shapes.append(f"{name} {list(info.shape)} in {checkpoint.label} instead of {list(first.shape)}")
            if info.item.floating != first.item.floating:
                whole.append(f"{name} in {checkpoint.label}")
    problems = [f"these tensors are missing: {listed(dict.fromkeys(absent))}"] if absent else []
    if shapes:
        problems.append(
            f"shapes differ: {listed(dict.fromkeys(shapes))}; merge models of one architecture and vocabulary"
        )
    if whole:
        problems.append(f"whole numbers here, floating point there: {listed(dict.fromkeys(whole))}")
    return problems
