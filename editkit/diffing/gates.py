"""Gates on a diff: rules that fail a check when the change is too large, too small or in the wrong place.

>>> rule = parse_rule("rel_l2 > 2 % @ model.layers.*.mlp.*")
>>> rule.measure, rule.operator, rule.limit, rule.glob
('rel_l2', '>', 0.02, 'model.layers.*.mlp.*')
>>> name = "model.layers.3.mlp.up_proj.weight"
>>> report = {"summary": {}, "tensors": [{"name": name, "dtype": "BF16", "changed": 7, "rel_l2": 0.031}]}
>>> print(*evaluate([rule], report))
model.layers.3.mlp.up_proj.weight: rel_l2 is 0.031 (rule: rel_l2 > 2 % @ model.layers.*.mlp.*)

A rule says what must not be: it is violated where it holds. With `@ GLOB` it is asked of every tensor whose whole name
matches, without of the summary.

What is unknown does not pass, and is a violation that says so: a null measure of a floating-point tensor, a norm or mean
of a changed tensor with NaN or Inf (they are left out of it), a matching tensor that was added, removed or reshaped. The
summary is unknown where one of its tensors is, and where two adapters have other settings. Integer tensors have counts of
elements only; other measures skip them. A tensor that is equal bit for bit has changed by 0 whatever its base (relative
change 0, cosine 1).
"""

import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from typing import Any, NamedTuple

from editkit.arithmetic.dtypes import DTYPES
from editkit.diffing.measures import MEASURES
from editkit.errors import EditError, listed
from editkit.names import matches

GRAMMAR = "MEASURE > | >= | < | <= | == | != NUMBER [%] [@ GLOB], for example 'rel_l2 > 2 % @ *.mlp.*'"
OPERATORS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
}
_RULE = re.compile(
    r"\s*(?P<measure>[A-Za-z]\w*)\s*(?P<operator>>=|<=|==|!=|>|<)"
    r"\s*(?P<limit>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*(?P<percent>%?)\s*(?:@\s*(?P<glob>\S(?:.*\S)?)\s*)?"
)
_SHARES = ("changed_fraction", "rel_l2", "lost_to_rounding")
_NOT_COMPARED = ("added", "removed", "reshaped", "retyped")
_STRUCTURE = ("tensors", "tensors_changed", *_NOT_COMPARED, "settings")
_SUMMARY_ONLY = (*_STRUCTURE, "lost_to_rounding")
_NOT_FINITE = ("nan_before", "nan_after", "inf_before", "inf_after")
_EXACT = ("numel", "changed", "changed_fraction", "lost_to_rounding", *_NOT_FINITE)  # also where there are NaN and Inf
_SPECTRAL = {"spectral_norm": "norm", "stable_rank": "stable_rank"}
_TENSOR_ONLY = tuple(_SPECTRAL)
_EDIT = ("projection", "requested_l2", "applied_l2", "lost_to_rounding")
KNOWN = (*MEASURES, *_SUMMARY_ONLY, *_TENSOR_ONLY, *_EDIT[:3])
"""What a rule can ask for. The edit's own measures (projection, ...) exist in the report of an edit only."""


class Rule(NamedTuple):
    """`measure operator limit @ glob`; `glob` is None for a rule on the summary."""

    text: str
    measure: str
    operator: str
    limit: float
    glob: str | None


class Violation(NamedTuple):
    """One place where a rule holds, or where nobody can say: then `value` is None and `reason` tells why."""

    rule: Rule
    where: str
    value: float | None
    reason: str

    def __str__(self) -> str:
        return f"{self.where}: {self.rule.measure} {self.reason} (rule: {self.rule.text})"


