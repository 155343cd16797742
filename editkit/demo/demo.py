"""`demo`: a small model learns fictional people, forgets some of them, and keeps the others. Nothing is downloaded.

1. `base` knows how to answer; `model` is base after it learned the people to forget and those to keep (cached).
2. base is fine-tuned on the people to forget. From base, because a model that knows them has nothing left to learn,
   and hence no gradient.
3. That task vector is subtracted from model, at several strengths alpha.
4. Of those at which the people to forget are known no better than people the model never met, the one at which the kept
   people are known best is the result.
"""

import json
import os
import shlex
import shutil
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from editkit.checkpoint import disk
from editkit.checkpoint.reader import open_checkpoint
from editkit.demo.model import Settings, encoded, groups, models, one_thread, rows
from editkit.demo.people import Person
from editkit.demo.scoring import Score, answer, score
from editkit.editing.forget import Stage
from editkit.errors import EditError, listed
from editkit.training.encoding import TEMPLATES, fill

ALPHAS = (0.5, 0.75, 0.875, 1.0, 1.25, 1.5)
TUNING: dict[str, Any] = {"steps": 60, "lr": 5e-4, "batch_size": 16}
ENTRIES = ("forget.jsonl", "retain.jsonl", "unseen.jsonl", "base", "model", "tuned", "edited", "demo.json")


@dataclass(frozen=True)
class Answer:
    """One question, the true answer, and what the model writes before and after the edit. group: forget or retain."""

    group: str
    question: str
    truth: str
    before: str
    after: str


@dataclass(frozen=True)
class Trial:
    """The people to forget and to keep, after the edit at one alpha."""

    alpha: float
    forget: Score
    retain: Score


@dataclass(frozen=True)
class Demo:
    """What the demo found. before, after: the score of each group; `unseen` are people no model met.

    settled: whether an alpha brought the people to forget to the level of `unseen`; else the strongest was taken.
    commands: what was run, to be run again. cached: the models were there from an earlier run.
    """

    output: Path
    alpha: float
    settled: bool
    before: dict[str, Score]
    after: dict[str, Score]
    trials: list[Trial]
    answers: list[Answer]
    commands: list[str]
    cached: bool


def run_demo(
    output: str | os.PathLike[str] = "editkit-demo",
    *,
    settings: Settings | None = None,
    stage: Stage = lambda name: nullcontext(),
) -> Demo:
    """Run the whole demo and leave data, models, the edited checkpoint and its report in the folder `output`.

    >>> result = run_demo()  # doctest: +SKIP
    >>> result.alpha, result.before["forget"].accuracy.mean, result.after["forget"].accuracy.mean  # doctest: +SKIP
    (0.875, 1.0, 0.737)

    An earlier demo in `output` is replaced; any other folder that is not empty is refused. Everything runs on the CPU,
    so that the numbers are nearly the same everywhere.
    """
    place, settings = Path(output).expanduser().resolve(), settings or Settings()
    _refuse_other_content(place, os.fspath(output))
    known = groups(settings)
    with one_thread(), disk.staged(place) as folder:
        built, cached = models(settings, stage)
        for group in ("forget", "retain", "unseen"):
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows(known[group]))
            (folder / f"{group}.jsonl").write_text(text, "utf-8")
        for name in ("base", "model"):
            shutil.copytree(built / name, folder / name)
        demo = _edit(Path(output), folder, known, cached, stage)
        found = {**asdict(demo), "output": place.name}
        (folder / "demo.json").write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n", "utf-8")
        if place.is_dir():
            shutil.rmtree(place)
        os.rename(folder, place)
    return demo


def _refuse_other_content(place: Path, shown: str) -> None:
    if place.exists() and not place.is_dir():
        raise EditError(f"{shown} is a file: give a folder")
    present = {path.name for path in place.iterdir()} if place.is_dir() else set()
    if present and "demo.json" not in present:
        raise EditError(f"{shown} is not empty and holds no earlier demo: give another folder with --output")
    if foreign := sorted(present - set(ENTRIES)):
        raise EditError(
            f"{shown} holds {listed(foreign)} besides an earlier demo: move that away, or give another folder"
        )


