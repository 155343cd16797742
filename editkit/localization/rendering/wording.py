"""A localization in sentences: what was selected, from what, and how far to trust it. Every number with unit and n.

>>> budget({"method": "salun", "granularity": "row", "budget": "4", "per_layer_budget": True, "mu": None, "sigma": None})
'4 rows of every layer, and of every tensor outside of layers'
"""

from collections.abc import Mapping
from math import floor, log10
from typing import Any

from editkit.diffing.measures import UNDEFINED, count, number, share
from editkit.diffing.rendering.wording import plural
from editkit.errors import printable

Report = Mapping[str, Any]
HEAD = "each one head of one projection: q, k, v or o"
_SCORES = {
    "memflex": "nats per weight unit", "salun": "nats per weight unit", "snip": "nats", "wagle": "nats", "path": "nats per token",
    "magnitude": "weight units",
}  # fmt: skip


def headline(report: Report) -> str:
    """What was selected, and where most of it lies."""
    summary, settings, tensors = report["summary"], report["settings"], report["tensors"]
    touched = f"{sum(row['selected'] > 0 for row in tensors):,} of {len(tensors):,} {plural('tensor', len(tensors))}"
    unit, of_heads = settings["granularity"], settings["granularity"] == "head"
    chosen = f"{summary['units_selected']:,} of {count(summary['units'])} {plural(unit, summary['units'])}"
    chosen += f" ({HEAD})" if of_heads else ""
    how = {"element": f"element by element, in {touched}", "tensor": f"as {touched}"}.get(
        unit, f"as {chosen} in {touched}"
    )
    text = (
        f"{printable(settings['method'])} selected {share(summary['selected_fraction'])} of {considered(report)} "
        f"({count(summary['selected'])}), {how}."
    )
    layers = [row for row in report["layers"] if row["selected"]]
    if len(report["layers"]) < 2 or not layers:
        return text
    top = max(layers, key=lambda row: row["selected"])
    stack = (
        f" of {printable(top['stack'])}" if len({row["stack"] for row in report["layers"] if row["stack"]}) > 1 else ""
    )
    where = "outside the layers" if top["layer"] is None else f"in layer {top['layer']}{stack}"
    if top["selected"] == summary["selected"]:
        return f"{text} All of them lie {where}."
    return f"{text} The largest part, {share(top['selected'] / summary['selected'])} of the selection, lies {where}."


def considered(report: Report) -> str:
    """What the selected share is a share of."""
    numel = report["summary"]["numel"]
    projections = " of the attention projections" if report["settings"]["granularity"] == "head" else ""
    return f"{count(numel)} {plural('parameter', numel)}{projections}"


def names(report: Report) -> str:
    """What was localized in what: the checkpoint, its adapter and its base."""
    text = printable(report["model"]["name"])
    if report.get("adapter"):
        text += f" + {printable(report['adapter']['name'])}"
    return text + (f" (from {printable(report['base']['name'])})" if report.get("base") else "")


def budget(settings: Mapping[str, Any]) -> str:
    """What the selection was to be."""
    if settings.get("budget") is None:
        mu, sigma = (UNDEFINED if settings.get(key) is None else f"{settings[key]:g}" for key in ("mu", "sigma"))
        return f"tensors with a cosine below mu = {mu} and a mean |G_F| above sigma = {sigma}"
    asked = settings["budget"]
    unit = settings["granularity"]
    text = f"{asked[:-1].strip()} % of the parameters" if asked.endswith("%") else f"{asked} {plural(unit, int(asked))}"
    return text + (" of every layer, and of every tensor outside of layers" if settings["per_layer_budget"] else "")


def gradient(settings: Mapping[str, Any]) -> str:
    """What |G_F| and |G_R| stand for, with its unit: it depends on how the gradients of the examples were added up."""
    return {
        "absolute": "mean |gradient| over examples and parameters, nats per weight unit",
        "squared": "root of the mean squared gradient over examples and parameters, nats per weight unit",
    }.get(
        settings.get("accumulate") or "", "mean |gradient of the mean loss| over the parameters, nats per weight unit"
    )


