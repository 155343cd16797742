"""Who is measured: the base, the models and the reference, each once, under a name of its own; shared weights are loaded once.

>>> [(one.label, one.role) for one in line_up(["work/edited", "other/edited"], "model", None)]
[('model', 'base'), ('work/edited', 'model'), ('other/edited', 'model')]
"""

import os
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from editkit.errors import EditError, listed
from editkit.evaluation.subject import Subject, checkpoints, opened
from editkit.evaluation.suites import Metric
from editkit.training.loading import context_of, load_config, load_tokenizer, split

Source = str | os.PathLike[str]


@dataclass(frozen=True)
class Entry:
    """One column: what to open, what to call it, and as what. whole: measured in all that was asked for, and not only in what the others
    are compared with."""

    source: str
    label: str
    role: str
    whole: bool


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
    short = {place: _name(source, 1) for place, source in sources.items()}
    shared = Counter(short.values())
    names = {place: _name(sources[place], 2) if shared[name] > 1 else name for place, name in short.items()}
    if len(set(names.values())) < len(names):
        raise EditError(
            f"{listed(sources.values())}: folders of one name in folders of one name: give copies or links with names that differ"
        )
    return [
        Entry(source, names[place], role := roles.get(place, "model"), role != "reference" or place in mine)
        for place, source in sources.items()
    ]


def check(entries: Sequence[Entry]) -> dict[str, Any]:
    """Open every model and its tokenizer, which is quick, before the first is measured, which is not.

    Returns the tokenizer that they share, the shortest context of all (None: unknown) and the smallest vocabulary, as `encoded` takes them.
    Raises EditError for what is no model, and for a tokenizer that is not that of the models before it.
    """
    first: Any = None
    contexts, vocabularies = list[int](), list[int]()
    for entry in entries:
        with checkpoints(entry.source) as (checkpoint, _):
            config, tokenizer = load_config(checkpoint), load_tokenizer(checkpoint)
        first = first or tokenizer
        if tokenizer.get_vocab() != first.get_vocab():
            raise EditError(
                f"{entry.source} has another tokenizer than {entries[0].source}: likelihoods per token cannot be compared, so evaluate "
                "it on its own"
            )
        if (context := context_of(config)) is not None:
            contexts.append(context)
        vocabularies.append(config.get_text_config().vocab_size)
    return {"tokenizer": first, "context": min(contexts, default=None), "vocabulary": min(vocabularies)}


def _place(source: Source) -> tuple[str, ...]:
    """What tells a model from another: where its folders are, also by links."""
    parts = [part for part in split(source) if part]
    return tuple(str(Path(part).expanduser().resolve()) if Path(part).expanduser().exists() else part for part in parts)


def _name(source: str, folders: int) -> str:
    """The last `folders` parts of the paths of model and adapter: a column says nothing of the machine it was measured on."""
    paths = [(part, [one for one in Path(part).parts if one != os.sep]) for part in split(source) if part]
    return "+".join("/".join(parts[-folders:]) or part for part, parts in paths)


class Held:
    """Opens the columns one after the other; weights that several of them need are loaded once and stay."""

    def __init__(
        self, stack: ExitStack, entries: Sequence[Entry], asked: Sequence[Metric], dtype: str | None, device: str
    ) -> None:
        self._settings: dict[str, Any] = {"dtype": dtype, "device": device}
        self._shared: dict[str, Subject] = {}
        weights = [_place(entry.source)[0] for entry in entries]
        compared = len(entries) > 1 and any({"kl", "generation_base_nll"} & set(one.needs) for one in asked)
        base = next((entry for entry in entries if entry.role == "base" and compared), None)
        alone = base is not None and split(base.source)[1] is None
        for entry, one in zip(entries, weights, strict=True):
            if one not in self._shared and (weights.count(one) > 1 or (entry is base and alone)):
                self._shared[one] = stack.enter_context(opened(split(entry.source)[0], **self._settings))
        self.base: Subject | None = None
        if base is not None:  # one with an adapter has weights of its own: those that are shared must come without it
            self.base = (
                self._shared[_place(base.source)[0]]
                if alone
                else stack.enter_context(opened(base.source, **self._settings))
            )

    def opened(self, entry: Entry) -> AbstractContextManager[Subject]:
        on = self._shared.get(_place(entry.source)[0])
        return opened(entry.source, **self._settings, label=entry.label, on=on)
