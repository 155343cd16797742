"""The report as Markdown, for a pull request or a model card."""

import re
from collections.abc import Mapping
from typing import Any

from editkit.diffing.rendering.rows import HEADER, LEGEND, cells, changed_only, group, label
from editkit.diffing.rendering.wording import audit, headline, outside_mask, structure, survival_text, warnings
from editkit.errors import printable


def to_markdown(report: Mapping[str, Any], by: str) -> str:
    """The headline, warnings, a table of the changed rows, and the tensors that were not compared."""
    rows, unchanged = changed_only(group(report, by))
    lines = [f"### {_code(report['base']['name'])} → {_code(report['edited']['name'])}", "", headline(report), ""]
    lines += [f"> **Warning.** {_escape(text)}\n" for text in warnings(report)]
    if text := audit(report):
        lines += [_escape(text), "", *(f"- {_code(name)}: {what}" for name, what in outside_mask(report)), ""]
    if rows:
        lines += ["| " + " | ".join((by, *HEADER)) + " |", "| --- |" + " ---: |" * len(HEADER)]
        lines += ["| " + " | ".join((_code(label(row, by)), *cells(row))) + " |" for row in rows]
        lines += ["", f"<sub>{_escape(LEGEND)}</sub>", ""]
    if rows and unchanged:
        lines += [f"{unchanged:,} more without any change.", ""]
    if text := survival_text(report):
        lines += [text, ""]
    for kind, text in structure(report).items():
        lines += [f"{text}: {', '.join(_code(item['name']) for item in report[kind])}", ""]
    return "\n".join(lines)


def _code(text: str) -> str:
    """A code span that survives backticks and table pipes in a tensor name."""
    text = printable(text).replace("|", "\\|")
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    pad = " " if "`" in text else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def _escape(text: str) -> str:
    return re.sub(r"([\\`*_\[\]<>#|~])", r"\\\1", text)
