"""The JSON schema: that it is one, that it takes what the runner takes, and refuses what an editor should underline."""

import inspect
import json
from pathlib import Path

import jsonschema
import pytest
import yaml

import editkit
from editkit.recipes.document import KEYS
from editkit.recipes.functions import STEPS, parameters
from editkit.recipes.schema import descriptions, schema

RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml"))


@pytest.fixture(scope="module")
def validator():
    jsonschema.Draft202012Validator.check_schema(schema())
    return jsonschema.Draft202012Validator(json.loads(json.dumps(schema())))


def faults(validator, steps, **more):
    return [error.message for error in validator.iter_errors({"editkit": 1, "steps": steps, **more})]


def test_every_function_has_its_arguments_with_what_is_needed():
    steps = schema()["$defs"]["step"]["properties"]
    assert set(steps) == set(STEPS)
    for name, one in steps.items():
        assert list(one["properties"]) == list(parameters(name)) and one["description"]
    assert steps["unlearn"]["required"] == ["model", "forget"] and steps["negate"]["required"] == [
        "model",
        "vector",
        "alpha",
    ]
    assert set(schema()["properties"]) == set(KEYS)


def test_arguments_say_what_they_are():
    negate = schema()["$defs"]["step"]["properties"]["negate"]["properties"]
    assert negate["model"]["description"] == "the checkpoint to edit"
    assert negate["rounding"]["default"] == "nearest" and "stochastic" in negate["rounding"]["description"]
    known = inspect.signature(editkit.unlearn).parameters
    said = descriptions(inspect.getdoc(editkit.unlearn) or "", known)
    assert set(said) <= set(known) and len(said) > 15


@pytest.mark.parametrize(
    "step, what",
    [
        ({"unlern": {}}, "'unlern' was unexpected"),
        ({"negate": {"model": "m", "vector": "v"}}, "'alpha' is a required property"),
        ({"negate": {"model": "m", "vector": "v", "alpha": 1, "output": "o"}}, "'output' was unexpected"),
        ({"negate": {"model": "m", "vector": "v", "alpha": True}}, "True is not valid under any of the given schemas"),
        (
            {"negate": {"model": "m", "vector": "v", "alpha": 1}, "diff": {"base": "a", "edited": "b"}},
            "too many properties",
        ),
    ],
)
def test_mistakes_in_a_step_are_found(validator, step, what):
    [fault] = faults(validator, {"edited": step})
    assert what in fault


def test_references_may_stand_for_any_value(validator):
    step = {
        "unlearn": {"model": "${people}/model", "forget": ["${people}/a.jsonl", "b"], "seed": "${seed}", "lr": "${lr}"}
    }
    assert not faults(validator, {"people": {"invent": {}}, "edited": step})


def test_a_matrix_has_lists_and_a_table_has_references(validator):
    steps = {"seen": {"inspect": {"source": "m"}}}
    assert not faults(
        validator, steps, matrix={"seed": [0, 1]}, table={"over": "seed", "size": "${seen: summary.bytes}"}
    )
    assert faults(validator, steps, matrix={"seed": 0}) and faults(validator, steps, table={"size": 3})


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_recipes_have_no_mistakes(validator, path):
    assert not [error.message for error in validator.iter_errors(yaml.safe_load(path.read_text("utf-8")))]
