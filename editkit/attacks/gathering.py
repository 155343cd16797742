"""Every model under every attack: rows of measurements, from which all that is said of an edit follows.

A model is loaded once for what only looks at it (as it is, quantized, asked in other ways), and anew for every relearning, which
moves all of its weights.
"""

from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from editkit.attacks import membership, prompts, relearning
from editkit.attacks.quantization import SCHEMES, quantized
from editkit.attacks.relearning import learning_rate, relearn
from editkit.attacks.sets import shared
from editkit.attacks.settings import Settings
from editkit.attacks.subject import opened_whole
from editkit.checkpoint.blocks import Progress
from editkit.evaluation.measuring import measure, prepare
from editkit.evaluation.sets import Sets
from editkit.evaluation.subject import Source, Subject
from editkit.training.data import Examples

Row = dict[str, Any]
Stage = Callable[[str], AbstractContextManager[Progress | None]]

PLAIN = "none"
FORGET, RETAIN, UNSEEN = "forget", "retain", "unseen"
COLUMNS = ("token_accuracy", "nll", "ma")
WRITTEN = ("generation", "rougeL_recall")
_SHOWN = ("prompt", "answer", "set", "index")


@dataclass(frozen=True)
class Attack:
    """One attack. id, label: as in attack.json. brings_text: see `verdict`. status: "ok", or why it was not made."""

    id: str
    kind: str
    label: str
    brings_text: bool = False
    status: str = "ok"

    def described(self) -> dict[str, str]:
        return {"attack": self.id, "kind": self.kind, "label": self.label, "status": self.status}


@dataclass
class Gathered:
    """What was measured. rows: as in examples.jsonl. models: role -> as in attack.json. facts: what was trained, or quantized."""

    rows: list[Row] = field(default_factory=list)
    models: dict[str, dict[str, Any]] = field(default_factory=dict)
    attacks: dict[str, Attack] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    _places: dict[tuple[str, str, str, int | None], list[Row]] = field(default_factory=dict)

    def column(
        self, role: str, attack: str, column: str, name: str = FORGET, step: int | None = None
    ) -> dict[int, float]:
        """Index -> value, of the examples that have one."""
        rows = self._places.get((role, attack, name, step), [])
        return {row["index"]: row[column] for row in rows if row.get(column) is not None}

    def add(
        self, rows: list[Row], role: str, attack: Attack, *, step: int | None = None, indices: list[int] | None = None
    ) -> None:
        """Rows of `measure`. indices: where they stand in their set, if they are not all of it. Texts are kept once per set."""
        self.attacks.setdefault(attack.id, attack)
        for at, row in enumerate(rows):
            place = {"role": role, "attack": attack.id, "set": row["set"], "index": indices[at] if indices else at}
            texts = {key: row[key] for key in ("prompt", "answer") if attack.id == PLAIN and role == "model"}
            measured = {key: value for key, value in row.items() if key not in _SHOWN}
            made = {**place, **({"step": step} if step is not None else {}), **texts, **measured}
            self.rows.append(made)
            self._places.setdefault((role, attack.id, row["set"], step), []).append(made)


def gather(
    sources: Mapping[str, Source], sets: Sets, settings: Settings, context: int | None, stage: Stage
) -> Gathered:
    """context: tokens that all models read. sources: role ("model", "base", "reference") -> checkpoint. The base, which shows what was known, is not trained again."""
    found = Gathered()
    solved = _solved(sets)
    for role, source in sources.items():
        with opened_whole(source, dtype=settings.dtype, device=settings.device) as subject:
            found.models[role] = {"role": role, **subject.described()}
            found.facts.setdefault("dtype", subject.dtype)
            found.facts.setdefault("lr", learning_rate(subject))
            with stage(f"{_NAMES[role]}: measured") as progress:
                _look(found, role, subject, sets, solved, settings, context, progress)
    if "relearn" in settings.kinds:
        _relearn_all(found, {role: sources[role] for role in sources if role != "base"}, sets, solved, settings, stage)
    return found


_NAMES = {"model": "edited", "base": "original", "reference": "control"}


def _solved(sets: Sets) -> Examples | None:
    """The retain set without what is in the forget set too, None where nothing is left."""
    if RETAIN not in sets:
        return None
    both = shared(sets[RETAIN], sets[FORGET])
    rest = [index for index in range(len(sets[RETAIN])) if index not in both]
    return sets[RETAIN].subset(rest) if rest else None


