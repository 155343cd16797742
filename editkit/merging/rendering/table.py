"""A conflict report as a terminal table: every pair, then the modules where the pairs disagree most."""

from collections.abc import Mapping
from typing import Any

from editkit.diffing.measures import count, number
from editkit.diffing.rendering.table import Sheet
from editkit.errors import printable

_MODULES = 12
_LEGEND = (
    "cosine of the changes; signs: share of the elements changed by both that go in opposite directions (0.50 for vectors that "
    "have nothing in common); overlap: elements changed by both, of those changed by either; norms: L2 of the second over the first."
)
COLUMNS = {"cosine": "cosine", "signs": "sign_disagreement", "overlap": "overlap", "norms": "norm_ratio"}


def to_table(report: Mapping[str, Any], *, color: bool = False) -> str:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    sheet, vectors = Sheet(color), report["vectors"]
    sheet.say(f"Changes of {printable(report['base']['name'])}", "dim")
    for index, one in enumerate(vectors):
        mask = f", within {printable(one['mask'])}" if one["mask"] else ""
        said = f"{printable(one['name'])} ({one['kind']}{mask}): L2 {number(one['l2'])}, n = {count(one['changed'])} elements changed"
        sheet.say(f"{letter(index)}  {said}")
    worst = [(row["name"], max(row["pairs"], key=_disagreement)) for row in report["modules"]]
    worst.sort(key=lambda row: -_disagreement(row[1]))
    for title, pairs in (
        ("", [("all", pair) for pair in report["pairs"]]),
        ("module, with its pair that disagrees most" if len(vectors) > 2 else "module", worst[:_MODULES]),
    ):
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="dim")
        table.add_column(title, overflow="fold")
        for name in ("pair", *COLUMNS, "n both"):
            table.add_column(name, justify="right", no_wrap=True)
        for name, pair in pairs:
            values = [f"{pair[key]:.2f}" if pair[key] is not None else "–" for key in COLUMNS.values()]
            named = f"{letter(pair['a'])} {letter(pair['b'])}"
            table.add_row(Text(printable(name)), named, *values, count(pair["both"]))
        sheet.console.print(table)
    if len(worst) > _MODULES:
        sheet.say(f"{len(worst) - _MODULES} more modules with less disagreement, see --json.", "dim")
    sheet.say(_LEGEND, "dim")
    return sheet.text()


def _disagreement(pair: Mapping[str, Any]) -> float:
    return pair["sign_disagreement"] or 0.0


def letter(index: int) -> str:
    """What a vector is called in tables and pictures: A, B ... Z, then V27."""
    return chr(ord("A") + index) if index < 26 else f"V{index + 1}"
