"""Words and rules that an argument may be: read before anything runs, by what the functions read them with.

>>> misread("diff", "fail_if", ["l2 > 2", "l3 > 2"])[:53]
"is 'l3 > 2': unknown measure 'l3' in the rule 'l3 > 2"
>>> misread("unlearn", "method", "npo+gd"), misread("negate", "alpha", 1.0)
(None, None)
"""

from typing import Any

from editkit.errors import EditError, meant


def misread(function: str, argument: str, value: Any) -> str | None:
    """What is wrong with a value of an argument, None where nothing is, or where only the function can say."""
    for one in value if isinstance(value, list) else [value]:
        if isinstance(one, str):
            try:
                _read(function, argument, one)
            except EditError as error:
                return f"is {one!r}: {error}"
    return None


def _read(function: str, argument: str, text: str) -> None:
    match function, argument:
        case "unlearn", "method":
            from editkit.unlearning.methods import method

            method(text)
        case "unlearn", "stop":
            from editkit.unlearning import rules

            rules.parse(text)
        case "localize", "method":
            from editkit.localization.method import method as localization

            localization(text)
        case "sweep", "choose":
            from editkit.sweeps import choice

            choice.parse(text)
        case "diff", "fail_if":
            from editkit.diffing.gates import parse_rule

            parse_rule(text)
        case "merge", "method":
            from editkit.merging.methods import REGISTRY

            if text not in REGISTRY:
                raise EditError(f"there is no method {text!r}: {meant(text, REGISTRY)}")
        case _, "rounding":
            from editkit.editing.negate import check_settings

            check_settings(1.0, {}, text)
        case _, "metrics" | "suites":
            from editkit.evaluation.suites import chosen

            chosen(**{argument: [text]})
