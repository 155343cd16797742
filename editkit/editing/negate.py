"""`negate`: subtract a task vector from a model, `w = w_base - alpha * tau`, and show what became of it.

Task arithmetic: Ilharco et al. 2022, "Editing models with task arithmetic" (https://arxiv.org/abs/2212.04089). Subtracting
what fine-tuning on some data added makes a model worse at that data; how much worse at everything else is for an evaluation
to say, not for this file.
"""

import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any

from editkit.arithmetic.apply import CHANGED, Applied
from editkit.checkpoint import provenance
from editkit.checkpoint.blocks import Progress
from editkit.checkpoint.reader import Checkpoint, open_checkpoint
from editkit.checkpoint.writer import CheckpointWriter
from editkit.diffing.audit import Audit
from editkit.diffing.rendering.wording import PROJECTION_TOLERANCE as TOLERANCE
from editkit.diffing.rendering.wording import missed
from editkit.diffing.report import Compared, Comparison, build_report
from editkit.editing.stream import planned, run
from editkit.errors import EditError, listed
from editkit.masks.mask import Mask
from editkit.names import parse
from editkit.patching.create import add_patch
from editkit.patching.writer import check_new_patch
from editkit.vectors.open import open_vector
from editkit.vectors.vector import refuse_quantized

Source = str | os.PathLike[str]


@dataclass(frozen=True)
class Negation:
    """What `negate` did. `layers` and `total` hold alpha, requested and applied L2, projection, share lost to rounding.

    through: share of the vector's squared L2, in the tensors that were edited, that the mask let through; None without a mask.
    """

    output: Path | None
    alphas: dict[str, float]
    total: dict[str, Any]
    layers: list[dict[str, Any]]
    changed: int
    warnings: list[str]
    report: dict[str, Any] | None
    through: float | None = None


