"""Hub ids: the local cache first, headers only over the network, and one sentence where the Hub is out of reach."""

import json
import os
import re

import huggingface_hub
import pytest
import torch
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem
from huggingface_hub import constants
from safetensors.torch import save_file

from editkit.checkpoint import hub
from editkit.checkpoint.inspection import inspect_checkpoint
from editkit.checkpoint.reader import open_checkpoint
from editkit.errors import EditError

REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty Hub cache, and no network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache"


def put_in_cache(cache, files):
    """What huggingface_hub leaves after a download of org/name at main."""
    repository = cache / "models--org--name"
    snapshot = repository / "snapshots" / REVISION
    for folder in (repository / "blobs", repository / "refs", snapshot):
        folder.mkdir(parents=True)
    (repository / "refs" / "main").write_text(REVISION)
    for number, (name, write) in enumerate(files.items()):
        write(repository / "blobs" / f"{number:064x}")
        (snapshot / name).symlink_to(f"../../blobs/{number:064x}")
    return snapshot


def weights(path):
    save_file({"model.layers.0.w": torch.ones(2, 3)}, path)


@pytest.mark.parametrize("label", ["org/name", "org/name@main", f"org/name@{REVISION}"])
def test_a_cached_model_is_opened_without_a_network(cache, label):
    put_in_cache(
        cache, {"model.safetensors": weights, "config.json": lambda path: path.write_text('{"model_type": "x"}')}
    )
    with open_checkpoint(label) as checkpoint:
        assert checkpoint.label == label and checkpoint["model.layers.0.w"].sum() == 6
        assert checkpoint.config == {"model_type": "x"} and [str(p) for p in checkpoint.other_files()] == [
            "config.json"
        ]
    assert inspect_checkpoint(label)["summary"]["parameters"] == 6


def test_a_local_folder_wins_over_the_cache(cache):
    put_in_cache(cache, {"model.safetensors": weights})
    os.makedirs("org/name")
    save_file({"mine": torch.ones(1)}, "org/name/model.safetensors")
    assert list(open_checkpoint("org/name")) == ["mine"]


@pytest.mark.parametrize("files", [{}, {"config.json": lambda path: path.write_text("{}")}])
@pytest.mark.parametrize("read", [open_checkpoint, inspect_checkpoint])
def test_offline_and_not_or_half_in_the_cache(cache, read, files):
    if files:
        put_in_cache(cache, files)
    with pytest.raises(EditError) as caught:
        read("org/name")
    absent = "org/name is no local path, is not in the Hub cache, and cannot be fetched: the Hub"
    half = "org/name holds no .safetensors file: .* \\(as far as the Hub is in reach, or else its cache goes\\)"
    assert re.match(half if files and read is open_checkpoint else absent, str(caught.value))


def test_a_download_leaves_out_other_forms_of_the_weights(cache, monkeypatch):
    from huggingface_hub.utils import filter_repo_objects

    present = (
        "model.safetensors config.json chat_template.jinja tokenizer.model code.py LICENSE README.md merges.txt".split()
    )
    useless = "pytorch_model.bin q4.gguf consolidated.safetensors original/model.safetensors onnx/model.onnx".split()
    asked = {}

    def snapshot_download(repository, *, revision, allow_patterns=None, ignore_patterns=None, local_files_only=False):
        if local_files_only:
            raise huggingface_hub.errors.LocalEntryNotFoundError("not here")
        asked.update(repository=repository, revision=revision)
        asked["files"] = list(
            filter_repo_objects(present + useless, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns)
        )
        return put_in_cache(cache, {"model.safetensors": weights})

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert open_checkpoint("org/name@v1")["model.layers.0.w"].shape == (2, 3)
    assert asked == {"repository": "org/name", "revision": "v1", "files": present}


class Counting(DirFileSystem):
    """The Hub's file system, played by a local folder; `read` counts bytes of weights."""

    read = 0

    def cat_file(self, path, start=None, end=None, **_):
        content = super().cat_file(path, start=start, end=end)
        Counting.read += len(content) if path.endswith(".safetensors") else 0
        return content


@pytest.fixture
def online(cache, monkeypatch, tmp_path):
    folder = tmp_path / "served" / "org" / "name@refs%2Fpr%2F1"
    folder.mkdir(parents=True)
    monkeypatch.setattr(Counting, "read", 0)
    monkeypatch.setattr(huggingface_hub, "HfFileSystem", lambda: Counting(str(tmp_path / "served"), LocalFileSystem()))
    return folder


def test_only_headers_travel(online):
    for number in range(3):
        save_file({f"model.layers.{number}.w": torch.ones(1000, 100)}, online / f"{number}.safetensors")
    weight_map = {f"model.layers.{number}.w": f"{number}.safetensors" for number in range(3)}
    (online / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (online / "config.json").write_text('{"model_type": "llama"}')
    facts = inspect_checkpoint("org/name@refs/pr/1")
    assert facts["summary"] == {"tensors": 3, "parameters": 300_000, "bytes": 1_200_000}
    assert facts["model_type"] == "llama" and facts["layers"] == {"model.layers": 3}
    assert Counting.read < 1000


def test_headers_from_the_hub_are_checked_as_well(online):
    (online / "model.safetensors").write_bytes((10**9).to_bytes(8, "little"))
    with pytest.raises(EditError, match=r"^org/name@refs/pr/1/model\.safetensors claims a header of 1000000000 bytes"):
        inspect_checkpoint("org/name@refs/pr/1")
    (online / "model.safetensors").rename(online / "pytorch_model.bin")
    with pytest.raises(EditError, match=r"holds no safetensors but pytorch_model\.bin"):
        inspect_checkpoint("org/name@refs/pr/1")


def test_what_the_hub_answers_in_one_sentence():
    class Response:
        headers, status_code, request = {}, 403, None

    def sentence(error):
        with pytest.raises(EditError) as caught, hub._reaching("org/name"):
            raise error
        return str(caught.value).partition("fetched: ")[2]

    errors = huggingface_hub.errors
    assert "terms must be accepted" in sentence(errors.GatedRepoError("gated", response=Response()))
    assert "no such repository, or it is private" in sentence(
        errors.RepositoryNotFoundError("404", response=Response())
    )
    assert sentence(errors.RevisionNotFoundError("404", response=Response())) == "there is no such revision"
    assert sentence(ConnectionError("no\nroute")) == "the Hub is out of reach (no route)"
