"""Hook of mkdocs: a link to a Python file that stands alone on a line becomes the docstring of that file, one to a recipe its text.

So the pages of methods, metrics and functions are written once, in the code, and hold a link to it where they are read unbuilt. The title
of the link says what is shown as well: "functions", all public functions and classes of the file; or the name of one, and only that.
"""

import ast
import re
from itertools import groupby
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
LINK = re.compile(r'^\[[^]]*\]\((?:\.\./)+(\w[\w/-]*\.(?:py|yaml))(?: "(\w+)")?\)$', re.MULTILINE)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """What mkdocs calls for every page."""
    return LINK.sub(lambda found: documented(found[1], found[2]), markdown)


def documented(path: str, shown: str | None = None) -> str:
    """Markdown of a recipe, or of a Python file's docstring and its functions.

    >>> documented("editkit/localization/methods/salun.py").splitlines()[0]
    'SalUn: the size of the forget gradient. Fan et al. 2023 (https://arxiv.org/abs/2310.12508), equation 3.'
    """
    source = (ROOT / path).read_text("utf-8")
    if path.endswith(".yaml"):
        return f"```yaml\n{source}```"
    tree = ast.parse(source)
    public = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name[0] != "_"]
    if shown and shown != "functions":
        [one] = [node for node in public if node.name == shown]
        return _documented(one, source)
    parts = [_text(ast.get_docstring(tree) or "")]
    if shown:
        parts += [f"### {node.name}\n\n{_documented(node, source)}" for node in public if ast.get_docstring(node)]
    return "\n\n".join(parts)


def _documented(node: ast.FunctionDef | ast.ClassDef, source: str) -> str:
    """Signature and docstring."""
    return f"```python\n{_signature(node, source)}\n```\n\n{_text(ast.get_docstring(node) or '')}"


def _signature(node: ast.FunctionDef | ast.ClassDef, source: str) -> str:
    """As it is written; of a dataclass the fields.

    >>> source = 'def f(x: int, *, y=(1, 2)) -> str:\\n    "Nothing."'
    >>> _signature(ast.parse(source).body[0], source)
    'f(x: int, *, y=(1, 2)) -> str'
    """
    if isinstance(node, ast.ClassDef):
        fields = [ast.unparse(one) for one in node.body if isinstance(one, ast.AnnAssign)]
        return f"{node.name}({', '.join(fields)})" if fields else node.name
    lines = source.splitlines()[node.lineno - 1 : node.body[0].lineno - 1]
    return "\n".join(lines).removeprefix("def ").removesuffix(":")


def _text(docstring: str) -> str:
    """Markdown of a docstring: examples in a fence, and nothing in prose that Markdown would take for its own.

    >>> _text("a * b, `*.mlp` if x<y")
    'a \\\\* b, `*.mlp` if x&lt;y'
    """
    blocks = []
    for empty, lines in groupby(docstring.splitlines(), lambda line: not line.strip()):
        block = "\n".join(lines)
        if block.startswith(">>> "):
            blocks.append(f"```pycon\n{re.sub('  # doctest:.*', '', block)}\n```")
        elif block.startswith("    "):
            blocks.append(block)
        elif re.search(r"\w {3,}\w", block):  # set in columns
            blocks.append(f"```text\n{block}\n```")
        elif not empty:
            prose = re.split(r"(`[^`]*`)", block)
            prose[::2] = [re.sub(r"([*\\])", r"\\\1", one).replace("<", "&lt;") for one in prose[::2]]
            blocks.append("".join(prose))
    return "\n\n".join(blocks)
