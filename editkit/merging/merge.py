"""`merge`: models and task vectors made into one model, by any of the methods that mergekit has.

>>> result = merge("base", {"math": 1.0, "lora": {"weight": 0.5, "density": 0.3}}, "merged", method="ties")  # doctest: +SKIP
>>> result.total["requested_l2"], result.total["applied_l2"]  # doctest: +SKIP
(3.12, 3.11)
"""

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from editkit.arithmetic.apply import CHANGED, Applied
from editkit.checkpoint import provenance
from editkit.checkpoint.blocks import Progress, default_threads
from editkit.checkpoint.layout import CONFIG
from editkit.checkpoint.writer import CheckpointWriter
from editkit.diffing.report import Compared, Comparison, build_report
from editkit.errors import EditError, listed
from editkit.merging.check import checked
from editkit.merging.engine import run, size_of_blocks
from editkit.merging.inputs import Inputs, Work
from editkit.merging.layers import stacked_layers
from editkit.merging.plan import Plan
from editkit.merging.planning import plan_merge
from editkit.merging.record import recorded
from editkit.names import parse, select

Source = str | os.PathLike[str]
_PROGRAM = 200_000_000  # bytes of an interpreter with numpy and numba
_COUNTS = 10_000_000  # bytes for each model that tensors on their way hold in counts of their elements' sizes


@dataclass(frozen=True)
class Merged:
    """What `merge` did, or would do.

    merged, copied: number of tensors that are calculated, and that are taken over byte for byte. bytes: of the weights of the
    output. memory: estimated peak in bytes. layers, total: L2 of the change to `like` that was asked for and that arrived, and the share
    of elements lost to rounding; {} for a dry run. changed: elements, those of tensors that only one of
    the two has included. notes: what is done unlike mergekit. rules: see `Rule`. like: name of the model whose files the output takes.
    stacked: where layers are put together anew, {"layers": [first, last], "of": [{"model", "layers"}, ...]} for each run of them.
    """

    output: Path | None
    method: str
    merged: int
    copied: int
    bytes: int
    memory: int
    total: dict[str, Any] = field(default_factory=dict)
    layers: list[dict[str, Any]] = field(default_factory=list)
    changed: int = 0
    notes: list[str] = field(default_factory=list)
    rules: list[dict[str, Any]] = field(default_factory=list)
    like: str = ""
    stacked: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    report: dict[str, Any] | None = None


def merge(
    base: Source | None,
    vectors: Mapping[Source, float | Mapping[str, Any]] | Source,
    output: Source | None = None,
    *,
    method: str = "task_arithmetic",
    settings: Mapping[str, Any] | None = None,
    only: Sequence[str] = (),
    seed: int | None = None,
    compatible: bool = False,
    report: bool = True,
    patch: Source | None = None,
    shard_size: int | None = None,
    dry_run: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
    allow_other_base: bool = False,
) -> Merged:
    """Merge `vectors` into `base` and write the folder `output`, with its diff report in `output`/diff.

    base: a checkpoint, or None with a config. vectors: checkpoints tuned from the base, LoRA adapters or saved task vectors, each with its weight, or with
    settings of its own ({"weight": 0.5, "density": 0.3, "mask": "loc"}); a setting is a number, a list (a gradient over the
    layers) or a list of {"filter", "value"} as in mergekit. Or the path of a mergekit config, or its content as a dictionary
    (with the key merge_method), which then says base, method and settings. settings: of the method, such as
    {"normalize": False}. only: whole-name globs; all other tensors are copied byte for byte. seed: of random drops. compatible: do as mergekit
    does, see `Plan`. patch: a file that can undo the merge. dry_run: check everything, write nothing.

    Arithmetic is float64 for 32-bit weights, float32 with sums in float64 for 16-bit ones, and rounded once. Raises EditError that lists all that
    does not fit together; then nothing is left behind.
    """
    if isinstance(vectors, Mapping) and "merge_method" not in vectors:
        config: Any = _config(base, vectors, method, settings or {})
    elif base is not None or settings:
        raise EditError("a merge config says base and settings itself: leave them out here")
    else:
        config = vectors
    plan = plan_merge(config, compatible=compatible, seed=seed)
    return execute(
        restricted(plan, only),
        output,
        report=report,
        patch=patch,
        shard_size=shard_size,
        dry_run=dry_run,
        threads=threads,
        progress=progress,
        allow_other_base=allow_other_base,
    )


