"""The report in sentences: what changed, what is lost, what to worry about. Every number with its unit and its n.

>>> headline({"summary": {"tensors": 3, "tensors_changed": 0, "numel": 1200, "changed": 0, "changed_fraction": 0.0}})
'Nothing changed: all 1,200 parameters in 3 tensors are equal bit for bit.'
"""

from collections.abc import Mapping
from typing import Any

from editkit.diffing.measures import MEASURES, count, crossed, number, share
from editkit.errors import listed, printable

Report = Mapping[str, Any]

PROJECTION_TOLERANCE = 0.01
"""How far the projection of an edit may lie from the expected one, relative to it, before the report warns."""


def headline(report: Report) -> str:
    """What changed, in one or two sentences."""
    summary = report["summary"]
    parameters = f"{count(summary['numel'])} {plural('parameter', summary['numel'])}"
    tensors = f"{summary['tensors']:,} {plural('tensor', summary['tensors'])}"
    if not summary["tensors"]:
        return "Nothing to compare: no tensor is in both checkpoints with one shape and dtype."
    if not summary["changed"]:
        if other := ", ".join(structure(report).values()):
            return f"{other}; {parameters} in {tensors} that both sides have are equal bit for bit."
        return f"Nothing changed: all {parameters} in {tensors} are equal bit for bit."
    text = (
        f"Of {parameters} in {tensors}, {share(summary['changed_fraction'])} changed "
        f"({count(summary['changed'])}, in {summary['tensors_changed']:,} {plural('tensor', summary['tensors_changed'])})."
    )
    if summary.get("rel_l2") is not None:
        text += f" The change measures {share(summary['rel_l2'])} of the base"
        text += f", and is largest in {most}." if (most := _where_most(report)) else "."
    return text


def structure(report: Report) -> dict[str, str]:
    """What the measures do not cover, by kind: {"added": "2 tensors were added"}, for each kind that there is."""
    kinds = {kind: len(report.get(kind, ())) for kind in ("added", "removed", "reshaped", "retyped")}
    return {kind: f"{n:,} {plural('tensor', n)} {'was' if n == 1 else 'were'} {kind}" for kind, n in kinds.items() if n}


def audit(report: Report) -> str:
    """What changed outside and inside of the mask, with every count in full; "" where there was no mask."""
    mask = report.get("mask")
    if mask is None:
        return ""
    tensors = sum(bool(item["changed"]) for item in mask["outside"])
    rest, touched = report["summary"]["numel"] - mask["selected"], mask["changed_outside"]
    where = f", in {tensors:,} {plural('tensor', tensors)}" if tensors else ""
    others = [*structure(report).values()]
    if differing := len(report.get("settings", ())):
        others.append(f"{differing} {plural('setting', differing)} of the adapters changed")
    beyond = "".join([where, *(f"; {text}" for text in others)])
    return (
        f"Outside the mask {mask['name']}: {touched:,} of {rest:,} elements changed{beyond}. "
        f"Inside: {mask['changed_inside']:,} of {mask['selected']:,}."
    )


def outside_mask(report: Report) -> list[tuple[str, str]]:
    """(name, what happened) of all that changed outside of the mask."""
    return [(printable(item["name"]), _strayed(item)) for item in (report.get("mask") or {}).get("outside", ())]


def _strayed(item: Mapping[str, Any]) -> str:
    said = [] if item["kind"] == "changed" else [item["kind"]]
    if n := item["changed"]:
        said.append(f"{n:,} {plural('element', n)} changed, first at index {item['first_index']:,}, counted from 0")
    return ", ".join(said)


def survival(report: Report) -> list[tuple[int, float]]:
    """(bits, share of the changed elements that land on another code when quantized), where known."""
    shares = ((bits, crossed(report["summary"], bits)) for bits in (8, 4))
    return [(bits, value) for bits, value in shares if value is not None]


def survival_text(report: Report) -> str:
    """Quantization survival in a sentence, or "" where it is unknown."""
    found = survival(report)
    if not found:
        return ""
    shares = " and ".join(f"{share(value)} after quantization to {bits} bits" for bits, value in found)
    changed = report["summary"]["changed"]
    return f"Of the {count(changed)} changed {plural('element', changed)} would still differ: {shares} (round to nearest). The rest is lost."


def warnings(report: Report) -> list[str]:
    """What must not be overlooked: stored codes, settings of adapters, NaN and Inf, an edit that missed its target."""
    summary, found = report["summary"], []
    for method in dict.fromkeys(report[side].get("quantization") for side in ("base", "edited")):
        if method:
            found.append(
                f"Quantized ({printable(method)}): codes are compared as stored, not the weights they stand for."
            )
    if settings := report.get("settings"):
        values = (f"{item['name']} {item['base']} → {item['edited']}" for item in settings)
        found.append(
            f"Equal factors do not mean an equal change, the adapters' settings differ: {printable(listed(values))}."
        )
    for kind, label in (("nan", "NaN"), ("inf", "Inf")):
        before, after = summary.get(f"{kind}_before") or 0, summary.get(f"{kind}_after") or 0
        if before or after:
            affected = (row for row in report["tensors"] if row.get(f"{kind}_before") or row.get(f"{kind}_after"))
            where = listed((printable(row["name"]) for row in affected), limit=3)
            found.append(
                f"{label}: {count(before)} elements before, {count(after)} after the edit (in {where}). "
                "Norms and means leave these elements out."
            )
    edit: Mapping[str, Any] = report.get("edit") or {}
    reached = edit.get("projection")
    expected = edit.get("expected_projection")
    if reached is not None and expected is not None and missed(reached, expected):
        found.append(
            f"The edit missed its target: the applied change projects {number(reached)} on the task vector instead of "
            f"{number(expected)}. {_reason(edit)}"
        )
    return found


def missed(projection: float, expected: float | None) -> bool:
    """Whether an applied change lies too far from what was asked for; where that is unknown it never counts as missed."""
    return expected is not None and abs(projection - expected) > PROJECTION_TOLERANCE * abs(expected)


def _reason(edit: Mapping[str, Any]) -> str:
    if (lost := edit.get("lost_to_rounding")) is not None and lost > 0:
        return f"Rounding to the storage format lost {share(lost)} of the requested element changes."
    return "Rounding lost no element, so look for masks, rules per tensor, or NaN."


def _where_most(report: Report) -> str:
    rows = [row for row in report.get("layers", ()) if row.get("rel_l2")]
    if len(rows) < 2:
        return ""
    top = max(rows, key=lambda row: row["rel_l2"])
    written = MEASURES["rel_l2"].write(top["rel_l2"])
    if top.get("layer") is None:
        return f"the tensors outside the layers ({written})"
    stack = f" of {printable(top['stack'])}" if len({row["stack"] for row in rows if row["stack"]}) > 1 else ""
    return f"layer {top['layer']}{stack} ({written})"


def plural(noun: str, n: int) -> str:
    """The noun, with an s unless n is 1."""
    return noun if n == 1 else f"{noun}s"
