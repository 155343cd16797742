"""A remembered hash is only ever that of the same, settled file."""

import hashlib
import os
import time

import pytest

from editkit.checkpoint import digests


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EDITKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "sha256"


def digest(path, stopped=lambda: False):
    with open(path, "rb") as file:
        return digests.sha256(file.fileno(), stopped)


def age(monkeypatch, seconds):
    now = time.time()
    monkeypatch.setattr(digests.time, "time", lambda: now + seconds)


def test_is_the_sha256_also_of_files_larger_than_a_block(tmp_path, cache):
    content = os.urandom((1 << 20) + 5)
    (tmp_path / "file").write_bytes(content)
    assert digest(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def test_a_file_that_just_changed_is_not_remembered(tmp_path, cache):
    (tmp_path / "file").write_bytes(b"one")
    digest(tmp_path / "file")
    assert not cache.exists()


def test_a_settled_file_is_remembered_until_anything_changes(tmp_path, cache, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"one")
    age(monkeypatch, 60)
    first = digest(path)
    [known] = cache.iterdir()
    known.write_text("0" * 64)  # whoever asks now is told what was remembered
    assert digest(path) == "0" * 64
    times = os.stat(path)
    path.write_bytes(b"two")  # the same size; with its old mtime put back, the ctime still tells
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert digest(path) == hashlib.sha256(b"two").hexdigest() != first


def test_stopped_or_unwritable_leaves_no_memory(tmp_path, cache, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"one")
    age(monkeypatch, 60)
    digest(path, stopped=lambda: True)
    assert not cache.exists()
    monkeypatch.setenv("EDITKIT_CACHE", str(path))  # a file where the folder should be
    assert digest(path) == hashlib.sha256(b"one").hexdigest()
