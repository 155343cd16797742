"""From a merge config to the plan of a merge: every tensor of the output with its models and settings, before one is read.

>>> plan = plan_merge("merge.yaml")  # doctest: +SKIP
>>> plan.targets[0].parts[0].settings  # doctest: +SKIP
{'weight': 0.5, 'density': 0.5}

A setting is looked for in the entry of the model, then in its slice, then in the config, as in mergekit. Of what mergekit
does silently, `Plan.notes` says what is done otherwise, or done alike though it may surprise.
"""

import os
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, NamedTuple

from editkit.arithmetic.dtypes import DTYPES
from editkit.checkpoint.adapter import is_adapter
from editkit.checkpoint.reader import Checkpoint, open_checkpoint
from editkit.errors import EditError
from editkit.merging.config import Config, Entry, Slice, read_config
from editkit.merging.document import Document, Key, read_document
from editkit.merging.layers import Range, Row, renumbered, shape_of, stacked, whole_models
from editkit.merging.method import Method, Setting
from editkit.merging.methods import REGISTRY
from editkit.merging.plan import Model, Part, Plan, Rule, Target
from editkit.merging.rules import conditions, filters, hits, is_glob, longest, resolve
from editkit.merging.tokenizers import chat_template, own_template, refuse_other_tokenizers, vocabulary
from editkit.names import parse, tied_pair
from editkit.vectors.dense import saved_vector_record


def plan_merge(
    config: str | os.PathLike[str] | Mapping[str, Any], *, compatible: bool = False, seed: int | None = None
) -> Plan:
    """The plan of the merge that `config` describes: a YAML file of mergekit, or its content as a dictionary.

    compatible: filters and gradients mean what they mean in mergekit, defects included. seed: in place of the config's.
    Opens the models (headers only). Raises EditError that lists everything which is wrong, with line numbers.
    """
    if seed is not None and (type(seed) is not int or seed < 0):
        raise EditError(f"the seed is {seed!r}: give a whole number from 0 on")
    document = read_document(config)
    with ExitStack() as stack:
        return _Planner(document, read_config(document), compatible, stack).plan(seed)


_Scope = tuple[tuple[Key, ...], Mapping[str, Any]]


class _Joined(NamedTuple):
    """A slice with its base, where the method or a vector in it starts from one."""

    base: Entry | None
    entries: list[Entry]
    settings: Mapping[str, Any]
    keys: tuple[Key, ...]

    @property
    def all(self) -> list[Entry]:
        return [self.base, *self.entries] if self.base else self.entries


