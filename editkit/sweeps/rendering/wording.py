"""A sweep in words: what was swept, where the knee is, what was chosen."""

from typing import Any

from editkit.diffing.rendering.wording import plural
from editkit.errors import listed, printable
from editkit.sweeps.rendering.marks import AXES, Report, plain, rule, value
from editkit.sweeps.report import named, refusal

DERIVED = (
    "forgetting: 1 - token accuracy on forget / that of the unedited model. retention: token accuracy on retain / that of the "
    "unedited model. Both are teacher-forced, with 95 % paired bootstrap intervals over examples."
)
LEGEND = "±: half the width of the 95 % interval; its limits are in sweep.json. front: no other point beats it."


def names(report: Report) -> str:
    """What was subtracted from what."""
    origin = report["vector"]
    what = origin.get("tuned") or origin.get("adapter") or origin.get("file") or "a vector"
    before = f" - {origin['base']}" if origin.get("tuned") and origin.get("base") != report["model"]["name"] else ""
    vector = f"({what}{before})" if before else what
    return printable(f"{report['model']['name']} - alpha * {vector}")


def headline(report: Report) -> str:
    """The point that matters, with its two values; or why there is none."""
    place, role = report["chosen"], "Chosen"
    if place is None and rule(report) is None:
        place, role = report["knee"], "The knee"
    if place is None:
        return without(report)
    said = [f"{name} {value(report, place, name)}" for name in AXES if name in report["points"][place]["values"]]
    known = [text for text in said if not text.endswith("–")]
    return f"{role}: {printable(named(report, place))}, {' and '.join(known)}."


def without(report: Report) -> str:
    """Why there is no point to recommend."""
    found = rule(report)
    if found is not None:
        text = refusal(report, found)
        return printable(f"{text[0].upper()}{text[1:]}.")
    if not report["front"]:
        return "No front: without a retain set, or where the unedited model knows nothing of it, retention is unknown."
    n = len(report["front"])
    return f"No knee: the front of {n} {plural('point', n)} has none beyond the line between its ends."


def swept(report: Report) -> str:
    """How many points there are, and of what."""
    n = len(report["points"]) - 1
    choices = len(report["choices"])
    of = f" ({len(report['settings']['alphas'])} alphas x {choices} choices of tensors)" if choices > 1 else ""
    sizes = listed(f"{one['set']} {one['examples']:,}" for one in report["sets"])
    return f"{n} {plural('point', n)}{of} and the unedited model, on n = {sizes} examples."


def level(report: Report) -> str:
    """How far forgetting would have to go, "" without a reference."""
    scores: dict[str, Any] = (report["reference"] or {}).get("values", {})
    if "forgetting" not in scores:
        return ""
    one = scores["forgetting"]
    return f"A model that never saw the forget set ({printable(report['reference']['name'])}) is at forgetting {plain(one['value'])}."
