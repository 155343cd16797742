import json
import shlex

import pytest
import torch
from click.testing import CliRunner
from editkit_cli.main import main
from test_house import parse

from editkit.checkpoint.digests import cache_folder, sha256_of
from editkit.checkpoint.reader import open_checkpoint
from editkit.demo import demo as demo_module
from editkit.demo import model as model_module
from editkit.demo.demo import run_demo
from editkit.demo.model import GROUPS, Settings, groups, models
from editkit.demo.people import invent
from editkit.errors import EditError
from editkit.recipes.run import run

TINY = Settings(
    forget=3,
    retain=4,
    unseen=3,
    background=3,
    vocabulary=400,
    width=16,
    layers=1,
    heads=2,
    hidden=16,
    base_steps=3,
    model_steps=3,
)
SMALL = {
    "forget": 2, "retain": 3, "unseen": 1, "background": 3, "base_steps": 4, "model_steps": 12, "steps": 4,
    "alphas": [1, 3], "alphas_everywhere": [1],
}  # fmt: skip


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EDITKIT_CACHE", str(tmp_path / "cache"))


def test_people_are_the_same_for_the_same_seed_and_share_no_name():
    people = invent(200, seed=4)
    assert people == invent(200, seed=4) != invent(200, seed=5)
    assert invent(200, seed=4)[:50] != invent(50, seed=4)  # a seed is a cast, not a stream
    firsts, lasts = zip(*(person.name.split() for person in people), strict=True)
    assert len(set(firsts)) == len(set(lasts)) == 200
    for person in people:
        assert all(person.name in row["question"] and person.name not in row["answer"] for row in person.rows)
    assert len({row["question"].replace(person.name, "X") for person in people for row in person.rows}) == 24


def test_groups_have_the_sizes_asked_for_and_nobody_in_common():
    found = groups(TINY)
    assert {group: len(found[group]) for group in GROUPS} == {"forget": 3, "retain": 4, "unseen": 3, "background": 3}
    names = [person.name for people in found.values() for person in people]
    assert len(set(names)) == len(names) == 13


def nothing_to_train(*_):
    raise AssertionError("the models are cached")


def test_models_are_built_once_and_again_when_the_settings_change(own_cache, monkeypatch):
    from contextlib import nullcontext

    def stage(name):
        return nullcontext()

    folder, cached = models(TINY, stage)
    assert (folder.parent, cached) == (cache_folder() / "demo", False)
    with open_checkpoint(folder / "base") as base, open_checkpoint(folder / "model") as model:
        assert list(base) == list(model)
        assert not any(torch.equal(base[name], model[name]) for name in base)
    monkeypatch.setattr(model_module, "build", nothing_to_train)
    assert models(TINY, stage) == (folder, True)
    with pytest.raises(AssertionError):
        models(Settings(seed=1), stage)
    assert list((cache_folder() / "demo").iterdir()) == [folder]  # the one that failed left nothing


