"""A recipe is run: what is made, what is taken from earlier runs, what is made again, and what stops what."""

import json
import os
import signal
import subprocess
import sys

import pytest
from weights import RECIPE, checkpoint, recipe, values_of

import editkit
from editkit.errors import EditError


def states(found):
    return {call["label"]: call["state"] for call in found["calls"]}


def only(found, label):
    [call] = [call for call in found["calls"] if call["label"] == label]
    return call


def column(found, name):
    return [row["values"][name]["value"] for row in found["table"]["rows"]]


def test_every_cell_is_made_and_a_step_without_variables_once(tmp_path):
    found = editkit.run(recipe(tmp_path), tmp_path / "out")
    assert states(found) == dict.fromkeys(
        ["tau", "edited (alpha 0.5)", "edited (alpha 1.0)", "changed (alpha 0.5)", "changed (alpha 1.0)"], "computed"
    )
    assert (found["exit_code"], found["failures"], found["gates"], found["notes"]) == (0, [], [], [])
    assert values_of(tmp_path / "out" / only(found, "edited (alpha 0.5)")["output"]) == [1 - 0.5 * 3, 2 - 0.5 * 4]
    assert column(found, "L2") == [2.5, 5.0] and column(found, "changed") == [2, 2]
    assert found["table"]["rows"][0]["cell"] == {"alpha": 0.5}
    assert only(found, "changed (alpha 1.0)")["pages"] == [
        only(found, "changed (alpha 1.0)")["output"] + "/report.html"
    ]
    assert only(found, "edited (alpha 0.5)")["arguments"]["model"] == "base"
    assert json.loads((tmp_path / "out" / "run.json").read_text()) == found
    assert (tmp_path / "out" / "table.csv").read_text().splitlines()[1].startswith("0.5,2.5,")
    assert (tmp_path / "out" / "report.html").exists()


def test_a_second_run_computes_nothing_and_gives_the_same_table(tmp_path):
    first = editkit.run(recipe(tmp_path), tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "steps").rglob("*")}
    second = editkit.run(tmp_path / "recipe.yaml", tmp_path / "out")
    assert set(states(second).values()) == {"cached"} and second["table"] == first["table"]
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "steps").rglob("*")} == before
    assert [call["seconds"] for call in second["calls"]] == [call["seconds"] for call in first["calls"]]


def test_a_changed_step_runs_again_with_what_depends_on_it_alone(tmp_path):
    editkit.run(recipe(tmp_path), tmp_path / "out")
    text = RECIPE.replace("alpha: [0.5, 1.0]", "alpha: [1.0, 2.0]").replace(
        'edited: "${edited}"}', 'edited: "${edited}", spectral: true}'
    )
    (tmp_path / "recipe.yaml").write_text(text)
    found = editkit.run(tmp_path / "recipe.yaml", tmp_path / "out")
    assert states(found) == {
        "tau": "cached", "edited (alpha 1.0)": "cached", "edited (alpha 2.0)": "computed",
        "changed (alpha 1.0)": "computed", "changed (alpha 2.0)": "computed",
    }  # fmt: skip
    assert column(found, "L2") == [5.0, 10.0]


def test_other_contents_of_an_input_run_again_and_a_new_time_does_not(tmp_path):
    editkit.run(recipe(tmp_path), tmp_path / "out")
    os.utime(tmp_path / "base" / "model.safetensors", (1, 1))
    assert set(states(editkit.run(tmp_path / "recipe.yaml", tmp_path / "out")).values()) == {"cached"}
    checkpoint(tmp_path / "tuned", 1.0, 4.0)
    found = editkit.run(tmp_path / "recipe.yaml", tmp_path / "out")
    assert set(states(found).values()) == {"computed"} and column(found, "L2") == [1.0, 2.0]


def test_an_argument_that_is_the_default_is_the_same_call(tmp_path):
    editkit.run(recipe(tmp_path), tmp_path / "out")
    (tmp_path / "recipe.yaml").write_text(
        RECIPE.replace('base: "${base}"}\n  e', 'base: "${base}", dtype: float32}\n  e')
    )
    assert set(states(editkit.run(tmp_path / "recipe.yaml", tmp_path / "out")).values()) == {"cached"}


