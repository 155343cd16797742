"""The measures of a change: what each one is called, its unit, and how a value is written for people.

>>> share(0.4321), share(2.7e-9), share(0.99999), count(1_100_048_384), number(0.00123)
('43.2 %', '2.70e-7 %', '> 99.9 %', '1.10 B', '0.00123')
>>> MEASURES["rel_l2"].write(None)
'–'
"""

from collections.abc import Callable, Mapping
from math import isfinite
from typing import Any, NamedTuple

UNDEFINED = "–"
"""Stands where a measure is null: an integer tensor, a base of zeros, or simply not known."""


class Measure(NamedTuple):
    """One measure of a row of the report. `kind` is "count" (elements), "share" (0 to 1), "number" or "cosine"."""

    name: str
    label: str
    unit: str
    kind: str
    meaning: str

    def write(self, value: float | None) -> str:
        """`value` with as many digits as a reader can use."""
        return UNDEFINED if value is None else _WRITE[self.kind](value)


def share(value: float) -> str:
    """A fraction in percent, three digits; what is not everything is never written as 100 %."""
    if value < 1 and 100 * value >= 99.95:
        return "> 99.9 %"
    return f"{_three(100 * value)} %"


def count(value: float) -> str:
    """Whole below a million, then three digits and a unit.

    >>> count(12345), count(475_000_000), count(999_999_999)
    ('12,345', '475 M', '1.00 B')
    """
    if abs(value) < 1e6:
        return f"{value:,.0f}"
    for size, unit in ((1e6, "M"), (1e9, "B")):
        text = f"{value / size:#.3g}"
        if "e" not in text:
            return f"{text.removesuffix('.')} {unit}"
    return f"{value / 1e12:#.3g}".removesuffix(".") + " T"


def number(value: float) -> str:
    """Three significant digits."""
    return _three(value)


def cosine(value: float) -> str:
    """Six decimals; what is not parallel is never written as 1."""
    return "> 0.999999" if 0.9999995 <= value < 1 else f"{value:.6f}"


_WRITE: dict[str, Callable[[float], str]] = {"count": count, "share": share, "number": number, "cosine": cosine}


def _three(value: float) -> str:
    if value == 0 or not isfinite(value):
        return f"{value:g}"
    if 1000 <= round(abs(value)) < 1e6:
        return f"{value:,.0f}"
    mantissa, _, exponent = f"{value:#.3g}".partition("e")
    return f"{mantissa}e{int(exponent)}" if exponent else mantissa.removesuffix(".")


MEASURES: dict[str, Measure] = {
    measure.name: measure
    for measure in (
        Measure("numel", "elements", "elements", "count", "elements compared"),
        Measure("changed", "changed", "elements", "count", "elements whose bits differ"),
        Measure(
            "changed_fraction", "share changed", "% of elements", "share", "share of the elements whose bits differ"
        ),
        Measure("l2", "L2 of change", "weight units", "number", "Euclidean norm of edited - base"),
        Measure("rel_l2", "relative change", "% of base L2", "share", "L2 of the change over L2 of the base"),
        Measure("max_abs", "largest change", "weight units", "number", "largest |edited - base| of any element"),
        Measure("mean", "mean change", "weight units", "number", "mean of edited - base over all elements"),
        Measure("cosine", "cosine", "-1 to 1", "cosine", "cosine of the angle between base and edited"),
        Measure("sign_flips", "sign flips", "elements", "count", "elements whose sign turned"),
        Measure("crossed_int8", "cross 8 bit", "elements", "count", "changed elements with another 8-bit code"),
        Measure("crossed_int4", "cross 4 bit", "elements", "count", "changed elements with another 4-bit code"),
        Measure("nan_before", "NaN before", "elements", "count", "NaN in the base"),
        Measure("nan_after", "NaN after", "elements", "count", "NaN in the edited checkpoint"),
        Measure("inf_before", "Inf before", "elements", "count", "infinities in the base"),
        Measure("inf_after", "Inf after", "elements", "count", "infinities in the edited checkpoint"),
    )
}
"""Every measure that rows of tensors, layers, modules and the summary share, in the order of the report."""


def crossed(row: Mapping[str, Any], bits: int) -> float | None:
    """Share of the changed elements that land on another code of `bits`-bit quantization; None where unknown.

    >>> crossed({"changed": 200, "crossed_int4": 10}, bits=4)
    0.05
    """
    cross = row.get(f"crossed_int{bits}")
    return cross / row["changed"] if cross is not None and row.get("changed") else None