def _edit(output: Path, folder: Path, known: Mapping[str, list[Person]], cached: bool, stage: Stage) -> Demo:
    """Train the vector, try every alpha, write the edited checkpoint. `folder` stands for `output` until the end."""
    from editkit.editing.negate import negate
    from editkit.training.finetune import finetune
    from editkit.training.loading import load_model, load_tokenizer

    with open_checkpoint(folder / "model") as checkpoint:
        model, tokenizer = load_model(checkpoint), load_tokenizer(checkpoint)
    sets = {group: encoded(rows(known[group]), tokenizer).rows for group in ("forget", "retain", "unseen")}
    before = {group: score(model, examples) for group, examples in sets.items()}
    with stage("learn what to forget") as progress:
        finetune(folder / "base", folder / "forget.jsonl", folder / "tuned", **TUNING, device="cpu", progress=progress)

    def edit(alpha: float, target: Path, report: bool) -> Any:
        negate(folder / "model", folder / "tuned", target, alpha=alpha, vector_base=folder / "base", report=report)
        with open_checkpoint(target) as checkpoint:
            return load_model(checkpoint)

    trials = []
    with stage("subtract it at several alphas") as progress, TemporaryDirectory(prefix="editkit-") as scratch:
        for done, alpha in enumerate(ALPHAS, 1):
            tried = edit(alpha, Path(scratch) / f"alpha-{alpha}", report=False)
            trials.append(Trial(alpha, score(tried, sets["forget"]), score(tried, sets["retain"])))
            if progress:
                progress(done, len(ALPHAS))
    alpha, settled = choose(trials, before["unseen"])
    edited = edit(alpha, folder / "edited", report=True)
    return Demo(
        output=output,
        alpha=alpha,
        settled=settled,
        before=before,
        after={group: score(edited, examples) for group, examples in sets.items()},
        trials=trials,
        answers=[  # the first question about the first person, the second about the second, ...: not chosen by the result
            _ask(person.rows[index], group, tokenizer, model, edited)
            for group in ("forget", "retain")
            for index, person in enumerate(known[group][:3])
        ],
        commands=_commands(output, alpha),
        cached=cached,
    )


def choose(trials: list[Trial], unseen: Score) -> tuple[float, bool]:
    """The alpha with the best retain accuracy among those with forget accuracy at or below that of unseen people.

    Where none goes that low: the alpha with the lowest forget accuracy, and False.
    """
    low = [trial for trial in trials if trial.forget.accuracy.mean <= unseen.accuracy.mean]
    if low:
        return max(low, key=lambda trial: trial.retain.accuracy.mean).alpha, True
    return min(trials, key=lambda trial: trial.forget.accuracy.mean).alpha, False


def _ask(row: Mapping[str, str], group: str, tokenizer: Any, model: Any, edited: Any) -> Answer:
    text, start = fill(TEMPLATES["question/answer"], row["question"], row["answer"])
    before, after = (answer(one, tokenizer, text[:start]) for one in (model, edited))
    return Answer(group, row["question"], row["answer"], before, after)


def _commands(output: Path, alpha: float) -> list[str]:
    def at(name: str) -> str:
        return shlex.quote(str(output / name))

    tuning = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in TUNING.items())
    return [
        f"rm -r {at('tuned')} {at('edited')}",
        f"editkit finetune {at('base')} --data {at('forget.jsonl')} {tuning} --device cpu -o {at('tuned')}",
        f"editkit negate {at('model')} {at('tuned')} --vector-base {at('base')} --alpha {alpha:g} -o {at('edited')}",
        f"editkit diff {at('model')} {at('edited')}",
    ]