def negate(
    model: Source,
    vector: Source,
    output: Source | None = None,
    *,
    alpha: float,
    alpha_for: Mapping[str, float] | None = None,
    vector_base: Source | None = None,
    allow_other_base: bool = False,
    only: Sequence[str] = (),
    mask: Source | None = None,
    rounding: str = "nearest",
    seed: int = 0,
    report: bool = True,
    shard_size: int | None = None,
    patch: Source | None = None,
    keep: Path | None = None,
    data_sha256: str | None = None,
    dry_run: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Negation:
    """Write `model` - alpha * `vector` to the folder `output`, with its diff report in `output`/diff.

    >>> result = negate("model", "tuned", "edited", alpha=1.0, only=["*.mlp.*"])  # doctest: +SKIP
    >>> result.total["projection"]  # doctest: +SKIP
    -1.0

    model: the checkpoint to edit. vector: a checkpoint tuned from `vector_base` (default: from `model`), a LoRA adapter,
    or a saved task vector. alpha_for: whole-name globs with an alpha of their own, the last match counts. only: whole-name
    globs; all other tensors are copied byte for byte. mask: a mask file or the folder of one, see `masks/mask.py`; what it
    does not select stays as it is. allow_other_base: accept a vector, or a mask, that was made for other weights.
    rounding: "nearest" or "stochastic" (unbiased, drawn from `seed` and the tensor's name). keep: a folder that is moved to
    `output`/vector, such as the vector's own; patch: a new .editpatch file that undoes the edit; data_sha256: of the data behind the vector, for the provenance. dry_run: check
    names, shapes and output, write nothing. Arithmetic is float64; the result is rounded to the base's dtype as torch rounds it.

    Raises EditError (nothing is left behind) for inputs that do not fit together. Where nothing changed, or the change
    that arrived is not the one asked for, the result says so in `warnings`.
    """
    return subtract_vector(
        "negate",
        {"alpha": alpha, "alpha_for": alpha_for or {}},
        model,
        vector,
        output,
        alpha=alpha,
        alpha_for=alpha_for,
        vector_base=vector_base,
        allow_other_base=allow_other_base,
        only=only,
        mask=mask,
        rounding=rounding,
        seed=seed,
        report=report,
        shard_size=shard_size,
        patch=patch,
        keep=keep,
        data_sha256=data_sha256,
        dry_run=dry_run,
        threads=threads,
        progress=progress,
    )


def subtract_vector(
    command: str,
    strength: Mapping[str, Any],
    model: Source,
    vector: Source,
    output: Source | None,
    *,
    alpha: float,
    alpha_for: Mapping[str, float] | None = None,
    vector_base: Source | None = None,
    allow_other_base: bool = False,
    only: Sequence[str] = (),
    mask: Source | None = None,
    rounding: str = "nearest",
    seed: int = 0,
    report: bool = True,
    shard_size: int | None = None,
    patch: Source | None = None,
    keep: Path | None = None,
    data_sha256: str | None = None,
    dry_run: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Negation:
    """`negate` for every command that is one: `strength` is what the user calls alpha there, such as {"scale": 1.0}."""
    check_settings(alpha, alpha_for or {}, rounding, name=next(iter(strength)))
    if output is None and not dry_run:
        raise EditError("no output folder given: name one, or ask for a dry run")
    with ExitStack() as stack:
        base = stack.enter_context(open_checkpoint(model))
        refuse_quantized(base)
        tau = open_vector(vector, base, vector_base=vector_base, allow_other_base=allow_other_base)
        for checkpoint in tau.inputs:
            stack.callback(checkpoint.close)
        chosen, audit = None, None
        if mask is not None:
            chosen = Mask(mask, base, allow_other_base=allow_other_base)
            stack.callback(chosen.file.close)
            audit = Audit(chosen, mask)
        drawn = seed if rounding == "stochastic" else None
        edit = planned(base, tau, alpha, alpha_for or {}, only, chosen, seed=drawn)
        alphas = edit.alphas
        _refuse_own_folders(base, ["diff"] * report + ["vector"] * (keep is not None))
        inputs = {"base": base, **({"mask": chosen.file} if chosen else {})}
        others = [checkpoint.source for checkpoint in (*tau.inputs, *inputs.values())]
        if patch is not None:
            check_new_patch(patch, [*others, *([Path(output)] if output else [])])
        if output is None or dry_run:
            if output is not None:
                CheckpointWriter(base, output, shard_size=shard_size, inputs=others)
            return Negation(None, alphas, {}, [], 0, [], None)
        writer = stack.enter_context(CheckpointWriter(base, output, shard_size=shard_size, inputs=others))
        for checkpoint in (base, *tau.inputs):
            checkpoint.start_hashing()
        compared = run(base, edit, writer, measure=report, audit=audit, threads=threads, progress=progress)
        settings = {**strength, "only": list(only), "rounding": rounding, "shard_size": shard_size}
        record = provenance.record(
            command,
            {**inputs, **{f"vector {index}": one for index, one in enumerate(tau.inputs, 1)}},
            seed=drawn,
            data_hash=data_sha256,
            **settings,
            vector=tau.origin(),
        )
        provenance.save(record, writer.folder, writer.sha256())
        if keep is not None:
            shutil.move(keep, writer.folder / "vector")
        result = _result(Path(output), base, alphas, compared, next(iter(strength)))
        if chosen is not None:
            result = replace(result, through=Applied.total(one.applied for one in compared if one.applied).through)
        if report:
            result = _with_report(result, base, compared, audit, writer.folder, record)
    if patch is not None:
        warnings = add_patch(model, Path(output), patch, threads=threads, progress=progress)
        result = replace(result, warnings=[*result.warnings, *warnings])
    return result


def check_settings(alpha: float, alpha_for: Mapping[str, float], rounding: str, name: str = "alpha") -> None:
    """Raise EditError for an alpha that is no finite number and an unknown rounding; the user calls it `name`."""
    named = {f"--{name}": alpha, **{f"--alpha-for {glob}": value for glob, value in alpha_for.items()}}
    wrong = [
        f"{name} is {value}"
        for name, value in named.items()
        if not isinstance(value, int | float) or not isfinite(value)
    ]
    if wrong:
        raise EditError(f"{listed(wrong)}: give a finite number such as 1.0")
    if rounding not in ("nearest", "stochastic"):
        raise EditError(f"rounding {rounding!r} is unknown: say nearest or stochastic")


def _refuse_own_folders(base: Checkpoint, wanted: list[str]) -> None:
    own = {path.parts[0] for path in base.other_files()} & set(wanted)
    if own:
        raise EditError(
            f"{base.label} has a {' and a '.join(sorted(own))} of its own, where the output would get its report or vector: "
            "rename it, or ask for no report"
        )


def _result(
    output: Path, base: Checkpoint, alphas: dict[str, float], compared: list[Compared], strength: str
) -> Negation:
    layers: dict[tuple[str, int | None], list[Applied]] = {}
    for tensor in compared:
        if tensor.applied is not None:
            place = parse(tensor.info.name)
            layers.setdefault((place.stack, place.layer), []).append(tensor.applied)
    total = Applied.total(part for parts in layers.values() for part in parts)
    rows = [{"stack": stack, "layer": layer, **Applied.total(parts).row()} for (stack, layer), parts in layers.items()]
    changed = int(total.sums[CHANGED])
    return Negation(output, alphas, total.row(), rows, changed, _warnings(total, alphas, base, changed, strength), None)


def _warnings(total: Applied, alphas: dict[str, float], base: Checkpoint, changed: int, strength: str) -> list[str]:
    dtypes = ", ".join(sorted({base.tensors[name].dtype for name in alphas}))
    if not changed:
        if not any(alphas.values()):
            why = f"{strength} is 0"
        elif total.projection is None:
            why = "the task vector is zero on every tensor it was applied to: is it the right file?"
        else:
            why = f"all of it is below half a step of {dtypes}: choose a larger {strength} or --rounding stochastic"
        return [f"nothing changed: {why}"]
    projection, expected = total.projection, total.expected_projection
    if projection is None or expected is None or not missed(projection, expected):
        return []
    said = f"the projection of the applied change on the vector is {projection:.4g} instead of {expected:.4g}: "
    if total.lost and total.lost > TOLERANCE:
        return [
            f"{said}{total.lost:.1%} of the elements asked for did not move because the change is below half a step of "
            f"{dtypes}; choose a larger {strength} or --rounding stochastic"
        ]
    return [f"{said}{dtypes} cannot hold the result more closely (rounding, or a value at the end of its range)"]


def _with_report(
    result: Negation,
    base: Checkpoint,
    compared: list[Compared],
    audit: Audit | None,
    folder: Path,
    record: dict[str, Any],
) -> Negation:
    from editkit.diffing.rendering import write_report

    assert result.output is not None
    before = {"name": provenance.public_name(base), "sha256": base.sha256(), "quantization": None}
    after = {"name": result.output.name, "sha256": None, "quantization": None}  # a quantized base is refused
    comparison = Comparison(before, after, base.config, compared, audit=audit)
    report = build_report(comparison)
    report["edit"] = {"command": record["command"], **report.get("edit", result.total)}
    (folder / "diff").mkdir()
    write_report(report, folder / "diff")
    return replace(result, report=report)