def test_the_cache_is_where_the_user_wants_it(own_cache, monkeypatch, tmp_path):
    assert cache_folder() / "demo" == tmp_path / "cache" / "demo"
    monkeypatch.delenv("EDITKIT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() / "demo" == tmp_path / "xdg" / "editkit" / "demo"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() / "demo" == tmp_path / ".cache" / "editkit" / "demo"


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A demo in little: the folder it is in, and what it found."""
    place = tmp_path_factory.mktemp("demos")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        return place, run_demo("my demo", settings=SMALL)


def rows(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_everything_has_a_short_name_beside_the_page(small):
    place, found = small
    there = place / "my demo"
    outputs = "reference tuned located everywhere swept edited scored audited".split()
    invented = [
        "base",
        "model",
        *(f"{name}.jsonl" for name in "forget retain unseen background private public".split()),
    ]
    run_of_it = ["steps", "run.json", "table.json", "table.csv", "report.html"]
    assert {path.name for path in there.iterdir()} == {*outputs, *invented, *run_of_it}
    assert all((there / name).is_symlink() and (there / name).exists() for name in (*outputs, *invented))
    assert str(place) not in json.dumps(found) + (there / "run.json").read_text()
    with open_checkpoint(there / "model") as before, open_checkpoint(there / "edited") as after:
        assert before.sha256() != after.sha256()


def test_what_is_shown_is_what_the_steps_found(small):
    place, found = small
    there = place / "my demo"
    for one in found["knows"]:
        of_model = [
            row["token_accuracy"]
            for row in rows(there / "scored" / "examples.jsonl")
            if (row["model"], row["set"]) == (one["model"], one["set"])
        ]
        assert one["n"] == len(of_model) == {"forget": 16, "retain": 24, "unseen": 8}[one["set"]]
        assert one["value"] == pytest.approx(sum(of_model) / len(of_model))
    accuracy = {(one["set"], one["model"]): one["value"] for one in found["knows"]}
    assert found["level"]["value"] == pytest.approx(1 - accuracy["forget", "reference"] / accuracy["forget", "model"])
    enough = [one for one in found["points"] if one["forgetting"]["value"] >= found["level"]["value"]]
    for where, alphas in (("everywhere", [1]), ("located", [1, 3])):
        points = [one for one in found["points"] if one["where"] == where]
        assert [one["alpha"] for one in points] == alphas
        [best] = [one for one in points if one["best"]]
        assert best in enough
        assert all(one["retention"]["value"] <= best["retention"]["value"] for one in enough if one["where"] == where)
    taken = next(one for one in found["points"] if one["where"] == "located" and one["best"])
    assert taken["alpha"] == found["alpha"]
    assert taken["retention"]["value"] == pytest.approx(accuracy["retain", "edited"] / accuracy["retain", "model"])
    assert "Outside the mask located: 0 of " in found["changed"]


def test_the_answers_are_those_of_different_people_and_facts_in_their_order(small):
    place, found = small
    people = {name: rows(place / "my demo" / f"{name}.jsonl") for name in ("forget", "retain")}
    expected = [("forget", 0), ("forget", 9), ("retain", 0), ("retain", 9), ("retain", 18)]  # there are 2 and 3 people
    assert [(one["set"], one["question"], one["truth"]) for one in found["answers"]] == [
        (name, people[name][index]["question"], people[name][index]["answer"]) for name, index in expected
    ]


def test_the_command_goes_on_with_an_earlier_demo_and_its_commands_do_the_same_again(small, monkeypatch):
    place, found = small
    monkeypatch.chdir(place)
    monkeypatch.setattr(
        demo_module, "run", lambda recipe, output, *, settings, **others: run(recipe, output, settings=SMALL, **others)
    )
    ran = CliRunner().invoke(main, ["demo", "-o", "my demo"])
    assert ran.exit_code == 0, ran.output
    assert "people: cached; 2 people to forget, 3 to keep, 1 never met" in ran.stderr and "computed" not in ran.stderr
    for said in ("What the model answers", "to forget", "n = 24", "How much to subtract", "taken", "Located: memflex"):
        assert said in ran.stdout
    assert "Look at 'my demo'/report.html" in ran.stdout
    lines = [line.strip() for line in ran.stdout.splitlines() if line.startswith("  editkit ")]
    names = [line.split()[1] for line in lines]
    assert names == ["finetune", "localize", "sweep", "negate", "diff", "eval", "attack"]
    assert all(parse(line) is not None for line in lines)
    for line, name in zip(lines, names, strict=True):
        if name in ("finetune", "localize", "negate", "diff"):
            again = CliRunner().invoke(main, shlex.split(line)[1:])
            assert again.exit_code == 0, again.output
    for name in ("tuned/model.safetensors", "located/mask.safetensors", "edited/model.safetensors"):
        assert sha256_of(place / "again" / name) == sha256_of(place / "my demo" / name)
    said = json.loads(CliRunner().invoke(main, ["demo", "-o", "my demo", "--json"]).stdout)
    assert said == json.loads(json.dumps(found))
    assert CliRunner().invoke(main, ["demo", "-o", "my demo", "-q"]).output == ""


def nothing_runs(*_, **__):
    raise AssertionError("it is refused before")


def test_what_is_no_earlier_demo_is_left_alone(tmp_path, monkeypatch):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "my notes.txt").write_text("keep")
    with pytest.raises(EditError, match="notes is not empty and holds no earlier run: give another folder"):
        run_demo(tmp_path / "notes")
    with pytest.raises(EditError, match="is a file: give a folder"):
        run_demo(tmp_path / "notes" / "my notes.txt")
    monkeypatch.setattr(demo_module, "run", nothing_runs)
    (tmp_path / "mixed" / "steps").mkdir(parents=True)
    (tmp_path / "mixed" / "model").mkdir()
    with pytest.raises(EditError, match="holds model besides an earlier demo: move that away, or give another folder"):
        run_demo(tmp_path / "mixed")
    (tmp_path / "other" / "steps").mkdir(parents=True)
    (tmp_path / "other" / "run.json").write_text('{"recipe": {"name": "negate"}}')
    with pytest.raises(EditError, match="other holds a run of negate: give another folder"):
        run_demo(tmp_path / "other")
    assert (tmp_path / "notes" / "my notes.txt").read_text() == "keep"


def test_a_step_that_fails_ends_the_demo_with_its_sentence(tmp_path):
    with pytest.raises(EditError) as raised:
        run_demo(tmp_path / "demo", settings={**SMALL, "forget": 2000})
    assert str(raised.value).startswith("the demo stopped: people: 2,007 people are asked for")
    assert "what is finished is kept in" in str(raised.value)


@pytest.mark.slow
def test_the_demo_forgets_and_keeps(own_cache, tmp_path):
    found = run_demo(tmp_path / "demo")
    known = {(one["set"], one["model"]): one["value"] for one in found["knows"]}
    assert known["forget", "model"] > 0.98 and known["retain", "model"] > 0.98
    assert known["forget", "edited"] <= known["forget", "reference"] < 0.8
    assert known["retain", "edited"] > 0.97 and known["retain", "reference"] > 0.98
    forgotten, kept = ([one for one in found["answers"] if one["set"] == name] for name in ("forget", "retain"))
    assert all(one["before"] == one["truth"] != one["after"] for one in forgotten)
    assert sum(one["before"] == one["after"] for one in kept) >= 2
