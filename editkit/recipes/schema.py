"""The JSON schema of the recipe format, for editors: made of the signatures and docstrings of the functions.

>>> built = schema()
>>> built["$defs"]["step"]["properties"]["negate"]["required"]
['model', 'vector', 'alpha']

An editor that knows it completes steps and their arguments. It is written anew for every version, draft 2020-12.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from inspect import Parameter, signature
from itertools import zip_longest
from os import PathLike
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

import editkit
from editkit.recipes import functions
from editkit.recipes.document import FORMAT
from editkit.recipes.references import NAME

DRAFT = "https://json-schema.org/draft/2020-12/schema"
_PLAIN = {str: "string", bool: "boolean", int: "integer", float: "number", NoneType: "null"}
_TEXT, _REFERENCE = {"type": "string"}, {"$ref": "#/$defs/reference"}
_MEANINGS = {
    "editkit": "Version of the recipe format.",
    "title": "What the recipe does, in a few words: the heading of the page.",
    "settings": "Names that --set may change, each with its value: {first: [...]} is the first of several paths that exists.",
    "matrix": "Names with a list of values each: the steps that use them run once for every combination.",
    "steps": "Name of a step -> {function of editkit: its arguments}. ${name} is the output of another step.",
    "table": "Heading of a column -> ${step: where in its result}. over: names of the matrix over which mean and standard deviation are taken.",
}

_COMMON = {
    "allow_other_base": "go on where a vector or adapter was made from another base",
    "base": "the model before the edit",
    "batch_size": "examples at a time; less needs less memory",
    "device": "auto, cpu, cuda or mps",
    "dtype": "of the weights while they are used; by default that of the files",
    "epochs": "passes over the data, in place of steps",
    "forget": "jsonl file with the examples to forget",
    "grad_accum": "batches that are added up for one step",
    "lr": "learning rate",
    "max_examples": "the first so many of each set",
    "max_length": "tokens, longer examples are cut",
    "max_new_tokens": "of an answer that the model writes",
    "model": "folder of the model, or its id on the Hub",
    "prompt_template": "text with {question} in it, in place of the tokenizer's own chat template",
    "report": "write the diff report",
    "retain": "jsonl file with the examples to keep",
    "seed": "of everything that is drawn by chance",
    "shard_size": "bytes in one file, by default as the base has it",
    "steps": "training steps",
    "vector_base": "what the vector was tuned from, by default the model",
    "weight_decay": "of AdamW",
}
"""What arguments mean in all functions that do not say it themselves."""


def schema() -> dict[str, Any]:
    """The schema as a dictionary that is ready for `json.dumps`."""
    names = {"propertyNames": {"pattern": f"^{NAME.pattern}$"}}
    parts: dict[str, dict[str, Any]] = {
        "editkit": {"const": FORMAT},
        "title": _TEXT,
        "settings": {"type": "object", **names},
        "matrix": {"type": "object", **names, "additionalProperties": {"type": "array", "minItems": 1}},
        "steps": {"type": "object", **names, "additionalProperties": {"$ref": "#/$defs/step"}, "minProperties": 1},
        "table": {
            "type": "object",
            "properties": {"over": {"anyOf": [_TEXT, {"type": "array", "items": _TEXT}]}},
            "additionalProperties": {**_REFERENCE, "description": "Such as ${scored: results[set=forget].value}."},
        },
    }
    return {
        "$schema": DRAFT,
        "title": "A recipe of editkit",
        "type": "object",
        "properties": {name: {"description": _MEANINGS[name], **part} for name, part in parts.items()},
        "required": ["editkit", "steps"],
        "additionalProperties": False,
        "$defs": {
            "reference": {**_TEXT, "pattern": r"\$\{[^{}]+\}"},
            "step": {
                "type": "object",
                "properties": {name: _arguments(name) for name in functions.STEPS},
                "additionalProperties": False,
                "minProperties": 1,
                "maxProperties": 1,
            },
        },
    }


def _arguments(name: str) -> dict[str, Any]:
    """What a step may write below the name of a function."""
    docstring, given = functions.described(name), functions.parameters(name)
    texts = [
        *([functions.described("negate")] if name in ("bake", "forget") else []),
        docstring,
        functions.function(name).__doc__ or "",
    ]
    every = [*given, *signature(getattr(editkit, name)).parameters]
    said = {key: text for one in texts for key, text in descriptions(one, every).items()}
    properties = {}
    for one in given.values():
        meaning = said.get(one.name) or _COMMON.get(one.name)
        properties[one.name] = {"description": meaning} if meaning else {}
        properties[one.name] |= _value(one.annotation)
        if one.default not in (Parameter.empty, None, ()):
            properties[one.name]["default"] = one.default
    return {
        "type": "object",
        "description": " ".join(docstring.partition("\n\n")[0].split()),
        "properties": properties,
        "required": [one.name for one in given.values() if one.default is Parameter.empty],
        "additionalProperties": False,
    }


def descriptions(docstring: str, names: Iterable[str]) -> dict[str, str]:
    """What a docstring says of each argument, in the form `name, other: what they are.` of this house.

    >>> descriptions("Cut it. cake: of any kind. knife, size: see `knives.py`: it lists them.", ["cake", "knife", "size"])
    {'cake': 'of any kind', 'knife': 'see `knives.py`: it lists them', 'size': 'see `knives.py`: it lists them'}
    """
    name = "|".join(rf"{re.escape(one)}\b" for one in names)
    found: dict[str, str] = {}
    for paragraph in docstring.split("\n\n") if name else ():
        text = " ".join(paragraph.split())
        heads = [*re.finditer(rf"(?:^|(?<=[.;:] ))((?:{name})(?:(?:, | and )(?:{name}))*)(?: \([^)]*\))?: ", text)]
        for head, after in zip_longest(heads, heads[1:]):
            said = re.split(r"\. (?=[A-Z])", text[head.end() : after.start() if after else None], maxsplit=1)[0]
            found |= dict.fromkeys(re.findall(name, head[1]), said.strip().rstrip(".;"))
    return found


def _value(hint: Any) -> dict[str, Any]:
    """The schema of a type; of one that a recipe cannot write nothing is said.

    >>> _value(int | None)
    {'anyOf': [{'type': 'integer'}, {'type': 'null'}, {'$ref': '#/$defs/reference'}]}
    >>> _value(str)
    {'type': 'string'}
    """
    kinds: list[dict[str, Any]] = []
    for one in get_args(hint) if get_origin(hint) in (Union, UnionType) else [hint]:
        if (kind := _kind(one)) is None:
            return {}
        kinds += [kind] if kind not in kinds else []
    kinds += [] if _TEXT in kinds else [_REFERENCE]
    return kinds[0] if len(kinds) == 1 else {"anyOf": kinds}


def _kind(hint: Any) -> dict[str, Any] | None:
    """The schema of one type of a union."""
    origin, inner = get_origin(hint) or hint, get_args(hint)
    if origin in _PLAIN:
        return {"type": _PLAIN[origin]}
    if isinstance(origin, type) and issubclass(origin, PathLike):
        return {"type": "string"}
    if origin in (Sequence, list, tuple):
        return {"type": "array", "items": _value(inner[0]) if inner else {}}
    if origin in (Mapping, dict):
        return {"type": "object", "additionalProperties": _value(inner[1]) if inner else {}}
    return None