@pytest.mark.parametrize("way", ["gone", "changed", "cut", "record"])
def test_a_damaged_output_is_said_and_made_again(way, tmp_path):
    first = editkit.run(recipe(tmp_path), tmp_path / "out")
    call = only(first, "edited (alpha 0.5)")
    weights = tmp_path / "out" / call["output"] / "model.safetensors"
    name = "edited/model.safetensors was changed"
    if way == "gone":
        weights.unlink()
        name = "edited/model.safetensors is gone"
    elif way == "changed":
        weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    elif way == "cut":
        weights.write_bytes(weights.read_bytes()[:-1])
    else:
        (weights.parents[1] / "call.json").write_text("{")
        name = "call.json cannot be read"
    planned = editkit.run(tmp_path / "recipe.yaml", tmp_path / "out", dry_run=True)
    assert only(planned, "edited (alpha 0.5)")["state"] == "would run"
    found = editkit.run(tmp_path / "recipe.yaml", tmp_path / "out")
    again = only(found, "edited (alpha 0.5)")
    assert (again["state"], again["why"]) == ("computed", f"made again: {name}")
    assert [one for one, state in states(found).items() if state == "cached"] == [
        "tau", "edited (alpha 1.0)", "changed (alpha 0.5)", "changed (alpha 1.0)",
    ]  # fmt: skip
    assert values_of(weights.parent) == [-0.5, 0.0] and found["table"] == first["table"]


def test_what_another_version_made_is_said_kept_and_not_used(tmp_path, monkeypatch):
    monkeypatch.setattr("editkit.recipes.plan.__version__", "0.0.9")
    monkeypatch.setattr("editkit.recipes.calls.__version__", "0.0.9")
    old = editkit.run(recipe(tmp_path), tmp_path / "out")
    monkeypatch.undo()
    found = editkit.run(tmp_path / "recipe.yaml", tmp_path / "out")
    assert set(states(found).values()) == {"computed"} and found["table"] == old["table"]
    [note] = found["notes"]
    assert note.startswith(
        f"5 finished calls here were made by editkit 0.0.9 and are not used by {editkit.__version__}: "
    )
    assert all((tmp_path / "out" / call["output"]).exists() for call in old["calls"])


def test_a_dry_run_plans_and_writes_nothing(tmp_path):
    found = editkit.run(recipe(tmp_path), tmp_path / "out", dry_run=True)
    assert set(states(found).values()) == {"would run"} and found["dry_run"] and found["table"] is None
    assert not (tmp_path / "out").exists()
    made = editkit.run(tmp_path / "recipe.yaml", tmp_path / "out")
    assert [call["key"] for call in made["calls"]] == [call["key"] for call in found["calls"]]
    assert set(states(editkit.run(tmp_path / "recipe.yaml", tmp_path / "out", dry_run=True)).values()) == {"cached"}


def test_a_failure_stops_what_depends_on_it_and_nothing_else(tmp_path):
    text = RECIPE.replace("[0.5, 1.0]", "[0.5, .inf]")
    found = editkit.run(recipe(tmp_path, text), tmp_path / "out")
    assert states(found) == {
        "tau": "computed", "edited (alpha 0.5)": "computed", "edited (alpha inf)": "failed",
        "changed (alpha 0.5)": "computed", "changed (alpha inf)": "not run",
    }  # fmt: skip
    assert found["exit_code"] == 2
    [sentence] = found["failures"]
    assert sentence.startswith("edited (alpha inf): ") and "alpha" in sentence.split(": ")[1]
    assert only(found, "changed (alpha inf)")["why"] == "it needs edited (alpha inf), which failed"
    values = found["table"]["rows"][1]["values"]
    assert values["L2"]["value"] is None and values["L2"]["status"].startswith("unknown: ")
    assert column(found, "L2")[0] == 2.5


def test_a_gate_that_fails_is_a_result_and_stays_one(tmp_path):
    text = RECIPE.replace('edited: "${edited}"}', 'edited: "${edited}", fail_if: "l2 > 3"}')
    for state in ("computed", "cached"):
        found = editkit.run(recipe(tmp_path, text), tmp_path / "out")
        assert found["exit_code"] == 1 and found["failures"] == []
        assert found["gates"] == ["changed (alpha 1.0): summary: l2 is 5 (rule: l2 > 3)"]
        assert states(found)["changed (alpha 1.0)"] == "gate failed" and states(found)["changed (alpha 0.5)"] == state
        assert column(found, "L2") == [2.5, 5.0]


