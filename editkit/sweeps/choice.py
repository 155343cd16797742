"""Rules that choose one point: `max forgetting s.t. retention >= 0.95`.

>>> rule = parse("max forgetting s.t. retention >= 0.95 and alpha < 2")
>>> rule.highest, rule.name, rule.terms[1]
(True, 'forgetting', Term(name='alpha', relation='<', number=2.0))
>>> points = [{"forgetting": 0.9, "retention": 0.5, "alpha": 1.5}, {"forgetting": 0.4, "retention": 0.96, "alpha": 0.5}]
>>> choose(rule, points)
1
"""

import operator
import re
from collections.abc import Collection, Mapping, Sequence
from math import isfinite
from typing import NamedTuple

from editkit.errors import EditError, listed

Values = Mapping[str, float | None]

GRAMMAR = "max|min NAME [s.t. NAME >=|<= NUMBER [and ...]]"
_RELATIONS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}
_TERM = re.compile(r"\s*([\w.-]+?)\s*(>=|<=|>|<)\s*(\S+?)\s*(%?)\s*")


class Term(NamedTuple):
    """A demand on a quantity."""

    name: str
    relation: str
    number: float

    def holds(self, values: Values) -> bool:
        """What is unknown does not hold."""
        value = values.get(self.name)
        return value is not None and bool(_RELATIONS[self.relation](value, self.number))

    def __str__(self) -> str:
        return f"{self.name} {self.relation} {self.number:g}"


class Rule(NamedTuple):
    """The point with the highest (or lowest) `name` among those for which all terms hold."""

    text: str
    highest: bool
    name: str
    terms: tuple[Term, ...]

    @property
    def names(self) -> list[str]:
        return list(dict.fromkeys([self.name, *(term.name for term in self.terms)]))


def parse(text: str) -> Rule:
    """Read a rule. Raises EditError that shows the grammar."""
    goal, _, demands = (part.strip() for part in text.partition("s.t."))
    words = goal.split()
    terms = [_TERM.fullmatch(part) for part in re.split(r"\band\b", demands)] if demands or "s.t." in text else []
    if len(words) != 2 or words[0] not in ("max", "min") or not all(terms):
        raise EditError(
            f"--choose {text!r} is no rule: write {GRAMMAR}, such as 'max forgetting s.t. retention >= 0.95'"
        )
    return Rule(text, words[0] == "max", words[1], tuple(_term(found.groups(), text) for found in terms if found))


def _term(parts: tuple[str, ...], text: str) -> Term:
    name, relation, number, percent = parts
    try:
        value = float(number) / (100 if percent else 1)
    except ValueError:
        value = float("nan")
    if not isfinite(value):
        raise EditError(f"--choose {text!r}: {number!r} is no finite number: write one such as 0.95 or 95 %")
    return Term(name, relation, value)


def check(rule: Rule, known: Collection[str]) -> None:
    """Raise EditError for quantities that this sweep does not measure; lists those that it does."""
    if unknown := [name for name in rule.names if name not in known]:
        raise EditError(
            f"--choose {rule.text!r}: this sweep does not measure {listed(unknown)}: there are {listed(sorted(known), limit=60)}"
        )


def choose(rule: Rule, points: Sequence[Values]) -> int | None:
    """The place of the point that the rule names, None where none will do. Of equal ones the smallest |alpha|, then the first."""
    found = [place for place, values in enumerate(points) if all(term.holds(values) for term in rule.terms)]
    return _best(rule, points, found)


def closest(rule: Rule, points: Sequence[Values]) -> int | None:
    """The point that misses the terms by least, added up over them in their own units; None where all are unknown."""
    misses = {}
    for place, values in enumerate(points):
        numbers = [number for term in rule.terms if (number := values.get(term.name)) is not None]
        if rule.terms and len(numbers) == len(rule.terms):
            pairs = zip(rule.terms, numbers, strict=True)
            misses[place] = sum(0.0 if term.holds(values) else abs(one - term.number) for term, one in pairs)
    least = min(misses.values(), default=None)
    return _best(rule, points, [place for place, miss in misses.items() if miss == least])


def _best(rule: Rule, points: Sequence[Values], places: Sequence[int]) -> int | None:
    sign = -1 if rule.highest else 1

    def order(place: int) -> tuple[float, float, int]:
        value, alpha = points[place].get(rule.name), points[place].get("alpha")
        return sign * (value or 0.0), abs(alpha or 0.0), place

    return min((place for place in places if points[place].get(rule.name) is not None), key=order, default=None)