def _config(
    base: Source | None,
    vectors: Mapping[Source, float | Mapping[str, Any]],
    method: str,
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """The same as a config of mergekit."""
    if base is None:
        raise EditError("vectors are merged into a base: give one, or a merge config")
    models = []
    for source, said in vectors.items():
        own: dict[str, Any] = dict(said) if isinstance(said, Mapping) else {"weight": said}
        mask = {"mask": os.fspath(own.pop("mask"))} if own.get("mask") is not None else {}
        models.append({"vector": os.fspath(source), "parameters": own, **mask})
    return {"merge_method": method, "base_model": os.fspath(base), "models": models, "parameters": dict(settings)}


def restricted(plan: Plan, only: Sequence[str]) -> Plan:
    """The same plan for the tensors with such a whole name; all others stay as in the base."""
    if not only:
        return plan
    if plan.base is None:
        raise EditError("--only leaves tensors as they are in the base, and this merge has none: give a base model")
    chosen = set(select([target.name for target in plan.targets], only))
    targets = tuple(one if one.name in chosen else one._replace(parts=()) for one in plan.targets)
    return plan._replace(targets=targets)


def execute(
    plan: Plan,
    output: Source | None,
    *,
    report: bool = True,
    patch: Source | None = None,
    shard_size: int | None = None,
    dry_run: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
    allow_other_base: bool = False,
) -> Merged:
    """Carry out a plan; see `merge` for the settings. Everything is checked before the first byte is written."""
    if output is None and not dry_run:
        raise EditError("no output folder given: name one, or ask for a dry run")
    with ExitStack() as stack:
        inputs = Inputs(plan, stack, allow_other_base=allow_other_base)
        works, notes = checked(inputs)
        result = _promised(inputs, works, notes, threads or default_threads())
        _refuse_own_folder(inputs, report)
        tensors = {one.info.name: (one.info.dtype, one.info.shape) for one in works}
        others = [checkpoint.source for _, checkpoint in inputs.checkpoints()]
        if patch is not None:
            _check_patch(patch, inputs, tensors, [*others, *([Path(output)] if output else [])])
        if output is None:
            return result
        writer = CheckpointWriter(inputs.like, output, shard_size=shard_size, tensors=tensors, inputs=others)
        if dry_run:
            return result
        with writer:
            for _, checkpoint in inputs.checkpoints():
                checkpoint.start_hashing()
            _write_settings(plan, inputs, writer)
            taken = {one.info.name for one in works if _copied(inputs, one, writer)}
            compared = run(inputs, works, taken, writer, measure=report, threads=threads, progress=progress)
            result = _outcome(replace(result, output=Path(output)), compared, _unmatched(inputs, works))
            roles = dict(inputs.checkpoints())
            record = provenance.record(
                "merge", roles, seed=plan.seed, method=plan.method, plan=recorded(plan), shard_size=shard_size
            )
            provenance.save(record, writer.folder, writer.sha256())
            if report:
                result = _with_report(result, inputs, works, compared, writer.folder, record)
    if patch is not None:
        from editkit.patching.create import add_patch

        warnings = add_patch(inputs.like.source, Path(output), patch, threads=threads, progress=progress)
        result = replace(result, warnings=[*result.warnings, *warnings])
    return result


def _promised(inputs: Inputs, works: Sequence[Work], notes: Sequence[str], threads: int) -> Merged:
    """What can be said before anything is done."""
    merged = sum(inputs.merges(one.target) for one in works)
    if not any(one.target.parts for one in works):
        raise EditError("nothing to merge: no tensor has a part from any model")
    block = max(
        (size_of_blocks(one) * (len(one.target.parts) + 5) * np.dtype(one.dtype).itemsize for one in works), default=0
    )
    return Merged(
        output=None,
        method=inputs.plan.method,
        merged=merged,
        copied=len(works) - merged,
        bytes=sum(one.info.nbytes for one in works),
        memory=_PROGRAM + 4 * threads * block + _COUNTS * max(len(one.target.parts) for one in works),
        notes=[*dict.fromkeys([*inputs.plan.notes, *notes])],
        rules=[one._asdict() for one in inputs.plan.rules],
        like=provenance.public_name(inputs.like),
        stacked=stacked_layers(inputs.plan),
    )


def _refuse_own_folder(inputs: Inputs, report: bool) -> None:
    if report and "diff" in {path.parts[0] for path in inputs.like.other_files()}:
        raise EditError(
            f"{inputs.like.label} has a diff of its own, where the output would get its report: rename it, or ask for no report"
        )


def _check_patch(
    patch: Source, inputs: Inputs, tensors: Mapping[str, tuple[str, tuple[int, ...]]], others: list[Path]
) -> None:
    from editkit.patching.writer import check_new_patch

    check_new_patch(patch, others)
    own = {name: (info.dtype, info.shape) for name, info in inputs.like.tensors.items()}
    if tensors.keys() != own.keys():
        raise EditError(
            f"the output has other tensors than {inputs.like.label}, which no patch can undo: leave --patch out"
        )
    if other := sorted({f"{own[name][0]} to {tensors[name][0]}" for name in own if tensors[name] != own[name]}):
        raise EditError(
            f"the output has other dtypes than {inputs.like.label} ({listed(other)}), which no patch can undo: leave dtype "
            "and out_dtype out of the config, or --patch"
        )


def _copied(inputs: Inputs, work: Work, writer: CheckpointWriter) -> bool:
    """Whether a tensor was taken over byte for byte: it is what one of the models has."""
    found = inputs.source(work.target)
    if found is None or inputs.merges(work.target) or found[1].dtype != work.info.dtype:
        return False
    writer.copy(work.info.name, found[0], found[1].name)
    return True


def _write_settings(plan: Plan, inputs: Inputs, writer: CheckpointWriter) -> None:
    """config.json with its new values, and the other files that the plan gives."""
    if plan.config:
        config = json.loads(json.dumps(inputs.like.config or {}))
        for path, value in plan.config.items():
            *outer, key = path.split(".")
            part = config
            for one in outer:
                part = part.setdefault(one, {})
            part[key] = value
        (writer.folder / CONFIG).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", "utf-8")
    for path, text in plan.files.items():
        if Path(path).name != path:  # of a record that may be a stranger's
            raise EditError(f"the plan writes {path!r}, which is no name of a file in the output: refuse that plan")
        (writer.folder / path).write_text(text, "utf-8")


def _unmatched(inputs: Inputs, works: Sequence[Work]) -> int:
    """Elements of tensors that only the output has, or only the model whose files it takes."""
    here, there = {one.info.name: one.info for one in works}, inputs.like.tensors
    return sum({**here, **there}[name].numel for name in here.keys() ^ there.keys())


def _outcome(result: Merged, compared: list[Compared], unmatched: int) -> Merged:
    layers: dict[tuple[str, int | None], list[Applied]] = {}
    for tensor in compared:
        if tensor.applied is not None:
            tensor.applied.alpha = None  # the change has no strength of its own
            place = parse(tensor.info.name)
            layers.setdefault((place.stack, place.layer), []).append(tensor.applied)
    total = Applied.total(part for parts in layers.values() for part in parts)
    rows = [{"stack": stack, "layer": layer, **_row(Applied.total(parts))} for (stack, layer), parts in layers.items()]
    changed = int(total.sums[CHANGED]) + unmatched
    return replace(result, total=_row(total), layers=rows, changed=changed, warnings=_warnings(total, changed))


def _row(applied: Applied) -> dict[str, Any]:
    return {
        key: value for key, value in applied.row().items() if key in ("requested_l2", "applied_l2", "lost_to_rounding")
    }


def _warnings(total: Applied, changed: int) -> list[str]:
    if changed:
        return []
    if not total.requested:
        return ["nothing changed: the merge is equal to the model whose files it takes"]
    return ["nothing changed: all of it is below half a step of the dtype; choose larger weights or another out_dtype"]


def _with_report(
    result: Merged,
    inputs: Inputs,
    works: Sequence[Work],
    compared: list[Compared],
    folder: Path,
    record: dict[str, Any],
) -> Merged:
    from editkit.diffing.rendering import write_report

    like, written = inputs.like, {one.info.name: one.info for one in works}
    done = {tensor.info.name: tensor for tensor in compared}
    before = {"name": provenance.public_name(like), "sha256": like.sha256(), "quantization": None}
    after = {"name": result.output.name if result.output else "", "sha256": None, "quantization": None}
    comparison = Comparison(before, after, like.config)
    for name, info in like.tensors.items():
        new = written.get(name)
        if new is None:
            comparison.removed.append({"name": name, "dtype": info.dtype, "shape": list(info.shape)})
        elif new.shape != info.shape:
            shapes = {"base_shape": list(info.shape), "edited_shape": list(new.shape)}
            comparison.reshaped.append({"name": name, **shapes})
        else:
            if new.dtype != info.dtype:
                comparison.retyped.append({"name": name, "base_dtype": info.dtype, "edited_dtype": new.dtype})
            comparison.tensors.append(done.get(name) or Compared(info, None))
    added = [info for name, info in written.items() if name not in like.tensors]
    comparison.added += [{"name": one.name, "dtype": one.dtype, "shape": list(one.shape)} for one in added]
    report = build_report(comparison)
    report["edit"] = {"command": record["command"], **report.get("edit", result.total)}
    (folder / "diff").mkdir()
    write_report(report, folder / "diff")
    return replace(result, report=report)