def test_nothing_changed_has_no_output_and_stops_what_needs_it(tmp_path):
    text = """\
editkit: 1
steps:
  patch: {create_patch: {base: base, edited: base}}
  undone: {undo_patch: {edited: base, patch: "${patch}"}}
  seen: {inspect: {source: base}}
"""
    for _ in range(2):
        found = editkit.run(recipe(tmp_path, text), tmp_path / "out")
        assert states(found) == {"patch": "gate failed", "undone": "not run", "seen": found["calls"][2]["state"]}
        assert (found["exit_code"], only(found, "patch")["output"]) == (1, None)
        assert only(found, "undone")["why"].startswith("patch left nothing: ")


def test_a_missing_part_of_an_output_and_a_missing_value_are_one_sentence_each(tmp_path):
    text = """\
editkit: 1
steps:
  tau: {task_vector: {tuned: tuned, base: base}}
  edited: {negate: {model: base, vector: "${tau}", alpha: 1.0, report: false}}
  lost: {inspect: {source: "${edited}/nothing"}}
  odd: {negate: {model: base, vector: "${tau}", alpha: "${edited: total.alhpa}", report: false}}
table:
  x: "${edited: total.nothing}"
"""
    found = editkit.run(recipe(tmp_path, text), tmp_path / "out")
    lost, odd, table = found["failures"]
    assert lost == "lost: the output of edited has no nothing"
    assert odd.startswith("odd: ${edited: total.alhpa}: total has no 'alhpa': there is alpha, ")
    assert found["exit_code"] == 2 and states(found)["edited"] == "computed"
    assert table == "table.x (line 8): ${edited: total.nothing}: " + odd.split(": ", 2)[2].split("}: ")[-1].replace(
        "alhpa", "nothing"
    )


def test_values_of_results_keep_their_type_and_are_part_of_the_key(tmp_path):
    text = """\
editkit: 1
settings: {alpha: 1.0}
steps:
  tau: {task_vector: {tuned: tuned, base: base}}
  edited: {negate: {model: base, vector: "${tau}", alpha: "${alpha}", report: false}}
  again: {negate: {model: base, vector: "${tau}", alpha: "${edited: total.requested_l2}", report: false}}
table: {l2: "${again: total.requested_l2}", said: "alpha ${alpha}"}
"""
    found = editkit.run(recipe(tmp_path, text), tmp_path / "out")
    assert (column(found, "l2"), column(found, "said")) == ([25.0], ["alpha 1.0"])  # 5 times a vector of L2 5
    other = editkit.run(tmp_path / "recipe.yaml", tmp_path / "out", settings={"alpha": 2.0})
    assert states(other) == {"tau": "cached", "edited": "computed", "again": "computed"} and column(other, "l2") == [
        50.0
    ]


def test_steps_that_only_replaced_settings_named_are_not_needed(tmp_path):
    text = """\
editkit: 1
settings: {vector: "${tau}"}
steps:
  tau: {task_vector: {tuned: tuned, base: base}}
  edited: {negate: {model: base, vector: "${vector}", alpha: 1.0, report: false}}
"""
    found = editkit.run(recipe(tmp_path, text), tmp_path / "out", settings={"vector": str(tmp_path / "tuned")})
    assert states(found) == {"edited": "computed"}
    assert [(step["step"], step["needed"]) for step in found["steps"]] == [("tau", False), ("edited", True)]
    assert found["settings"] == {"vector": {"value": "tuned", "given": True}}
    assert states(editkit.run(tmp_path / "recipe.yaml", tmp_path / "out")) == {"tau": "computed", "edited": "computed"}


def test_the_first_that_exists_is_taken_and_an_output_always_does(tmp_path):
    text = """\
editkit: 1
settings: {vector: {first: [nowhere, "${tau}"]}}
steps:
  tau: {task_vector: {tuned: tuned, base: base}}
  edited: {negate: {model: base, vector: "${vector}", alpha: 1.0, report: false}}
"""
    found = editkit.run(recipe(tmp_path, text), tmp_path / "out")
    assert set(states(found)) == {"tau", "edited"} and found["settings"]["vector"]["value"] == "${tau}"
    checkpoint(tmp_path / "nowhere", 4.0, 6.0)
    assert set(states(editkit.run(tmp_path / "recipe.yaml", tmp_path / "out"))) == {"edited"}


