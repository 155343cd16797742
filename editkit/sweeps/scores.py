"""What a point of a sweep is worth: forgetting and retention against the unedited model, and any metric of an evaluation.

    forgetting = 1 - token accuracy on forget / that of the unedited model      0: all is left, 1: nothing is
    retention  =     token accuracy on retain / that of the unedited model      1: as before

Token accuracies are teacher-forced, means over examples. Intervals are paired: an example is drawn together with what the
unedited model does on it, so that only the effect of the edit is in them.

>>> before = {"forget": {"index": np.arange(2), "token_accuracy": np.array([0.5, 1.0])}}
>>> after = {"forget": {"index": np.arange(2), "token_accuracy": np.array([0.2, 0.1])}}
>>> scores = derived(after, before)
>>> round(scores["forgetting"]["value"], 3), scores["retention"]["status"]
(0.8, 'unknown: no retain set was given')
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from editkit.arithmetic.draws import key_of
from editkit.errors import EditError, listed
from editkit.evaluation.aggregate import aggregate
from editkit.evaluation.metrics.statistics import bootstrap, mean
from editkit.evaluation.suites import FORGET, METRICS, RETAIN, Data, Each, Metric, chosen

Score = dict[str, Any]
Scores = dict[str, Score]

ALWAYS = ("general/token_accuracy", "general/nll", "memorization/ma")
DERIVED = {
    "forgetting": ("Forgetting", FORGET, "1 - token accuracy on forget / that of the unedited model"),
    "retention": ("Retention", RETAIN, "token accuracy on retain / that of the unedited model"),
}
"""Name -> label, set, meaning."""
_UNDEFINED: Score = dict.fromkeys(("value", "n", "ci_low", "ci_high"))


def derived(data: Data, unedited: Data) -> Scores:
    """Forgetting and retention, each with `value`, `n`, `ci_low`, `ci_high` (95 %) and `status`."""
    found = {}
    for name, (_, place, _) in DERIVED.items():
        if place in data:
            pairs = np.stack([one[place]["token_accuracy"] for one in (data, unedited)], 1)
            found[name] = _compared(name, pairs)
        else:
            found[name] = _UNDEFINED | {"status": f"unknown: no {place} set was given"}
    return found


def _compared(name: str, pairs: np.ndarray) -> Score:
    if not pairs[:, 1].any():
        what = "unknown: the unedited model gets no token of the examples right, so there is nothing to compare with"
        return _UNDEFINED | {"status": what}
    low, high = bootstrap(lambda drawn: _ratio(name, drawn["pairs"]), {"pairs": pairs}, seed=key_of(0, name))
    value = float(_ratio(name, pairs))
    return {"value": value, "n": len(pairs), "ci_low": low, "ci_high": high, "status": "ok"}


def _ratio(name: str, pairs: np.ndarray) -> np.ndarray:
    """Of pairs [..., n, 2], edited and unedited: [...]; NaN where a resample has no token that is right before."""
    means = mean(pairs, axis=-2)
    with np.errstate(divide="ignore", invalid="ignore"):
        kept = np.where(means[..., 1] > 0, means[..., 0] / means[..., 1], np.nan)
    return 1 - kept if name == "forgetting" else kept


def measured(data: Data, metrics: Sequence[Metric], reference: Data | None = None) -> Scores:
    """The metrics of one model under the names that rules use, such as `forget.nll` and `model_utility`."""
    kinds = {one.id: one for one in metrics}
    return {
        quantity(kinds[one["metric"]], one["set"]): {key: one[key] for key in (*_UNDEFINED, "status")}
        for one in aggregate({"": data}, metrics, reference=reference)
        if one["bucket"] is None
    }


def quantity(metric: Metric, name: str | None) -> str:
    """What a metric on a set is called in a rule.

    >>> from editkit.evaluation.suites import metric
    >>> quantity(metric("general/nll@1"), "retain"), quantity(metric("tofu/model_utility@1"), None)
    ('retain.nll', 'model_utility')
    """
    return f"{name}.{stem(metric)}" if isinstance(metric, Each) else stem(metric)


def stem(metric: Metric) -> str:
    return metric.id.partition("/")[2].partition("@")[0]


def quantities(metrics: Sequence[Metric], sets: Sequence[str]) -> dict[str, Metric]:
    """Name -> metric of all that will be measured, apart from what is derived."""
    found = {}
    for one in metrics:
        for name in sets if isinstance(one, Each) else [None]:
            if name is None or one.sets is None or name in one.sets:
                found[quantity(one, name)] = one
    return found


def metrics_for(suites: Sequence[str], metrics: Sequence[str], named: Sequence[str]) -> list[Metric]:
    """Those that are always measured, those asked for as in an evaluation, and those that a rule names."""
    stems = {name.rpartition(".")[2] for name in named}
    asked = {one.id for one in (chosen(suites, metrics) if suites or metrics else [])}
    always = {one.id for one in chosen(metrics=ALWAYS)}
    return [one for one in METRICS if one.id in asked | always or stem(one) in stems]


def refuse_unequipped(metrics: Sequence[Metric], embedding_model: str | None, nli_model: str | None) -> None:
    """Raise EditError for metrics that need a model of embeddings or of entailment where it is not given."""
    options = {"cosine": ("--embedding-model", embedding_model)}
    options |= dict.fromkeys(("entails_truth", "entailed_by_truth"), ("--nli-model", nli_model))
    missing: dict[str, list[str]] = {}
    for one in metrics:
        for option, given in dict.fromkeys(options[column] for column in one.needs if column in options):
            if given is None:
                missing.setdefault(option, []).append(stem(one))
    if missing:
        names = dict.fromkeys(name for found in missing.values() for name in found)
        raise EditError(
            f"{listed(names)} compares what is written with the truth by models of its own: give {listed(missing)}, or a rule with "
            "forgetting, which comes from token accuracy alone"
        )
