"""The errors a user can see: one sentence each (what is wrong, where, what to do) and an exit code.

>>> raise EditError("model.safetensors is truncated: copy it again")
Traceback (most recent call last):
...
editkit.errors.EditError: model.safetensors is truncated: copy it again
"""

from collections.abc import Iterable
from difflib import get_close_matches


class EditError(Exception):
    """Input that editkit cannot work with. The command line prints the sentence and exits with `exit_code`."""

    exit_code = 2


class NothingChanged(EditError):
    """The work was done and no weight differs from the base. `finetune` then leaves no output; `negate` warns instead."""

    exit_code = 1


class GateFailed(EditError):
    """A rule given with --fail-if holds, or --exit-code found a difference."""

    exit_code = 1


def listed(items: Iterable[object], limit: int = 20) -> str:
    """All offenders in one line, the tail counted rather than printed.

    >>> listed(["a", "b"])
    'a, b'
    >>> listed(range(30), limit=3)
    '0, 1, 2 and 27 more'
    """
    texts = [str(item) for item in items]
    shown = ", ".join(texts[:limit])
    return shown if len(texts) <= limit else f"{shown} and {len(texts) - limit} more"


def meant(name: object, known: Iterable[str]) -> str:
    """The nearest of the known names, or all of them.

    >>> meant("unlern", ["unlearn", "diff"]), meant("x", ["unlearn", "diff"]), meant("x", [])
    ('did you mean unlearn?', 'there are unlearn, diff', 'there are none')
    """
    known = list(known)
    near = get_close_matches(str(name), known, n=1)
    return f"did you mean {near[0]}?" if near else f"there are {listed(known, 60) or 'none'}"


def first_line(error: BaseException) -> str:
    """What a library says of a failure, without the lists and hints that may follow.

    >>> first_line(ValueError("no such model\\nchoose one of 400 ..."))
    'no such model'
    """
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def printable(text: str) -> str:
    """Text of strangers that is safe to show: control, bidirectional and unpaired characters come out as escapes.

    >>> printable("a\\x1b[2Jb\\u202e.weight")
    'a\\\\x1b[2Jb\\\\u202e.weight'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
