"""Open then write gives identical bytes; what fails leaves nothing; a killed run leaves nothing that loads."""

import errno
import itertools
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from editkit.arithmetic.dtypes import DTYPES
from editkit.checkpoint import disk
from editkit.checkpoint.reader import open_checkpoint
from editkit.checkpoint.writer import CheckpointWriter, write_checkpoint
from editkit.errors import EditError

INDEX = "model.safetensors.index.json"


def tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def model(folder, shards=2, dtype=torch.float32):
    """A made-up checkpoint with other files around its weights."""
    (folder / "code").mkdir(parents=True)
    names = [f"model.layers.{i}.w" for i in range(6)]
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(50, 30, generator=generator).to(dtype) for name in names}
    files = ["model.safetensors"] if shards == 1 else [f"model-{i}.safetensors" for i in range(shards)]
    weight_map = {name: files[i * shards // 6] for i, name in enumerate(names)}
    for file in files:
        save_file({n: t for n, t in tensors.items() if weight_map[n] == file}, folder / file, {"format": "pt"})
    if shards > 1:
        (folder / INDEX).write_text(json.dumps({"weight_map": weight_map, "metadata": {"made": "by hand"}}))
    for name in ("config.json", "code/modeling.py", "tokenizer.json"):
        (folder / name).write_text(f'{{"{name}": 1}}')
    return folder


@st.composite
def files(draw):
    """Files as no library would write them: any dtypes, odd white space in the header, header not in order of bytes."""
    found = []
    for number in range(draw(st.integers(1, 3))):
        entries, data = [], b""
        for index in range(draw(st.integers(0, 5))):
            dtype = draw(st.sampled_from(list(DTYPES)))
            shape = draw(st.lists(st.integers(0, 4), max_size=3))
            content = draw(st.randoms(use_true_random=False)).randbytes(int(np.prod(shape)) * DTYPES[dtype].bytes)
            offsets = [len(data), len(data) + len(content)]
            entries.append((f"t{number}.{index}", {"dtype": dtype, "shape": shape, "data_offsets": offsets}))
            data += content
        header = dict(draw(st.permutations(entries)))
        if draw(st.booleans()):
            header["__metadata__"] = draw(st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=2))
        text = json.dumps(header, indent=draw(st.sampled_from([None, 1]))).encode() + b" " * draw(st.integers(0, 9))
        found.append(len(text).to_bytes(8, "little") + text + data)
    return found


@settings(max_examples=60, deadline=None)
@given(contents=files(), how=st.sampled_from(["copy", "write", "mixed"]), lone=st.booleans(), seed=st.integers(0, 99))
def test_open_then_write_gives_identical_bytes(contents, how, lone, seed):
    with tempfile.TemporaryDirectory() as place:
        folder, draw = Path(place, "base"), random.Random(seed)
        folder.mkdir()
        names = [f"part{i}.safetensors" for i in range(len(contents))] if len(contents) > 1 else ["model.safetensors"]
        for name, content in zip(names, contents, strict=True):
            (folder / name).write_bytes(content)
        held = {
            name: [n for n in json.loads(c[8 : 8 + int.from_bytes(c[:8], "little")]) if n != "__metadata__"]
            for name, c in zip(names, contents, strict=True)
        }
        weight_map = {tensor: name for name in names for tensor in held[name]}
        if len(names) > 1 and set(weight_map.values()) == set(names):
            (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
        elif len(names) > 1:
            lone = True
        source = folder / names[0] if lone else folder
        with (
            open_checkpoint(source) as base,
            CheckpointWriter(base, Path(place, "out")) as writer,
            ThreadPoolExecutor(3) as pool,
        ):
            for name, info in base.tensors.items():
                if how == "copy" or (how == "mixed" and draw.random() < 0.5):
                    writer.copy(name)
                    continue
                cuts = sorted({0, info.nbytes, *(draw.randint(0, info.nbytes) for _ in range(2))})
                for begin, end in itertools.pairwise(cuts):
                    pool.submit(writer.write, name, begin, base.array(name)[begin:end])
        assert tree(Path(place, "out")) == (tree(folder) if not lone else {names[0]: contents[0]})
        assert sorted(os.listdir(place)) == ["base", "out"]


@pytest.mark.parametrize("in_kernel", [True, False])
def test_long_runs_are_copied_whole(tmp_path, monkeypatch, in_kernel):
    if not in_kernel:
        monkeypatch.delattr(os, "copy_file_range", raising=False)
        monkeypatch.delattr(os, "posix_fallocate", raising=False)
    monkeypatch.setattr("editkit.checkpoint.writer._COPY_BLOCK", 10_000)
    base = model(tmp_path / "base")
    copies = []
    monkeypatch.setattr(disk, "copy_at", lambda *where, copy=disk.copy_at: copies.append(where[4]) or copy(*where))
    with open_checkpoint(base) as opened, CheckpointWriter(opened, tmp_path / "out") as writer:
        for name in opened:
            writer.copy(name)
    assert tree(tmp_path / "out") == tree(base)
    assert max(copies) > 6000 and max(copies) <= 10_000  # neighbours of 6000 bytes were joined


def test_the_kernel_refusing_a_copy_is_no_failure(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EXDEV, "cross-device link")

    monkeypatch.setattr(os, "copy_file_range", refuse, raising=False)
    monkeypatch.setattr(os, "posix_fallocate", refuse, raising=False)
    base = model(tmp_path / "base", shards=1)
    write_checkpoint({}, tmp_path / "out", like=base)
    assert {**tree(base), "editkit.json": (tmp_path / "out/editkit.json").read_bytes()} == tree(tmp_path / "out")


def test_given_tensors_replace_the_base_s_rounded_once(tmp_path):
    base = model(tmp_path / "base", dtype=torch.bfloat16)
    new = torch.linspace(-3, 3, 1500, dtype=torch.float64).reshape(50, 30)
    out = write_checkpoint({"model.layers.4.w": new.t().contiguous().t()}, tmp_path / "deep" / "er" / "out", like=base)
    expected = load_file(base / "model-0.safetensors") | load_file(base / "model-1.safetensors")
    expected["model.layers.4.w"] = new.to(torch.bfloat16)
    with open_checkpoint(out) as written:
        assert list(written) == list(open_checkpoint(base))
        assert all(written[name].equal(tensor) for name, tensor in expected.items())
    record = json.loads((out / "editkit.json").read_text())
    assert record["command"] == "write_checkpoint" and record["inputs"][0]["name"] == "base"


def test_tensors_that_do_not_fit_are_all_listed_and_nothing_is_left(tmp_path):
    folder = model(tmp_path / "base", shards=1)
    save_file({**load_file(folder / "model.safetensors"), "ids": torch.arange(3)}, folder / "model.safetensors")
    good = torch.zeros(50, 30)
    given_ = [
        ("model.layers.0.w", good),
        ("nowhere", good),
        ("model.layers.1.w", torch.zeros(30, 50)),
        ("model.layers.0.w", good),
        ("ids", torch.zeros(3)),
        ("model.layers.2.w", torch.zeros(50, 30, dtype=torch.int64)),
    ]
    with pytest.raises(EditError) as caught:
        write_checkpoint(iter(given_), tmp_path / "new" / "out", like=folder)
    assert str(caught.value) == (
        f"these tensors do not fit {folder}: nowhere (not in it), "
        "model.layers.1.w (shape (30, 50) instead of (50, 30)), model.layers.0.w (given twice), "
        "ids (float32 instead of int64), model.layers.2.w (int64 instead of float32)"
    )
    assert os.listdir(tmp_path) == ["base"]


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("size", [1, 7000, 13_000, 10**9])
def test_resharded_files_hold_the_same_tensors_in_order(tmp_path, shards, size):
    base = model(tmp_path / "base", shards=shards)
    out = write_checkpoint({}, tmp_path / "out", like=base, shard_size=size)
    per_file = max(1, size // 6000)
    count = -(-6 // per_file)
    names = (
        [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)] if count > 1 else ["model.safetensors"]
    )
    assert sorted(name for name in os.listdir(out) if name.endswith(".safetensors")) == names
    assert (out / INDEX).exists() == (count > 1)
    with open_checkpoint(base) as before, open_checkpoint(out) as after:
        assert list(before) == list(after) and all(before[name].equal(after[name]) for name in before)
        assert {info.file for info in after.tensors.values()} == set(names)
        assert all(metadata == {"format": "pt"} for metadata in after.metadata.values())
        if count > 1:
            assert after.index["metadata"]["total_size"] == 36_000
    assert (out / "code/modeling.py").exists()


def test_mixed_dtypes_stay_aligned_when_resharded(tmp_path):
    (tmp_path / "base").mkdir()
    tensors = {"a": torch.ones(3, dtype=torch.uint8), "b": torch.ones(5), "c": torch.ones(7, dtype=torch.bfloat16)}
    save_file(tensors, tmp_path / "base" / "x.safetensors")
    out = write_checkpoint({}, tmp_path / "out", like=tmp_path / "base", shard_size=1000)
    assert all(load_file(out / "model.safetensors")[name].equal(tensor) for name, tensor in tensors.items())
    with open_checkpoint(out) as written:
        assert all(info.start % info.item.bytes == 0 for info in written.tensors.values())


def test_a_resharded_model_gives_the_same_logits_in_transformers(tmp_path):
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**shape, vocab_size=64)).save_pretrained(tmp_path / "base")
    out = write_checkpoint({}, tmp_path / "out", like=tmp_path / "base", shard_size=20_000)
    assert len(list(out.glob("*.safetensors"))) > 2
    tokens = torch.arange(10)[None]
    before, after = (AutoModelForCausalLM.from_pretrained(path)(tokens).logits for path in (tmp_path / "base", out))
    assert before.equal(after)


# -- outputs that are refused


def bad_outputs(tmp_path):
    base = model(tmp_path / "base")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("")
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(base)
    (tmp_path / "inside_link").symlink_to(base / "code")
    return {
        base: "is an input as well",
        tmp_path / "link": "is an input as well",
        tmp_path / "full" / ".." / "base": "is an input as well",
        base / "edited": "lies inside the input",
        tmp_path / "link" / "edited": "lies inside the input",
        tmp_path / "inside_link" / "edited": "lies inside the input",
        tmp_path: "contains the input",
        tmp_path / "full": "is not empty: give a new folder",
        tmp_path / "file": "is a file: give a folder",
        tmp_path / "tuned" / "edited": "lies inside the input",
        tmp_path / "data.json": "is an input as well",
        Path("/proc"): "/proc is not empty",
        tmp_path / "file" / "edited": "cannot be written",
    }


def test_outputs_that_would_touch_something(tmp_path):
    for output, message in bad_outputs(tmp_path).items():
        before = tree(tmp_path)
        with pytest.raises(EditError) as caught, open_checkpoint(tmp_path / "base") as base:
            inputs = [tmp_path / "tuned", tmp_path / "data.json"]
            (tmp_path / "tuned").mkdir(exist_ok=True)
            with CheckpointWriter(base, output, inputs=inputs) as writer:
                for name in base:
                    writer.copy(name)
        assert str(caught.value).startswith(str(output)) and message in str(caught.value)
        assert tree(tmp_path) == before


def test_an_empty_folder_is_taken(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "out")
    base = model(tmp_path / "base")
    write_checkpoint({}, tmp_path / "link", like=base)
    assert (tmp_path / "link").is_symlink() and (tmp_path / "out" / INDEX).exists()
    assert sorted(os.listdir(tmp_path)) == ["base", "link", "out"]


def test_a_relative_output_and_a_lone_base_beside_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_file({"w": torch.ones(3)}, "one.safetensors")
    write_checkpoint({"w": torch.zeros(3)}, "out", like="one.safetensors")
    assert sorted(os.listdir("out")) == ["editkit.json", "one.safetensors"]
    assert load_file("out/one.safetensors")["w"].tolist() == [0, 0, 0]


def test_shard_size_zero(tmp_path):
    with pytest.raises(EditError, match="a shard size of 0 bytes"):
        write_checkpoint({}, tmp_path / "out", like=model(tmp_path / "base"), shard_size=0)


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
