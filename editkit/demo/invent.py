"""`invent`: a small model that learned invented people, the model before, and the examples to forget and to keep, for recipes and tests."""

import json
import os
import shutil
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from editkit import __version__
from editkit.checkpoint import disk
from editkit.demo.model import Settings, groups, models, one_thread, rows
from editkit.demo.people import private, public
from editkit.editing.forget import Stage
from editkit.errors import EditError, listed

SCHEMA = "editkit.people/1"
MOST = 1000  # people: more would not fit a model of this size, and names of their own are limited


def invent(
    output: str | os.PathLike[str],
    *,
    forget: int = 8,
    retain: int = 32,
    unseen: int = 12,
    background: int = 60,
    base_steps: int = 300,
    model_steps: int = 250,
    seed: int = 0,
    stage: Stage = lambda name: nullcontext(),
) -> dict[str, Any]:
    """Write the folder `output`: models `base` and `model`, and example files about invented people. Nothing is downloaded.

    >>> report = invent("people")  # doctest: +SKIP
    >>> report["rows"]  # doctest: +SKIP
    {'forget': 64, 'retain': 256, 'unseen': 96, 'background': 480, 'private': 32, 'public': 32}

    forget, retain, unseen, background: how many people of each kind, with eight facts each. `model` knows those to forget and to
    retain; no model met the unseen ones; `base` read about the background alone. base_steps, model_steps: training steps of the two,
    32 examples each. seed: of the people, their names and the first weights.

    forget.jsonl, retain.jsonl, unseen.jsonl and background.jsonl have {"question", "answer"} rows; private.jsonl and public.jsonl are those of forget.jsonl
    in two: where the people were born, live, what they eat and their pets, and on the other side their work, music, collections and sport.

    The models are the same for the same settings and kept in the cache, so that only the first call trains: about a minute for the
    defaults on one core. Raises EditError for numbers below 1, more than 1,000 people, and an output that exists.
    """
    counts = {"forget": forget, "retain": retain, "unseen": unseen, "background": background}
    numbers = {**counts, "base_steps": base_steps, "model_steps": model_steps}
    if wrong := [f"{name} is {value!r}" for name, value in numbers.items() if type(value) is not int or value < 1]:
        raise EditError(f"{listed(wrong)}: give a whole number from 1 on")
    if sum(counts.values()) > MOST:
        raise EditError(f"{sum(counts.values()):,} people are asked for: give at most {MOST:,} in all")
    place = Path(output).expanduser().resolve()
    if place.exists():
        raise EditError(f"{os.fspath(output)} exists: give a new folder")
    settings = Settings(**numbers, seed=seed)
    known = groups(settings)
    sets = {name: rows(known[name]) for name in ("forget", "retain", "unseen", "background")}
    sets |= {"private": private(known["forget"]), "public": public(known["forget"])}
    with disk.writing(os.fspath(output)), disk.staged(place) as folder:
        with one_thread():
            built, _ = models(settings, stage)
        for name, examples in sets.items():
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in examples)
            (folder / f"{name}.jsonl").write_text(text, "utf-8")
        for name in ("base", "model"):
            shutil.copytree(built / name, folder / name)
        folder.replace(place)
    return {
        "schema": SCHEMA,
        "editkit": __version__,
        "settings": asdict(settings),
        "people": {name: len(people) for name, people in known.items()},
        "rows": {name: len(examples) for name, examples in sets.items()},
    }
