"""Errors become one line and an exit code; progress shows itself as the stream allows."""

import os
import shlex
import signal
import subprocess
import sys
import time

import click
import pytest
from click.testing import CliRunner
from editkit_cli import options
from editkit_cli.main import Commands, main
from editkit_cli.progress import progress

import editkit
from editkit import EditError, GateFailed, NothingChanged


def run(error: BaseException | None, *arguments: str):
    group = Commands("editkit")

    @click.command("do")
    @options.output("the edited checkpoint")
    def do(output):
        if error:
            raise error

    group.get_command = lambda context, name: do if name == "do" else None
    group.list_commands = lambda context: ["do"]
    return CliRunner().invoke(group, ["do", *(arguments or ("-o", "out"))], prog_name="editkit")


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (None, 0, ""),
        (EditError("model is\ntruncated: copy it again"), 2, "editkit: model is truncated: copy it again\n"),
        (NothingChanged("no tensor changed"), 1, "editkit: no tensor changed\n"),
        (GateFailed("rel_l2 > 0 holds"), 1, "editkit: rel_l2 > 0 holds\n"),
        (PermissionError(13, "Permission denied", "out"), 2, "editkit: Permission denied: out\n"),
        (OSError("odd"), 2, "editkit: odd\n"),
        (click.UsageError("alpha is missing"), 2, "editkit: alpha is missing. See 'editkit do --help'.\n"),
    ],
)
def test_errors_become_one_line_and_a_code(error, code, line):
    result = run(error)
    assert (result.exit_code, result.stderr, result.stdout) == (code, line, "")


def test_usage_errors_point_at_the_help():
    result = run(None, "--nope")
    assert result.exit_code == 2
    assert result.stderr.startswith("editkit: No such option") and result.stderr.endswith(
        ". See 'editkit do --help'.\n"
    )
    assert "Missing option '-o'" in run(None, "--").stderr


def test_an_interrupt_leaves_without_a_traceback():
    result = run(KeyboardInterrupt())
    assert result.exit_code == 130 and result.stderr.strip() == ""


@pytest.mark.parametrize(("stop", "code"), [(KeyboardInterrupt(), 130), (SystemExit(143), 143)])
def test_an_interrupted_localization_says_how_it_goes_on(stop, code, tmp_path, monkeypatch):
    def localize(*arguments, **settings):
        raise stop

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(editkit, "localize", localize)
    arguments = ["localize", "model", "-o", "deep/loc"]
    early = CliRunner().invoke(main, arguments, prog_name="editkit")
    assert (early.exit_code, early.stderr.strip()) == (code, "")  # nothing was saved
    (tmp_path / "deep" / ".loc.unfinished").mkdir(parents=True)
    late = CliRunner().invoke(main, arguments, prog_name="editkit")
    said = "editkit: interrupted: go on with --resume (what was done is in .loc.unfinished beside deep/loc)"
    assert (late.exit_code, late.stderr.strip()) == (code, said)


def test_a_bug_keeps_its_traceback_and_has_a_code_of_its_own():
    result = run(ZeroDivisionError("division by zero"))
    assert result.exit_code == 70
    assert "Traceback" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("editkit: this is a bug in editkit, please report it")


def test_no_progress_when_quiet():
    with progress("negate", quiet=True) as advance:
        assert advance is None


def test_lines_where_there_is_no_terminal(capsys, monkeypatch):
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    with progress("negate") as advance:
        for now in (101.0, 110.0, 111.0, 120.0):
            advance(int((now - 100) * 50e6), 2_000_000_000)
        now = 140.0
        advance(2_000_000_000, 2_000_000_000)
    assert capsys.readouterr().err.splitlines() == [
        "negate: 25% of 2 GB, 50 MB/s, 30 s left",
        "negate: 50% of 2 GB, 50 MB/s, 20 s left",
    ]


def test_a_bar_on_a_terminal(monkeypatch):
    import sys

    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with progress("finetune", unit="steps") as advance:
        for step in range(4):
            advance(step + 1, 4)


@pytest.fixture
def no_signal_ignored():
    """Under nohup SIGHUP is ignored, and stays so."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)}
    for number, handler in before.items():
        signal.signal(number, signal.default_int_handler if handler == signal.SIG_IGN else handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)])
def test_a_signal_unwinds_and_a_second_one_does_not_stop_the_clean_up(number, code, no_signal_ignored):
    cleaned = []

    class Killed(EditError):  # raised by `do`: what a run is doing when the signal comes
        def __init__(self):
            try:
                os.kill(os.getpid(), number)
                time.sleep(5)
            finally:
                os.kill(os.getpid(), signal.SIGINT)
                cleaned.append(number)

    group = Commands("editkit")
    group.get_command = lambda context, name: click.Command("do", callback=Killed)
    before = signal.getsignal(number)
    result = CliRunner().invoke(group, ["do"], prog_name="editkit")
    assert (result.exit_code, cleaned, result.stderr.strip()) == (code, [number], "")
    assert signal.getsignal(number) == before


def test_control_characters_do_not_reach_the_terminal():
    assert run(EditError("shard \x1b[2J\u202e: no")).stderr == "editkit: shard \\x1b[2J\\u202e: no\n"


ECHO = "import click; from editkit_cli.main import Commands; g = Commands('editkit'); {}; g.main(['do'], prog_name='editkit')"


def shell(body: str, redirect: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """The command `do`, which prints `text`, under a shell's redirection."""
    script = ECHO.format(f"g.get_command = lambda c, n: click.Command('do', callback=lambda: {body})")
    line = f"set -o pipefail; {shlex.join([sys.executable, '-c', script])} {redirect}"
    return subprocess.run(["bash", "-c", line], capture_output=True, env={**os.environ, **environment}, check=False)


def test_streams_that_are_closed_full_or_narrow():
    closed = shell("click.echo('x' * 10**6)", "| true")
    assert (closed.returncode, closed.stderr) == (141, b"")  # as if SIGPIPE had ended it, and never 1
    full = shell("click.echo('x')", "> /dev/full")
    assert full.returncode == 2 and b"No space left on device: the standard output" in full.stderr
    narrow = shell("click.echo('a → b')", "", PYTHONIOENCODING="latin-1")
    assert (narrow.returncode, narrow.stdout) == (0, b"a ? b\n")
    silent = shell("(print('told', file=__import__('sys').stderr), click.echo('x'))[0]", "2>&-")
    assert (silent.returncode, silent.stdout) == (0, b"x\n")
