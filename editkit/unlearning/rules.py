"""Rules that stop a run: `ma_max(forget) <= level and ppl(retain) < 1.2x`.

>>> rule = parse("ma_max(forget) <= 33 % and ppl(retain) < 1.2x")
>>> rule.names, rule.terms[1]
(['ma_max(forget)', 'ppl(retain)'], Term(stat='ppl', set='retain', relation='<', number=1.2, unit='x'))
>>> start = {"ma_max(forget)": 1.0, "ppl(retain)": 5.0}
>>> rule.holds({"ma_max(forget)": 0.3, "ppl(retain)": 5.9}, start, level=0.2)
True
>>> rule.holds({"ma_max(forget)": 0.3, "ppl(retain)": 6.1}, start, level=0.2)
False

`x` is times the value at the start of the run, `%` hundredths, and `level` the memorization accuracy of never-seen text: below it
a model has not forgotten more, it shows that something was there.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from difflib import get_close_matches
from math import isfinite
from typing import NamedTuple

from editkit.diffing.gates import OPERATORS
from editkit.errors import EditError, listed

Values = Mapping[str, float | None]

DEFAULT_RULE = "ma(forget) <= level"
GRAMMAR = "STAT(SET) <|<=|>|>= NUMBER[x|%]|level [and ...]"
LEVELLED = ("ma", "ma_max", "ma_p95")
"""What can be compared with `level`."""
_TERM = re.compile(r"\s*(\w+)\s*\(\s*([^()]+?)\s*\)\s*(>=|<=|>|<)\s*([^\s<>=]+?)\s*([x%]?)\s*")


class Term(NamedTuple):
    """A demand on one quantity of one set: value `relation` number, times the start (unit "x") or the level ("level")."""

    stat: str
    set: str
    relation: str
    number: float
    unit: str

    @property
    def name(self) -> str:
        return f"{self.stat}({self.set})"

    def holds(self, values: Values, start: Values, level: float) -> bool:
        """What is unknown, now or where it matters at the start, does not hold."""
        value = values.get(self.name)
        scale = {"": 1.0, "x": start.get(self.name), "level": level}[self.unit]
        return value is not None and scale is not None and OPERATORS[self.relation](value, self.number * scale)

    def __str__(self) -> str:
        return f"{self.name} {self.relation} {'level' if self.unit == 'level' else f'{self.number:g}{self.unit}'}"


class Rule(NamedTuple):
    """Holds where all its terms do."""

    text: str
    terms: tuple[Term, ...]

    @property
    def names(self) -> list[str]:
        return list(dict.fromkeys(term.name for term in self.terms))

    def holds(self, values: Values, start: Values, level: float) -> bool:
        """values: now. start: at the start of the run. level: memorization accuracy of never-seen text. Names as in `names`."""
        return all(term.holds(values, start, level) for term in self.terms)


def parse(text: str) -> Rule:
    """Read a rule. Raises EditError that shows the grammar."""
    found = [_TERM.fullmatch(part) for part in re.split(r"\band\b", text)]
    if not all(found):
        raise EditError(
            f"--stop {text!r} is no rule: write {GRAMMAR}, such as 'ma_max(forget) <= 0.33' or 'ppl(retain) > 1.2x'"
        )
    return Rule(text, tuple(_term(one.groups(), text) for one in found if one))


def parse_all(texts: Iterable[str]) -> tuple[Rule, ...]:
    """Read rules. Raises EditError with all that are none."""
    found, wrong = [], []
    for text in texts:
        try:
            found.append(parse(text))
        except EditError as error:
            wrong.append(str(error))
    if wrong:
        raise EditError("; ".join(wrong))
    return tuple(found)


def _term(parts: tuple[str, ...], text: str) -> Term:
    stat, group, relation, number, unit = parts
    group = " ".join(group.split())
    if number == "level" and not unit:
        if stat not in LEVELLED:
            raise EditError(
                f"--stop {text!r}: {stat} has no level: write a number, or ask for one of {listed(LEVELLED)}"
            )
        return Term(stat, group, relation, 1.0, "level")
    try:
        value = float(number) / (100 if unit == "%" else 1)
    except ValueError:
        value = float("nan")
    if not isfinite(value):
        raise EditError(
            f"--stop {text!r}: {number + unit!r} is no finite number: write one such as 0.33, 33 % or 1.2x, or level"
        )
    return Term(stat, group, relation, value, "x" if unit == "x" else "")


def check(rules: Iterable[Rule], known: Collection[str]) -> None:
    """Raise EditError for quantities that this run does not measure, of all the rules, with the nearest that it does."""
    unknown = dict.fromkeys(name for rule in rules for name in rule.names if name not in known)
    if unknown:
        near = {name: get_close_matches(name, known, n=1) for name in unknown}
        said = listed(f"{name} (did you mean {near[name][0]}?)" if near[name] else name for name in unknown)
        raise EditError(
            f"--stop: this run does not measure {said}: there are {listed(sorted(known), limit=60) or 'none'}"
        )
