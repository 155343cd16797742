"""A merge config, or a recipe, as data that knows its lines: YAML, or a dictionary.

>>> document = parse_document("merge_method: ties\\nparameters:\\n  density: 2\\n", "merge.yaml")
>>> document.place("parameters", "density")
'parameters.density (line 3)'
"""

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from editkit.errors import EditError, first_line, listed

Key = str | int
MOST = 100_000
"""Values of a document with its aliases written out."""


class Document(NamedTuple):
    """shown: what messages call it. node: the YAML behind `data`, None where a dictionary was given."""

    shown: str
    data: dict[str, Any]
    node: Any = None

    def place(self, *keys: Key) -> str:
        """Where a value stands, such as `models[1].parameters.weight (line 7)`."""
        path = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys).lstrip(".")
        line = self._line(keys)
        return f"{path} (line {line})" if line else path

    def _line(self, keys: tuple[Key, ...]) -> int | None:
        node, line = self.node, None
        for key in keys:
            if node is None:
                return line
            if isinstance(key, int):
                listing = isinstance(node.value, list) and key < len(node.value)
                child = node.value[key] if listing and not isinstance(node.value[key], tuple) else None
                mark = child
            else:
                pairs = node.value if isinstance(node.value, list) else []
                mark, child = next((pair for pair in reversed(pairs) if pair[0].value == key), (None, None))
            if mark is None:
                return line
            node, line = child, mark.start_mark.line + 1
        return line


def read_document(
    config: str | os.PathLike[str] | Mapping[str, Any],
    what: str = "merge config",
    keys: str = "merge_method and models or slices",
) -> Document:
    """The config in a file, or given as a dictionary. Raises EditError for what is no single YAML mapping.

    what, keys: what it is to be, and what it then has, for messages.
    """
    if isinstance(config, Mapping):
        return Document(f"the {what.split()[0]}", dict(config))
    shown = os.fspath(config)
    try:
        text = Path(shown).expanduser().read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise EditError(f"{shown} is no text in UTF-8: give a {what} in YAML") from error
    except OSError as error:
        raise EditError(f"{shown} cannot be read ({error.strerror}): give a {what} in YAML") from error
    return parse_document(text, shown, what, keys)


def parse_document(
    text: str, shown: str, what: str = "merge config", keys: str = "merge_method and models or slices"
) -> Document:
    """The one YAML mapping in `text`. Several documents, `!` tags and keys that stand twice are refused."""
    import yaml

    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        _refuse_endless(node, shown)
        if twice := [f"{key} (line {line})" for key, line in _repeated(node)]:
            raise EditError(f"{shown}: {listed(twice)}: given more than once, keep one")
        data = loader.construct_document(node) if node is not None else None
    except yaml.composer.ComposerError as error:
        found = "several YAML documents" if "single document" in str(error) else first_line(error)
        raise EditError(f"{shown}{_line_of(error)}: {found}; give one document, one {what.split()[0]}") from error
    except yaml.constructor.ConstructorError as error:
        raise EditError(f"{shown}{_line_of(error)}: {error.problem}: write the value itself, without tags") from error
    except yaml.YAMLError as error:
        raise EditError(
            f"{shown}{_line_of(error)} is no YAML: {getattr(error, 'problem', first_line(error))}"
        ) from error
    except RecursionError as error:
        raise EditError(f"{shown} is nested without end: give a {what} in YAML") from error
    except (ValueError, KeyError, AttributeError, TypeError) as error:  # dates and numbers that are none
        raise EditError(f"{shown} has a value that cannot be read ({first_line(error)}): write it in quotes") from error
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise EditError(f"{shown} is no {what}: give a YAML mapping with {keys}")
    return Document(shown, data, node)


def _refuse_endless(root: Any, shown: str) -> None:
    """Aliases (*name) may refer to each other in a circle, or unfold to more than any memory holds."""
    sizes: dict[int, int] = {}

    def size(node: Any) -> int:
        if id(node) not in sizes:
            sizes[id(node)] = MOST + 1  # until it is known: a circle
            inner = node.value if isinstance(node.value, list) else []
            parts = [part for one in inner for part in (one if isinstance(one, tuple) else (one,))]
            sizes[id(node)] = 1 + sum(map(size, parts))
        return sizes[id(node)]

    if root is not None and size(root) > MOST:
        raise EditError(f"{shown} has aliases that unfold to more than {MOST:,} values: write it without them")


def _line_of(error: Any) -> str:
    mark = getattr(error, "problem_mark", None)
    return f" (line {mark.line + 1})" if mark is not None else ""


def _repeated(root: Any) -> Iterator[tuple[str, int]]:
    """Keys that stand twice in one mapping, of which a YAML reader would silently take the last."""
    seen: set[int] = set()
    waiting = [root]
    while waiting:
        node = waiting.pop()
        if node is None or id(node) in seen or not isinstance(node.value, list):
            continue
        seen.add(id(node))
        if not node.value or not isinstance(node.value[0], tuple):
            waiting += node.value
            continue
        counts = Counter(key.value for key, _ in node.value if isinstance(key.value, str))
        yield from (
            (key.value, key.start_mark.line + 1)
            for key, _ in reversed(node.value)
            if isinstance(key.value, str) and counts.pop(key.value, 1) > 1 and key.value != "<<"
        )
        waiting += [value for _, value in node.value]
