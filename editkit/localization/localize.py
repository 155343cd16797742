"""`localize`: find the parameters that hold given knowledge, within a budget, and write them down as a mask."""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from editkit import __version__
from editkit.checkpoint import disk
from editkit.checkpoint.adapter import CONFIG as CONFIG_OF_ADAPTER
from editkit.checkpoint.adapter import is_adapter, open_adapter
from editkit.checkpoint.blocks import Progress
from editkit.checkpoint.header import TensorInfo
from editkit.checkpoint.layout import load_json
from editkit.checkpoint.provenance import public_name
from editkit.checkpoint.reader import Checkpoint, open_checkpoint
from editkit.checkpoint.unfinished import WorkKept, unfinished
from editkit.diffing.rendering import check_folder, to_json
from editkit.errors import EditError, listed
from editkit.localization.choice import allowances
from editkit.localization.evidence import Evidence
from editkit.localization.examples import described, encoded, fingerprint, overlap, read_sets
from editkit.localization.gathering import Gathered, gather
from editkit.localization.gradients import Set
from editkit.localization.outcome import REPORT, Outcome
from editkit.localization.rendering import write_pictures
from editkit.localization.report import SCHEMA
from editkit.localization.settings import Settings, resolve
from editkit.localization.subject import considered, load
from editkit.masks.units import Units, units_of
from editkit.names import CONFIG
from editkit.training.data import Examples
from editkit.training.devices import place_of, precision
from editkit.training.loading import split
from editkit.vectors.lowrank import LowRankVector
from editkit.vectors.vector import refuse_quantized

Source = str | os.PathLike[str]
_BEFORE = "give the checkpoint that the model was tuned from"
Stage = Callable[[str], AbstractContextManager[Progress | None]]


@dataclass(frozen=True)
class Inputs:
    """The opened checkpoints. layout: whose tensors are localized, the model or the adapter on it."""

    model: Checkpoint
    adapter: str | None
    layout: Checkpoint
    base: Checkpoint | None

    def described(self) -> dict[str, Any]:
        """Names and hashes, as in localization.json."""

        def one(checkpoint: Checkpoint | None) -> dict[str, Any] | None:
            return {"name": public_name(checkpoint), "sha256": checkpoint.sha256()} if checkpoint else None

        model = {**(one(self.model) or {}), "config": _heads(self.model.config or {})}
        return {"model": model, "adapter": one(self.layout if self.adapter else None), "base": one(self.base)}

    def configs(self) -> str:
        """The sha256 of what the configs say: gradients depend on them too."""
        adapter = load_json(self.layout.path / CONFIG_OF_ADAPTER, self.layout.label) if self.adapter else None
        return sha256(json.dumps([self.model.config, adapter], sort_keys=True).encode()).hexdigest()


