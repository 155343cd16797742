"""`unlearn`: train a model until a forget set is at the level of text it never saw, and write what it became."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

from editkit.checkpoint.adapter import is_adapter
from editkit.checkpoint.layout import REPORTS
from editkit.checkpoint.reader import Checkpoint, open_checkpoint
from editkit.checkpoint.unfinished import STATE, WorkKept, unfinished, unfinished_folder
from editkit.checkpoint.writer import CheckpointWriter
from editkit.diffing.rendering import plain
from editkit.errors import EditError, NothingChanged, listed
from editkit.evaluation.measuring import other_answers
from editkit.evaluation.sets import described
from editkit.evaluation.subject import checkpoints, describe, same_place
from editkit.evaluation.suites import FORGET
from editkit.masks.mask import Mask
from editkit.patching.create import add_patch
from editkit.patching.writer import check_new_patch
from editkit.training.loading import split, vocabulary_of
from editkit.unlearning.course import Diverged
from editkit.unlearning.job import CONTROL, Job, Source, Stage
from editkit.unlearning.processes import Processes, one_voice
from editkit.unlearning.refusals import read_refusals
from editkit.unlearning.rules import check
from editkit.unlearning.sets import read_sets
from editkit.unlearning.settings import resolve
from editkit.unlearning.sharding import refuse_unshardable
from editkit.unlearning.watch import rule_names
from editkit.vectors.vector import refuse_quantized


@one_voice()
def unlearn(
    model: Source,
    output: Source,
    *,
    forget: Source | Sequence[Source],
    retain: Source | None = None,
    unseen: Source | None = None,
    reference: Source | None = None,
    method: str | None = None,
    forget_loss: str | None = None,
    retain_loss: str | None = None,
    forget_weight: float | None = None,
    retain_weight: float | None = None,
    beta: float | None = None,
    preset: str | None = None,
    mask: Source | None = None,
    allow_other_base: bool = False,
    only: Sequence[str] = (),
    lora: int | None = None,
    control: bool = False,
    refusals: Source | None = None,
    stop: str | Sequence[str] = (),
    floor: float | None = None,
    eval_every: int | None = None,
    epochs: int | None = None,
    steps: int | None = None,
    lr: float | None = None,
    batch_size: int | None = None,
    grad_accum: int | None = None,
    grad_checkpointing: bool = False,
    weight_decay: float | None = None,
    rectify: bool = False,
    alpha: float | None = None,
    anchor: str | None = None,
    save_as: str | None = None,
    patch: Source | None = None,
    max_length: int | None = None,
    prompt_template: str | None = None,
    seed: int = 0,
    dtype: str | None = None,
    device: str = "auto",
    resume: bool = False,
    stage: Stage = lambda name: nullcontext(),
    observe: Callable[[Mapping[str, Any]], None] = lambda line: None,
) -> dict[str, Any]:
    """Unlearn `forget` from `model` and write the folder `output`: the edited weights, `output`/diff and `output`/unlearning.

    >>> report = unlearn("model", "edited", forget="forget.jsonl", retain="retain.jsonl", method="npo+gd")  # doctest: +SKIP
    >>> report["tasks"][0]["outcome"], report["result"][0]["after"]["value"]  # doctest: +SKIP
    ('reached', 0.24)

    model: a folder or Hub id. forget: an example file, or several, unlearned one after the other, each from the last result. retain: what is to be
    kept. unseen: text of the kind of `forget` that no model saw; reference: a model that never saw `forget`: either says at which memorization
    accuracy (MA) to stop, 0.33 without them. method: see `methods.py`; or forget_loss and retain_loss. preset: "paper" takes the published settings.
    mask: only what it selects moves, all else stays as it is, byte for byte. only: whole-name globs of tensors that may move. lora: rank of an
    adapter to train instead. control: the same run with the mask's random control and without a mask, measured and not saved. refusals: a .txt file.
    stop: rules, see `rules.py`; any of them ends the run. floor: retention below which no point is kept. eval_every: steps between two looks.
    epochs, steps: at most so many. batch_size: examples of each set in a step, over all processes, read in `grad_accum` parts. rectify: see
    `step.py`. alpha, anchor ("phase", "original"): of methods that negate. save_as: "checkpoint", "adapter" or "vector". patch: a new
    .editpatch file that undoes the edit of a checkpoint. resume: go on with an interrupted run. stage: called with the name of each part of the work. observe: told every line of the log.

    Returns what is in unlearn.json (schema `editkit.unlearning/1`); of several processes, see `processes.py`, only the first has it, the others {}. Raises EditError for settings, data and models that do not fit together and
    for a loss that is not a number, NothingChanged where no step was worth keeping; then there is no output.
    """
    stop = [stop] if isinstance(stop, str) else list(stop)
    files = [forget] if isinstance(forget, str | os.PathLike) else list(forget)
    settings = resolve(
        name=method, forget_loss=forget_loss, retain_loss=retain_loss, preset=preset, stop=stop, retain=retain is not None,
        mask=mask is not None, tasks=len(files), control=control,
        given={
            "forget_weight": forget_weight, "retain_weight": retain_weight, "beta": beta, "lora": lora, "steps": steps, "epochs": epochs, "lr": lr,
            "batch_size": batch_size, "grad_accum": grad_accum, "grad_checkpointing": grad_checkpointing, "weight_decay": weight_decay, "rectify": rectify, "floor": floor,
            "eval_every": eval_every, "alpha": alpha, "anchor": anchor, "save": save_as, "seed": seed, "max_length": max_length,
            "prompt_template": prompt_template, "dtype": dtype, "device": device,
        },
    )  # fmt: skip
    sets = read_sets(files, retain, unseen)
    ratios = any(other_answers(one)["perturbed_nll"] for name, one in sets.items() if name.startswith(FORGET))
    check(settings.rules, rule_names(retain is not None, reference is not None, ratios))
    templates = read_refusals(refusals)
    processes = Processes(device)
    if processes.sharded:
        refuse_unshardable(settings, mask=mask is not None, resume=resume)
    with ExitStack() as stack:
        base = _opened_base(stack, model)
        compared = _reference(reference, base) if reference is not None else None
        chosen = None
        if mask is not None:
            chosen = _mask(stack, mask, base, allow_other_base)
            if control and not (Path(mask) / CONTROL).is_dir():
                raise EditError(
                    f"{mask} has no random mask of its size: localize with --control, or leave --control out"
                )
        inputs = [
            *(one.label for one in sets.values()),
            *(os.fspath(one) for one in (reference, mask) if one is not None),
        ]
        CheckpointWriter(base, output, inputs=[one for one in inputs if os.path.exists(one)])
        if patch is not None:
            if settings.save != "checkpoint":
                raise EditError(
                    f"a patch undoes the edit of a checkpoint, and here {settings.save} is saved: leave --patch out"
                )
            check_new_patch(patch, [base.source, Path(output)])
        _refuse_own_folders(base, settings.save)
        begun = {
            **settings.described(), "sets": described(sets), "model": base.sha256(), "only": list(only), "control": control,
            "templates": templates, "mask": chosen.file.sha256() if chosen else None,
            "reference": compared,
        }  # fmt: skip
        if processes.main:
            stack.enter_context(unfinished(Path(output), json.loads(json.dumps(begun)), resume))
        processes.wait()
        work = unfinished_folder(Path(output))
        shown = stage if processes.main else lambda name: nullcontext()
        job = Job(model, base, settings, sets, templates, compared, only, processes, work, shown, observe)
        try:
            report = _done(stack, job, chosen, mask, reference, Path(output), files[0], retain, control)
        except EditError as error:
            if not (work / STATE).exists() or isinstance(error, NothingChanged | Diverged | WorkKept):
                raise
            raise WorkKept(f"{error} (what was done before is kept for --resume)") from error
    if patch is not None and processes.main:
        with stage("patch") as progress:
            add_patch(model, output, patch, progress=progress)
    return report


def _done(
    stack: ExitStack, job: Job, chosen: Mask | None, mask: Source | None, reference: Source | None, output: Path,
    forget: Source, retain: Source | None, control: bool,
) -> dict[str, Any]:  # fmt: skip
    place = mask
    if job.settings.method.localized and chosen is None:
        place = job.localization(forget, retain, control)
        chosen = _mask(stack, place, job.base)
    known, levels = job.levels(reference)
    done, saved = job.run(chosen, levels, known)
    controls = []
    if control and place is not None:
        other = _mask(stack, Path(place) / CONTROL, job.base)
        controls = [
            job.control("random mask", other, levels, known),
            job.control("all parameters", None, levels, known),
        ]
    report: dict[str, Any] = {}
    if saved is not None:  # the first process writes
        measured = job.report(done, saved, job.measured(saved), levels, known, chosen)
        report = plain({**measured, "controls": controls})
        job.finish(report, done, output)
    job.processes.wait()
    return report


def _opened_base(stack: ExitStack, model: Source) -> Checkpoint:
    weights, addition = split(model)
    if addition or is_adapter(weights):
        raise EditError(
            f"{model} has an adapter, and unlearning starts from whole weights: merge it first with editkit negate MODEL "
            "ADAPTER --alpha -1 -o MERGED"
        )
    base = stack.enter_context(open_checkpoint(weights))
    refuse_quantized(base)
    base.start_hashing()
    return base


def _reference(source: Source, base: Checkpoint) -> dict[str, Any]:
    """What to call it. Raises EditError where it reads texts in another way than `base`, or is that."""
    with checkpoints(source) as (checkpoint, adapter):
        if vocabulary_of(checkpoint) != vocabulary_of(base):
            raise EditError(
                f"--reference {source} has another tokenizer or vocabulary than {base.label}: give a model of the same family"
            )
        if adapter is None and (same_place(checkpoint, base) or checkpoint.sha256() == base.sha256()):
            raise EditError(
                f"--reference {source} has the weights of {base.label}: give a model that never saw the forget set"
            )
    return describe(source)


def _mask(stack: ExitStack, place: Source, base: Checkpoint, allow_other_base: bool = False) -> Mask:
    found = Mask(place, base, allow_other_base=allow_other_base)
    stack.callback(found.file.close)
    return found


def _refuse_own_folders(base: Checkpoint, kind: str) -> None:
    own = {path.parts[0] for path in base.other_files()} & REPORTS.keys()
    if own and kind == "checkpoint":
        raise EditError(
            f"{base.label} has folders of its own, {listed(sorted(own))}, where the output would get its report: rename them"
        )
