"""One new file: whole or not at all, never over another, and nothing left where it failed."""

import os
import threading

import numpy as np
import pytest

from editkit.checkpoint.single import SingleFileWriter
from editkit.errors import EditError

ENTRIES = {"w": ("F32", (2,))}
DATA = np.array([1, 2], np.float32).view(np.uint8)


def test_of_two_at_once_the_second_keeps_the_first(tmp_path):
    output = tmp_path / "new" / "tau.safetensors"
    with (
        pytest.raises(EditError, match=r"tau\.safetensors is written by somebody else at the same time: give another"),
        SingleFileWriter(output, ENTRIES, {}) as writer,
    ):
        writer.write("w", 0, DATA)
        output.write_bytes(b"mine")  # another process was faster
    assert output.read_bytes() == b"mine" and os.listdir(output.parent) == ["tau.safetensors"]


def test_a_file_system_without_hard_links(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("os.link", refuse)
    with SingleFileWriter(tmp_path / "tau.safetensors", ENTRIES, {}) as writer:
        writer.write("w", 0, DATA)
    assert (tmp_path / "tau.safetensors").read_bytes().endswith(DATA.tobytes())
    with pytest.raises(EditError, match="somebody else"), SingleFileWriter(tmp_path / "a.safetensors", ENTRIES, {}):
        (tmp_path / "a.safetensors").write_bytes(b"mine")
    assert sorted(os.listdir(tmp_path)) == ["a.safetensors", "tau.safetensors"]


def test_a_failure_takes_the_folders_that_were_made_with_it(tmp_path):
    (tmp_path / "kept").mkdir()
    with pytest.raises(ZeroDivisionError), SingleFileWriter(tmp_path / "kept/new/sub/t.safetensors", ENTRIES, {}):
        raise ZeroDivisionError
    assert os.listdir(tmp_path) == ["kept"] and os.listdir(tmp_path / "kept") == []


def test_a_place_that_cannot_be_written_is_named_as_it_was_given(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(EditError, match=r"^.*/file/t\.safetensors cannot be written \(.*\): check its folder"),
        SingleFileWriter(tmp_path / "file" / "t.safetensors", ENTRIES, {}),
    ):
        pass


def test_the_output_may_not_lie_in_an_input(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "link").symlink_to("model")
    with pytest.raises(EditError, match="lies inside the input"):
        SingleFileWriter(tmp_path / "link" / "t.safetensors", ENTRIES, {}, [tmp_path / "model"])


def test_threads_of_one_process_do_not_share_a_staged_file(tmp_path):
    output, refused = tmp_path / "t.safetensors", []

    def second() -> None:
        try:
            with SingleFileWriter(output, ENTRIES, {}):
                pass
        except EditError as error:
            refused.append(str(error))

    with SingleFileWriter(output, ENTRIES, {}) as writer:
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
        writer.write("w", 0, DATA)
    assert "somebody else" in refused[0] and output.exists()
