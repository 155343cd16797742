"""The charts of an evaluation's page: which columns and results go into which chart, and what is said where there is nothing to draw."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from editkit.diffing.measures import UNDEFINED
from editkit.diffing.rendering.heatmap import Scale
from editkit.errors import printable
from editkit.evaluation.metrics.memorization import MEMORIZED, OVER_FORGOTTEN
from editkit.evaluation.rendering import wording
from editkit.evaluation.rendering.charts import Chart, Gap, Point, curves, ecdf, histograms, scatter, strips
from editkit.evaluation.rendering.rows import (
    BINS,
    FORGET,
    MAIN,
    RETAIN,
    SINGLE,
    Line,
    Report,
    Rows,
    known,
    outlying,
    roles,
    stem,
    to_reference,
)  # fmt: skip

Looks = Mapping[str, str]  # label of a model -> its style
Titled = dict[str, Any]  # a chart with its title, and what else its caption says


def missing(report: Report, rows: Rows) -> list[str]:
    """Why a chart that a reader may look for is not there."""
    texts = [
        f"No {label.partition(',')[0]} of {printable(name)} by example: no row has {key}."
        for key, label in SINGLE.items() for name in rows.main(report) if not rows.columns(report, name, key)
    ]  # fmt: skip
    if not rows.columns(report, FORGET, "truth_ratio"):
        texts.append("No truth ratios: no row of forget has paraphrased_nll and perturbed_nll.")
    if not rows.columns(report, FORGET, "ma"):
        texts.append("No memorization histogram: no row of forget has ma.")
    return texts


def single(report: Report, rows: Rows, looks: Looks, sets: Sequence[str]) -> list[Titled]:
    """Strips: an example a point, a chart for each column and set."""
    found = []
    for key, label in SINGLE.items():
        for name in sets:
            columns = rows.columns(report, name, key)
            most = max((value for column in columns.values() for value in column.values()), default=0.0)
            scale = Scale(0.0, 1.0 if key == "token_accuracy" else most, False)
            if chart := strips(columns, looks, label, scale=scale):
                found.append({"chart": chart, "title": f"{label.partition(',')[0]}, {printable(name)}"})
    return found


def stands(report: Report, looks: Looks) -> Titled | None:
    """How much every model knows of the forget set (across) and of the retain set (up); None for less than two models."""
    key = wording.keys(report)
    if not set(MAIN) <= set(key):
        return None
    points = {}
    for model in roles(report):
        across, up = (key[name].results.get(model) for name in MAIN)
        if across and up and known(across) and known(up):
            pairs = ((FORGET, across), (RETAIN, up))
            tip = "\n".join(f"{name}: {wording.told(key[name].metric, one)}" for name, one in pairs)
            x, y = ((one["value"], one.get("ci_low"), one.get("ci_high")) for one in (across, up))
            points[model] = Point(x[0], y[0], y[1], y[2], x[1], x[2], tip)
    label = wording.label(key[FORGET].metric)
    share = all(0 <= point.x <= 1 and 0 <= point.y <= 1 for point in points.values()) and not key[FORGET].metric["unit"]
    axes, scale = (f"{label}, forget", f"{label}, retain"), Scale(0.0, 1.0, False) if share else None
    chart = scatter(points, looks, axes, scale=scale) if len(points) > 1 else None
    sizes = " and ".join(f"{wording.size(key[name])} {name}" for name in MAIN if key[name].n)
    return chart and {"chart": chart, "title": f"{label}: forget and retain", "sizes": sizes}


def truth(report: Report, rows: Rows, looks: Looks, found: Sequence[Line]) -> Titled | None:
    """Distribution functions of the truth ratios of the forget set, with the largest distances from the reference's, and what the tests say."""
    ratios = rows.columns(report, FORGET, "truth_ratio")
    gaps = {
        model: Gap(x, one, other, f"KS {abs(one - other):.3f}")
        for model, (x, one, other) in to_reference(report, ratios).items()
    }
    values = {model: list(column.values()) for model, column in ratios.items()}
    chart = ecdf(values, looks, "truth ratio R", log=True, gaps=gaps)
    compared = [model for model in ratios if roles(report)[model] != "reference"]
    tests = [(wording.called(model, roles(report)[model]), *_test(found, model)) for model in compared]
    tests = [test for test in tests if test[1] != UNDEFINED]
    return chart and {"chart": chart, "marked": bool(gaps), "tests": tests, "n": max(map(len, ratios.values()))}


def _test(found: Sequence[Line], model: str) -> list[str]:
    """KS statistic, p and its logarithm, as they are in the results."""
    texts = []
    for key in ("ks_statistic", "forget_quality", "log10_forget_quality"):
        there = (line for line in found if stem(line.metric) == key and known(line.results.get(model)))
        line = next(there, None)
        texts.append(UNDEFINED if line is None else wording.write(line.metric, line.results[model]["value"]))
    return texts


def memorized(report: Report, rows: Rows, looks: Looks) -> Chart | None:
    """Histograms of the memorization accuracy of the forget set, the outliers' zones shaded."""
    values = {model: list(column.values()) for model, column in rows.columns(report, FORGET, "ma").items()}
    notes = {model: outlying(one) for model, one in values.items()}
    zones = ((0.0, OVER_FORGOTTEN), (MEMORIZED, 1.0))
    return histograms(values, looks, "memorization accuracy", BINS, zones=zones, notes=notes)


def buckets(found: Sequence[Line], looks: Looks) -> Iterator[Titled]:
    """A chart for every metric, set and way of sorting examples into buckets ("difficulty 2/3" is one of difficulty)."""
    kinds: dict[tuple[str, str | None, str], list[Line]] = {}
    for line in found:
        if line.bucket is not None:
            kinds.setdefault((line.metric["id"], line.set, line.bucket.rpartition(" ")[0]), []).append(line)
    for (_, name, kind), some in kinds.items():
        series: dict[str, list[Point]] = {}
        for place, line in enumerate(some):
            for model, one in line.results.items():
                if known(one) and model in looks:
                    tip = f"{printable(line.bucket or '')}: {wording.told(line.metric, one)}, n = {one['n']:,}"
                    limits = (one.get("ci_low"), one.get("ci_high"))
                    series.setdefault(model, []).append(Point(place, one["value"], *limits, tip=tip))
        parts = [
            (line.bucket or "").rpartition(" ")[2] + (f", n = {wording.size(line)}" if line.n else "") for line in some
        ]
        label, by = wording.label(some[0].metric), printable(f"by {kind or 'bucket'}")
        if chart := curves(series, looks, (by, label), texts=parts, zero=True):
            yield {"chart": chart, "title": f"{label}, {printable(name)}, {by}" if name else f"{label}, {by}"}
