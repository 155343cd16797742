"""An evaluation in words: how values are written, what was compared, and what stands out. Nothing is called good or bad.

>>> accuracy = {"id": "general/token_accuracy@1", "label": "Token accuracy", "unit": ""}
>>> write(accuracy, 0.24), write(accuracy, 0.99996), write(accuracy | {"unit": "p"}, 1.834e-21), write(accuracy | {"unit": "%"}, 7.25)
('0.240', '>0.999', '1.83e-21', '7.2')
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from editkit.diffing.measures import UNDEFINED, count, number
from editkit.diffing.rendering.wording import plural
from editkit.errors import listed, printable
from editkit.evaluation.rendering.rows import (
    FORGET,
    MAIN,
    RETAIN,
    Line,
    Metric,
    Report,
    Result,
    known,
    lines,
    roles,
    stem,
)

KEYS = ("token_accuracy", "ma", "probability", "rougeL_recall", "rougeL", "nll")
"""Stems of the metrics that can say in one number what of a set is known, the plainest first."""
OVERALL = {
    "forget_quality": FORGET, "model_utility": None, "forget_efficacy": FORGET, "model_utility_18": None, "outliers": FORGET,
    "gen_exposure": FORGET, "kl_to_base": RETAIN,
}  # fmt: skip
"""Stem -> set of other metrics that belong at the top of a page, the most telling first; None is over the sets."""
_ROLE = {"model": "", "base": "base", "reference": "reference"}
_TOLD_APART = {
    "in-distribution": "By difficulty the forget set cannot be told from never-seen text",
    "out-of-distribution": "By difficulty the forget set can be told from never-seen text",
    "unclear": "Whether the forget set can be told from never-seen text by difficulty is open",
}


def write(metric: Metric, value: float | None) -> str:
    """A value as its unit asks: three decimals, one of per cents; small and large ones, and p-values, with three digits."""
    if value is None:
        return UNDEFINED
    unit = metric["unit"]
    if unit == "p":
        return f"{value:.3f}" if value >= 0.001 else _power(f"{value:.2e}") if value else "< 1e-323"
    if unit == "%":
        return f"{value:.1f}"
    if unit == "examples":
        return count(value)
    if not unit and 0.9995 <= value < 1:
        return ">0.999"
    if abs(value) >= 10_000:
        return _power(f"{value:.2e}")
    if value and not 0.0005 <= abs(value) < 100:
        return number(value)
    return f"{value:.3f}"


def spread(metric: Metric, result: Result) -> str:
    """Half the width of the 95 % interval, with the decimals of the value; "" where there is none, or one that the value lies outside of.

    >>> spread({"unit": ""}, {"value": 0.5, "ci_low": 0.4, "ci_high": 0.6}), spread({"unit": ""}, {"value": 0.999, "ci_low": 0.9987, "ci_high": 0.9993})
    ('0.100', '3e-4')
    """
    low, high = result.get("ci_low"), result.get("ci_high")
    if low is None or high is None or not low <= result["value"] <= high:
        return ""
    half, text = (high - low) / 2, write(metric, result["value"])
    if "e" in text:
        return _power(f"{half:.2e}")
    decimals = len(text.partition(".")[2])
    return f"{half:,.{decimals}f}" if not 0 < half < 0.5 * 10**-decimals else _power(f"{half:.0e}")


def _power(text: str) -> str:
    mantissa, _, exponent = text.partition("e")
    return f"{mantissa}e{int(exponent)}"


def interval(metric: Metric, result: Result) -> str:
    """The 95 % interval; "" where there is none."""
    low, high = result.get("ci_low"), result.get("ci_high")
    return "" if low is None or high is None else f"[{write(metric, low)}, {write(metric, high)}]"


def told(metric: Metric, result: Result) -> str:
    """A value with its 95 % interval."""
    return f"{write(metric, result['value'])} {interval(metric, result)}".rstrip()


def size(line: Line) -> str:
    """Of how many examples the results of a line are; from and to, where it is not the same for all models."""
    return "–".join(f"{n:,}" for n in dict.fromkeys(line.n[:1] + line.n[-1:]))


def label(metric: Metric, most: int = 100) -> str:
    """What a metric is called, and in which unit, in up to `most` characters."""
    unit = {"p": "p-value"}.get(metric["unit"], metric["unit"])
    name = printable(metric["label"])
    after = f", {printable(unit)}" if unit and unit.split()[0] not in name else ""
    room = most - len(after)
    return (name if len(name) <= room else f"{name[: room - 1]}…") + after


def called(model: str, role: str) -> str:
    """A model and its role, unless it is plainly one of those evaluated or named so itself."""
    said = _ROLE[role]
    return printable(model) + (f" ({said})" if said and said != model else "")


def names(report: Report) -> list[str]:
    return [called(*pair) for pair in roles(report).items()]


def headline(report: Report) -> str:
    """What was compared on what, and how much is known of the forget and the retain set by the plainest metric there is."""
    models, sets = len(report["models"]), report["sets"]
    examples = sum(one["examples"] or 0 for one in sets)
    sizes = f", {examples:,} {plural('example', examples)}" if examples else ""
    text = f"{models:,} {plural('model', models)} on {len(sets):,} {plural('set', len(sets))}{sizes}."
    key = keys(report)
    if not key:
        return text
    metric = next(iter(key.values())).metric
    said = [f"{printable(name)} {_told(line, roles(report))}" for name, line in key.items()]
    unit = f" ({metric['unit']})" if metric["unit"] else ""
    return f"{text} {printable(metric['label'])}{unit}: {'; '.join(said)}."


def keys(report: Report) -> dict[str, Line]:
    """Set -> the plainest metric of it, the same for all: of forget and retain, or of the first two sets."""
    named = [one["set"] for one in report["sets"]]
    wanted = [name for name in MAIN if name in named] or named[:2]
    there = [line for line in lines(report) if line.bucket is None and any(map(known, line.results.values()))]
    for key in KEYS:
        found = {line.set: line for line in there if stem(line.metric) == key and line.set in wanted}
        if found:
            return {name: found[name] for name in wanted if name in found}
    return {}


def _told(line: Line, roles: Mapping[str, str]) -> str:
    """Base → models, and the reference in brackets; one value alone where there is just one."""
    texts: dict[str, list[str]] = {"base": [], "model": [], "reference": []}
    alone = sum(role == "model" for role in roles.values()) < 2
    for model, result in line.results.items():
        if known(result) and model in roles:
            role = roles[model]
            value = write(line.metric, result["value"])
            texts[role].append(value if role != "model" or alone else f"{value} {printable(model)}")
    said = " → ".join(filter(None, (", ".join(texts["base"]), ", ".join(texts["model"]))))
    reference = ", ".join(texts["reference"])
    return f"{said} (reference {reference})" if said and reference else said or f"reference {reference}"


def verdict(report: Report) -> str:
    """Whether the forget set is like the never-seen controls, with the AUC; "" where that was not tested."""
    found = report.get("distribution")
    if not found:
        return ""
    limits = "" if found["ci_low"] is None else f" [{found['ci_low']:.3f}, {found['ci_high']:.3f}]"
    auc = "" if found["auc"] is None else f"AUC {found['auc']:.3f}{limits}, 95 % interval, "
    return (
        f"{_TOLD_APART[found['verdict']]} ({auc}{found['verdict']}, n = {found['n']:,} forget and {found['controls']:,} never-seen examples): "
        f"{printable(found['text'])}."
    )


def gaps(report: Report, shown: Iterable[Line]) -> list[str]:
    """Why results are missing: each reason once, with the metrics, and the sets and models that it holds for unless it is all of them."""
    found: dict[str, dict[str, tuple[set[str], set[str]]]] = {}
    for line in shown:
        for model, result in line.results.items():
            if not known(result):
                reason = printable(result["status"] if result["status"] != "ok" else "unknown")
                sets, models = found.setdefault(reason, {}).setdefault(printable(line.metric["label"]), (set(), set()))
                models.add(model)
                if line.set:
                    sets.add(line.set)

    def only(some: set[str], every: Sequence[str]) -> str:
        return (
            ""
            if not some or some.issuperset(every)
            else listed((printable(one) for one in every if one in some), limit=4)
        )

    texts = []
    for reason, metrics in found.items():
        said = []
        for name, (sets, models) in metrics.items():
            where = filter(
                None, (only(sets, [one["set"] for one in report["sets"]]), only(models, list(roles(report))))
            )
            said.append(name + (f" ({'; '.join(brackets)})" if (brackets := list(where)) else ""))
        texts.append(f"{reason}: {listed(said, limit=6)}")
    return texts


def settings(report: Report) -> list[tuple[str, str]]:
    """What was asked for, as texts; what was not is left out."""

    def text(value: Any) -> str:
        if isinstance(value, list | tuple):
            return listed(printable(str(one)) for one in value)
        return {True: "yes", False: "no"}[value] if isinstance(value, bool) else printable(str(value))

    asked = [
        (printable(key.replace("_", " ")), text(value))
        for key, value in report["settings"].items()
        if value not in (None, [], "")
    ]
    overlap = (
        [] if report.get("overlap") is None else [("examples in both forget and retain", f"{report['overlap']:,}")]
    )
    return asked + overlap
