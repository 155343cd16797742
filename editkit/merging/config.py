"""What a merge config says: mergekit's YAML as it is, with entries of our own for vectors and masks, checked for form.

>>> models = [{"model": "a+lora"}, {"model": "b"}]
>>> wanted = read_config(Document("merge.yaml", {"merge_method": "linear", "models": models}))
>>> [entry.model.source for entry in wanted.slices[0].entries], wanted.slices[0].entries[0].model.adapters
(['a', 'b'], ('lora',))

Keys: https://github.com/arcee-ai/mergekit. Beyond mergekit's, an entry of `models` or `sources` may say `vector` in place of
`model` (an adapter or a saved task vector on `base_model`, or a checkpoint tuned from it) and `mask` (a localization), and
the config may say `seed`. Paths are relative to the working directory, as in mergekit, not to the config. What mergekit
would ignore without a word, such as a key with a typing error, is refused here.
"""

import os
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any, NamedTuple

from editkit.arithmetic.dtypes import DTYPES
from editkit.errors import EditError, listed, meant
from editkit.merging.document import Document, Key
from editkit.merging.method import Method
from editkit.merging.methods import REGISTRY
from editkit.merging.plan import Model
from editkit.merging.rules import parsed

REFUSED = {
    "modules": "merging the modules of a multi-part model apart is not supported",
    "residual_weight": "it has no effect in mergekit either",
    "override_architecture": "tensors are found by their own names here, so that no architecture is needed",
    "tokens": "tokens with an origin of their own are not supported, merge models with equal tokenizers",
    "pad_to_multiple_of": "embeddings keep their size here",
}
"""Keys of mergekit that are not read, and why."""
_TOP = "merge_method base_model models slices parameters dtype out_dtype tokenizer_source tokenizer chat_template seed"
_EVERY_SETTING = {key for one in REGISTRY.values() for key in (*one.settings, *one.model_settings)}
_DTYPES = {one.torch: name for name, one in DTYPES.items() if one.floating and one.bytes > 1}


class Entry(NamedTuple):
    """A model in a merge. layers: the first and the one after the last, None for all. keys: where it stands."""

    model: Model
    layers: tuple[int, int] | None
    settings: Mapping[str, Any]
    keys: tuple[Key, ...]


class Slice(NamedTuple):
    """Neighbouring layers of the output, made from the entries layer by layer."""

    entries: list[Entry]
    settings: Mapping[str, Any]
    keys: tuple[Key, ...]


class Config(NamedTuple):
    """A config whose form is right. dtype, out_dtype: as safetensors names them. idle: settings without effect, with places."""

    method: str
    base: str | None
    slices: list[Slice]
    settings: Mapping[str, Any]
    dtype: str | None
    out_dtype: str | None
    tokenizer: str | None
    chat_template: str | None
    seed: int | None
    idle: list[str]


def read_config(document: Document) -> Config:
    """Raises EditError that lists everything which is wrong, each with its line where the config is a file."""
    return _Reader(document).read()


def reference(text: str) -> list[str]:
    """A model as mergekit writes it, `model+adapter`, taken apart; a path that exists is taken whole.

    >>> reference("org/model@main+me/lora")
    ['org/model@main', 'me/lora']
    """
    return [text] if os.path.exists(os.path.expanduser(text)) else text.split("+")


