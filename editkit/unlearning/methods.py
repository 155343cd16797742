"""The methods: which losses, in which order. Any forget loss and any retain loss make one, FORGET+RETAIN; some have a procedure.

>>> method("npo+kl").forget, method("npo+kl").retain
('npo', 'kl')
>>> [phase.name for phase in method("tau").phases]
['ascend', 'learn']
"""

from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

from editkit.errors import EditError, listed
from editkit.unlearning.objectives import FORGET, RETAIN


@dataclass(frozen=True)
class Phase:
    """Steps with one forget loss. negated: what is evaluated and saved is anchor - alpha * (w - start of the phase).

    selective: only the examples take part that are still memorised, see `selection.py`. left: it ends where this share of the way from the MA at the start
    to that where the run ends is left, None for the run's own end. pace: of the default learning rate.
    """

    name: str
    forget: str
    negated: bool = False
    selective: bool = False
    left: float | None = None
    pace: float = 1.0


@dataclass(frozen=True)
class Method:
    """formula: with {loss} for the terms of the first phase, as they are used. weights: of the forget and the retain term. localized: a mask of `budget` is made first. alpha: of a negated phase. paper: the published settings."""

    name: str
    label: str
    source: str
    formula: str
    phases: tuple[Phase, ...]
    retain: str = "none"
    weights: tuple[float, float] = (1.0, 1.0)
    localized: bool = False
    budget: str | None = None
    alpha: float | None = None
    paper: tuple[tuple[str, Any], ...] = ()

    @property
    def forget(self) -> str:
        """The forget loss of its last phase."""
        return self.phases[-1].forget


_SGA = Phase("ascend", "ga", selective=True)

NAMED = (
    Method("sga", "SGA", "arXiv 2405.03097", "{loss}, F the examples with MA ≥ 0.7 and the most memorised one", (_SGA,), "gd",
           paper=(("lr", 5e-5), ("epochs", 150), ("batch_size", 128), ("stop", "ma(forget) <= 0.33"))),
    Method("tau", "TAU", "arXiv 2405.03097", "θ₀ − α (θₜ − θ₀): SGA by {loss} gives θ₀, fine-tuning on F gives θₜ",
           (replace(_SGA, left=0.25), Phase("learn", "learn", negated=True, pace=0.3)), "gd", alpha=1.0,
           paper=(("lr", 5e-5), ("epochs", 150), ("batch_size", 128), ("stop", "ma(forget) <= 0.33"))),
    Method("negation", "Negation", "arXiv 2212.04089", "θ₀ − α (θₜ − θ₀): fine-tuning on F gives θₜ",
           (Phase("learn", "learn", negated=True),), alpha=1.0, paper=(("alpha", 3.0), ("lr", 5e-5), ("epochs", 150), ("stop", "ma(forget) <= 0.33"))),
    Method("memflex", "MemFlex", "arXiv 2407.01920", "{loss} on the located parameters",
           (Phase("unlearn", "ga"),), "gd", (0.4, 2.0), localized=True, budget="25%", paper=(("lora", 16), ("lr", 3e-4), ("epochs", 2))),
)  # fmt: skip
"""The methods that are more than two losses."""
NAMES = [one.name for one in NAMED]

_PAPER: dict[str, dict[str, Any]] = {
    "npo": {"beta": 0.1},
    "npo+gd": {"beta": 0.1},
    "npo+kl": {"beta": 0.1},
    "me+gd": {"forget_weight": 0.1},
    "simnpo+gd": {"epochs": 10, "retain_weight": 0.125},
    "rmu+rmu": {"lr": 5e-5, "epochs": None, "steps": 150, "batch_size": 4, "retain_weight": 1200.0},
}
_TOFU: dict[str, Any] = {"lr": 1e-5, "epochs": 5, "batch_size": 32, "weight_decay": 0.01}
"""What arXiv 2401.06121 and 2404.05868 train a model of 7 B parameters with."""


def method(name: str) -> Method:
    """The method of this name. Raises EditError with the nearest name."""
    for one in NAMED:
        if one.name == name:
            return one
    forget, _, retain = name.partition("+")
    if forget in FORGET and (retain or "none") in RETAIN and forget != "learn":
        return composed(forget, retain or "none")
    known = [*NAMES, *(composed(one, other).name for one in FORGET for other in RETAIN if one != "learn")]
    near = get_close_matches(name, known, n=1)
    said = f" (did you mean {near[0]}?)" if near else ""
    raise EditError(
        f"there is no method {name!r}{said}: there are {listed(one.name for one in NAMED)}, and FORGET+RETAIN of "
        f"{listed((one for one in FORGET if one != 'learn'), limit=20)} and {listed(RETAIN)}"
    )


def composed(forget: str, retain: str) -> Method:
    """`forget`+`retain`."""
    kept = RETAIN[retain]
    first = FORGET[forget]
    name = forget if kept is None else f"{forget}+{retain}"
    label = first.label if kept is None else f"{first.label}+{kept.label}"
    sources = dict.fromkeys([first.source, *([kept.source] if kept else [])])
    paper = {**_TOFU, **_PAPER.get(name, {})}
    return Method(
        name, label, ", ".join(sources), "{loss}", (Phase("unlearn", forget),), retain,
        (first.weight, kept.weight if kept else 1.0), paper=tuple(paper.items()),
    )  # fmt: skip
