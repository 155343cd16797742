"""An evaluation for the terminal: metrics down, models across, every mean with half the width of its 95 % interval."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise, product
from typing import Any, NamedTuple

from editkit.diffing.measures import UNDEFINED
from editkit.diffing.rendering.table import Sheet
from editkit.diffing.rendering.wording import plural
from editkit.errors import printable
from editkit.evaluation.rendering import wording
from editkit.evaluation.rendering.rows import FORGET, Line, Report, Result, groups, known, lines, roles, stem

PLAIN = 100  # columns, where the text does not go to a terminal
_METRIC = (100, 28)  # columns: the most for the name of a metric, where there is room and where there is little
_LAYOUTS = (
    (24, False),
    (0, False),
    (9, True),
)  # columns: the most for a model, where letters do not stand for it; whether intervals go below
_TAILED = "Memorization"  # whose mean hides the few examples that an attack would go for
_YES_OR_NO = "forgotten"  # of an example, which has no tail

Styled = tuple[str, str]


class Cell(NamedTuple):
    """A value and what follows it, which goes below where there is little room."""

    value: str
    rest: str = ""


class Entry(NamedTuple):
    """A line of the table; without cells the title of those that follow."""

    name: str
    cells: tuple[Cell, ...] = ()


def results_table(report: Mapping[str, Any], *, color: bool) -> str:
    """Headline and all results but those of buckets. With `color`: ANSI styles and the width of the terminal."""
    sheet, found = Sheet(color), lines(report)
    sheet.say(" · ".join(wording.names(report)), "dim")
    sheet.say(wording.headline(report), "bold")
    if text := wording.verdict(report):
        sheet.say(text)
    if any(known(one) for line in found for one in line.results.values()):
        for line, style in _laid(found, report, sheet.width if color else PLAIN):
            sheet.say(line, style)
        sheet.say("")
        sheet.say("±: half the width of the 95 % bootstrap interval over examples; results.json has its limits.", "dim")
        if report.get("lm_eval"):
            sheet.say("Of lm-evaluation-harness ± is 1.96 of its own standard errors.", "dim")
    if buckets := sum(line.bucket is not None for line in found):
        sheet.say(f"By bucket: {buckets:,} more {plural('line', buckets)} in report.html.", "dim")
    for text in wording.gaps(report, found):
        sheet.say(f"{UNDEFINED} {text}", "dim")
    return sheet.text()


def _entries(found: Sequence[Line], labels: Sequence[str], most: int) -> Iterator[Entry]:
    """most: columns for the name of a metric."""
    for (suite, name), group in groups(line for line in found if any(map(known, line.results.values()))).items():
        sizes = {n for line in group for n in line.n}
        shared = f", n = {sizes.pop():,}" if len(sizes) == 1 else ""
        yield Entry(f"{suite} · {printable(name) if name else 'over the sets'}{shared}")
        for line in group:
            told = "" if shared or not line.n else f" (n = {wording.size(line)})"
            results = [line.results.get(label) for label in labels]
            yield Entry(wording.label(line.metric, most) + told, tuple(_cell(line, one) for one in results))
            tailed = suite == _TAILED and name == FORGET and stem(line.metric) != _YES_OR_NO
            if tailed and any(one and one.get("p95") is not None for one in results):
                yield Entry("  p95 / max", tuple(_tail(line, one) for one in results))


def _cell(line: Line, result: Result | None) -> Cell:
    if result is None or not known(result):
        return Cell(UNDEFINED)
    spread = wording.spread(line.metric, result)
    return Cell(wording.write(line.metric, result["value"]), f" ± {spread}" if spread else "")


def _tail(line: Line, result: Result | None) -> Cell:
    if result is None or result.get("p95") is None:
        return Cell(UNDEFINED)
    return Cell(wording.write(line.metric, result["p95"]), f" / {wording.write(line.metric, result['max'])}")


def _laid(found: Sequence[Line], report: Report, width: int) -> Iterator[Styled]:
    """The models side by side; metrics cut, models as letters, or intervals below the values, if that spares a second table below the first."""
    layouts = []
    for (most, below), longest in product(_LAYOUTS, _METRIC):
        entries = list(_entries(found, list(roles(report)), longest))
        first = max(_wide(entry.name) for entry in entries if entry.cells)
        heads, key = _heads(report, most)
        cells = zip(*(entry.cells for entry in entries if entry.cells), strict=True)
        columns = [_Column(head, cell, below) for head, cell in zip(heads, cells, strict=True)]
        parts = _parts([column.width for column in columns], width - first)
        needed = first + max(sum(columns[place].width for place in part) for part in parts)
        layouts.append(((len(parts), max(needed - width, 0)), parts, entries, first, columns, key))
    _, parts, entries, first, columns, key = min(layouts, key=lambda layout: layout[0])
    if key:
        yield key, ""
    for part in parts:
        yield from _block(entries, [(columns[place], place) for place in part], first)


def _parts(widths: Sequence[int], room: int) -> list[range]:
    """The places of columns that fit beside each other, as few parts as possible and about as many places in each."""
    for number in range(1, len(widths) + 1):
        ends = [round(len(widths) * part / number) for part in range(number + 1)]
        parts = [range(start, end) for start, end in pairwise(ends)]
        if number == len(widths) or all(sum(widths[place] for place in part) <= room for part in parts):
            return parts
    return []


class _Column:
    """One model: the widths of its values and of what follows them."""

    def __init__(self, head: tuple[str, str], cells: Sequence[Cell], below: bool) -> None:
        self.head, self.below = head, below
        self.value = max((len(cell.value) for cell in cells if cell.rest), default=1)
        self.rest = max(len(cell.rest) for cell in cells)
        long = max(len(cell.value) for cell in cells)
        inner = max(long, self.rest - 1) if below else max(long, self.value + self.rest)
        self.width = 2 + max(inner, *map(_wide, head))

    def lines(self, cell: Cell) -> Cell:
        if self.below:
            return Cell(cell.value.rjust(self.width), cell.rest.strip().rjust(self.width))
        text = cell.value.rjust(self.value) + cell.rest
        return Cell(text.ljust(self.value + self.rest).rjust(self.width))


def _block(entries: Sequence[Entry], columns: Sequence[tuple[_Column, int]], first: int) -> Iterator[Styled]:
    yield "", ""
    for part in (0, 1):
        text = "".join(" " * (column.width - _wide(column.head[part])) + column.head[part] for column, _ in columns)
        if text.strip():
            yield " " * first + text, "dim" if part else "bold"
    for entry in entries:
        if not entry.cells:
            yield "", ""
            yield entry.name, "cyan"
            continue
        lines = [column.lines(entry.cells[place]) for column, place in columns]
        yield entry.name + " " * (first - _wide(entry.name)) + "".join(line.value for line in lines), ""
        if below := "".join(line.rest for line in lines).rstrip():
            yield " " * first + below, "dim"


def _heads(report: Report, most: int) -> tuple[list[tuple[str, str]], str]:
    """(name, role) of every model, and a key: where a name is too long, letters stand for all of them."""
    found = [(printable(label), "" if role in ("model", label) else role) for label, role in roles(report).items()]
    if all(_wide(name) <= most for name, _ in found):
        return found, ""
    letters = [chr(ord("A") + place) if place < 26 else f"M{place + 1}" for place in range(len(found))]
    key = ", ".join(f"{letter}: {name}" for letter, (name, _) in zip(letters, found, strict=True))
    return [(letter, role) for letter, (_, role) in zip(letters, found, strict=True)], key


def _wide(text: str) -> int:
    from rich.cells import cell_len

    return cell_len(text)
