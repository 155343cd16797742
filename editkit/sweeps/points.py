"""The points of a sweep: every alpha with every choice of tensors, which is a mask and a group of globs.

>>> alphas("0:1:0.25"), alphas("1,0.5,-2")
([0.0, 0.25, 0.5, 0.75, 1.0], [1.0, 0.5, -2.0])
>>> [choice.label for choice in choices(["none", "runs/loc"], ["*", "*.mlp.*,*norm*"])]
['all', '*.mlp.*,*norm*', 'loc', 'loc, *.mlp.*,*norm*']
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path

from editkit.errors import EditError, listed

Source = str | os.PathLike[str]
MOST = 1000  # alphas; a typing error in a step makes many more
NO_MASK, EVERYTHING = "none", "*"


@dataclass(frozen=True)
class Choice:
    """Where an edit may go. mask: what the user gave, or None. only: whole-name globs, () for all tensors. label: for people."""

    mask: Source | None
    only: tuple[str, ...]
    label: str


def alphas(text: str | Sequence[float]) -> list[float]:
    """The alphas of FIRST:LAST:STEP, which includes LAST where the steps meet it, or of numbers between commas.

    Raises EditError for what is neither, numbers that are not finite, repeated ones, and more than 1,000.
    """
    if not isinstance(text, str):
        text = ",".join(map(str, text))
    parts = [_number(part, text) for part in text.split(":" if ":" in text else ",")]
    if ":" in text:
        if len(parts) != 3:
            raise EditError(f"--alphas {text!r} is not FIRST:LAST:STEP: give three numbers, such as 0:2:0.25")
        first, last, step = parts
        if not step or (last - first) / step < 0:
            raise EditError(
                f"--alphas {text!r} never gets from {first} to {last} in steps of {step}: give another step"
            )
        count = int((last - first) / step) + 1
        if count <= MOST:
            parts = [first + index * step for index in range(count)]
    else:
        count = len(parts)
    if count > MOST:
        raise EditError(f"--alphas {text[:40]!r} makes {count:,} alphas: give at most {MOST:,}")
    found = [float(part) for part in parts]
    if twice := sorted({one for one in found if found.count(one) > 1}):
        raise EditError(
            f"--alphas {text!r} has {listed(f'{one:g}' for one in twice)} more than once: give each alpha once"
        )
    return found


def _number(part: str, text: str) -> Decimal:
    """A decimal, so that 0.1 + 0.2 is 0.3."""
    try:
        number = Decimal(part.strip())
    except InvalidOperation:
        number = Decimal("nan")
    if not number.is_finite():
        raise EditError(
            f"--alphas {text[:40]!r}: {part.strip()!r} is no finite number: give FIRST:LAST:STEP such as 0:2:0.25, or 0,0.5,1"
        )
    return number


def choices(masks: Sequence[Source] = (), groups: Sequence[str] = ()) -> list[Choice]:
    """Every mask with every group of globs (between commas); "none" is no mask, "*" all tensors, and both are the default.

    Raises EditError for a repeated one.
    """
    masks, groups = list(masks) or [NO_MASK], list(groups) or [EVERYTHING]
    for option, given in (("--mask", [os.fspath(one) for one in masks]), ("--only", groups)):
        if twice := sorted({one for one in given if given.count(one) > 1}):
            raise EditError(f"{option} {listed(twice)} is given more than once: give it once")
    names = [Path(os.path.abspath(one)).name for one in masks]
    found = []
    for mask, name in zip(masks, names, strict=True):
        plain = os.fspath(mask) == NO_MASK
        name = os.fspath(mask) if names.count(name) > 1 else name
        for group in groups:
            globs = tuple(glob.strip() for glob in group.split(",") if glob.strip())
            said = [*([] if plain else [name]), *([] if group == EVERYTHING else [group])]
            only = () if group == EVERYTHING else globs
            found.append(Choice(None if plain else mask, only, ", ".join(said) or "all"))
    return found
