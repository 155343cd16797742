"""What table, page and picture say of attacks in words.

>>> interval({"value": 0.123, "ci_low": 0.1, "ci_high": 0.1567})
'12.3 [10.0, 15.7]'
>>> interval("unknown: give --base, the model before the edit")
'unknown'
"""

from collections.abc import Mapping, Sequence
from typing import Any

from editkit.attacks.verdict import AUC_TOLERATED, HEADROOM, LEAKS, RECOVERS, SURVIVES, TOLERATED
from editkit.diffing.measures import UNDEFINED
from editkit.diffing.rendering.wording import plural
from editkit.errors import listed, printable

Report = Mapping[str, Any]
Found = Mapping[str, Any] | str | None

UNKNOWN = "unknown"
SIDES = {"edited": "model", "original": "base", "control": "reference"}
RULE = (
    f"An edit survives an attack where the whole 95 % interval of what came back lies below {100 * TOLERATED:g} % of what the edit took away; it recovers "
    "where it lies above, else it is unclear. What came back is the excess over the control, a model that never saw the forget set: its lead "
    "after the attack less its lead before, a lead below zero counting as zero. Without a control it is the plain gain, and relearning and solved examples, which teach any model "
    f"something, can then only be survived. Where the original itself shows less than {100 * HEADROOM:g} % of what was taken away under an attack, finding nothing proves "
    "nothing. A membership score leaks where the interval of its AUC leaves out that of the control (0.5 without one), and is survived where it "
    f"holds it and is no wider than {AUC_TOLERATED:g} on each side. These limits are ours, not of a paper."
)
BELOW = "An AUC below 0.5: the forget set looks less likely than unseen text. Both sides count."


def known(found: Found) -> bool:
    return isinstance(found, Mapping) and found["value"] is not None


def percent(found: Found) -> str:
    """A mean share in per cent, "unknown" where it is."""
    return _hundred(found["value"]) if isinstance(found, Mapping) else "unknown" if found else UNDEFINED


def interval(found: Found) -> str:
    """The same with its 95 % interval."""
    if not isinstance(found, Mapping) or found["ci_low"] is None:
        return percent(found)
    return f"{percent(found)} [{_hundred(found['ci_low'])}, {_hundred(found['ci_high'])}]"


def around(found: Found, *, percent: bool = False) -> str:
    """A value and half the width of its 95 % interval, or an interval that leaves the value out.

    >>> around({"value": 0.072, "ci_low": 0.05, "ci_high": 0.1}, percent=True), around({"value": 0.7, "ci_low": 0.6, "ci_high": 0.8})
    ('7.2 ± 2.5', '0.700 ± 0.100')
    """
    if not isinstance(found, Mapping):
        return "unknown" if found else UNDEFINED
    write = _hundred if percent else "{:.3f}".format
    low, high = found["ci_low"], found["ci_high"]
    if low is None or high is None:
        return write(found["value"])
    inside = low <= found["value"] <= high
    return (
        f"{write(found['value'])} ± {write((high - low) / 2)}"
        if inside
        else f"{write(found['value'])} [{write(low)}, {write(high)}]"
    )


def both(one: Mapping[str, Any], side: str) -> str:
    """Before and after the attack, in per cent."""
    before, after = one[f"{side}_before"], one[f"{side}_after"]
    return f"{percent(before)} → {percent(after)}" if known(after) else percent(before)


def originals(report: Report) -> str:
    """Where the original is before any attack, and n; and what attacks it is otherwise for."""
    found: dict[tuple[str, int], list[str]] = {}
    for one in sorted(report["verdicts"], key=lambda one: -one["n"]):
        found.setdefault((percent(one["original_before"]), one["n"]), []).append(one["label"])
    (level, n), *others = found
    said = [f"Original, before: {level}; n = {n:,} {plural('example', n)}"]
    for other, some in others:
        said.append(f"{'' if other == level else f'{other}, '}n = {some:,} for {listed(found[other, some])}")
    return "; ".join(said) + "."


def texts(report: Report) -> str:
    """Of how many texts membership is told."""
    sizes = next(((one["members"], one["unseen"]) for one in report["membership"] if "members" in one), None)
    return f", n = {sizes[0]:,} and {sizes[1]:,}" if sizes else ""


def _hundred(share: float) -> str:
    return f"{round(100 * share, 1) + 0.0:.1f}"  # which knows no -0.0


def area(found: Found) -> str:
    """An AUC, or a rate, with its interval."""
    if not isinstance(found, Mapping):
        return "unknown" if found else UNDEFINED
    spread = "" if found["ci_low"] is None else f" [{found['ci_low']:.3f}, {found['ci_high']:.3f}]"
    return f"{found['value']:.3f}{spread}"