class _Reader:
    """Collects what is wrong, so that it is all said at once."""

    def __init__(self, document: Document) -> None:
        self.document, self.problems, self.idle = document, list[str](), list[str]()
        self.method = self._method(document.data.get("merge_method"))

    def read(self) -> Config:
        data = self.document.data
        self._known(data, _TOP, ())
        if "models" in data and "slices" in data:
            self.wrong("models and slices are both given: keep one of them")
        if not {"models", "slices", "modules"} & data.keys():
            self.wrong("there are neither models nor slices: give one of them")
        slices = self._slices(data)
        base = self._base(data, slices)
        config = Config(
            method=str(data.get("merge_method")),
            base=base,
            slices=slices,
            settings=self._settings(data, (), one_model=False),
            dtype=self._dtype(data, "dtype"),
            out_dtype=self._dtype(data, "out_dtype"),
            tokenizer=self._tokenizer(data, base, slices),
            chat_template=self._text(data, "chat_template"),
            seed=self._seed(data),
            idle=self.idle,
        )
        if self.problems:
            raise EditError(f"{self.document.shown}: {'; '.join(self.problems)}")
        return config

    def wrong(self, said: str, *keys: Key) -> None:
        """Add what is wrong with the value at these keys, without any with the whole."""
        self.problems.append(f"{self.document.place(*keys)} {said}" if keys else said)

    # -- the parts of a config

    def _method(self, name: Any) -> Method | None:
        if name is None:
            self.wrong(f"merge_method is missing: there are {listed(REGISTRY)}")
        elif str(name) not in REGISTRY:
            self.wrong(f"is {name!r}, which is no method: {meant(name, REGISTRY)}", "merge_method")
        return REGISTRY.get(str(name))

    def _slices(self, data: Mapping[str, Any]) -> list[Slice]:
        if "models" in data:
            return [Slice(self._entries(data["models"], ("models",), ranges=False), {}, ("models",))]
        slices: list[Slice] = []
        for keys, one in self._each(data["slices"], ("slices",)) if "slices" in data else ():
            self._known(one, "sources base_model parameters residual_weight", keys)
            entries = self._entries(one.get("sources"), (*keys, "sources"), ranges=True)
            lengths = {last - first for first, last in (entry.layers for entry in entries if entry.layers)}
            if len(lengths) > 1:
                self.wrong("have layer ranges of different lengths: give each source as many layers", *keys, "sources")
            slices.append(Slice(entries, self._settings(one, keys, one_model=False), keys))
        return slices

    def _base(self, data: Mapping[str, Any], slices: list[Slice]) -> str | None:
        """The base of the config, or of all its slices."""
        places: list[tuple[tuple[Key, ...], Any]] = [(("base_model",), data.get("base_model"))]
        for one in slices if "models" not in data else []:
            own = data["slices"][one.keys[-1]].get("base_model")
            places.append(((*one.keys, "base_model"), own))
        found: dict[str, tuple[Key, ...]] = {}
        for keys, value in places:
            if value is not None and (model := self._reference(value, keys)) is not None:
                if model.adapters:
                    self.wrong("is a model with an adapter: write it first with editkit bake, and give that", *keys)
                found.setdefault(model.source, keys)
        if len(found) > 1:
            first, *others = found
            for source in others:
                self.wrong(f"is {source}, another one than {first}: one base for all is supported", *found[source])
        elif found and "base_model" not in data and len(slices) > sum(value is not None for _, value in places):
            self.wrong("is missing where only some of the slices have one: give it once for all", "base_model")
        return next(iter(found), None)

    def _entries(self, value: Any, keys: tuple[Key, ...], *, ranges: bool) -> list[Entry]:
        entries: list[Entry] = []
        for place, one in self._each(value, keys):
            self._known(one, "model vector mask parameters" + " layer_range" * ranges, place)
            kind = "vector" if "vector" in one else "model"
            if ("vector" in one) == ("model" in one):
                self.wrong("needs a model, or a vector, and not both", *place)
                continue
            model = self._reference(one[kind], (*place, kind))
            mask = self._text(one, "mask", *place)
            layers = self._range(one.get("layer_range"), (*place, "layer_range")) if ranges else None
            settings = self._settings(one, place, one_model=True)
            if model is None:
                continue
            if model.adapters and kind == "vector":
                self.wrong("joins two: give a vector and each adapter an entry of its own", *place, kind)
            model = model._replace(vector=kind == "vector", mask=mask)
            if model in (entry.model for entry in entries):
                self.wrong(f"is {model.source} a second time: give each model once, with one weight", *place, kind)
            entries.append(Entry(model, layers, settings, place))
        return entries

    def _settings(self, one: Mapping[str, Any], keys: tuple[Key, ...], *, one_model: bool) -> dict[str, Any]:
        """The checked `parameters` of a part of the config. Those which do nothing there are left out, and noted."""
        given, settings = one.get("parameters"), {}
        if given is None:
            return {}
        if not isinstance(given, Mapping):
            self.wrong(f"is {given!r}: give settings with values", *keys, "parameters")
            return {}
        if self.method is None:
            return {}
        for key, value in given.items():
            place = self.document.place(*keys, "parameters", str(key))
            setting = self.method.model_settings.get(key) or self.method.settings.get(key)
            if setting is None and key not in _EVERY_SETTING:
                near = get_close_matches(str(key), [*self.method.settings, *self.method.model_settings], n=1)
                said = f"did you mean {near[0]}?" if near else f"{self.method.label} has {self._own_settings()}"
                self.problems.append(f"{place} is unknown: {said}")
            elif setting is None:
                self.idle.append(f"{place} has no effect on {self.method.label}")
            elif one_model and key not in self.method.model_settings:
                self.idle.append(f"{place} has no effect: it is for the whole merge, not for one model")
            else:
                if key == "int8_mask":
                    self.idle.append(f"{place} has no effect: no masks of signs are kept")
                settings[key] = parsed(value, setting.read, place, self.problems)
        return settings

    def _own_settings(self) -> str:
        assert self.method is not None
        return listed([*self.method.model_settings, *self.method.settings]) or "no settings"

    # -- values

    def _known(self, one: Mapping[str, Any], known: str, keys: tuple[Key, ...]) -> None:
        for key in one:
            if key in REFUSED:
                self.wrong(f"is not supported: {REFUSED[key]}", *keys, key)
            elif key not in known.split():
                near = get_close_matches(str(key), [*known.split(), *_EVERY_SETTING], n=1)
                if near and near[0] in _EVERY_SETTING:
                    said = f"no place for a setting: give {near[0]} under parameters"
                else:
                    said = f"unknown: {meant(key, known.split())}"
                self.wrong(f"is {said}", *keys, str(key))

    def _each(self, value: Any, keys: tuple[Key, ...]) -> Iterator[tuple[tuple[Key, ...], Mapping[str, Any]]]:
        if not isinstance(value, list) or not value:
            self.wrong(f"is {value!r}: give a list" if value else "is empty", *keys)
            return
        for index, one in enumerate(value):
            if isinstance(one, Mapping):
                yield (*keys, index), one
            else:
                self.wrong(f"is {one!r}: give an entry with keys", *keys, index)

    def _reference(self, value: Any, keys: tuple[Key, ...]) -> Model | None:
        """A model with its adapters: text, or mergekit's long form {model: {path, revision}, lora: ...}."""
        if isinstance(value, str | os.PathLike) and os.fspath(value):
            source, *adapters = reference(os.fspath(value))
            if source and all(adapters):
                return Model(_place(source), tuple(map(_place, adapters)))
        elif isinstance(value, Mapping) and "model" in value:
            self._known(value, "model lora", keys)
            texts = [self._path(value[key]) for key in ("model", "lora") if value.get(key) is not None]
            if all(texts):
                return Model(_place(str(texts[0])), tuple(_place(str(one)) for one in texts[1:]))
        self.wrong(f"is {value!r}: give a folder, a .safetensors file or a Hub id, as text", *keys)
        return None

    def _path(self, value: Any) -> str | None:
        if isinstance(value, Mapping) and isinstance(value.get("path"), str) and value.keys() <= {"path", "revision"}:
            return f"{value['path']}@{value['revision']}" if value.get("revision") else value["path"]
        return value if isinstance(value, str) else None

    def _range(self, value: Any, keys: tuple[Key, ...]) -> tuple[int, int] | None:
        whole = isinstance(value, list | tuple) and len(value) == 2 and all(type(one) is int for one in value)
        if whole and 0 <= value[0] < value[1]:
            return value[0], value[1]
        said = "is missing" if value is None else f"is {value!r}"
        self.wrong(f"{said}: give the first layer and the one after the last, such as [0, 16]", *keys)
        return None

    def _dtype(self, data: Mapping[str, Any], key: str) -> str | None:
        value = data.get(key)
        name = value.removeprefix("torch.") if isinstance(value, str) else ""
        if value is not None and name not in _DTYPES:
            self.wrong(f"is {value!r}: there are {listed(_DTYPES)}", key)
        return _DTYPES.get(name)

    def _tokenizer(self, data: Mapping[str, Any], base: str | None, slices: list[Slice]) -> str | None:
        """Whose tokenizer is wanted: "union", "base" or a model of the merge."""
        keys: tuple[Key, ...] = ("tokenizer_source",)
        value = data.get("tokenizer_source")
        if isinstance(data.get("tokenizer"), Mapping):
            if value is not None:
                self.wrong("is given beside tokenizer_source: keep one of them", "tokenizer")
            self._known(data["tokenizer"], "source", ("tokenizer",))
            keys, value = ("tokenizer", "source"), data["tokenizer"].get("source", "union")
        elif data.get("tokenizer") is not None:
            self.wrong(f"is {data['tokenizer']!r}: give tokenizer_source, such as union", "tokenizer")
        models = {entry.model.source for one in slices for entry in one.entries}
        if value == "base" and base is None:
            self.wrong("is base, and there is no base_model: give one", *keys)
        elif value is not None and not (isinstance(value, str) and value in {"union", "base", base} | models):
            self.wrong(f"is {value!r}: give union, base, or one of the models", *keys)
        return value

    def _text(self, data: Mapping[str, Any], key: str, *keys: Key) -> str | None:
        value = data.get(key)
        if value is None or (isinstance(value, str | os.PathLike) and os.fspath(value)):
            return None if value is None else os.fspath(value)
        self.wrong(f"is {value!r}: give text", *keys, key)
        return None

    def _seed(self, data: Mapping[str, Any]) -> int | None:
        value = data.get("seed")
        if value is not None and (type(value) is not int or value < 0):
            self.wrong(f"is {value!r}: give a whole number from 0 on", "seed")
        return value


def _place(source: str) -> str:
    """One spelling for one folder: ./base and base/ are base."""
    return os.path.normpath(source) if os.path.exists(source) else source
