"""A writer that fails, is killed or meets another one leaves nothing that looks like a checkpoint."""

import errno
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from sharded import INDEX, model, tree

from editkit.checkpoint import disk
from editkit.checkpoint.reader import open_checkpoint
from editkit.checkpoint.writer import CheckpointWriter, write_checkpoint
from editkit.errors import EditError

# -- failures on the way


def leftovers(folder):
    return sorted(name for name in os.listdir(folder) if name != "base")


def test_too_little_space_is_seen_before_the_first_byte(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=30_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(EditError, match=r"out needs 0\.\d+ MB and its disk has 0\.030 MB free: make space"):
        write_checkpoint({}, tmp_path / "out", like=model(tmp_path / "base"))
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("moment", ["posix_fallocate", "pwrite", "copy_file_range", "fsync", "rename"])
def test_a_disk_that_fills_up_meanwhile(tmp_path, monkeypatch, moment):
    base = model(tmp_path / "base")
    calls, real = [], getattr(os, moment)

    def full(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*arguments)

    monkeypatch.setattr(os, moment, full)
    with pytest.raises(
        EditError, match=r"no space left for .*out \(No space left on device\): make space; no part of it was left"
    ):
        write_checkpoint({"model.layers.1.w": torch.ones(50, 30)}, tmp_path / "new" / "out", like=base)
    assert leftovers(tmp_path) == []


def test_a_file_size_limit(tmp_path):
    base = model(tmp_path / "base")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(EditError, match=r"no space left for .*out"):
            write_checkpoint({}, tmp_path / "out", like=base)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, EditError])
def test_an_exception_in_the_block_leaves_nothing(tmp_path, error):
    with (
        pytest.raises(error),
        open_checkpoint(model(tmp_path / "base")) as base,
        CheckpointWriter(base, tmp_path / "a" / "out") as writer,
    ):
        writer.copy("model.layers.0.w")
        assert leftovers(tmp_path / "a") == [f".out.partial-{os.getpid()}"]
        raise error("stop")
    assert leftovers(tmp_path) == []


def test_threads_that_still_write_when_the_block_is_left_do_no_harm(tmp_path):
    started, errors = threading.Event(), []

    def keep_writing(writer):
        try:
            while True:
                writer.write("model.layers.0.w", 0, np.zeros(6000, np.uint8))
                started.set()
        except Exception as error:
            errors.append(error)

    with (
        pytest.raises(KeyboardInterrupt),
        open_checkpoint(model(tmp_path / "base")) as base,
        CheckpointWriter(base, tmp_path / "out") as writer,
    ):
        thread = threading.Thread(target=keep_writing, args=(writer,))
        thread.start()
        started.wait()
        raise KeyboardInterrupt
    thread.join()
    assert [str(error) for error in errors] == ["the writer is closed"] and leftovers(tmp_path) == []


@pytest.mark.parametrize("fault", ["forgotten", "half", "twice"])
def test_a_tensor_not_written_exactly_once_is_a_bug(tmp_path, fault):
    message = r"tensors not written exactly once: model\.layers\.3\.w"
    base = open_checkpoint(model(tmp_path / "base"))
    with pytest.raises(RuntimeError, match=message), CheckpointWriter(base, tmp_path / "out") as writer:
        for name in base:
            if name != "model.layers.3.w" or fault == "twice":
                writer.copy(name)
        if fault != "forgotten":
            writer.write("model.layers.3.w", 0, np.zeros(3000, np.uint8))
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("first", [-1, 5999, 6000])
def test_bytes_beyond_a_tensor_are_not_written(tmp_path, first):
    message = r"2 bytes at -?[0-9]+ leave model\.layers\.0\.w, which has 6000 bytes"
    base = open_checkpoint(model(tmp_path / "base"))
    with pytest.raises(ValueError, match=message), CheckpointWriter(base, tmp_path / "out") as writer:
        writer.write("model.layers.0.w", first, np.zeros(2, np.uint8))


def test_two_writers_of_one_output(tmp_path):
    with open_checkpoint(model(tmp_path / "base")) as base, CheckpointWriter(base, tmp_path / "out") as first:
        with pytest.raises(EditError, match="is being written by this process already"):
            CheckpointWriter(base, tmp_path / "out").__enter__()
        for name in base:
            first.copy(name)
    assert leftovers(tmp_path) == ["out"]


