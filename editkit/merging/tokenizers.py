"""Tokenizers of models to be merged: row i of an embedding must mean the same token in all of them.

>>> differences({"a": 0, "b": 1}, {"a": 1, "b": 0})
'2 tokens have other numbers, such as a (0 and 1)'
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from editkit.checkpoint.layout import load_json
from editkit.checkpoint.reader import Checkpoint
from editkit.errors import EditError, printable

_TEXTS = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.txt")
_TEMPLATE = "chat_template.jinja"


def refuse_other_tokenizers(models: Iterable[Checkpoint]) -> None:
    """Raise EditError where two models number their tokens differently. A model without a tokenizer is not judged."""
    folders = [one for one in models if not one.lone]
    for other in folders[1:]:
        if said := _differ(folders[0], other):
            raise EditError(
                f"{folders[0].label} and {other.label} have different tokenizers ({said}), so that rows of their embeddings "
                "mean different tokens: merge models with equal tokenizers"
            )


def vocabulary(model: Checkpoint) -> dict[str, int]:
    """Token -> number, as tokenizer.json or vocab.json say; {} where the model has neither."""
    if model.lone:
        return {}
    whole = load_json(model.path / "tokenizer.json", model.label)
    if whole is None:
        plain = load_json(model.path / "vocab.json", model.label) or {}
        return {**plain, **(load_json(model.path / "added_tokens.json", model.label) or {})} if plain else {}
    try:
        held = whole["model"]["vocab"]
        numbered = {one[0]: number for number, one in enumerate(held)} if isinstance(held, list) else dict(held)
        return numbered | {one["content"]: one["id"] for one in whole.get("added_tokens") or []}
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise EditError(
            f"{model.label}/tokenizer.json has no vocabulary ({error!r}): copy or download it again"
        ) from error


def differences(one: Mapping[str, int], other: Mapping[str, int]) -> str:
    """How two vocabularies differ, in a few words; "" where they are equal."""
    if moved := [token for token in one if token in other and one[token] != other[token]]:
        token = moved[0]
        return f"{len(moved):,} tokens have other numbers, such as {printable(token)} ({one[token]} and {other[token]})"
    if lone := [token for token in (*one, *other) if token not in one or token not in other]:
        return f"{len(lone):,} tokens are in one of them only, such as {printable(lone[0])}"
    return ""


def chat_template(models: Iterable[Checkpoint]) -> str | None:
    """The template that most of the models have, of equally frequent ones the first; None where no model has one."""
    counted = Counter(template for model in models if (template := own_template(model)))
    return counted.most_common(1)[0][0] if counted else None


def own_template(model: Checkpoint) -> str | None:
    """The chat template of a model: its file, else what its tokenizer's config says (of several the one named default)."""
    if model.lone:
        return None
    if (model.path / _TEMPLATE).is_file():
        return (model.path / _TEMPLATE).read_text("utf-8", "replace").strip() or None
    said: Any = (load_json(model.path / "tokenizer_config.json", model.label) or {}).get("chat_template")
    if isinstance(said, list):
        named = {one.get("name"): one.get("template") for one in said if isinstance(one, Mapping)}
        said = named.get("default")
    return said.strip() or None if isinstance(said, str) else None


def _differ(first: Checkpoint, other: Checkpoint) -> str:
    for name in ("tokenizer.json", *_TEXTS):
        if all((one.path / name).is_file() for one in (first, other)):
            if (first.path / name).read_bytes() == (other.path / name).read_bytes():
                return ""
            if name != "tokenizer.json":
                return f"their files {name} differ"
            break
    one, two = vocabulary(first), vocabulary(other)
    return differences(one, two) if one and two else ""
