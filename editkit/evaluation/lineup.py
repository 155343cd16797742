"""Who is measured: the base, the models and the reference, each once, under a name of its own; shared weights are loaded once.

>>> [(one.label, one.role) for one in line_up(["work/edited", "other/edited"], "model", None)]
[('model', 'base'), ('work/edited', 'model'), ('other/edited', 'model')]
"""

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from editkit.errors import EditError, listed
from editkit.evaluation.subject import Subject, opened
from editkit.evaluation.suites import Metric
from editkit.training.loading import split

Source = str | os.PathLike[str]


@dataclass(frozen=True)
class Entry:
    """One column: what to open, what to call it, and as what."""

    source: str
    label: str
    role: str


def line_up(models: Sequence[Source], base: Source | None, reference: Source | None) -> list[Entry]:
    """The base first, then the models, and at last the reference; each of them once, with a name of its own."""
    places = {"base": base, "reference": reference}
    roles = {_place(source): role for role, source in places.items() if source is not None}
    if base is not None and reference is not None and _place(base) == _place(reference):
        raise EditError("--base and --reference are the same model: the reference is one that never saw the forget set")
    order = [*([base] if base is not None else []), *models, *([reference] if reference is not None else [])]
    sources = {_place(source): os.fspath(source) for source in order}
    mine = [_place(source) for source in models]
    if len(set(mine)) < len(mine):
        twice = sorted({os.fspath(source) for source in models if mine.count(_place(source)) > 1})
        raise EditError(f"given twice: {listed(twice)}: a model has one column")
    if reference is not None and set(mine) == {_place(reference)}:
        raise EditError(
            f"--reference {os.fspath(reference)} is the model itself, which tells nothing: give a model that never saw the forget set"
        )
    names = {place: _name(source) for place, source in sources.items()}
    for place, source in sources.items():
        if list(names.values()).count(names[place]) > 1:
            names[place] = "/".join(Path(source).parts[-2:])
    if len(set(names.values())) < len(names):
        raise EditError(
            f"{listed(sources.values())}: folders of one name in folders of one name: give copies or links with names that differ"
        )
    return [
        Entry(
            source,
            names[place],
            "model" if roles.get(place) == "reference" and place in mine else roles.get(place, "model"),
        )
        for place, source in sources.items()
    ]


def _place(source: Source) -> tuple[str, ...]:
    """What tells a model from another: where its folders are, also by links."""
    parts = [part for part in split(source) if part]
    return tuple(str(Path(part).expanduser().resolve()) if Path(part).expanduser().exists() else part for part in parts)


def _name(source: str) -> str:
    return "+".join(Path(part).name or part for part in split(source) if part)


class Held:
    """Opens the columns one after the other; weights that several of them need are loaded once and stay."""

    def __init__(
        self, stack: ExitStack, entries: Sequence[Entry], asked: Sequence[Metric], dtype: str | None, device: str
    ) -> None:
        self._settings: dict[str, Any] = {"dtype": dtype, "device": device}
        self._shared: dict[str, Subject] = {}
        weights = [split(entry.source)[0] for entry in entries]
        needed = any({"kl", "generation_base_nll"} & set(one.needs) for one in asked)
        base = next((entry for entry in entries if entry.role == "base"), None)
        for entry, one in zip(entries, weights, strict=True):
            if one not in self._shared and (weights.count(one) > 1 or (entry is base and needed and len(entries) > 1)):
                self._shared[one] = stack.enter_context(opened(one, **self._settings))
        self.base = self._shared.get(base.source) if base is not None and needed else None

    def opened(self, entry: Entry) -> AbstractContextManager[Subject]:
        return opened(entry.source, **self._settings, label=entry.label, on=self._shared.get(split(entry.source)[0]))