def test_only_the_remains_of_dead_runs_are_removed(tmp_path):
    base = model(tmp_path / "base")
    for name in (".out.partial-1", ".out.partial-999999", ".out.partial-x", ".out2.partial-7", "out.partial-7"):
        (tmp_path / name).mkdir()
    living = disk.lock(tmp_path / ".out.partial-999999", needed=True)
    write_checkpoint({}, tmp_path / "out", like=base)
    os.close(living)
    assert leftovers(tmp_path) == [".out.partial-999999", ".out.partial-x", ".out2.partial-7", "out", "out.partial-7"]


SLOW_COPY = """
    import sys, time
    import numpy as np
    from editkit.checkpoint import disk
    from editkit.checkpoint.reader import open_checkpoint
    from editkit.checkpoint.writer import CheckpointWriter

    def slowly(function):
        def slow(*arguments):
            time.sleep(0.003)
            return function(*arguments)
        return slow

    import os
    for name in ("pwrite", "fsync", "rename", "copy_file_range", "posix_fallocate"):
        if hasattr(os, name):
            setattr(os, name, slowly(getattr(os, name)))
    with open_checkpoint(sys.argv[1]) as base:
        print("ready", flush=True)
        with CheckpointWriter(base, sys.argv[2]) as writer:
            for index, name in enumerate(base):
                if index % 2:
                    writer.copy(name)
                else:
                    for first in range(0, 6000, 1000):
                        writer.write(name, first, base.array(name)[first:first + 1000])
    print("done", flush=True)
"""


def loads_in_transformers(folder):
    """The two ways in: a single file that the safetensors library opens, or an index with its shards."""
    files = [folder / "model.safetensors"]
    if not files[0].exists():
        if not (folder / INDEX).exists():
            return False
        files = [folder / file for file in set(json.loads((folder / INDEX).read_text())["weight_map"].values())]
    try:
        return all(load_file(file) for file in files)
    except (OSError, SafetensorError):
        return False


@pytest.mark.parametrize("shards", [1, 3])
def test_a_killed_run_leaves_nothing_that_loads_and_the_next_one_works(tmp_path, shards):
    base, out = model(tmp_path / "base", shards=shards), tmp_path / "out"
    whole, draw, killed = tree(base), random.Random(shards), 0
    command = [sys.executable, "-c", textwrap.dedent(SLOW_COPY), str(base), str(out)]
    for attempt in range(12):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout.readline() == "ready\n"
        time.sleep(draw.uniform(0, 0.25))
        process.send_signal(signal.SIGINT if attempt % 4 == 3 else signal.SIGKILL)
        process.stdout.close()
        code = process.wait()
        if out.exists():  # the run was faster: then the output is whole
            assert tree(out) == whole
            shutil.rmtree(out)
            continue
        killed += code == -signal.SIGKILL
        staged = leftovers(tmp_path)
        assert len(staged) <= 1 and (code == -signal.SIGKILL or not staged)
        for name in staged:
            with pytest.raises(EditError, match="is what a run that was stopped left of out: run it again"):
                open_checkpoint(tmp_path / name)
            if loads_in_transformers(tmp_path / name):  # killed just before the last rename: then it is whole
                assert tree(tmp_path / name) == whole
    assert killed >= 3
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout.endswith("done\n")
    assert tree(out) == whole and leftovers(tmp_path) == ["out"]


def test_a_file_of_the_base_that_cannot_be_read_is_not_blamed_on_the_output(tmp_path):
    (tmp_path / "base").mkdir()
    save_file({"w": torch.ones(3)}, tmp_path / "base" / "model.safetensors")
    (tmp_path / "base" / "vocab.txt").write_text("a")
    with open_checkpoint(tmp_path / "base") as base:
        writer = CheckpointWriter(base, tmp_path / "out")
        (tmp_path / "base" / "vocab.txt").unlink()
        with pytest.raises(EditError, match=r"^.*/base/vocab\.txt cannot be read"), writer:
            pass
    assert [path.name for path in tmp_path.iterdir()] == ["base"]
