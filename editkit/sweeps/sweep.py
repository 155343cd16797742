"""`sweep`: one model in memory, its weights moved in place to every point, evaluated there, and at last put back."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from editkit import __version__
from editkit.checkpoint.adapter import is_adapter
from editkit.checkpoint.blocks import Progress
from editkit.checkpoint.provenance import public_name
from editkit.checkpoint.reader import Checkpoint, open_checkpoint
from editkit.diffing.rendering import check_folder
from editkit.editing.live import LiveEdit
from editkit.editing.negate import Negation, negate
from editkit.editing.stream import Subtraction, planned
from editkit.errors import EditError, listed
from editkit.evaluation.sets import common, described, read
from editkit.evaluation.similarity import Readers
from editkit.evaluation.subject import opened
from editkit.evaluation.suites import Data, Metric
from editkit.masks.mask import Mask
from editkit.sweeps import points as grid
from editkit.sweeps.choice import check, parse
from editkit.sweeps.evaluating import Evaluation
from editkit.sweeps.rendering import write_report
from editkit.sweeps.report import command, concluded, refusal, warnings
from editkit.sweeps.scores import DERIVED, derived, measured, metrics_for, quantities, refuse_unequipped, stem
from editkit.sweeps.walk import walk
from editkit.training.devices import unfit
from editkit.training.loading import split
from editkit.vectors.open import open_vector
from editkit.vectors.vector import TaskVector, refuse_quantized

Source = str | os.PathLike[str]
Stage = Callable[[str], AbstractContextManager[Progress | None]]
SCHEMA = "editkit.sweep/1"
EDITED = "edited"
"""The folder of the chosen checkpoint, inside of the output."""


@dataclass(frozen=True)
class Sweep:
    """What a sweep found. report: as in sweep.json. edit: what became of the chosen checkpoint, None where none was written.

    command: the `editkit negate` that writes the chosen point, or the knee where there was no rule; None where there is none. refusal: why
    the rule chose no point, None where it chose one or there was no rule.
    """

    output: Path
    report: dict[str, Any]
    edit: Negation | None
    command: str | None
    refusal: str | None


def sweep(
    model: Source,
    vector: Source,
    output: Source,
    *,
    alphas: str | Sequence[float],
    forget: Source,
    retain: Source | None = None,
    sets: Mapping[str, Source] | None = None,
    reference: Source | None = None,
    vector_base: Source | None = None,
    allow_other_base: bool = False,
    masks: Sequence[Source] = (),
    only: Sequence[str] = (),
    choose: str | None = None,
    suites: Sequence[str] = (),
    metrics: Sequence[str] = (),
    max_examples: int | None = None,
    batch_size: int = 16,
    max_new_tokens: int = 200,
    prompt_template: str | None = None,
    embedding_model: str | None = None,
    nli_model: str | None = None,
    dtype: str | None = None,
    device: str = "auto",
    threads: int | None = None,
    stage: Stage = lambda name: nullcontext(),
) -> Sweep:
    """Evaluate `model` - alpha * `vector` for every alpha, mask and group of tensors, and write the folder `output`.

    >>> found = sweep("model", "tuned", "sweep", alphas="0:2:0.25", forget="forget.jsonl", retain="retain.jsonl",
    ...               choose="max forgetting s.t. retention >= 0.95")  # doctest: +SKIP
    >>> found.report["points"][found.report["chosen"]]["alpha"]  # doctest: +SKIP
    0.75

    model, vector, vector_base, allow_other_base: as in `negate`; an adapter may be the vector, not a part of the model. alphas:
    "FIRST:LAST:STEP" or numbers; the unedited model is measured in any case, once. masks: mask files or folders, "none" for
    no mask. only: groups of whole-name globs, commas between them, "*" for all tensors. sets: name -> file. reference:
    a model that never saw the forget set, whose level is shown. suites, metrics: what to measure beside teacher-forced token
    accuracy, NLL and MA, as in `evaluate`; most of the others have the model write, which takes longer. choose: see `sweeps/choice.py`; the point it names is
    written to `output`/edited by `negate`, with the diff report.

    Weights are never copied, neither in memory nor on disk; all arithmetic is that of `negate`. Writes sweep.json (schema
    `editkit.sweep/1`), sweep.html and pareto.png. Raises EditError for inputs that do not fit together, before the model is
    loaded where that can be known; a point where the model breaks (NaN) has that as its status.
    """
    numbers = [alpha for alpha in grid.alphas(alphas) if alpha]
    places = grid.choices(masks, only)
    rule = parse(choose) if choose is not None else None
    counts = {"batch_size": batch_size, "max_new_tokens": max_new_tokens, "max_examples": max_examples}
    wrong = unfit(dtype, device, **counts)
    wrong += [] if numbers else ["--alphas has no number but 0, which is the unedited model"]
    if wrong:
        raise EditError(f"nothing can be swept with these settings: {listed(wrong)}")
    examples = read(forget, retain, sets or {}, max_examples)
    asked = metrics_for(suites, metrics, rule.names if rule else ())
    if rule:
        there = quantities(asked, list(examples))
        check(rule, {"alpha", *there, *(name for name, (_, of, _) in DERIVED.items() if of in examples)})
        refuse_unequipped([there[name] for name in rule.names if name in there], embedding_model, nli_model)
    evaluation = Evaluation(
        examples, asked, batch_size, max_new_tokens, prompt_template, Readers(embedding_model, nli_model, device)
    )
    inputs = [model, vector, vector_base, reference, *masks, *(one.label for one in examples.values())]
    check_folder(Path(output), [os.fspath(one) for one in inputs if one not in (None, grid.NO_MASK)])
    with ExitStack() as stack:
        base, tau, plans = _planned(stack, model, vector, vector_base, allow_other_base, places)
        if rule:
            first = _arguments(places[0], model, vector, vector_base, allow_other_base)
            negate(**first, output=Path(output) / EDITED, alpha=1.0, dry_run=True)
        evaluation.readers.try_out({column for one in asked for column in one.needs})
        theirs = None
        if reference is not None:
            with stage("reference") as progress:
                theirs = _reference(reference, base, evaluation, dtype, progress)
        subject = stack.enter_context(opened(model, dtype=dtype, device=device))
        if theirs and theirs.vocabulary != subject.tokenizer.get_vocab():
            raise EditError(
                f"{reference} has another tokenizer than {model}: token accuracies cannot be compared, so leave --reference out"
            )
        with stage("sweep") as progress, LiveEdit(subject.net, base, threads=threads) as live:
            data = theirs.data if theirs else None
            points, unedited = walk(
                subject, live, evaluation, plans, numbers, reference=data, rule=rule, progress=progress
            )
        report = {
            "schema": SCHEMA,
            "editkit": __version__,
            "model": {"name": public_name(base), "sha256": base.sha256()},
            "vector": {**tau.origin(), "sha256": _hashes(tau)},
            "reference": theirs.described(unedited, asked) if theirs else None,
            "sets": described(examples),
            "settings": {
                "alphas": numbers,
                "choose": choose,
                "suites": list(suites),
                "metrics": list(metrics),
                "max_examples": max_examples,
                "batch_size": batch_size,
                "max_new_tokens": max_new_tokens,
                "prompt_template": prompt_template,
                "embedding_model": embedding_model and Path(embedding_model).name,
                "nli_model": nli_model and Path(nli_model).name,
                "dtype": subject.dtype,
                "device": subject.place,
                "bootstrap": 1000,
            },
            "quantities": _quantities(asked, list(examples)),
            "choices": [_described(*pair, base) for pair in zip(places, plans, strict=True)],
            "points": points,
            **concluded(points, rule),
            "overlap": common(examples),
        }
    report["warnings"] = warnings(report)
    chosen = report["chosen"]
    best = report["knee"] if rule is None else chosen
    edit = line = None
    report["command"] = None
    if best is not None:
        alpha, place = points[best]["alpha"], places[points[best]["choice"]]
        names = [one and Path(os.path.abspath(one)).name for one in (vector, vector_base)]
        plainly = replace(place, mask=place.mask and Path(os.path.abspath(place.mask)).name)
        report["command"] = command(plainly, alpha, public_name(base), str(names[0]), names[1], allow_other_base)
        line = command(place, alpha, model, vector, vector_base, allow_other_base)
    write_report(report, Path(output))
    if chosen is not None:
        arguments = _arguments(place, model, vector, vector_base, allow_other_base)
        with _report_kept(output), stage("write") as progress:
            edit = negate(**arguments, output=Path(output) / EDITED, alpha=alpha, threads=threads, progress=progress)
    return Sweep(Path(output), report, edit, line, refusal(report, rule) if rule and chosen is None else None)


@dataclass(frozen=True)
class _Reference:
    """A model that never saw the forget set, measured and gone from memory again."""

    checkpoint: dict[str, Any]
    data: Data
    vocabulary: dict[str, int]

    def described(self, unedited: Data, metrics: Sequence[Metric]) -> dict[str, Any]:
        scores = derived(self.data, unedited) | measured(self.data, metrics, self.data)
        return {**self.checkpoint, "values": {name: one for name, one in scores.items() if one["value"] is not None}}


def _reference(
    source: Source, base: Checkpoint, evaluation: Evaluation, dtype: str | None, progress: Progress | None
) -> _Reference:
    with opened(source, dtype=dtype, device=evaluation.readers.device) as subject:
        if subject.adapter is None and subject.checkpoint.sha256() == base.sha256():
            raise EditError(
                f"--reference {source} has the weights of {base.label}, which tells nothing: give a model that never saw the forget set"
            )
        data = evaluation.measure(subject, evaluation.prepare(subject, as_reference=True), progress)
        return _Reference(subject.described(), data, subject.tokenizer.get_vocab())


def _planned(
    stack: ExitStack,
    model: Source,
    vector: Source,
    vector_base: Source | None,
    allow_other_base: bool,
    places: Sequence[grid.Choice],
) -> tuple[Checkpoint, TaskVector, list[Subtraction]]:
    """The opened base and vector, and the edit of every choice with alpha 1. Raises EditError for whatever does not fit."""
    weights, adapter = split(model)
    if adapter or is_adapter(weights):
        raise EditError(
            f"{model}: a sweep moves the weights of a whole model: give that as MODEL, and an adapter on it as VECTOR"
        )
    base = stack.enter_context(open_checkpoint(weights))
    refuse_quantized(base)
    tau = open_vector(vector, base, vector_base=vector_base, allow_other_base=allow_other_base)
    for checkpoint in tau.inputs:
        stack.callback(checkpoint.close)
    masks: dict[Source, Mask] = {}
    plans = []
    for place in places:
        if place.mask is not None and place.mask not in masks:
            masks[place.mask] = Mask(place.mask, base, allow_other_base=allow_other_base)
            stack.callback(masks[place.mask].file.close)
        try:
            plans.append(planned(base, tau, 1.0, {}, place.only, masks[place.mask] if place.mask is not None else None))
        except EditError as error:
            raise EditError(f"{place.label}: {error}" if len(places) > 1 else str(error)) from error
    return base, tau, plans


def _arguments(
    place: grid.Choice, model: Source, vector: Source, vector_base: Source | None, allow_other_base: bool
) -> dict[str, Any]:
    """What `negate` is given for a choice, apart from alpha and output."""
    return {
        "model": model,
        "vector": vector,
        "vector_base": vector_base,
        "allow_other_base": allow_other_base,
        "only": place.only,
        "mask": place.mask,
    }


def _hashes(tau: TaskVector) -> dict[str, str]:
    """Of all files that the vector is read from, by checkpoint and file."""
    files = ((public_name(one), file, value) for one in tau.inputs for file, value in one.sha256().items())
    return {f"{name}/{file}": value for name, file, value in files}


def _described(place: grid.Choice, plan: Subtraction, base: Checkpoint) -> dict[str, Any]:
    infos = [base.tensors[name] for name in plan.alphas]
    return {
        "label": place.label,
        "mask": None if plan.mask is None else public_name(plan.mask.file),
        "sha256": None if plan.mask is None else plan.mask.file.sha256(),
        "only": list(place.only),
        "tensors": len(infos),
        "elements": sum(info.numel if plan.mask is None else plan.mask.selected(info) for info in infos),
    }


def _quantities(metrics: Sequence[Metric], sets: Sequence[str]) -> list[dict[str, Any]]:
    """What the points have values of, under the names that a rule uses; first what follows from token accuracy, and that."""
    own = [
        {"name": name, "label": label, "unit": "", "better": "higher", "meaning": meaning, "source": ""}
        for name, (label, of, meaning) in DERIVED.items()
        if of in sets
    ]
    others = [
        {"name": name, **{key: value for key, value in one.described().items() if key != "id"}, "metric": one.id}
        for name, one in sorted(quantities(metrics, sets).items(), key=lambda pair: stem(pair[1]) != "token_accuracy")
    ]
    return own + others


@contextmanager
def _report_kept(output: Source) -> Iterator[None]:
    try:
        yield
    except EditError as error:
        raise EditError(f"{error} (the report of the sweep is in {output})") from error
