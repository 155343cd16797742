"""Progress of long work on stderr: a bar with rate and time left on a terminal, plain lines elsewhere, silence with --quiet."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Advance = Callable[[int, int], None]  # (done, total), called from any thread
SECONDS_BETWEEN_LINES = 5.0


@contextmanager
def progress(label: str, *, unit: str = "bytes", quiet: bool = False) -> Iterator[Advance | None]:
    """What to hand to a library function as `progress=`. `unit` is "bytes" or a plural noun such as "steps".

    with progress("negate", quiet=quiet) as advance:
        editkit.negate(model, vector, output, alpha=1.0, progress=advance)
    """
    if quiet:
        yield None
    elif sys.stderr.isatty():
        with _bar(label, unit) as advance:
            yield advance
    else:
        yield _lines(label, unit)


@contextmanager
def _bar(label: str, unit: str) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    amount = (
        (DownloadColumn(), TransferSpeedColumn())
        if unit == "bytes"
        else (TextColumn("{task.completed:.0f}/{task.total:.0f} " + unit), TextColumn("{task.fields[rate]}"))
    )
    columns = (TextColumn("{task.description}"), BarColumn(), *amount, TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = None
        started = time.monotonic()

        def advance(done: int, total: int) -> None:
            nonlocal task
            if task is None:
                task = bar.add_task(label, total=total, rate="")
            bar.update(task, completed=done, total=total, rate=_rate(done, time.monotonic() - started, unit))

        yield advance


def _lines(label: str, unit: str) -> Advance:
    started = said = time.monotonic()
    lock = threading.Lock()

    def advance(done: int, total: int) -> None:
        nonlocal said
        with lock:
            now = time.monotonic()
            if now - said < SECONDS_BETWEEN_LINES:
                return
            said = now
        left = (now - started) * (total - done) / done if done else float("nan")
        left_text = f", {left:.0f} s left" if done else ""
        text = f"{label}: {done / max(total, 1):.0%} of {_amount(total, unit)}, {_rate(done, now - started, unit)}{left_text}"
        print(text, file=sys.stderr, flush=True)

    return advance


def _amount(count: float, unit: str) -> str:
    if unit != "bytes":
        return f"{count:,.4g} {unit}" if count < 100 else f"{count:,.0f} {unit}"
    for name in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            break
        count /= 1000
    else:
        name = "TB"
    return f"{count:.3g} {name}"


def _rate(done: int, seconds: float, unit: str) -> str:
    return f"{_amount(done / max(seconds, 1e-9), unit)}/s"
