"""The engines: the same table from this process, from several, and from a Ray cluster on this machine; and what ends them."""

import os
import signal
import subprocess
import sys
import time

import pytest
from weights import recipe

import editkit
from editkit.errors import EditError
from editkit.recipes.engines import engine


def test_several_processes_give_the_table_and_the_keys_of_one(tmp_path):
    alone = editkit.run(recipe(tmp_path), tmp_path / "alone")
    told = []
    found = editkit.run(
        tmp_path / "recipe.yaml", tmp_path / "out", jobs=2, observe=lambda call: told.append(call["state"])
    )
    assert found["table"] == alone["table"] and found["exit_code"] == 0
    assert [call["key"] for call in found["calls"]] == [call["key"] for call in alone["calls"]]
    assert told.count("running") == told.count("computed") == 5


def test_several_processes_tell_of_failures_and_gates_as_one_does(tmp_path):
    path = recipe(tmp_path)
    text = path.read_text().replace("[0.5, 1.0]", "[1.0, .inf]")
    path.write_text(text.replace('edited: "${edited}"}', 'edited: "${edited}", fail_if: "l2 > 3"}'))
    alone, found = (editkit.run(path, tmp_path / str(jobs), jobs=jobs) for jobs in (1, 2))
    for key in ("table", "failures", "gates", "exit_code"):
        assert found[key] == alone[key]
    assert found["exit_code"] == 2 and len(found["failures"]) == len(found["gates"]) == 1


@pytest.mark.slow
def test_ray_gives_the_table_of_one_process(tmp_path):
    pytest.importorskip("ray")
    alone = editkit.run(recipe(tmp_path), tmp_path / "alone")
    found = editkit.run(tmp_path / "recipe.yaml", tmp_path / "out", engine="ray", jobs=2)
    assert found["table"] == alone["table"] and (found["engine"], found["exit_code"]) == ("ray", 0)
    again = editkit.run(tmp_path / "recipe.yaml", tmp_path / "out")
    assert {call["state"] for call in again["calls"]} == {"cached"}


def test_ray_that_is_not_installed_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(EditError, match=r"--engine ray needs the package ray: pip install 'editkit\[ray\]'"):
        editkit.run(recipe(tmp_path), tmp_path / "out", engine="ray")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("name", "jobs", "said"), [("dask", 1, "there is no engine 'dask'"), ("ray", 0, "jobs is 0")])
def test_engines_that_are_none_are_refused(name, jobs, said):
    with pytest.raises(EditError, match=said), engine(name, jobs):
        pass


def die(path):
    with open(path, "w") as file:
        file.write("begun")
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_is_killed_is_told_apart_from_a_call_that_fails(tmp_path):
    from editkit.recipes.engines import lost

    with engine("processes", 2) as submit:
        assert lost(submit(die, tmp_path / "begun").exception(timeout=60))
    with engine("processes", 1) as submit:
        assert not lost(submit(divmod, 1, 0).exception())


WAITING = """
import os, sys, time
from editkit.recipes.engines import engine

def work(folder):
    open(os.path.join(folder, str(os.getpid())), "w").close()
    try:
        time.sleep(120)
    finally:
        open(os.path.join(folder, "tidied"), "w").close()

if __name__ == "__main__":
    with engine("processes", 2) as submit:
        submit(work, sys.argv[1]).result()
"""


@pytest.mark.parametrize("ended_by", [signal.SIGINT, signal.SIGKILL])
def test_processes_end_with_the_run_and_tidy_up(ended_by, tmp_path):
    (tmp_path / "waiting.py").write_text(WAITING)
    place = tmp_path / "pids"
    place.mkdir()
    run = subprocess.Popen([sys.executable, tmp_path / "waiting.py", place], stderr=subprocess.DEVNULL)
    until(lambda: any(place.iterdir()))
    [pid] = [int(path.name) for path in place.iterdir()]
    run.send_signal(ended_by)
    assert run.wait(timeout=30) != 0
    until(lambda: not alive(pid))
    assert (place / "tidied").exists()


def until(holds, seconds=30.0):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.05)


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().split(")")[1].split()[0] != "Z"
    except OSError:
        return False
