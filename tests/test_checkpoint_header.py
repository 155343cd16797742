"""Every lie a safetensors header can tell is refused, in words that name the file and what is wrong."""

import json
import os

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from editkit.checkpoint.header import encode, read_header
from editkit.checkpoint.reader import open_checkpoint
from editkit.errors import EditError


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def raw(header, data=b"\0" * 8, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


TWO = {"a": entry(), "b": entry(offsets=(8, 16))}
ATTACKS = {
    "empty": (b"", "has 0 bytes, too few for a safetensors file: copy or download it again"),
    "seven bytes": (b"1234567", "has 7 bytes, too few"),
    "header over 100 MB": (raw({}, length=100_000_001), "claims a header of 100000001 bytes, over the limit of 100 MB"),
    "header of 2**64": (raw({}, length=2**64 - 1), "over the limit of 100 MB"),
    "header beyond the file": (
        raw({"a": entry()}, b"", length=5000),
        "is truncated: a header of 5000 bytes does not fit",
    ),
    "not JSON": (raw(b"{'a': 1}"), "has a header that is not JSON in UTF-8"),
    "not UTF-8": (raw(b'{"\xff": 1}'), "has a header that is not JSON in UTF-8"),
    "nested without end": (raw(b"[" * 100_000), "has a header that is not JSON in UTF-8"),
    "not an object": (raw([1]), "has a header that is not a JSON object"),
    "duplicate names": (
        raw(b'{"a": %b, "a": %b}' % ((json.dumps(entry()).encode(),) * 2)),
        "duplicate names in its header ('a')",
    ),
    "duplicate keys": (raw(b'{"a": {"dtype": "F32", "dtype": "I32"}}'), "duplicate names in its header ('dtype')"),
    "metadata of numbers": (raw({"__metadata__": {"format": 1}}, b""), "__metadata__ that is not a map of strings"),
    "unknown dtype": (
        raw({"a": entry("F4")}),
        "tensor 'a' has the unsupported dtype 'F4': leave these tensors out or convert them (supported: F64, F32, ",
    ),
    "dtype no string": (raw({"a": entry(["F32"])}), "unsupported dtype ['F32']"),
    "keys absent": (raw({"a": {"dtype": "F32"}}), "tensor 'a' lacks dtype, shape or data_offsets"),
    "entry no object": (raw({"a": 1}), "tensor 'a' lacks dtype, shape or data_offsets"),
    "negative shape": (raw({"a": entry(shape=(-1, -2))}), "has the shape [-1, -2], not a list of natural numbers"),
    "boolean shape": (raw({"a": entry(shape=(True, 2))}), "has the shape [True, 2]"),
    "one offset": (raw({"a": entry(offsets=(8,))}), "has the offsets [8], not two natural numbers"),
    "negative offset": (raw({"a": entry(offsets=(-8, 0))}), "has the offsets [-8, 0], not two natural numbers"),
    "fractional offset": (raw({"a": entry(offsets=(0, 8.0))}), "has the offsets [0, 8.0]"),
    "begin after end": (raw({"a": entry(offsets=(8, 0))}), "begins at byte 8, after its end 0"),
    "wrong length": (raw({"a": entry(shape=(3,))}), "spans 8 bytes where F32 of shape [3] takes 12"),
    "shape overflows": (raw({"a": entry(shape=(2**62, 4))}), f"takes {2**66}"),
    "unprintable name": (raw({"a\x1b[2J": entry()}), "has a name with unprintable characters"),
    "lone surrogate": (
        raw(b'{"\\ud800": %b}' % json.dumps(entry()).encode()),
        "has a name with unprintable characters",
    ),
    "outside the file": (raw(TWO), "tensor 'b' ends at byte"),
    "overlap": (raw({"a": entry(), "b": entry(offsets=(4, 12))}, b"\0" * 12), "tensor 'b' overlaps tensor 'a'"),
    "same range": (raw({"a": entry(), "b": entry()}), "tensor 'b' overlaps tensor 'a'"),
    "hole": (
        raw({"a": entry(), "b": entry(offsets=(12, 20))}, b"\0" * 20),
        "4 bytes before tensor 'b' belong to no tensor",
    ),
    "hole at the front": (
        raw({"a": entry(offsets=(8, 16))}, b"\0" * 16),
        "8 bytes before tensor 'a' belong to no tensor",
    ),
    "trailing bytes": (raw({"a": entry()}, b"\0" * 9), "1 trailing bytes belong to no tensor"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_header_that_lies_is_refused(tmp_path, attack):
    content, message = ATTACKS[attack]
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(EditError) as caught:
        open_checkpoint(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path}/model.safetensors ")
    assert message in str(caught.value)
    assert os.listdir(tmp_path) == ["model.safetensors"]


def test_every_truncation_of_a_file_is_refused(tmp_path):
    save_file({"a": np.arange(6, dtype=np.float32), "b": np.arange(3, dtype=np.int64)}, tmp_path / "whole.safetensors")
    whole = (tmp_path / "whole.safetensors").read_bytes()
    path = tmp_path / "cut.safetensors"
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(EditError):
            read_header(path, "cut")


def test_all_tensors_and_all_files_are_reported_at_once(tmp_path):
    (tmp_path / "one.safetensors").write_bytes(raw({"a": entry("F4"), "b": entry(shape=(9,))}))
    (tmp_path / "two.safetensors").write_bytes(b"")
    index = {"weight_map": {"a": "one.safetensors", "b": "one.safetensors", "c": "two.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(EditError) as caught:
        open_checkpoint(tmp_path)
    for part in ("one.safetensors", "tensor 'a'", "tensor 'b'", "two.safetensors has 0 bytes"):
        assert part in str(caught.value)


def test_tensors_come_in_the_order_of_their_bytes_and_empty_ones_are_fine(tmp_path):
    header = {
        "late": entry(offsets=(8, 16)),
        "none": entry(shape=(0, 3), offsets=(8, 8)),
        "early": entry(),
        "scalar": entry("U8", (), (16, 17)),
    }
    path = tmp_path / "x.safetensors"
    path.write_bytes(raw(header, b"\0" * 17))
    found = read_header(path, "x").tensors
    assert [tensor.name for tensor in found] == ["early", "none", "late", "scalar"]
    assert [(tensor.rows, tensor.columns, tensor.numel) for tensor in found] == [
        (1, 2, 2),
        (0, 3, 0),
        (1, 2, 2),
        (1, 1, 1),
    ]


def test_an_encoded_header_is_read_by_the_safetensors_library(tmp_path):
    path = tmp_path / "x.safetensors"
    start = encode({"w": ("BF16", (2, 3)), "größe": ("I64", ())}, {"format": "pt"})
    path.write_bytes(start + bytes(20))
    assert len(start) % 8 == 0
    with safe_open(path, "pt") as file:
        assert set(file.keys()) == {"w", "größe"} and file.metadata() == {"format": "pt"}
        assert file.get_tensor("w").shape == (2, 3)


def test_an_unreadable_file_is_one_sentence(tmp_path):
    with pytest.raises(EditError, match="gone cannot be read \\(No such file or directory\\)"):
        read_header(tmp_path / "gone", "gone")
