"""`${name}` in the texts of a recipe: a setting, a variable of the matrix, the output of a step, or a value of its result.

>>> parse("${people}/model")
[Reference(name='people', path=None), '/model']
>>> parse("${scored: results[metric=ma].value}")
[Reference(name='scored', path='results[metric=ma].value')]
>>> parse("costs $${5}")
['costs ${5}']
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

NAME = re.compile(r"[A-Za-z_][\w-]*")
_PLACES = re.compile(r"\$\$\{|\$\{([^{}]*)\}|\$\{")


class Reference(NamedTuple):
    """path: where in the result of a step, None for what the name itself stands for."""

    name: str
    path: str | None


def parse(text: str) -> list[str | Reference]:
    """A text as its parts. Raises ValueError, with a phrase, for a reference that cannot be read."""
    parts: list[str | Reference] = []
    plain, end = "", 0
    for found in _PLACES.finditer(text):
        plain, end = plain + text[end : found.start()], found.end()
        if found[0] == "$${":
            plain += "${"
            continue
        name, colon, path = (found[1] or "").partition(":")
        if not NAME.fullmatch(name.strip()) or (colon and not path.strip()):
            raise ValueError(f"has {found[0]!r}: write ${{name}}, or ${{step: value}} for a value of its result")
        parts += [*([plain] if plain else []), Reference(name.strip(), path.strip() or None)]
        plain = ""
    plain += text[end:]
    return [*parts, plain] if plain or not parts else parts


def named(text: str) -> str:
    """A text; of one that only refers to a setting or step the name of that.

    >>> named("npo+gd"), named("${in-distribution}"), named("${people}/model")
    ('npo+gd', 'in-distribution', '${people}/model')
    """
    found = re.fullmatch(r"\$\{([^{}:]+)\}", text)
    return found[1] if found else text


def references(value: Any, *keys: str | int) -> Iterator[tuple[tuple[str | int, ...], Reference]]:
    """Every reference within a value, in keys of mappings too, with the keys that lead to it. Texts that cannot be read have none."""
    if isinstance(value, str):
        try:
            yield from ((keys, one) for one in parse(value) if isinstance(one, Reference))
        except ValueError:
            return
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from references(key, *keys)
            yield from references(inner, *keys, key)
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from references(inner, *keys, index)
