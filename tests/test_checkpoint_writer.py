"""Open then write gives identical bytes; what fails leaves nothing; a killed run leaves nothing that loads."""

import errno
import itertools
import json
import os
import random
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from sharded import INDEX, model, tree

from editkit.arithmetic.dtypes import DTYPES
from editkit.checkpoint import disk
from editkit.checkpoint.reader import open_checkpoint
from editkit.checkpoint.writer import CheckpointWriter, write_checkpoint
from editkit.errors import EditError


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
