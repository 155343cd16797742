"""`editkit.json`: everything an output was made from, the same bytes for the same inputs, and no path of the user."""

import hashlib
import json
import os
import sys

import torch
from safetensors.torch import save_file

import editkit
from editkit.checkpoint import provenance
from editkit.checkpoint.reader import open_checkpoint


def test_record(tmp_path, monkeypatch):
    for name in ("base", "tuned"):
        (tmp_path / name).mkdir()
        save_file({"w": torch.full((3,), len(name))}, tmp_path / name / "model.safetensors")
    monkeypatch.chdir(tmp_path / "base")
    base, tuned = open_checkpoint("."), open_checkpoint(tmp_path / "tuned" / "model.safetensors")
    record = provenance.record("negate", {"base": base, "tuned": tuned}, seed=3, data_hash="ab", alpha=0.5)
    hashes = [hashlib.sha256((tmp_path / n / "model.safetensors").read_bytes()).hexdigest() for n in ("base", "tuned")]
    versions = record.pop("versions")
    assert versions["torch"] == torch.__version__.partition("+")[0] or versions["torch"] == torch.__version__
    assert versions["python"] == sys.version.split()[0]
    assert record == {
        "schema": "editkit.provenance/1",
        "editkit": editkit.__version__,
        "command": "negate",
        "alpha": 0.5,
        "inputs": [
            {"name": "base", "role": "base", "files": {"model.safetensors": hashes[0]}},
            {"name": "model.safetensors", "role": "tuned", "files": {"model.safetensors": hashes[1]}},
        ],
        "seed": 3,
        "data": "ab",
    }
    assert str(tmp_path) not in json.dumps(record)
    provenance.save(record, tmp_path)
    first = (tmp_path / "editkit.json").read_bytes()
    provenance.save(
        provenance.record("negate", {"base": base, "tuned": tuned}, seed=3, data_hash="ab", alpha=0.5) | {}, tmp_path
    )
    again = json.loads((tmp_path / "editkit.json").read_text())
    assert again.pop("versions") == versions and again == json.loads(first)


def test_a_name_that_is_not_unicode_and_one_of_a_link(tmp_path):
    odd = tmp_path / os.fsdecode(b"b\xff")
    odd.mkdir()
    save_file({"w": torch.ones(3)}, odd / "model.safetensors")
    (tmp_path / "mine.safetensors").symlink_to(odd / "model.safetensors")
    with open_checkpoint(odd) as base, open_checkpoint(tmp_path / "mine.safetensors") as lone:
        record = provenance.record("negate", [base, lone], glob="\udcff")
    provenance.save(record, tmp_path)
    read = json.loads((tmp_path / "editkit.json").read_bytes().decode("utf-8"))
    assert [one["name"] for one in read["inputs"]] == ["b\\udcff", "mine.safetensors"]
    assert read["glob"] == "\udcff"
