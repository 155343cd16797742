"""The verdicts for the terminal, 80 columns wide: an attack a line, accuracies before and after, what came back, and what that says."""

from collections.abc import Mapping
from typing import Any

from editkit.attacks.rendering import wording
from editkit.attacks.rendering.wording import around, both, word
from editkit.attacks.verdict import LEAKS, RECOVERS, SURVIVES
from editkit.diffing.measures import UNDEFINED
from editkit.diffing.rendering.table import Sheet

PLAIN = 80  # columns, where the text does not go to a terminal
STYLES = {RECOVERS: "bold red", LEAKS: "bold red", SURVIVES: "bold green"}


def verdict_table(report: Mapping[str, Any], *, color: bool) -> str:
    """Headline, verdicts, curves and membership. With `color`: ANSI styles and the width of the terminal."""
    sheet = Sheet(color)
    sheet.say(", ".join(wording.names(report)), "dim")
    sheet.say(wording.headline(report), "bold")
    if report["verdicts"]:
        sheet.say("")
        sheet.say("Token accuracy on the forget set, %, before → after the attack.", "dim")
        sheet.say(wording.originals(report), "dim")
        header: tuple[str, ...] = ("attack", "edited", "control", "came back, %", "verdict")
        _print(sheet, header, [_cells(one) for one in report["verdicts"]], color)
    for one in report["curves"]:
        sheet.say(f"{one['label'].capitalize()}: {' '.join(wording.curve(one)[1:])}")
    if report["membership"]:
        sheet.say("")
        sheet.say(f"Membership, AUC of the forget set above the unseen set{wording.texts(report)}.", "dim")
        header = ("score", *wording.SIDES, "TPR at 1 %\nFPR, edited", "verdict")
        _print(sheet, header, [_scores(one) for one in report["membership"]], color)
        sheet.say(f"{wording.BELOW} PrivLeak is in report.html.", "dim")
    for text in (*wording.reasons(report), *wording.skipped(report)):
        sheet.say(text, "dim")
    if report["verdicts"]:
        sheet.say(
            "came back: share of what the edit took away; with a control, only what goes beyond what the attack brings to that.", "dim"
        )  # fmt: skip
    if report["verdicts"] or report["membership"]:
        sheet.say("±: half the width of the 95 % bootstrap interval over examples; report.html has its limits.", "dim")
    return sheet.text()


def _cells(one: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        one["label"],
        both(one, "edited"),
        both(one, "control"),
        around(one["judged"], percent=True),
        word(one["verdict"]),
    )


def _scores(one: Mapping[str, Any]) -> tuple[str, ...]:
    roles = one["roles"]
    areas = [around(roles[role]["auc"]) if role in roles else UNDEFINED for role in wording.SIDES.values()]
    rate = around(roles["model"]["tpr_at_fpr"]) if "model" in roles else UNDEFINED
    return one["label"], *areas, rate, word(one["verdict"])


def _print(sheet: Sheet, header: tuple[str, ...], rows: list[tuple[str, ...]], color: bool) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True, header_style="dim")
    for place, name in enumerate(header):
        table.add_column(
            name, justify="left" if place in (0, len(header) - 1) else "right", overflow="fold", no_wrap=place > 0
        )
    for row in rows:
        table.add_row(*map(Text, row[:-1]), Text(row[-1], style=STYLES.get(row[-1], "")))
    sheet.say("")
    sheet.console.print(table, width=sheet.width if color else PLAIN)
    sheet.say("")