class _Planner:
    """A config whose form is right, and the models that it names."""

    def __init__(self, document: Document, config: Config, compatible: bool, stack: ExitStack) -> None:
        self.document, self.config, self.compatible = document, config, compatible
        self.method: Method = REGISTRY[config.method]
        self.problems, self.notes = list[str](), list[str](config.idle)
        self.tuned: list[Checkpoint] = []
        self.used: Counter[tuple[tuple[Key, ...], int]] = Counter()
        self.missing: dict[tuple[str, tuple[Key, ...]], list[str]] = {}
        self.slices = [self._joined(one) for one in config.slices]
        self._raise()
        self.opened = self._open(stack)
        self._raise()
        self.shapes = {source: shape_of(one) for source, one in self.opened.items()}

    def plan(self, seed: int | None) -> Plan:
        models = list(dict.fromkeys(entry.model for one in self.slices for entry in one.entries))
        started = any(one.base for one in self.slices)
        sources = [model.source for model in models]
        apart = started or self.config.base not in (None, *sources)
        like = None if apart else sources.index(self.config.base or sources[0])
        donor = self.opened[str(self.config.base) if like is None else sources[like]]
        if not (rows := self._rows(donor)):
            self._raise()
        targets = tuple(self._target(row, models) for row in rows)
        self._refuse_missing()
        self._note_rules(rows)
        config = {**self._renumbered(donor), **self._dtype(donor)}
        self._check_tokenizers(donor)
        files = self._template(donor)
        self._raise()
        return Plan(
            method=self.config.method,
            base=self.config.base if like is None else None,
            models=tuple(models),
            targets=targets,
            like=like,
            config=config,
            rules=self._rules(),
            files=files,
            dtype=self.config.dtype,
            out_dtype=self.config.out_dtype or self.config.dtype,
            seed=next((one for one in (seed, self.config.seed) if one is not None), 0),
            notes=tuple(dict.fromkeys(self.notes)),
            compatible=self.compatible,
        )

    def _wrong(self, said: str, *keys: Key) -> None:
        self.problems.append(f"{self.document.place(*keys)} {said}")

    def _raise(self) -> None:
        if self.problems:
            raise EditError(f"{self.document.shown}: {'; '.join(dict.fromkeys(self.problems))}")

    # -- models

    def _joined(self, one: Slice) -> _Joined:
        """A slice with its base: as the origin of deltas, or as one more model where the method knows no base."""
        base, entries, origin = self.config.base, one.entries, None
        relative = [entry for entry in entries if entry.model.vector or entry.model.mask]
        own = [entry for entry in entries if base and entry.model == Model(base)]
        whole = Entry(Model(base or ""), None, {}, ("base_model",))
        if base is None:
            for entry in relative:
                self._wrong("needs a base_model, of which a vector or a mask says what changes", *entry.keys)
            if self.method.base == "required":
                self._wrong(f"is missing: {self.method.label} merges what models change in a base", "base_model")
        elif self.method.base == "unused" and not relative:
            if one.keys == ("models",) and not own and self.method.most is None:
                entries = [*entries, whole]
                self.notes.append(f"{self.method.label} takes base_model for one more model, as in mergekit")
        else:
            if self.method.base != "unused":
                entries = [entry for entry in entries if entry not in own]
            if one.keys == ("models",):
                origin = whole
            elif own or relative:
                origin = own[0] if own else relative[0]._replace(model=Model(base))
                for entry in relative:
                    if entry.layers != origin.layers:
                        self._wrong("has other layers than the base that it changes", *entry.keys, "layer_range")
            else:
                self._wrong(
                    f"do not have the base_model {base} among them: add it, with its layers", *one.keys, "sources"
                )
        few, many = self.method.fewest, self.method.most
        if origin and not entries and few == 1 and many is None and one.keys != ("models",):
            few = 0  # a slice of the base alone
        if not few <= len(entries) <= (len(entries) if many is None else many):
            wanted = f"at least {few}" if many is None else f"{few}" if few == many else f"{few} to {many}"
            besides = " besides base_model" if origin else ""
            self._wrong(f"has {len(entries)} models{besides}: {self.method.label} takes {wanted}", *one.keys)
        return _Joined(origin, entries, one.settings, one.keys)

    def _open(self, stack: ExitStack) -> dict[str, Checkpoint]:
        """The checkpoints by source. Vectors and adapters are opened too, for what is wrong with them to be said here."""
        opened: dict[str, Checkpoint] = {}
        wanted: list[tuple[str, tuple[Key, ...], bool]] = []
        if self.config.base:
            wanted.append((self.config.base, ("base_model",), False))
        for one in self.slices:
            for entry in one.entries:
                wanted.append((entry.model.source, entry.keys, entry.model.vector))
                wanted += [(adapter, entry.keys, True) for adapter in entry.model.adapters]
        for source, keys, change in dict.fromkeys(wanted):
            try:
                checkpoint = stack.enter_context(open_checkpoint(source))
            except EditError as error:
                self.problems.append(f"{self.document.place(*keys)}: {error}")
                continue
            if change:
                self.tuned += [] if is_adapter(checkpoint.source) or saved_vector_record(checkpoint) else [checkpoint]
                continue
            opened[source] = checkpoint
            if is_adapter(checkpoint.source):
                self._wrong(f"is an adapter: give it as vector, or as {self.config.base or 'MODEL'}+{source}", *keys)
            elif saved_vector_record(checkpoint) is not None:
                self._wrong("is a saved task vector: give it as vector", *keys)
        return opened

    def _names(self, entry: Entry) -> str:
        """The checkpoint under whose tensor names an entry is read: a vector has those of the base."""
        return str(self.config.base) if entry.model.vector else entry.model.source

    # -- tensors

    def _rows(self, donor: Checkpoint) -> list[Row]:
        if self.slices[0].keys == ("models",):
            models = [self.opened[self._names(entry)] for entry in self.slices[0].all]
            return whole_models(donor, models, self.problems)
        for one in self.slices:
            for entry in one.all:
                size = self.shapes[self._names(entry)].size
                if entry.layers and entry.layers[1] > size:
                    self._wrong(
                        f"is {list(entry.layers)} and {entry.model.source} has {size} layers",
                        *entry.keys,
                        "layer_range",
                    )
        self._raise()
        if len(self.slices[-1].all) > len(self.slices[0].all):
            said = "the last slice has more sources than the first, and mergekit leaves the last ones out of what follows the layers"
            (self.problems if self.compatible else self.notes).append(said + ", which is not done here")
        return stacked(donor, self._ranges(), self.problems)

    def _ranges(self) -> list[list[Range]]:
        return [
            [Range(self.opened[self._names(entry)], *entry.layers) for entry in one.all if entry.layers]
            for one in self.slices
        ]

    def _renumbered(self, donor: Checkpoint) -> dict[str, Any]:
        return {} if self.slices[0].keys == ("models",) else renumbered(donor, self._ranges(), self.problems)

    def _target(self, row: Row, models: list[Model]) -> Target:
        one = self.slices[row.slice]
        base, names = (row.names[0], row.names[1:]) if one.base else (None, row.names)
        shared = [(one.keys, one.settings), ((), self.config.settings)]
        parts = []
        for entry, name in zip(one.entries, names, strict=True):
            # A head that is tied in the model is asked for by the name that it has in the output.
            asked = row.name if parse(row.name).layer is None else name
            scopes = [(entry.keys, entry.settings), *shared]
            settings = self._resolved(self.method.model_settings, scopes, asked, row.t)
            parts.append(Part(models.index(entry.model), name, settings))
        return Target(row.name, base, tuple(parts), self._resolved(self.method.settings, shared, row.name, row.t))

    def _resolved(self, known: Mapping[str, Setting], scopes: list[_Scope], name: str, t: float) -> dict[str, Any]:
        """The settings that are given for one tensor; the method has the others' defaults."""
        found = {}
        for key, setting in known.items():
            said = resolve(key, [settings for _, settings in scopes], name, t, compatible=self.compatible)
            if said is not None:
                found[key] = said.value
                self.used[(*scopes[said.scope][0], "parameters", key), said.condition] += 1
            elif setting.default is None:
                self.missing.setdefault((key, scopes[0][0]), []).append(name)
        return found

    def _rules(self) -> tuple[Rule, ...]:
        """Everything that the config says of settings, from the whole merge to the single model."""
        scopes: list[_Scope] = [((), self.config.settings)]
        for one in self.slices:
            scopes += [(one.keys, one.settings), *((entry.keys, entry.settings) for entry in one.entries)]
        rules = []
        for keys, settings in scopes:
            for key, setting in settings.items():
                place = (*keys, "parameters", key)
                for number, said in enumerate(conditions(setting)):
                    count = self.used[place, number]
                    rules.append(Rule(self.document.place(*place), said.get("filter"), said["value"], count))
        return tuple(rules)

    def _refuse_missing(self) -> None:
        for (key, keys), names in self.missing.items():
            where = f"{self.document.place(*keys)} has no {key}" if keys else f"{key} is missing"
            self.problems.append(f"{where} for {len(names)} tensors, such as {names[0]}: give it under parameters")

    def _note_rules(self, rows: list[Row]) -> None:
        """Filters that mergekit would read otherwise, or that hit nothing, and gradients with more values than layers."""
        names = list(dict.fromkeys(name for row in rows for name in (row.name, *row.names)))
        scopes = [self.config.settings, *(one.settings for one in self.slices)]
        scopes += [entry.settings for one in self.slices for entry in one.entries]
        layers = max(Counter(number for number, _ in {(row.slice, row.t) for row in rows}).values())
        for key, count in sorted({(key, longest(one)) for scope in scopes for key, one in scope.items()}):
            if count > layers:
                self.notes.append(f"{key} has {count} values for {layers} layers, so that some of them are passed over")
        for pattern in dict.fromkeys(found for scope in scopes for one in scope.values() for found in filters(one)):
            meant = {name for name in names if hits(name, pattern, compatible=self.compatible)}
            if not meant and is_glob(pattern) and not self.compatible:
                self.problems.append(f"the filter {pattern!r} matches none of the {len(names)} names of tensors")
            elif not meant:
                self.notes.append(f"the filter {pattern!r} hits no tensor, so that its value has no effect")
            more = [name for name in names if pattern in name and name not in meant]
            if more and not is_glob(pattern):
                self.notes.append(
                    f"the filter {pattern!r} means this number and hits {len(meant)} tensors; mergekit takes it for any "
                    f"text and hits {len(more)} more, such as {more[0]}"
                )

    # -- what else the output has

    def _dtype(self, donor: Checkpoint) -> dict[str, Any]:
        wanted = self.config.out_dtype or self.config.dtype
        if wanted is None or donor.config is None:
            return {}
        key = "dtype" if "dtype" in donor.config else "torch_dtype"
        name = DTYPES[wanted].torch
        return {key: name} if donor.config.get(key) != name else {}

    def _check_tokenizers(self, donor: Checkpoint) -> None:
        try:
            refuse_other_tokenizers([donor, *self.opened.values(), *self.tuned])
        except EditError as error:
            self.problems.append(str(error))
        embedding, count = tied_pair(donor.tensors)[0], len(vocabulary(donor))
        rows = donor.tensors[embedding].shape[0] if embedding else 0
        if self.config.tokenizer and count and rows > count:
            said = f"{donor.label} has {count:,} tokens and {rows:,} rows in {embedding}"
            if self.compatible:
                self.problems.append(
                    f"{said}: cropping it as mergekit does is not supported, leave tokenizer_source out"
                )
            self.notes.append(f"{said}, which are all kept; with tokenizer_source, mergekit crops them")

    def _template(self, donor: Checkpoint) -> dict[str, str]:
        wanted = self.config.chat_template
        if wanted == "auto":
            wanted = chat_template(self.opened.values())
        elif wanted is not None and "{" not in wanted:
            self._wrong(
                f"is {wanted!r}, a template of mergekit's own: give auto, or the text of a template", "chat_template"
            )
        return {} if wanted is None or wanted == own_template(donor) else {"chat_template.jinja": wanted}