def score(settings: Mapping[str, Any]) -> str:
    """The unit of a score; "" where it has none, as a ratio, or that of something squared."""
    return "" if settings.get("accumulate") == "squared" else _SCORES.get(settings["method"], "")


def labels(report: Report) -> str:
    """What was done to the answers that losses and gradients are of; "" where nothing was."""
    settings = report["settings"]
    kind, _, fraction = (settings.get("labels") or "").partition(":")
    if kind != "random" or report.get("path"):  # losses at the ends of a path are always of true answers
        return ""
    draws = settings["draws"]
    return f"{100 * float(fraction):.3g} % of them replaced at random, {draws:,} {plural('draw', draws)}"


def loss(data: Mapping[str, Any] | None) -> str:
    """Mean ± standard deviation over the examples, in nats per token."""
    if not data or data.get("loss") is None:
        return UNDEFINED
    spread = data.get("loss_sd")
    return number(data["loss"]) + ("" if spread is None else f" ± {number(spread)}")


def data(report: Report, side: str) -> str:
    """One of the two data sets in a line: its name, its size and its loss; "" where there is none."""
    found = report.get(side)
    if not found:
        return ""
    examples, tokens = found["examples"], found["tokens"]
    text = f"{side.capitalize()} set {printable(found['name'])}: n = {examples:,} {plural('example', examples)}"
    if found["loss"] is None:
        return f"{text}."
    replaced = f" ({said})" if (said := labels(report)) else ""
    return (
        f"{text}, {count(tokens)} {plural('token', tokens)} in the loss{replaced}, {loss(found)} nats per token (mean ± sd "
        "over examples)."
    )


def stability(report: Report) -> str:
    """How alike the selections from two halves of the forget set are; "" where that was not measured."""
    found = report.get("stability")
    if not found:
        return ""
    first, second = found["halves"]
    return (
        f"Stability: the selections from two halves of the forget set (n = {first:,} and {second:,} examples) have a Jaccard "
        f"overlap of {overlap(found['jaccard'])}; random ones with the same share of every tensor would have {overlap(found['expected_of_random'])}."
    )


def overlap(jaccard: float | None) -> str:
    """A Jaccard index, 0 to 1."""
    return UNDEFINED if jaccard is None else number(jaccard)


def control(report: Report) -> str:
    """Where the random mask is; "" where there is none."""
    found = report.get("control")
    if not found:
        return ""
    shared = found.get("jaccard")
    return (
        f"Control: {printable(found['mask'])} selects {count(found['selected'])} parameters at random (seed "
        f"{found['seed']}), where the selection has {count(report['summary']['selected'])}"
        f"{'' if shared is None else f'; their Jaccard overlap is {overlap(shared)}'}."
    )


def path(report: Report) -> str:
    """Whether the attributions along the path add up to the drop of the loss; "" without a path."""
    found = report.get("path")
    if not found:
        return ""
    sides = (_completed(side, one) for side in ("forget", "retain") if (one := found.get(side)))
    return f"Completeness over {found['points']:,} points of the path: {'; '.join(sides)}."


def _completed(side: str, one: Mapping[str, Any]) -> str:
    attributed, drop = alike(one["attributed"], one["drop"])
    error = "some parameters were left out" if one["error"] is None else f"error {share(one['error'])}"
    return f"the {side} loss fell by {drop} nats per token, and the attributions add up to {attributed} ({error})"


def alike(*values: float) -> list[str]:
    """Numbers to compare, all with the same decimals, and four digits of the largest.

    >>> alike(6.5954, 6.55)
    ['6.595', '6.550']
    """
    largest = max(map(abs, values))
    decimals = max(0, 3 - floor(log10(largest))) if largest else 0
    return [f"{value:.{decimals}f}" for value in values]