def test_a_run_in_a_folder_of_something_else_or_at_the_same_time_is_refused(tmp_path):
    recipe(tmp_path)
    with pytest.raises(EditError, match="is not empty and holds no earlier run: give another folder"):
        editkit.run(tmp_path / "recipe.yaml", tmp_path / "base")
    with pytest.raises(EditError, match="lies inside the input"):
        editkit.run(tmp_path / "recipe.yaml", tmp_path / "base" / "out")

    def observe(call):
        with pytest.raises(EditError, match="is being made by another run"):
            editkit.run(tmp_path / "recipe.yaml", tmp_path / "out")

    assert editkit.run(tmp_path / "recipe.yaml", tmp_path / "out", observe=observe)["exit_code"] == 0


def test_nothing_of_a_run_names_the_folders_of_this_machine(tmp_path):
    text = RECIPE.replace("table:", '  checked: {verify: {output: "${edited}", inputs: {base: "${base}"}}}\ntable:')
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "data.jsonl").write_text("no json")
    text = text.replace("table:", '  tuning: {finetune: {model: "${base}", data: "${data}"}}\ntable:')
    text = text.replace("settings:", "settings:\n  data: odd/data.jsonl")
    found = editkit.run(recipe(tmp_path, text), tmp_path / "out", settings={"tuned": str(tmp_path / "tuned")})
    assert states(found)["checked (alpha 0.5)"] in ("computed", "gate failed")
    [failure] = found["failures"]
    assert failure.startswith("tuning: ") and ("odd/data.jsonl" in failure or "base" in failure)
    for path in (tmp_path / "out").rglob("*"):
        if path.suffix in (".json", ".html", ".csv"):
            assert str(tmp_path) not in path.read_text(), path


def test_a_variable_may_be_a_path_and_rows_stay_apart(tmp_path):
    text = """\
editkit: 1
matrix: {tuned: [tuned]}
steps: {changed: {diff: {base: base, edited: "${tuned}"}}}
table: {L2: "${changed: summary.l2}"}
"""
    recipe(tmp_path, text)
    other = checkpoint(tmp_path / "other" / "tuned", 1.0, 3.0)
    found = editkit.run(
        tmp_path / "recipe.yaml", tmp_path / "out", settings={"tuned": [str(tmp_path / "tuned"), str(other)]}
    )
    assert column(found, "L2") == [5.0, 1.0]
    assert [row["cell"] for row in found["table"]["rows"]] == [{"tuned": "tuned"}] * 2


def test_what_was_finished_before_an_interrupt_is_there_the_next_time(tmp_path):
    def observe(call):
        if call["state"] == "running" and call["label"] == "edited (alpha 0.5)":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        editkit.run(recipe(tmp_path), tmp_path / "out", observe=observe)
    found = editkit.run(tmp_path / "recipe.yaml", tmp_path / "out")
    assert list(states(found).values()) == ["cached", "computed", "computed", "computed", "computed"]
    assert column(found, "L2") == [2.5, 5.0]


def test_an_output_without_its_record_does_not_count(tmp_path):
    first = editkit.run(recipe(tmp_path), tmp_path / "out")
    folder = tmp_path / "out" / only(first, "tau")["output"]
    (folder.parent / "call.json").unlink()
    folder.write_bytes(b"half of it")
    found = editkit.run(tmp_path / "recipe.yaml", tmp_path / "out")
    assert (
        states(found)["tau"] == "computed" and only(found, "tau")["why"] is None and column(found, "L2") == [2.5, 5.0]
    )


def test_a_killed_run_goes_on_and_gives_the_table_of_one_that_was_not(tmp_path):
    expected = editkit.run(recipe(tmp_path), tmp_path / "whole")["table"]
    code = (
        "import editkit, os, signal\n"
        "def observe(call):\n"
        "    if call['state'] == 'computed' and call['step'] == 'edited': os.kill(os.getpid(), signal.SIGKILL)\n"
        f"editkit.run({str(tmp_path / 'recipe.yaml')!r}, {str(tmp_path / 'out')!r}, observe=observe)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True)
    assert ended.returncode == -signal.SIGKILL
    found = editkit.run(tmp_path / "recipe.yaml", tmp_path / "out", resume=True)
    assert list(states(found).values()).count("cached") == 2 and found["table"] == expected