def _heads(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a config says of attention heads, which `compare` needs to read a mask of heads; no paths of this machine."""
    said = {key: config[key] for key in CONFIG if key in config}
    return said | {
        key: _heads(value) for key, value in config.items() if key.endswith("_config") and isinstance(value, dict)
    }


def localize(
    model: Source,
    output: Source,
    *,
    forget: Source | None = None,
    retain: Source | None = None,
    base: Source | None = None,
    method: str | None = None,
    granularity: str | None = None,
    budget: str | int | None = None,
    per_layer_budget: bool = False,
    only: Sequence[str] = (),
    mu: float | None = None,
    sigma: float | None = None,
    accumulate: str | None = None,
    labels: str | None = None,
    draws: int | None = None,
    batch_size: int = 8,
    max_examples: int | None = None,
    max_length: int | None = None,
    prompt_template: str | None = None,
    dtype: str | None = None,
    device: str = "auto",
    offload: str = "auto",
    seed: int = 0,
    control: bool = False,
    resume: bool = False,
    threads: int | None = None,
    stage: Stage = lambda name: nullcontext(),
) -> dict[str, Any]:
    """Score the parameters of `model`, select the best within a budget, and write the folder `output`.

    >>> report = localize("model", "loc", forget="forget.jsonl", retain="retain.jsonl", budget="5%")  # doctest: +SKIP
    >>> report["summary"]["selected"], report["modules"][0]["selected_fraction"]  # doctest: +SKIP
    (325000, 0.081)

    model: a folder or Hub id, or MODEL+ADAPTER to localize the factors of a LoRA adapter. forget, retain: example files, see
    `training/data.py`. base: the checkpoint that the model was tuned from ("path", "magnitude"). method: see
    `localization/methods`; "fisher" by default, "memflex" with `sigma`. granularity: "tensor", "row", "head" or "element" (default; "tensor" with `mu` and `sigma`).
    budget: "5%" of the parameters (default) or a number of units; per_layer_budget: in each layer on its own. only: whole-name
    globs; what they leave out is neither scored nor counted. mu, sigma: MemFlex's thresholds in place of a budget; or mu of
    WAGLE. accumulate: "signed", "absolute" or "squared" gradients. labels: "true" or "random:SHARE", in `draws` draws.
    max_examples: of each set, the first ones. max_length, prompt_template, dtype, device: as in `finetune`. offload: where
    the sums are kept, "none" (on the device), "cpu", "disk" or "auto". control: adds a random mask of the same size
    and the stability over two halves of the forget set. resume: go on with a run that was interrupted. stage: called with
    the name of each part of the work ("gradients", "scores"), gives a context with its progress function.

    Returns what is in localization.json (schema `editkit.localization/1`). Raises EditError for settings, data and
    checkpoints that do not fit together, gradients that are not finite, and where nothing would be selected.
    """
    settings = resolve(
        method=method, granularity=granularity, budget=budget, per_layer_budget=per_layer_budget, mu=mu, sigma=sigma,
        accumulate=accumulate, labels=labels, draws=draws, seed=seed, batch_size=batch_size, max_examples=max_examples,
        retain=retain is not None, base=base is not None, forget=forget is not None, dtype=dtype, device=device,
    )  # fmt: skip
    examples = read_sets(forget, retain, max_examples) if settings.accumulate else {}
    place = Path(output).expanduser().resolve()
    with ExitStack() as stack:
        inputs = _open(stack, model, base)
        opened = [one for one in (inputs.model, inputs.layout, inputs.base) if one is not None]
        check_folder(Path(output), [*(str(one.source) for one in opened), *(one.label for one in examples.values())])
        infos, units = _units(inputs, settings, only)
        if settings.budget:
            allowances(settings, infos, units)
        if inputs.base:
            _refuse_unlike(inputs.model, inputs.base, () if settings.kind.additive else only)
        for one in opened:
            one.start_hashing()
        _refuse_same(inputs)
        report: dict[str, Any] = {"schema": SCHEMA, "editkit": __version__, **inputs.described()}
        gathered: Gathered | None = None
        sets, left_out = list[Set](), list[str]()
        described_sets: dict[str, Any] = {"forget": None, "retain": None}
        if settings.accumulate:
            where = place_of(device)
            dtype = dtype or precision(inputs.model, where)
            sets, vocabulary = _encoded(inputs.model, examples, max_length, prompt_template)
            asked = {"only": list(only), "dtype": dtype, "control": control, "examples": fingerprint(sets)}
            asked["configs"] = inputs.configs()
            work = stack.enter_context(unfinished(Path(output), {**report, **settings.gathering(), **asked}, resume))
            with disk.writing(os.fspath(output)), stage("gradients") as progress:
                subject = load(inputs.model, inputs.adapter, inputs.layout, only, dtype, where)
                gathered = gather(
                    subject, sets, settings, work, base=inputs.base, offload=offload, vocabulary=vocabulary,
                    halves=control, threads=threads, progress=progress,
                )  # fmt: skip
            reached = {info.name for info in subject.tensors}
            left_out = [info.name for info in infos if info.name not in reached]
            infos = [info for info in infos if info.name in reached]
            described_sets |= {one.label: described(one, examples[one.label]) for one in sets}
        known: dict[str, Any] = {"base": inputs.base, "seed": seed, "mu": settings.mu}
        evidence = Evidence(
            settings.kind, inputs.layout, units, gradients=gathered.means if gathered else None, **known
        )
        made_for = {"base": public_name(inputs.layout), "base_sha256": inputs.layout.sha256()}
        with _keeping(gathered), disk.writing(os.fspath(output)), disk.staged(place) as folder:
            outcome = Outcome(folder, settings, infos, evidence, made_for, threads)
            with stage("scores") as progress:
                found = outcome.write(progress)
            report |= {
                **described_sets,
                "overlap": overlap(examples) if len(examples) > 1 else None,
                "settings": {
                    **settings.described(),
                    "only": list(only),
                    "dtype": dtype,
                    "max_examples": max_examples,
                    "max_length": max_length,
                    "prompt_template": prompt_template,
                },
                "path": gathered.path if gathered else None,
                **found,
                "control": outcome.control() if control else None,
                "stability": None,
            }
            if control and gathered and len(sets[0].rows) > 1:
                halves = [-(-len(sets[0].rows) // 2), len(sets[0].rows) // 2]
                report["stability"] = outcome.stability(gathered.means, halves, **known)
            report["warnings"] = [*_warnings(report, forget is not None or retain is not None), *found["warnings"]]
            if left_out:
                report["warnings"].append(f"no parameters of the model, hence left out: {listed(left_out, limit=5)}")
            (folder / REPORT).write_text(to_json(report), "utf-8")
            write_pictures(report, folder)
            folder.replace(place)
    return report


@contextmanager
def _keeping(gathered: Gathered | None) -> Iterator[None]:
    """Save gradients that took long before an error ends the run."""
    try:
        yield
    except EditError as error:
        if gathered is None:
            raise
        gathered.keep()
        raise WorkKept(f"{error} (the gradients are kept for --resume)") from error


def _open(stack: ExitStack, model: Source, base: Source | None) -> Inputs:
    weights, adapter = split(model)
    if is_adapter(weights):
        raise EditError(f"{weights} is an adapter: give MODEL+{weights}, to localize it on the model it belongs to")
    opened = stack.enter_context(open_checkpoint(weights))
    refuse_quantized(opened)
    layout = stack.enter_context(open_checkpoint(adapter)) if adapter else opened
    if adapter and base is not None:
        raise EditError("--base goes with the weights of a model: leave it out for an adapter")
    before = stack.enter_context(open_checkpoint(base)) if base is not None else None
    if before is not None:
        refuse_quantized(before)
    if adapter:
        LowRankVector(open_adapter(adapter), opened)  # which refuses one that does not fit
    return Inputs(opened, adapter, layout, before)


def _refuse_unlike(model: Checkpoint, base: Checkpoint, only: Sequence[str]) -> None:
    tensors = base.tensors
    needed = considered(model, only)
    if unlike := [one.name for one in needed if one.name not in tensors or tensors[one.name].shape != one.shape]:
        raise EditError(
            f"{base.label} lacks {listed(unlike)} of {model.label}, or has them in another shape: {_BEFORE}"
        )


def _refuse_same(inputs: Inputs) -> None:
    if inputs.base and inputs.base.sha256() == inputs.model.sha256():
        raise EditError(
            f"{inputs.base.label} has the weights of {inputs.model.label}, so nothing moved on the way: {_BEFORE}"
        )


def _units(inputs: Inputs, settings: Settings, only: Sequence[str]) -> tuple[list[TensorInfo], dict[str, Units]]:
    """The tensors that may be selected, and their units."""
    infos = considered(inputs.layout, only)
    found = {info.name: units_of(info, settings.granularity, inputs.layout.config) for info in infos}
    units = {name: one for name, one in found.items() if one is not None}
    if not units:
        raise EditError(
            f"{inputs.layout.label}: none of the {len(infos)} tensors has attention heads that config.json tells: give another --granularity"
        )
    return [info for info in infos if info.name in units], units


def _encoded(
    model: Checkpoint,
    examples: dict[str, Examples],
    max_length: int | None,
    prompt_template: str | None,
) -> tuple[list[Set], int]:
    """The sets as tokens, and the size of the vocabulary."""
    from editkit.training.loading import context_of, load_config, load_tokenizer

    config, tokenizer = load_config(model).get_text_config(), load_tokenizer(model)
    context = context_of(config)
    sets = [
        encoded(label, one, tokenizer, context=context, vocabulary=config.vocab_size, max_length=max_length,
                prompt_template=prompt_template, can_cut=True)
        for label, one in examples.items()
    ]  # fmt: skip
    return sets, config.vocab_size


def _warnings(report: Mapping[str, Any], asked_for_examples: bool) -> list[str]:
    found = []
    if report["overlap"]:
        found.append(
            f"{report['overlap']} of the examples to forget are in the retain set too: what they have in common counts for both"
        )
    layers = [row for row in report["layers"] if row["layer"] is not None]
    outside, there = (1 - sum(row[key] for row in layers) / report["summary"][key] for key in ("selected", "numel"))
    if layers and outside > max(0.5, 1.5 * there):
        found.append(
            f"{outside:.0%} of the selection lies outside the layers, in embedding and head, where an edit makes words unlikely "
            f"rather than changing what the layers know: --only '{layers[0]['stack']}.*' looks into the layers alone"
        )
    if not report["settings"]["accumulate"] and asked_for_examples:
        found.append(f"{report['settings']['method']} looks at no examples: the forget and retain sets were not read")
    if report["control"] and (report["control"]["jaccard"] or 0) > 0.5:
        found.append(
            f"the control shares {report['control']['jaccard']:.0%} of the selection: too few units are of its size in a layer "
            "for a random choice, so compare with a finer granularity or another method as well"
        )
    if report["control"] and report["control"]["selected"] < 0.9 * report["summary"]["selected"]:
        found.append(
            f"the control selects {report['control']['selected']:,} parameters, fewer than the {report['summary']['selected']:,} "
            "that it is to be compared with: whole units at random do not add up to more"
        )
    if report["control"] and report["forget"] and not report["stability"]:
        why = (
            "one half of the examples selects nothing by itself"
            if report["forget"]["examples"] > 1
            else "one example has no halves"
        )
        found.append(f"the stability is unknown: {why}")
    if report["path"] and report["path"]["complete"] is False:
        worst = max(one["error"] for one in (report["path"]["forget"], report["path"]["retain"]) if one)
        found.append(
            f"the attributions miss the drop of the loss by {worst:.1%} with {report['path']['points']} points on the path"
        )
    return found
