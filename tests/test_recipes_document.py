"""Recipes that are wrong: everything that is wrong in one sentence each, with its line, before anything is written."""

import pytest
from safetensors.torch import save_file
from torch import tensor

import editkit
from editkit.errors import EditError
from editkit.recipes.document import read_recipe
from editkit.recipes.plan import plan_recipe


def said(text, tmp_path, **given):
    """What is said of a recipe that is wrong."""
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(EditError) as raised:
        editkit.run(path, tmp_path / "out", settings=given)
    assert raised.value.exit_code == 2 and not (tmp_path / "out").exists()
    return str(raised.value).removeprefix(f"{path}: ").removeprefix(str(path))


def test_all_mistakes_are_said_at_once_with_their_lines(tmp_path):
    text = """\
editkit: 1
tittle: x
settings:
  model: missing/model.safetensors
  idle: 3
matrix:
  seed: [0, 0]
steps:
  edited:
    unlern: {model: a}
  seed:
    invent: {}
  tuned:
    finetune: {model: "${modle}", dat: x, lr: much, seed: "${seed}"}
  seen:
    inspect: {source: "${model}"}
"""
    found = said(text, tmp_path).split("; ")
    assert sorted(found) == sorted(
        [
            "tittle (line 2) is unknown: did you mean title?",
            "settings.idle (line 5) is used by nothing: remove it, or write ${idle} where it is meant",
            "matrix.seed (line 7) has 0 more than once: give each value once",
            "steps.edited.unlern (line 10) is no function of editkit: did you mean unlearn?",
            "steps.seed (line 11) has the name of matrix.seed (line 7): rename one of them",
            "steps.tuned.finetune.dat (line 14) is no argument of finetune: did you mean data?",
            "steps.tuned.finetune (line 14) lacks data",
            "steps.tuned.finetune.model (line 14) has ${modle}, which is no setting, variable or step: did you mean model?",
            "steps.tuned.finetune.lr (line 14) is 'much': give a number",
            "settings.model (line 4) is 'missing/model.safetensors', which is not there: paths are relative to the "
            "folder of the recipe",
        ]
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("editkit: 2\nsteps: {a: {invent: {}}}", " is a recipe of format 2, and this editkit reads format 1: update editkit"),
        ("steps: {a: {invent: {}}}", "editkit is None: write editkit: 1, the version of the format"),
        ("editkit: 1", "there are no steps: give some, such as steps: {people: {invent: {}}}"),
        ("- a", " is no recipe: give a YAML mapping with the keys editkit: 1 and steps"),
        ("editkit: 1\nsteps: {a: {invent: {}}, a: {invent: {}}}", "a (line 2): given more than once, keep one"),
        (
            "editkit: 1\nsteps: {a: {invent: {}, diff: {}}}",
            "steps.a (line 2) is no call: give one function with its arguments, such as {diff: {base: a, edited: b}}",
        ),
        (
            "editkit: 1\nsteps: {a: {invent: {output: x}}}",
            "steps.a.invent.output (line 2) is chosen by the run, not by the recipe: leave it out",
        ),
        (
            'editkit: 1\nsteps:\n  a: {inspect: {source: "${b}"}}\n  b: {apply_patch: {model: "${c}/x", patch: p}}\n'
            '  c: {finetune: {model: "${b}", data: p}}',
            "steps.b (line 4) needs itself: b → c → b: take one of these references out",
        ),
        (
            'editkit: 1\nsteps:\n  a: {invent: {}}\n  b: {inspect: {source: "${a: people}"}}\n  c: {inspect: {source: "${b}"}}',
            "steps.c.inspect.source (line 5) has ${b}, and inspect writes nothing: write ${b: ...} for a value of its result",
        ),
        (
            'editkit: 1\nsettings: {m: {first: [x, y]}}\nsteps: {a: {inspect: {source: "${m}"}}}',
            "settings.m (line 2) is ['x', 'y'], of which nothing is there: give one that is, with --set m=...",
        ),
        (
            'editkit: 1\nsettings: {w: [1], d: 2024-01-01}\n'
            'steps: {a: {merge: {base: org/model, vectors: {"${w}": 1.0}, settings: {x: "${d}"}}}, b: {inspect: {source: "a${w}"}}}',
            "settings.d (line 2) is '2024-01-01', which is neither text nor a number: write it in quotes; "
            "steps.a.merge.vectors (line 3) has '${w}' for a key, which is [1]: give text; "
            "steps.b.inspect.source (line 3) has [1] within a text: give it alone",
        ),
        (
            'editkit: 1\nsteps: {a: {inspect: {source: "${m: }"}}}',
            "steps.a.inspect.source (line 2) has '${m: }': write ${name}, or ${step: value} for a value of its result",
        ),
        (
            'editkit: 1\nsteps: {a: {invent: {}}}\ntable: {x: "${a}", y: "${a: rows[}", over: sed}',
            "table.over (line 3) is 'sed', which is no variable of the matrix: there are none; "
            "table.x (line 3) has ${a}, a path: write ${a: ...} for a value of its result; "
            "table.y (line 3) has 'rows[': write keys, and in brackets which one, such as result[set=forget].after",
        ),
    ],
)  # fmt: skip
def test_each_mistake_is_one_sentence(text, expected, tmp_path):
    assert said(text, tmp_path) == expected


def test_set_names_what_there_is(tmp_path):
    text = 'editkit: 1\nsettings: {seed: 1}\nmatrix: {people: [1]}\nsteps: {a: {invent: {seed: "${seed}", forget: "${people}"}}}'
    assert said(text, tmp_path, sed=3) == "--set sed: there is no such setting, did you mean seed?"
    assert said(text, tmp_path, people=[]) == "--set people is []: give a list of values"
    assert said(text, tmp_path, seed="x") == "--set seed is 'x': give a whole number"


def test_a_recipe_that_is_not_there_is_one_sentence(tmp_path):
    with pytest.raises(
        EditError, match=r"none.yaml cannot be read \(No such file or directory\): give a recipe in YAML"
    ):
        editkit.run(tmp_path / "none.yaml")


def test_the_comment_at_the_top_is_the_header(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("# What: a\n#   b\n\n# not this\neditkit: 1\nsteps: {a: {invent: {}}}\n")
    found = read_recipe(path)
    assert (found.header, found.title, found.name) == ("What: a\n  b", "r", "r")


def test_paths_of_a_recipe_are_relative_to_it_and_those_of_set_to_the_working_directory(tmp_path, monkeypatch):
    home, here = tmp_path / "home", tmp_path / "here"
    for folder, value in ((home, 1.0), (here, 2.0)):
        folder.mkdir()
        save_file({"w": tensor([value])}, folder / "w.safetensors")
    monkeypatch.chdir(here)
    (home / "r.yaml").write_text('editkit: 1\nsettings: {w: w.safetensors}\nsteps: {a: {inspect: {source: "${w}"}}}')

    def place(**given):
        plan = plan_recipe(read_recipe(home / "r.yaml", given))
        return next(iter(plan.calls.values())).arguments["source"].path

    assert place() == str(home / "w.safetensors")
    assert place(w="w.safetensors") == str(here / "w.safetensors")
    assert place(w="../home/w.safetensors") == str(home / "w.safetensors")