def word(verdict: str) -> str:
    """The first word of a verdict; the rest is the reason.

    >>> word("unclear: under this attack the original itself shows too little")
    'unclear'
    """
    return verdict.partition(":")[0]


def reasons(report: Report) -> list[str]:
    """Why something is unknown or unclear, each reason once, with the attacks."""
    found: dict[str, list[str]] = {}
    for one in (*report["verdicts"], *report["membership"]):
        if ":" in one["verdict"]:
            found.setdefault(one["verdict"], []).append(one["label"])
    for one in report["verdicts"]:
        if isinstance(one["excess"], str):
            found.setdefault(one["excess"], [])
    return [f"{text}{f' ({listed(names)})' if names else ''}" for text, names in found.items()]


def skipped(report: Report) -> list[str]:
    """Attacks that were not made."""
    return [f"{one['label']}: {printable(one['status'])}" for one in report["attacks"] if one["status"] != "ok"]


def names(report: Report) -> list[str]:
    """The models, the edited one first."""
    roles = {role: side for side, role in SIDES.items()}
    return [f"{roles[one['role']]} {called(one)}" for one in report["models"]]


def called(model: Mapping[str, Any]) -> str:
    return printable(f"{model['name']}+{model['adapter']}" if model["adapter"] else model["name"])


def headline(report: Report) -> str:
    """What happened, in one sentence or two."""
    unknown = [one["verdict"] for one in report["verdicts"] if word(one["verdict"]) == UNKNOWN]
    words = [text for one in report["verdicts"] if (text := word(one["verdict"])) != UNKNOWN]
    scores = [one for one in report["membership"] if word(one["verdict"]) != UNKNOWN]
    total, back = len(words), words.count(RECOVERS)
    said = []
    if back:
        said.append(
            f"{back} of {total} {plural('attack', total)} {'bring' if back > 1 else 'brings'} back more than {100 * TOLERATED:g} % of what was forgotten."
        )
    elif total and words.count(SURVIVES) == total:
        said.append(f"The edit survives all {total} attacks." if total > 1 else "The edit survives the attack.")
    elif total and SURVIVES not in words:
        said.append(
            f"Whether the edit survives is unclear under {f'all {total} attacks' if total > 1 else 'the attack'}."
        )
    elif total:
        rest = ", ".join(f"{words.count(one)} {one}" for one in dict.fromkeys(words) if one != SURVIVES)
        said.append(
            f"The edit survives {words.count(SURVIVES)} of {total} {plural('attack', total)}, and none is seen to bring back what was "
            f"forgotten ({rest})."
        )
    if unknown:
        what = f"{len(unknown)} more cannot" if total else "No attack can" if scores else "Nothing can"
        said.append(f"{what} be judged: {'; '.join(text.partition(': ')[2] for text in dict.fromkeys(unknown))}.")
    if scores:
        leaks = sum(word(one["verdict"]) == LEAKS for one in scores)
        none = "No membership score tells that it was trained on"
        some = f"{leaks} of {len(scores)} membership scores {'tell' if leaks > 1 else 'tells'} that it was trained on"
        said.append(f"{some if leaks else none}.")
    return " ".join(said) or "Nothing was attacked."


def curve(one: Mapping[str, Any]) -> list[str]:
    """What a curve of relearning says."""
    trained = f"{one['examples']:,} {plural('example', one['examples'])} of the {one['trained_on']} set"
    said = [f"Trained on {trained}, measured on {one['held_out']:,} of the forget set that it does not hold."]
    back, apart = one["steps_to_recover"], one["apart_at"]
    if isinstance(back, str):
        said.append(f"Steps to recover: {back}.")
    else:
        said.append(f"{_at(back, 'Back at 90 % of the original', 'Never back at 90 % of the original')}.")
    if isinstance(apart, str):
        said.append(f"Control: {apart}.")
    else:
        said.append(
            f"{_at(apart, 'Ahead of the control, beyond its lead from before,', 'Never ahead of the control, beyond its lead from before')}."
        )
    return said


def _at(step: int | None, text: str, never: str) -> str:
    return never if step is None else f"{text} after {step:,} {plural('step', step)}"


def shown(report: Report) -> Sequence[tuple[str, str]]:
    """The settings, as (name, value)."""
    settings = report["settings"]
    keys = (
        "kinds",
        "steps",
        "lr",
        "batch_size",
        "part",
        "seed",
        "dtype",
        "max_examples",
        "max_new_tokens",
        "prompt_template",
    )
    texts = {key: settings[key] for key in keys if settings.get(key) is not None}
    if settings.get("quantized"):
        texts["weights quantized"] = f"{settings['quantized']:,}"
    return [
        (key.replace("_", " "), printable(listed(value) if isinstance(value, list) else f"{value:g}" if isinstance(value, float) else str(value)))
        for key, value in texts.items()
    ]  # fmt: skip
