"""`evaluate`: measure models on example sets, side by side, and write down every row and every metric."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from editkit.checkpoint.unfinished import STATE, WorkKept, unfinished
from editkit.diffing.rendering import check_folder
from editkit.errors import EditError, listed
from editkit.evaluation import lm_eval as harness
from editkit.evaluation.calibrate import calibrated
from editkit.evaluation.gathering import Gathering, Stage
from editkit.evaluation.lineup import Entry, Held, check, line_up
from editkit.evaluation.measuring import other_answers, prepare
from editkit.evaluation.report import build, write
from editkit.evaluation.rows import Row, read_rows, strange_keys
from editkit.evaluation.sets import common, described, read
from editkit.evaluation.similarity import Readers
from editkit.evaluation.subject import Subject, describe, opened
from editkit.evaluation.suites import CHOICES, FORGET, METRICS, RETAIN, Metric, chosen, columns_of
from editkit.localization.examples import encoded
from editkit.training.data import Examples
from editkit.training.devices import unfit
from editkit.training.loading import split

Source = str | os.PathLike[str]
KEYS = {"perturbed_nll": "perturbed_answer"}
"""Columns that need a key of their own in the example files."""


def evaluate(
    models: Source | Sequence[Source],
    output: Source,
    *,
    forget: Source | None = None,
    retain: Source | None = None,
    sets: Mapping[str, Source] | None = None,
    base: Source | None = None,
    reference: Source | None = None,
    suites: Sequence[str] = (),
    metrics: Sequence[str] = (),
    max_examples: int | None = None,
    batch_size: int = 16,
    max_new_tokens: int = 200,
    prompt_template: str | None = None,
    embedding_model: str | None = None,
    nli_model: str | None = None,
    calibrate: str | None = None,
    lm_eval: Sequence[str] = (),
    dtype: str | None = None,
    device: str = "auto",
    resume: bool = False,
    stage: Stage = lambda name: nullcontext(),
) -> dict[str, Any]:
    """Measure `models` on the example sets and write the folder `output`: examples.jsonl, results.json, report.html.

    >>> report = evaluate(["edited"], "eval", forget="forget.jsonl", retain="retain.jsonl", base="model")  # doctest: +SKIP
    >>> report["results"][0]["metric"], report["results"][0]["value"]  # doctest: +SKIP
    ('tofu/probability@1', 0.113)

    models: folders, Hub ids, or MODEL+ADAPTER. forget, retain, sets (name -> file): examples, see `training/data.py`; the names real_authors
    and world_facts are TOFU's, `unseen` is text of the kind of the forget set that no model saw. base: the model before the edit;
    reference: a model that never saw the forget set. suites: "tofu", "closer-look", "memorization", "knowundo", "exposure", "general" or "all";
    by default all but EL_10, which takes long; metrics: ids or globs, beside or in place of suites. max_examples: of each set, the first ones. embedding_model,
    nli_model: for closer-look. calibrate: the name of a set; each model is then mixed with `base` until it keeps 95 % of base's token
    accuracy there, see `calibrate.py`. lm_eval: tasks for lm-evaluation-harness. resume: skip what an interrupted run has finished.

    Returns what is in results.json (schema `editkit.evaluation/1`). A metric that cannot be had says why in `status`. Raises EditError for
    inputs that do not fit together, a suite asked for by name whose keys the examples lack, and a model whose output is NaN.
    """
    suites, metrics = ([one] if isinstance(one, str) else list(one) for one in (suites, metrics))
    asked = chosen(suites, metrics)
    wanted = [models] if isinstance(models, str | os.PathLike) else list(models)
    counts = {"batch_size": batch_size, "max_new_tokens": max_new_tokens, "max_examples": max_examples}
    wrong = unfit(dtype, device, **counts) + ([] if wanted else ["no model is given"])
    if wrong:
        raise EditError(f"nothing can be measured with these settings: {listed(wrong)}")
    examples = read(forget, retain, sets or {}, max_examples)
    if not examples:
        raise EditError("there is nothing to measure on: give --forget, --retain or --set NAME=FILE")
    both = common(examples)
    _refuse_lacking(examples, asked, suites, metrics)
    entries = line_up(wanted, base, reference)
    if calibrate is not None and (base is None or calibrate not in examples):
        raise EditError(f"--calibrate {calibrate} mixes models with --base by the examples of {calibrate}: give both")
    if lm_eval:
        if calibrate is not None:
            raise EditError(
                "--lm-eval takes models from their files, and --calibrate mixes them in memory: leave one out"
            )
        harness.check_installed()
    check_folder(
        Path(output),
        [*(part for one in entries for part in split(one.source) if part), *(one.label for one in examples.values())],
    )
    settings = {
        "suites": suites,
        "metrics": metrics,
        "max_examples": max_examples,
        "batch_size": batch_size,
        "max_new_tokens": max_new_tokens,
        "prompt_template": prompt_template,
        "embedding_model": embedding_model and Path(embedding_model).name,
        "nli_model": nli_model and Path(nli_model).name,
        "calibrate": calibrate,
        "dtype": dtype,
        "device": device,
        "bootstrap": 1000,
    }
    tightest = check(entries)
    for name, rows_of in examples.items():  # faults of the last set are said before the first is measured
        other_answers(rows_of)
        encoded(name, rows_of, **tightest, prompt_template=prompt_template)
    readers = Readers(embedding_model, nli_model, device)
    readers.try_out({column for one in asked for column in one.needs})
    warnings = []
    if both:
        warnings.append(f"{both} of the examples to forget are in the retain set too: forgetting them costs retention")
    with ExitStack() as stack:
        content = hashlib.sha256(
            json.dumps([one.rows for one in examples.values()], sort_keys=True).encode()
        ).hexdigest()
        begun = {
            **settings,
            "sets": described(examples),
            "content": content,
            "readers": [embedding_model, nli_model],
            "models": [[one.label, one.role, one.whole] for one in entries],
        }
        folder = stack.enter_context(unfinished(Path(output), begun, resume))
        held = Held(stack, entries, asked, dtype, device)
        rows: list[Row] = []
        columns: list[dict[str, Any]] = []
        measured = Gathering(folder, examples, asked, settings, readers)
        try:
            for entry in entries:
                at = examples[calibrate] if calibrate is not None and entry.role == "model" else None
                with _as_it_is(entry, held) if at is None else _mixed(entry, entries[0].source, at, settings) as found:
                    about_it, subject = found
                    columns.append(about_it)
                    one = replace(entry, label=about_it["label"])
                    rows += measured.rows(one, subject, about_it["sha256"], held.base, stage)
            handed = (
                {one.label: harness.run(one.source, lm_eval, device=device) for one in entries} if lm_eval else None
            )
            report = build(
                rows, asked, models=columns, sets=described(examples), settings=settings, warnings=warnings,
                overlap=both, lm_eval=handed,
            )  # fmt: skip
            write(report, rows, Path(output))
        except EditError as error:
            if not (folder / STATE).exists():
                raise
            raise WorkKept(f"{error} (what was measured before is kept for --resume)") from error
    return report


@contextmanager
def _as_it_is(entry: Entry, held: Held) -> Iterator[tuple[dict[str, Any], Subject]]:
    """What results.json says of a column, and its model."""
    with held.opened(entry) as subject:
        yield _described(entry.label, entry, subject, subject.described()), subject


@contextmanager
def _mixed(
    entry: Entry, original: Source, examples: Examples, settings: Mapping[str, Any]
) -> Iterator[tuple[dict[str, Any], Subject]]:
    """The same, of the mix of a model and the original that retains as much as all others."""
    how = {key: settings[key] for key in ("dtype", "device")}
    with opened(original, **how, label=entry.label) as subject:
        asked = prepare(
            examples, settings["calibrate"], subject, {"token_accuracy"}, prompt_template=settings["prompt_template"]
        )
        with calibrated(subject, entry.source, asked, batch_size=settings["batch_size"]) as found:
            label = f"{entry.label} × {found.mix:.3g}"
            yield _described(label, entry, subject, describe(entry.source), asdict(found)), subject


def _described(
    label: str, entry: Entry, subject: Subject, files: Mapping[str, Any], calibration: dict[str, Any] | None = None
) -> dict[str, Any]:
    computed = {"dtype": subject.dtype, "device": subject.place}
    return {"label": label, "role": entry.role, **files, **computed, "calibration": calibration}


def evaluate_rows(
    source: Source,
    output: Source,
    *,
    reference_from: Source | None = None,
    suites: Sequence[str] = (),
    metrics: Sequence[str] = (),
) -> dict[str, Any]:
    """The metrics of saved rows, without a model: of examples.jsonl, of other programs, of a log of TOFU's evaluation.

    >>> report = evaluate_rows("eval/examples.jsonl", "again", reference_from="retain/examples.jsonl")  # doctest: +SKIP

    reference_from: rows of a model that never saw the forget set, in place of those of the role "reference" in `source`. Writes the
    folder `output` and returns its results.json, as `evaluate` does. Raises EditError for rows that are none.
    """
    suites, metrics = ([one] if isinstance(one, str) else list(one) for one in (suites, metrics))
    asked = chosen(suites, metrics)
    check_folder(Path(output), [os.fspath(source), *([os.fspath(reference_from)] if reference_from else [])])
    rows = read_rows(source)
    if not suites and not metrics:  # what took long was measured before, or it is not there
        there = {key for row in rows for key in row}
        asked = [one for one in METRICS if one in asked or there & set(one.needs)]
    other = read_rows(reference_from) if reference_from is not None else []
    if len(names := sorted({row["model"] for row in other})) > 1:
        own = [row for row in other if row["role"] == "reference"]
        if len({row["model"] for row in own}) != 1:
            raise EditError(
                f"{reference_from} has rows of {listed(names)}: give a file with those of the reference alone"
            )
        other = own
    labels = dict.fromkeys((row["model"], row["role"]) for row in rows)
    if len(labels) > len({label for label, _ in labels}):
        raise EditError(f"{source}: one model has rows of several roles: give each model one 'role'")
    for role in ("base", "reference"):
        if len(several := [label for label, one in labels if one == role]) > 1:
            raise EditError(
                f"{source} has rows of several models of the role {role!r}: {listed(several)}: there can be one"
            )
    unknown: dict[str, Any] = {
        "name": None,
        "adapter": None,
        "sha256": None,
        "dtype": None,
        "device": None,
        "calibration": None,
    }
    sizes: dict[str, set[int]] = {}
    for row in rows:
        sizes.setdefault(row["set"], set()).add(row["index"])
    report = build(
        rows,
        asked,
        models=[{"label": label, "role": role, **unknown} for label, role in labels],
        reference_rows=other,
        sets=[{"set": name, "name": None, "sha256": None, "examples": len(one)} for name, one in sizes.items()],
        settings={
            "suites": suites,
            "metrics": metrics,
            "rows": Path(source).name,
        }
        | ({"reference_rows": Path(reference_from).name} if reference_from is not None else {}),
        warnings=[f"no metric reads these keys of the rows: {listed(strange)}"]
        if (strange := strange_keys(rows))
        else [],
    )
    write(report, rows, Path(output))
    return report


def _refuse_lacking(
    examples: Mapping[str, Examples], asked: Sequence[Metric], suites: Sequence[str], metrics: Sequence[str]
) -> None:
    """A suite that was asked for by name must find the keys that it needs in the sets that it is for."""
    if "all" in suites or not (suites or metrics):
        return
    faults = []
    for name in (FORGET, RETAIN, *CHOICES):
        for column, key in KEYS.items():
            if name in examples and column in columns_of(asked, name):
                lacking = [
                    number
                    for number, row in zip(examples[name].numbers, examples[name].rows, strict=True)
                    if key not in row
                ]
                if lacking:
                    faults.append(
                        f"{examples[name].label}: {len(lacking)} of {len(examples[name])} rows without {key!r} ({examples[name].unit} {listed(lacking, limit=5)})"
                    )
    if faults:
        raise EditError(
            f"{'; '.join(faults)}: {listed([*suites, *metrics])} needs them, or leave it out for what can be had"
        )
