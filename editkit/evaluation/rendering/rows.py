"""What table, page and picture show of an evaluation: its results in groups, and columns of its rows.

>>> rows = [{"model": "a", "set": "forget", "index": 0, "nll": 0.5}, {"model": "a", "set": "forget", "index": 1}]
>>> Rows(rows).column("a", "forget", "nll")
{0: 0.5}
"""

from collections.abc import Iterable, Mapping
from math import isfinite
from typing import Any, NamedTuple, TypeGuard

import numpy as np

from editkit.evaluation.metrics import tofu
from editkit.evaluation.metrics.memorization import MEMORIZED, OVER_FORGOTTEN

Report = Mapping[str, Any]
Result = Mapping[str, Any]
Metric = Mapping[str, Any]
Row = Mapping[str, Any]
Column = dict[int, float]  # index of an example -> its value

SUITES = {"tofu": "TOFU", "closer-look": "Closer look", "knowundo": "KnowUnDo", "lm-eval": "lm-evaluation-harness"}
"""How to write the suites, which are the first part of a metric's id, where a capital letter is not enough."""
FORGET, RETAIN = MAIN = ("forget", "retain")
LOW, HIGH = (
    0.15,
    0.60,
)  # memorization accuracy at or below, at or above which an example is an outlier (arXiv 2405.03097)


SINGLE = {"token_accuracy": "Token accuracy", "nll": "NLL, nats per token"}
"""Columns that are shown example by example."""
BINS = [
    *(step / 20 for step in range(3)),
    float(np.nextafter(OVER_FORGOTTEN, 1)),
    *(step / 20 for step in range(4, 21)),
]
"""Edges of the histogram of memorization: outliers begin at edges, and one that lies on such an edge is in a bin of outliers."""


class Line(NamedTuple):
    """A metric on a set (None: over the sets), in a bucket or in none, with the result of every model that has one."""

    metric: Metric
    set: str | None
    bucket: str | None
    results: dict[str, Result]

    @property
    def n(self) -> list[int]:
        """Of all models, each number once."""
        return sorted({one["n"] for one in self.results.values() if known(one) and one.get("n") is not None})


def known(result: Result | None) -> bool:
    return result is not None and result["status"] == "ok" and result["value"] is not None


def finite(value: Any) -> TypeGuard[float]:
    """Whether a cell of a row is a number that can be shown."""
    return isinstance(value, int | float) and isfinite(value)


def suite(metric: Metric) -> str:
    name = metric["id"].partition("/")[0].replace("_", "-")
    return SUITES.get(name, name.replace("-", " ").capitalize())


def stem(metric: Metric) -> str:
    """The id without suite and version.

    >>> stem({"id": "tofu/truth_ratio@1"})
    'truth_ratio'
    """
    return metric["id"].partition("/")[2].partition("@")[0] or metric["id"]


def roles(report: Report) -> dict[str, str]:
    """Label of a model -> "model", "base" or "reference"."""
    return {model["label"]: model.get("role") or "model" for model in report["models"]}


def lines(report: Report) -> list[Line]:
    """Every metric on every set, in the order of the metrics' suites, then of the sets: forget and retain first, over the sets last."""
    metrics = {metric["id"]: metric for metric in report["metrics"]}
    found: dict[tuple[str, str | None, str | None], Line] = {}
    for one in report["results"]:
        place = (one["metric"], one["set"], one.get("bucket"))
        if place not in found:
            metric = metrics.get(place[0]) or {
                "id": place[0],
                "label": place[0],
                "unit": "",
                "meaning": "",
                "source": "",
            }
            found[place] = Line(metric, *place[1:], {})
        found[place].results[one["model"]] = one
    for line in _harness(report.get("lm_eval") or {}):
        found[line.metric["id"], line.set, None] = line
    suites = _order(map(suite, report["metrics"]))
    sets = _order([*MAIN, *(one["set"] for one in report["sets"])])
    ids = _order(metrics)

    def key(line: Line) -> tuple[int, ...]:
        return (
            suites.get(suite(line.metric), len(suites)),
            len(sets) + 1 if line.set is None else sets.get(line.set, len(sets)),
            ids.get(line.metric["id"], len(ids)),
        )

    return sorted(found.values(), key=key)


