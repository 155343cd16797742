"""The settings of a localization: what was asked for, with the method's own defaults in place of what was not.

>>> settings = resolve(method="memflex", retain=True)
>>> settings.granularity, str(settings.budget), settings.labels, settings.draws
('element', '5%', 'random:0.4', 3)
>>> resolve(method="memflex", retain=True, mu=0.92, sigma=6e-4).granularity
'tensor'
"""

from dataclasses import dataclass
from math import isfinite
from typing import Any

from editkit.errors import EditError, listed
from editkit.localization.labels import parse_labels
from editkit.localization.method import Method
from editkit.localization.method import method as find_method
from editkit.masks.budget import Budget, parse_budget
from editkit.masks.units import GRANULARITIES
from editkit.training.devices import unfit

DEFAULT_BUDGET = "5%"


@dataclass(frozen=True)
class Settings:
    """Checked settings. budget is None where `mu` and `sigma` select; accumulate is None where there are no gradients."""

    method: str
    granularity: str
    budget: Budget | None
    per_layer_budget: bool
    mu: float | None
    sigma: float | None
    accumulate: str | None
    labels: str
    draws: int
    seed: int
    batch_size: int

    @property
    def kind(self) -> Method:
        return find_method(self.method)

    @property
    def element(self) -> bool:
        """Whether single elements are selected, not units."""
        return self.granularity == "element"

    def gathering(self) -> dict[str, Any]:
        """What the gradients depend on: not the score that is made of them, nor how much is selected."""
        keys = ("accumulate", "labels", "draws", "seed", "batch_size")
        return {**{key: getattr(self, key) for key in keys}, "path": self.kind.additive}

    def described(self) -> dict[str, Any]:
        """As in localization.json."""
        return {**vars(self), "budget": str(self.budget) if self.budget else None}


def resolve(
    *,
    method: str | None = None,
    granularity: str | None = None,
    budget: str | int | None = None,
    per_layer_budget: bool = False,
    mu: float | None = None,
    sigma: float | None = None,
    accumulate: str | None = None,
    labels: str | None = None,
    draws: int | None = None,
    seed: int = 0,
    batch_size: int = 8,
    max_examples: int | None = None,
    retain: bool = False,
    base: bool = False,
    forget: bool = True,
    dtype: str | None = None,
    device: str = "auto",
) -> Settings:
    """Check what was asked for (retain, base, forget: whether one was given) and fill in the method's defaults.

    Raises EditError that lists everything wrong.
    """
    by_threshold = sigma is not None
    name = method or ("memflex" if by_threshold else "fisher")
    kind = find_method(name)
    granularity = granularity or ("tensor" if by_threshold else "element")
    labels = labels or kind.labels
    random_labels = parse_labels(labels) is not None
    draws = draws if draws is not None else kind.draws if random_labels else 1
    problems = []
    if granularity not in GRANULARITIES:
        problems.append(f"granularity {granularity!r} is none of {listed(GRANULARITIES)}")
    if accumulate is not None and accumulate not in kind.accumulate:
        problems.append(
            f"{name} takes {listed(kind.accumulate) + ' gradients' if kind.accumulate else 'no gradients'}, not {accumulate} ones"
        )
    if kind.accumulate and not forget:
        problems.append(f"{name} needs examples to forget (--forget)")
    if kind.retain and not retain:
        problems.append(f"{name} compares with examples to keep, give --retain")
    if kind.base and not base:
        problems.append(f"{name} follows the way from a base checkpoint, give --base")
    if base and not kind.base and name != "magnitude":
        problems.append(f"{name} does not look at a base checkpoint, leave --base out")
    if by_threshold and (name != "memflex" or mu is None):
        problems.append("--sigma goes with --mu and --method memflex")
    if mu is not None and name != "wagle" and not by_threshold:
        problems.append("--mu goes with --method wagle, or with --sigma and --method memflex")
    if by_threshold and (budget is not None or per_layer_budget):
        problems.append("--mu and --sigma select by thresholds, leave the budget out")
    if by_threshold and granularity == "element":
        problems.append("single elements have no cosine, select tensors, rows or heads with --mu and --sigma")
    wrong = {"mu": mu, "sigma": sigma}
    problems += [
        f"{key} is {value}, must be a finite number"
        for key, value in wrong.items()
        if value is not None and not isfinite(value)
    ]
    if name == "wagle" and mu is not None and mu <= 0:
        problems.append(f"mu is {mu}, must be above 0")
    if sigma is not None and sigma < 0:
        problems.append(f"sigma is {sigma}, must not be below 0")
    if kind.additive and random_labels:
        problems.append(f"{name} adds up to the drop of the loss with true labels: leave --labels out")
    if draws > 1 and not random_labels:
        problems.append("several draws of true labels are the same, give --labels random:0.4 with --draws")
    problems += unfit(dtype, device, draws=draws, batch_size=batch_size, max_examples=max_examples)
    if not 0 <= seed < 2**32:
        problems.append(f"seed is {seed}, must be in 0 ... 2**32 - 1")
    if problems:
        raise EditError(f"localize cannot run: {'; '.join(problems)}")
    return Settings(
        method=name,
        granularity=granularity,
        budget=None if by_threshold else parse_budget(DEFAULT_BUDGET if budget is None else budget),
        per_layer_budget=per_layer_budget,
        mu=kind.mu if mu is None else mu,
        sigma=sigma,
        accumulate=(accumulate or kind.accumulate[0]) if kind.accumulate else None,
        labels=labels,
        draws=draws,
        seed=seed,
        batch_size=batch_size,
    )
