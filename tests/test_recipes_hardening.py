"""What must not go wrong in silence: inputs that change or hide, keys that coincide, records and folders that are not what they seem."""

import json
import os
import re
from functools import wraps

import pytest
from weights import checkpoint, values_of

import editkit
from editkit.demo.invent import invent
from editkit.errors import EditError
from editkit.recipes import functions
from editkit.recipes.calls import CALL


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Two models, (1, 2) and (4, 6), whose difference has L2 5."""
    monkeypatch.chdir(tmp_path)
    checkpoint(tmp_path / "base", 1.0, 2.0)
    checkpoint(tmp_path / "tuned", 4.0, 6.0)
    return tmp_path


DIFF = {"diff": {"base": "base", "edited": "tuned"}}


def recipe(steps, **parts):
    return {"editkit": 1, "steps": steps, **parts}


def refused(source, **settings):
    with pytest.raises(EditError) as raised:
        editkit.run(source, "out", **settings)
    assert not (os.path.exists("out") and os.listdir("out"))
    return str(raised.value)


def l2(found):
    return found["table"]["rows"][0]["values"]["L2"]["value"]


L2 = {"L2": "${d: summary.l2}"}


def test_an_input_that_changes_while_it_is_read_is_not_kept(here, monkeypatch):
    reported = functions.reported_diff

    @wraps(reported)
    def meddling(*arguments, **settings):
        report = reported(*arguments, **settings)
        checkpoint(here / "tuned", 4.0, 2.0)
        return report

    monkeypatch.setattr(functions, "reported_diff", meddling)
    found = editkit.run(recipe({"d": DIFF}, table=L2), "out")
    assert found["failures"] == ["d: tuned changed while it was read: run it again"]
    monkeypatch.undo()
    os.chdir(here)
    assert l2(editkit.run(recipe({"d": DIFF}, table=L2), "out")) == 3.0


def test_two_keys_from_the_results_of_two_steps_are_two(here):
    steps = {
        "a": {"inspect": {"source": "base"}},
        "b": {"inspect": {"source": "tuned"}},
        "m": {"merge": {"base": "base", "vectors": {"${a: name}": 1.0, "${b: name}": 1.0}}},
    }
    assert editkit.run(recipe(steps), "out", dry_run=True)["exit_code"] == 0


@pytest.mark.parametrize("other", ["tuned", "./tuned"])
def test_two_keys_that_stand_for_the_same_are_refused(here, other):
    merge = {"merge": {"base": "base", "vectors": {"${first}": 1.0, "${second}": 1.0}}}
    said = refused(recipe({"m": merge}, settings={"first": "tuned", "second": other}))
    assert "has keys that stand for the same, of" in said and "give each once" in said


def test_what_looks_for_its_inputs_by_itself_is_told_them_in_a_recipe(here):
    edited = {"negate": {"model": "base", "vector": "tuned", "alpha": 1.0}}
    said = refused(recipe({"e": edited, "v": {"verify": {"output": "${e}"}}, "t": {"task_vector": {"tuned": "tuned"}}}))
    assert "steps.v.verify lacks inputs" in said and "steps.t.task_vector lacks base" in said


def test_two_dots_behind_a_link_lead_where_the_system_says(here):
    (here / "ext").mkdir()
    (here / "sub").mkdir()
    checkpoint(here / "ext" / "m", 1.0, 2.5)
    checkpoint(here / "sub" / "m", 1.0, 2.0)
    (here / "ext" / "dir").mkdir()
    (here / "sub" / "link").symlink_to(here / "ext" / "dir")
    found = editkit.run(recipe({"d": {"diff": {"base": "base", "edited": "sub/link/../m"}}}, table=L2), "out")
    assert l2(found) == 0.5


def test_two_dots_do_not_lead_out_of_the_output_of_a_step(here):
    steps = {
        "e": {"negate": {"model": "base", "vector": "tuned", "alpha": 1.0}},
        "d": {"diff": {"base": "base", "edited": "${e}/../../x"}},
    }
    assert "leads out of the output of a step by '..'" in refused(recipe(steps))


def test_a_file_that_was_added_to_an_output_is_said_and_the_call_made_again(here):
    steps = {"e": {"negate": {"model": "base", "vector": "tuned", "alpha": 1.0}}}
    [call] = editkit.run(recipe(steps), "out")["calls"]
    (here / "out" / call["output"] / "extra.safetensors").write_bytes(b"x")
    [call] = editkit.run(recipe(steps), "out")["calls"]
    assert (call["state"], call["why"]) == ("computed", "made again: e/extra.safetensors was added")


def test_a_record_without_what_it_must_have_is_damaged(here):
    editkit.run(recipe({"d": DIFF}), "out")
    [path] = (here / "out" / "steps").glob(f"*/{CALL}")
    record = json.loads(path.read_text())
    del record["gate"]
    path.write_text(json.dumps(record))
    [call] = editkit.run(recipe({"d": DIFF}), "out")["calls"]
    assert (call["state"], call["why"]) == ("computed", "made again: call.json is damaged")


def test_the_table_has_nothing_of_a_call_that_was_not_run(here):
    steps = {"s": {"inspect": {"source": "base"}}, "d": {"diff": {"base": "base", "edited": "tuned", "only": "${g}"}}}
    source = recipe(steps, settings={"g": "w"}, table={**L2, "n": "${s: summary.parameters}"})
    editkit.run(source, "out")
    [place] = (here / "out" / "steps").glob("d-*")
    (place / CALL).unlink()  # so that it is made again, and fails: its folder cannot be cleared
    (place / "result.json").write_text('{"summary": {"l2": 999}}')
    checkpoint(here / "tuned", float("nan"), 6.0)
    found = editkit.run(source, "out")
    assert l2(found) != 999


@pytest.mark.parametrize(
    ("argument", "value", "said"),
    [
        ("edited", "${s: summary.tensors}", "d: edited is 1: give text or a path"),
        ("spectral", "${s: summary.tensors}", "d: spectral is 1: give true or false"),
        ("fail_if", "${s: summary.bytes} > l2", "d: fail_if is '8 > l2': cannot read the rule"),
    ],
)
def test_a_value_of_a_result_must_fit_and_other_steps_go_on(here, argument, value, said):
    steps = {
        "s": {"inspect": {"source": "base"}},
        "d": {"diff": {"base": "base", "edited": "tuned", argument: value}},
        "other": DIFF,
    }
    found = editkit.run(recipe(steps), "out")
    assert found["exit_code"] == 2 and found["failures"][0].startswith(said), found["failures"]
    assert {call["step"]: call["state"] for call in found["calls"]}["other"] == "computed"


def test_a_fault_of_a_function_is_a_failed_call_and_not_the_end(here, monkeypatch):
    def broken(source: str) -> dict[str, int]:
        return {"parameters": 1 // 0}

    monkeypatch.setattr(editkit, "inspect", broken)
    found = editkit.run(recipe({"s": {"inspect": {"source": "base"}}, "d": DIFF}, table=L2), "out")
    assert found["failures"] == ["s: an unexpected ZeroDivisionError: integer division or modulo by zero"]
    assert l2(found) == 5.0


@pytest.mark.parametrize("value", ["2024-02-30", "9" * 5000, "0b_", "!!int abc"])
def test_a_value_that_yaml_cannot_read_is_one_sentence(here, value):
    (here / "r.yaml").write_text(f"editkit: 1\nsettings: {{x: {value}}}\nsteps: {{d: {{inspect: {{source: base}}}}}}\n")
    assert re.match(r"r\.yaml.* (in quotes|without tags)$", refused("r.yaml"))


def test_aliases_without_an_end_are_refused(here):
    for text in (
        "x: &a [*a]",
        "\n".join(["a0: &a0 [1]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10))]),
    ):
        (here / "r.yaml").write_text(
            f"editkit: 1\nsteps: {{d: {{inspect: {{source: base}}}}}}\nsettings:\n  {text.replace(chr(10), chr(10) + '  ')}\n"
        )
        assert "aliases that unfold to more than 100,000 values" in refused("r.yaml")  # fmt: skip


@pytest.mark.parametrize("name", ["no", "1", "null"])
def test_a_name_that_yaml_makes_no_text_is_said(here, name):
    (here / "r.yaml").write_text(f"editkit: 1\nsteps: {{{name}: {{inspect: {{source: base}}}}}}\n")
    assert "in steps: names are text, so write them in quotes" in refused("r.yaml")


def test_values_that_nothing_can_tell_are_refused_used_or_not(here):
    import datetime

    steps = {"t": {"finetune": {"model": "base", "data": "x.jsonl"}}, "d": DIFF}
    said = refused(recipe(steps, settings={"x": datetime.date(2024, 1, 1), "y": 10**400}))
    assert "settings.x is '2024-01-01', which is neither text nor a number" in said
    assert "settings.y is a whole number of more than 63 bits" in said
    within = {"finetune": {"model": "base", "data": "x.jsonl", "steps": {"a": [datetime.date(2024, 1, 1)]}}}
    said = refused(recipe({"t": within}))
    assert "steps.t.finetune.steps.a[0] is '2024-01-01', which is neither text nor a number" in said
    assert said.count("steps.t.finetune.steps") == 1 and "Output" not in said, "what it would have been is not guessed"


def test_the_mean_of_what_is_not_finite_is_unknown(here):
    found = editkit.run(
        recipe({"d": DIFF}, matrix={"a": [1.0, float("inf")]}, table={"a": "${a}", **L2, "over": "a"}), "out"
    )
    value = found["table"]["rows"][0]["values"]["a"]
    assert (value["value"], value["status"]) == (None, "unknown: one of the values is not finite")


@pytest.mark.parametrize(
    ("step", "said"),
    [
        ({"diff": {**DIFF["diff"], "fail_if": "l3 > 2"}}, "d.diff.fail_if is 'l3 > 2': unknown measure 'l3'"),
        ({"negate": {"model": "base", "vector": "tuned", "alpha": 1, "rounding": "up"}}, "rounding is 'up': rounding 'up' is unknown"),
        ({"unlearn": {"model": "base", "forget": "tuned", "method": "me+dg"}}, "method is 'me+dg': there is no method 'me+dg' (did you mean me+gd?)"),
        ({"unlearn": {"model": "base", "forget": "tuned", "stop": "ma(forget) =< 1"}}, "stop is 'ma(forget) =< 1': "),
        ({"evaluate": {"models": "base", "forget": "tuned", "metrics": ["memorization/maa@1"]}}, "did you mean memorization/ma?"),
        ({"evaluate": {"models": "base", "forget": "tuned", "suites": ["tufo"]}}, "no such suite: tufo"),
        ({"localize": {"model": "base", "forget": "tuned", "method": "fischer"}}, "method is 'fischer': "),
        ({"merge": {"base": "base", "vectors": {"tuned": 1}, "method": "tise"}}, "did you mean ties?"),
        ({"sweep": {"model": "base", "vector": "tuned", "forget": "tuned", "retain": "tuned", "alphas": [1], "choose": "best"}}, "choose is 'best': "),
    ],
)  # fmt: skip
def test_words_and_rules_are_read_before_anything_runs(here, step, said):
    assert said in refused(recipe({"d": step}))


def test_data_is_no_id_on_the_hub(here):
    said = refused(recipe({"t": {"finetune": {"model": "org/model", "data": "dat/forget"}}}))
    assert "t.finetune.data is 'dat/forget', which is not there" in said and "org/model" not in said


def test_what_set_gave_is_called_so(here):
    source = recipe(
        {"d": {"diff": {"base": "base", "edited": "${e}", "spectral": "${s}"}}}, settings={"e": "tuned", "s": True}
    )
    said = refused(source, settings={"e": "nowhere", "s": 3})  # fmt: skip
    assert "--set e is 'nowhere', which is not there" in said and "--set s is 3: give true or false" in said
    assert "steps" not in said


def test_settings_that_belong_to_one_that_is_given_are_named(here):
    invent(here / "people", forget=2, retain=2, unseen=2, background=4, base_steps=2, model_steps=2)
    source = recipe(
        {"p": {"invent": {}}, "d": {"diff": {"base": "${base}", "edited": "${model}", "only": "${only}"}}},
        settings={"base": "${p}/base", "model": "${p}/model", "only": "*"},
    )
    whole = {"base": "people/base", "model": "people/model"}
    [note] = editkit.run(source, "out", settings={"model": "people/model"}, dry_run=True)["notes"]
    assert note == "--set gives model, and not base, which stay the recipe's own: give all that belong together"
    for given in (whole, {"only": "w"}, {}):
        assert editkit.run(source, "out", settings=given, dry_run=True)["notes"] == []


def test_a_column_must_look_something_up_and_find_one_value(here):
    assert "table.x is 'total.delta_l2': give text with what is looked up" in refused(
        recipe({"d": DIFF}, table={"x": "total.delta_l2"})
    )
    found = editkit.run(recipe({"d": DIFF}, table={"x": "${d: tensors}", "y": "${d: summary}", **L2}), "out")
    assert found["exit_code"] == 2 and l2(found) == 5.0
    assert re.match(r"table\.x: it is a list of \d+: say which in brackets", found["failures"][0])
    assert found["failures"][1].startswith("table.y: it is a mapping: say what of it, of ")


def test_a_folder_is_of_one_recipe_and_other_files_are_left_alone(here):
    for name in ("one", "two"):
        (here / f"{name}.yaml").write_text(json.dumps(recipe({"d": DIFF}, table=L2)))
    editkit.run("one.yaml", "out")
    for dry_run in (True, False):
        with pytest.raises(EditError, match=r"^out holds a run of the recipe one: give another folder than for two$"):
            editkit.run("two.yaml", "out", dry_run=dry_run)
    (here / "mine" / "steps").mkdir(parents=True)
    (here / "mine" / "report.html").write_text("mine")
    with pytest.raises(EditError, match="mine is not empty and holds no earlier run"):
        editkit.run("one.yaml", "mine")
    (here / "one.yaml").write_text(json.dumps(recipe({"d": DIFF})))
    editkit.run("one.yaml", "out")
    assert not (here / "out" / "table.csv").exists() and not (here / "out" / "table.json").exists()


def test_python_may_give_paths_and_tuples(here):
    source = recipe(
        {"d": {"diff": {"base": "base", "edited": "${e}"}}}, settings={"e": "base"}, matrix={"n": [0]}, table={**L2, "n": "${n}"}
    )  # fmt: skip
    found = editkit.run(source, "out", settings={"e": here / "tuned", "n": (1, 2)})
    assert [row["values"]["L2"]["value"] for row in found["table"]["rows"]] == [5.0, 5.0]
    assert values_of(here / "tuned") == [4.0, 6.0]
