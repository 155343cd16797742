"""The verdicts for the terminal: an attack a line, accuracies before and after, what came back, and what that says."""

from collections.abc import Mapping
from typing import Any

from editkit.attacks.rendering import wording
from editkit.attacks.rendering.wording import area, interval, percent, word
from editkit.attacks.verdict import LEAKS, RECOVERS, SURVIVES
from editkit.diffing.measures import UNDEFINED
from editkit.diffing.rendering.table import Sheet

STYLES = {RECOVERS: "bold red", LEAKS: "bold red", SURVIVES: "bold green"}


def verdict_table(report: Mapping[str, Any], *, color: bool) -> str:
    """Headline, verdicts, curves and membership. With `color`: ANSI styles and the width of the terminal."""
    sheet = Sheet(color)
    sheet.say(", ".join(wording.names(report)), "dim")
    sheet.say(wording.headline(report), "bold")
    if report["verdicts"]:
        sheet.say("")
        sheet.say("Token accuracy on the forget set, %, before → after the attack, with 95 % interval", "dim")
        header = ("attack", "edited", "original", "control", "came back, %", "n", "verdict")
        _print(sheet, header, [_cells(one) for one in report["verdicts"]])
    for one in report["curves"]:
        sheet.say(f"{one['label'].capitalize()}: {' '.join(wording.curve(one)[1:])}")
    if report["membership"]:
        sheet.say("")
        sheet.say("Membership, AUC of the forget set above the unseen set, with 95 % interval", "dim")
        header = ("score", "edited", "original", "control", "TPR at 1 % FPR", "PrivLeak", "verdict")
        _print(sheet, header, [_scores(one) for one in report["membership"]])
    for text in (*wording.reasons(report), *wording.skipped(report)):
        sheet.say(text, "dim")
    if report["verdicts"]:
        sheet.say(
            "came back: share of what the edit took away; with a control, only what goes beyond what the attack brings to that.", "dim"
        )  # fmt: skip
    return sheet.text()


def _cells(one: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        one["label"],
        f"{percent(one['edited_before'])} → {interval(one['edited_after'])}",
        _both(one, "original"),
        _both(one, "control"),
        interval(one["judged"]),
        f"{one['n']:,}",
        word(one["verdict"]),
    )


def _both(one: Mapping[str, Any], side: str) -> str:
    before, after = one[f"{side}_before"], one[f"{side}_after"]
    return f"{percent(before)} → {percent(after)}" if wording.known(after) else percent(before)


def _scores(one: Mapping[str, Any]) -> tuple[str, ...]:
    roles = one["roles"]
    areas = [area(roles[role]["auc"]) if role in roles else UNDEFINED for role in wording.SIDES.values()]
    rate = area(roles["model"]["tpr_at_fpr"]) if "model" in roles else UNDEFINED
    leak = one.get("priv_leak")
    return one["label"], *areas, rate, f"{leak['value']:+.3f}" if leak else UNDEFINED, word(one["verdict"])


def _print(sheet: Sheet, header: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="dim")
    for place, name in enumerate(header):
        table.add_column(name, justify="left" if place in (0, len(header) - 1) else "right", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row[:-1]), Text(row[-1], style=STYLES.get(row[-1], "")))
    sheet.console.print(table)
