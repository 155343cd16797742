"""The settings of an attack, checked before anything is read.

>>> checked(kinds=["quantize"], given={"forget"}, batch_size=8).kinds
('quantize',)
>>> checked(given={"forget", "retain"}).kinds
('quantize', 'relearn', 'paraphrase')
"""

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from editkit.errors import EditError, listed
from editkit.training.devices import unfit

KINDS = ("quantize", "relearn", "membership", "paraphrase")
NEEDS = {"membership": ("unseen",)}
"""Inputs without which a kind cannot be."""


@dataclass(frozen=True)
class Settings:
    """kinds: in the order of KINDS. asked: whether they were asked for by name. max_new_tokens: None, or answers are written too."""

    kinds: tuple[str, ...]
    asked: bool
    max_examples: int | None
    batch_size: int
    max_new_tokens: int | None
    steps: int
    seed: int
    dtype: str | None
    device: str
    prompt_template: str | None

    def described(self) -> dict[str, Any]:
        """As in attack.json."""
        found = asdict(self)
        return {"kinds": list(self.kinds), **{key: found[key] for key in found if key not in ("kinds", "asked")}}


def checked(
    *,
    kinds: Sequence[str] = (),
    given: Collection[str],
    max_examples: int | None = None,
    batch_size: int = 16,
    max_new_tokens: int | None = None,
    steps: int = 64,
    seed: int = 0,
    dtype: str | None = None,
    device: str = "auto",
    prompt_template: str | None = None,
) -> Settings:
    """given: which of the inputs "forget", "retain", "unseen", "base" and "reference" there are. Raises EditError that lists all faults."""
    problems = []
    if wrong := [kind for kind in kinds if kind not in (*KINDS, "all")]:
        problems.append(f"no such attack as {listed(map(repr, wrong))}, there are {listed(KINDS)} and all")
    if twice := sorted({kind for kind in kinds if kinds.count(kind) > 1}):
        problems.append(f"{listed(twice)} is given twice")
    if "all" in kinds and len(set(kinds)) > 1:
        problems.append("all is given with others, it stands for every one of them")
    asked = KINDS if "all" in kinds else tuple(kind for kind in KINDS if kind in kinds)
    for kind in asked:
        if missing := [f"--{one}" for one in NEEDS.get(kind, ()) if one not in given]:
            problems.append(f"{kind} needs {listed(missing)}")
    if max_examples is not None and max_examples < 2:
        problems.append(f"max_examples is {max_examples}, must be at least 2")
    if not 0 <= seed < 2**32:
        problems.append(f"seed is {seed}, must be in 0 ... 2**32 - 1")
    problems += unfit(dtype, device, steps=steps, batch_size=batch_size, max_new_tokens=max_new_tokens)
    if problems:
        raise EditError(f"these settings are no attack: {listed(problems)}")
    allowed = tuple(kind for kind in KINDS if all(one in given for one in NEEDS.get(kind, ())))
    return Settings(
        asked or allowed, bool(asked), max_examples, batch_size, max_new_tokens, steps, seed, dtype, device, prompt_template
    )  # fmt: skip