def parse_rule(text: str) -> Rule:
    """Read one rule. `%` divides by 100 and goes with shares only. Raises EditError on syntax or an unknown measure."""
    found = _RULE.fullmatch(text)
    if found is None:
        raise EditError(f"cannot read the rule {text!r}: write {GRAMMAR}")
    measure, glob = found["measure"], found["glob"]
    if measure not in KNOWN:
        near = get_close_matches(measure, KNOWN, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise EditError(
            f"unknown measure {measure!r} in the rule {text!r}: {hint}known are {listed(KNOWN, len(KNOWN))}"
        )
    if found["percent"] and measure not in _SHARES:
        raise EditError(f"% in the rule {text!r}: {measure} is no share; shares are {listed(_SHARES)}")
    if glob and measure in _SUMMARY_ONLY:
        raise EditError(f"the rule {text!r}: {measure} counts over the whole diff; leave '@ {glob}' out")
    if not glob and measure in _TENSOR_ONLY:
        raise EditError(f"the rule {text!r}: {measure} is known per tensor; say which, for example '@ *.mlp.*'")
    limit = float(found["limit"]) / (100 if found["percent"] else 1)
    if not math.isfinite(limit):
        raise EditError(f"the number in the rule {text!r} is out of range")
    return Rule(" ".join(text.split()), measure, found["operator"], limit, glob)


def evaluate(rules: Iterable[Rule], report: Mapping[str, Any]) -> list[Violation]:
    """Every violation of every rule, in the order of the rules and then of the tensors.

    Raises EditError, with all offending rules, where a rule asks nothing: its glob matches no tensor, or only tensors
    that have no such measure (integer tensors; untouched ones for `projection`), or its measure needs an edit's report.
    """
    violations: list[Violation] = []
    idle: list[str] = []
    for rule in rules:
        if rule.measure in _EDIT and not report.get("edit"):
            idle.append(f"'{rule.text}' ({rule.measure} is in the report of an edit, and this is a plain diff)")
        elif rule.glob is None:
            row = {**report["summary"], "edit": report.get("edit")}
            violations += _ask(rule, "summary", row, _uncovered(rule.measure, report))
        else:
            rows = [row for row in report["tensors"] if matches(row["name"], rule.glob)]
            defined = [row for row in rows if _is_defined(rule.measure, row)]
            others = [(name, why) for name, why in _not_compared(report) if matches(name, rule.glob)]
            if not defined and not others:
                idle.append(f"'{rule.text}' ({'no matching tensor has this measure' if rows else 'matches no tensor'})")
            for row in defined:
                violations += _ask(rule, row["name"], row, _left_out(rule.measure, row))
            violations += [Violation(rule, name, None, f"is unknown: the tensor {why}") for name, why in others]
    if idle:
        raise EditError(f"rules that ask nothing: {listed(idle)}")
    return violations


def differs(report: Mapping[str, Any]) -> bool:
    """Whether anything differs: an element, what tensors there are, their shapes or dtypes, settings of an adapter."""
    return any(report["summary"].get(key) for key in ("changed", *_NOT_COMPARED, "settings"))


def _not_compared(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Tensors without a row, and why."""
    compared = {row["name"] for row in report["tensors"]}
    items = [(item["name"], f"was {kind}") for kind in _NOT_COMPARED for item in report.get(kind, ())]
    return [(name, why) for name, why in items if name not in compared]


def _uncovered(measure: str, report: Mapping[str, Any]) -> str | None:
    """Why a measure of the summary does not speak for the whole checkpoint; None where it does."""
    if measure in _STRUCTURE:
        return None
    found = [f"{name} {why}" for name, why in _not_compared(report)]
    found += [f"the setting {item['name']} differs" for item in report.get("settings", ())]
    found += [f"{row['name']} {why}" for row in report["tensors"] if (why := _left_out(measure, row))]
    return listed(found, limit=5) or None


def _left_out(measure: str, row: Mapping[str, Any]) -> str | None:
    """Why a measure does not speak for all elements of a tensor; None where it does, as on a tensor without a change."""
    if measure in _EXACT or not row["changed"]:
        return None
    if count := sum(row.get(key) or 0 for key in _NOT_FINITE):
        return f"has {count} elements that are NaN or Inf"
    dtype = DTYPES.get(row["dtype"])
    return "has no values to compare" if dtype and dtype.floating and row.get("max_abs", 0) is None else None


def _is_defined(measure: str, row: Mapping[str, Any]) -> bool:
    if measure in _EDIT:
        return bool(row.get("edit"))
    if measure == "stable_rank" and row["changed"] == 0:
        return False
    dtype = DTYPES.get(row["dtype"])
    return dtype is None or dtype.floating or row.get(measure) is not None


def _ask(rule: Rule, where: str, row: Mapping[str, Any], left_out: str | None) -> list[Violation]:
    """Whether a rule holds on a row, or nobody can say because of what its measure leaves out."""
    value = _value(rule.measure, row)
    if value is not None and OPERATORS[rule.operator](value, rule.limit):
        return [Violation(rule, where, value, f"is {value:.6g}")]
    if left_out:
        return [
            Violation(rule, where, None, f"is unknown: {left_out if rule.glob is None else f'the tensor {left_out}'}")
        ]
    if value is None:
        method = (row.get("spectral") or {}).get("method", "run the diff with --spectral")
        why = method if rule.measure in _SPECTRAL else "the report has no value for it"
        return [Violation(rule, where, None, f"is unknown: {why}")]
    return []


def _value(measure: str, row: Mapping[str, Any]) -> float | None:
    if measure in _EDIT:
        value = row["edit"].get(measure)
    elif measure in _SPECTRAL:
        value = (row.get("spectral") or {}).get(_SPECTRAL[measure])
    else:
        value = row.get(measure)
    if value is None and row.get("changed") == 0 and measure not in _EDIT:
        return 1.0 if measure == "cosine" else 0.0
    return value if value is None or math.isfinite(value) else None