def _look(
    found: Gathered,
    role: str,
    subject: Subject,
    sets: Sets,
    solved: Examples | None,
    settings: Settings,
    context: int | None,
    progress: Progress | None,
) -> None:
    """As it is, quantized, and asked in other ways."""
    written = WRITTEN if settings.max_new_tokens else ()
    done = 0

    def measured(
        examples: Examples, name: str, columns: Collection[str], template: str | None = settings.prompt_template
    ) -> list[Row]:
        nonlocal done
        asked = prepare(
            examples, name, subject, columns, prompt_template=template, max_new_tokens=settings.max_new_tokens or 1
        )
        rows = measure(subject, asked, batch_size=settings.batch_size)
        done += 1
        if progress:
            progress(done, total)
        return rows

    kinds = settings.kinds
    asked = _asked(found, subject, sets, solved, settings, context) if "paraphrase" in kinds else {}
    known = [name for name in (FORGET, RETAIN) if name in sets]
    total = len(sets) + len(asked) + ("quantize" in kinds) * len(SCHEMES) * len(known)
    for name, examples in sets.items():
        columns = {*COLUMNS, *written, *(membership.COLUMNS if "membership" in kinds and name != RETAIN else ())}
        found.add(measured(examples, name, columns), role, Attack(PLAIN, PLAIN, "no attack"))
    if "quantize" in kinds:
        for scheme in SCHEMES:
            attack = Attack(scheme.name, "quantize", scheme.label)
            with quantized(subject.net, scheme) as count:
                for name in known:
                    found.add(measured(sets[name], name, {*COLUMNS, *written}), role, attack)
            found.facts.setdefault("quantized", count)
    for attack, one in asked.items():
        rows = measured(one.examples, FORGET, {*COLUMNS, *written}, one.template)
        found.add(rows, role, attack, indices=one.indices)


def _asked(
    found: Gathered,
    subject: Subject,
    sets: Sets,
    solved: Examples | None,
    settings: Settings,
    context: int | None,
) -> dict[Attack, prompts.Prompts]:
    """The forget set in other prompts; what cannot be asked is noted among the attacks."""
    forget, template = sets[FORGET], settings.prompt_template

    def fits(text: str) -> bool:
        length = len(subject.tokenizer(text, verbose=False)["input_ids"]) + 2  # begin and end of text
        return context is None or length <= context

    shots: prompts.Prompts | str = "skipped: give --retain"
    if solved is not None:
        shots = prompts.few_shot(forget, solved, template, seed=settings.seed, fits=fits)
    ways = {
        Attack("paraphrased", "paraphrase", "asked in other words"): prompts.paraphrased(forget, template),
        Attack("few-shot", "paraphrase", f"after {prompts.SHOTS} solved examples", brings_text=True): shots,
    }
    for attack, why in ways.items():
        if isinstance(why, str):
            found.attacks.setdefault(attack.id, Attack(attack.id, attack.kind, attack.label, status=why))
    return {attack: way for attack, way in ways.items() if not isinstance(way, str)}


def _relearn_all(
    found: Gathered,
    sources: Mapping[str, Source],
    sets: Sets,
    solved: Examples | None,
    settings: Settings,
    stage: Stage,
) -> None:
    """On a part of the forget set, the rest being measured; and on the retain set, all of the forget set being measured."""
    forget = sets[FORGET]
    part, rest = relearning.split(len(forget), settings.seed)
    runs = [
        (Attack("relearn-forget", "relearn", "relearned on part of forget", True), FORGET, forget.subset(part), rest)
    ]
    on_retain = Attack("relearn-retain", "relearn", "relearned on retain", True)
    if solved is None:
        found.attacks[on_retain.id] = Attack(on_retain.id, "relearn", on_retain.label, status="skipped: give --retain")
    else:
        runs.append((on_retain, RETAIN, solved, list(range(len(forget)))))
    for attack, name, trained, held_out in runs:
        found.facts[attack.id] = {"trained_on": name, "examples": len(trained), "held_out": len(held_out)}
        for role, source in sources.items():
            with stage(f"{_NAMES[role]}: {attack.label}") as progress:
                curve = relearn(
                    source, trained, forget.subset(held_out), steps=settings.steps, batch_size=settings.batch_size, seed=settings.seed,
                    dtype=settings.dtype, device=settings.device, prompt_template=settings.prompt_template, progress=progress,
                )  # fmt: skip
            for step, rows in curve.items():
                found.add(rows, role, attack, step=step, indices=held_out)