def _harness(results: Report) -> Iterable[Line]:
    """The numbers of lm-evaluation-harness, a task in place of a set; their interval is 1.96 of its own standard errors to either side."""
    found: dict[tuple[str, str], Line] = {}
    for model, tasks in results.items():
        for task, numbers in tasks.items():
            for name, one in numbers.items():
                metric = {"id": f"lm-eval/{name}", "label": name, "unit": "", "meaning": "", "source": ""}
                value, error = one["value"], one.get("stderr")
                limits = {} if error is None else {"ci_low": value - 1.96 * error, "ci_high": value + 1.96 * error}
                line = found.setdefault((name, task), Line(metric, task, None, {}))
                line.results[model] = {"value": value, "n": one.get("n"), "status": "ok", **limits}
    return found.values()


def groups(lines: Iterable[Line]) -> dict[tuple[str, str | None], list[Line]]:
    """(suite, set) -> the lines without buckets."""
    found: dict[tuple[str, str | None], list[Line]] = {}
    for line in lines:
        if line.bucket is None:
            found.setdefault((suite(line.metric), line.set), []).append(line)
    return found


def _order(names: Iterable[str]) -> dict[str, int]:
    return {name: index for index, name in enumerate(dict.fromkeys(names))}


class Rows:
    """The rows of an evaluation by model and set. Whatever is not a finite number in a column counts as unknown."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self.of: dict[tuple[str, str], list[Row]] = {}
        for row in rows:
            self.of.setdefault((row["model"], row["set"]), []).append(row)

    def sets(self, report: Report) -> list[str]:
        """Forget and retain, then the others in the order of the report, then those that only the rows have."""
        there = dict.fromkeys(name for _, name in self.of)
        named = [*MAIN, *(one["set"] for one in report["sets"]), *there]
        return [name for name in dict.fromkeys(named) if name in there]

    def main(self, report: Report) -> list[str]:
        """Forget and retain; where there are neither, the first two sets."""
        sets = self.sets(report)
        return [name for name in MAIN if name in sets] or sets[:2]

    def column(self, model: str, name: str, key: str) -> Column:
        """Of the examples of set `name` that have it. key: of the rows, or "truth_ratio"."""
        rows = self.of.get((model, name), [])
        values = _truth_ratios(rows) if key == "truth_ratio" else [row.get(key) for row in rows]
        pairs = ((row.get("index", place), value) for place, (row, value) in enumerate(zip(rows, values, strict=True)))
        return {index: float(value) for index, value in pairs if finite(value)}

    def columns(self, report: Report, name: str, key: str) -> dict[str, Column]:
        """Label -> column, for the models that have one."""
        found = {model: self.column(model, name, key) for model in roles(report)}
        return {model: column for model, column in found.items() if column}


def _truth_ratios(rows: Iterable[Row]) -> list[float]:
    """R as forget quality compares it; NaN where a row lacks one of its parts."""
    rights = [row.get("paraphrased_nll") for row in rows]
    wrongs = [[float("nan") if nll is None else nll for nll in row.get("perturbed_nll") or []] for row in rows]
    return tofu.truth_ratio([float("nan") if nll is None else nll for nll in rights], wrongs).tolist()


def gap(ones: Iterable[float], others: Iterable[float]) -> tuple[float, float, float]:
    """Where two distribution functions are farthest apart (the Kolmogorov-Smirnov statistic): x and both heights there.

    >>> gap([1.0, 2.0], [2.0, 3.0])
    (1.0, 0.5, 0.0)
    """
    samples = [np.sort(list(values)) for values in (ones, others)]
    values = np.union1d(*samples)
    one, other = (np.searchsorted(sample, values, side="right") / len(sample) for sample in samples)
    at = int(np.abs(one - other).argmax())
    return float(values[at]), float(one[at]), float(other[at])


def to_reference(report: Report, ratios: Mapping[str, Column]) -> dict[str, tuple[float, float, float]]:
    """Model -> the `gap` of its truth ratios to those of the reference; {} without one."""
    reference = next((model for model in ratios if roles(report)[model] == "reference"), None)
    if reference is None:
        return {}
    others = [model for model in ratios if model != reference]
    return {model: gap(ratios[model].values(), ratios[reference].values()) for model in others}


def outlying(values: Iterable[float]) -> str:
    """How many examples are outliers of memorization at either end.

    >>> outlying([0.15, 0.2, 0.6, 1.0])
    '1 low + 2 high of 4'
    """
    found = np.array(list(values))
    return f"{(found <= OVER_FORGOTTEN).sum():,} low + {(found >= MEMORIZED).sum():,} high of {len(found):,}"
