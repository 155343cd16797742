import json
import shlex
import subprocess

import pytest
import torch
from click.testing import CliRunner
from editkit_cli.main import main
from test_house import parse
from transformers import LlamaConfig, LlamaForCausalLM

from editkit.checkpoint.digests import cache_folder
from editkit.checkpoint.reader import open_checkpoint
from editkit.demo import demo as demo_module
from editkit.demo import model as model_module
from editkit.demo.demo import Trial, choose, run_demo
from editkit.demo.model import GROUPS, Settings, groups, models, rows
from editkit.demo.people import invent
from editkit.demo.scoring import Measure, Row, Score, answer, score, summarize
from editkit.errors import EditError
from editkit.training.data import read_examples
from editkit.training.encoding import IGNORED, Tokens

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


@pytest.fixture(autouse=True)
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


def tiny_llama():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        config = LlamaConfig(
            vocab_size=30, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
        )
        return LlamaForCausalLM(config)


def test_a_score_is_that_of_each_example_alone():
    model = tiny_llama()
    examples = [
        Tokens([1, 5, 6, 7], [IGNORED, IGNORED, 6, 7]),
        Tokens([1, 5, 9, 9, 9, 2], [IGNORED, IGNORED, IGNORED, 9, 9, 2]),
    ]
    nlls, accuracies = [], []
    for ids, first in (([1, 5, 6, 7], 2), ([1, 5, 9, 9, 9, 2], 3)):
        logits = model(torch.tensor([ids])).logits[0].detach().double()
        steps = [(logits[place - 1], ids[place]) for place in range(first, len(ids))]
        nlls.append(sum(float(row.logsumexp(0) - row[token]) for row, token in steps) / len(steps))
        accuracies.append(sum(int(row.argmax()) == token for row, token in steps) / len(steps))
    found = score(model, examples)
    assert found.n == 2
    assert found.nll.mean == pytest.approx(sum(nlls) / 2, rel=1e-5)
    assert found.nll.spread == pytest.approx(abs(nlls[0] - nlls[1]) / 2**0.5, rel=1e-3)
    assert found.accuracy.mean == pytest.approx(sum(accuracies) / 2)


def test_exact_counts_the_answers_that_are_right_in_every_token():
    found = summarize([Row(0.1, 1.0), Row(0.3, 0.99), Row(0.2, 1.0), Row(0.4, 0.0)])
    assert (found.n, found.exact) == (4, 0.5)
    assert found.nll.mean == pytest.approx(0.25)


def test_an_answer_is_the_greedy_one_of_transformers():
    from tiny_models import tokenizer

    words = tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(2)
        config = LlamaConfig(
            vocab_size=262, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
        )
        model = LlamaForCausalLM(config).eval()
    ids = torch.tensor([[0, *words("Who?")["input_ids"]]])
    expected = model.generate(ids, max_new_tokens=8, do_sample=False, eos_token_id=1, pad_token_id=2)
    assert answer(model, words, "Who?", limit=8) == words.decode(expected[0, ids.shape[1] :]).strip()


def trial(alpha, forget, retain):
    def of(accuracy):
        return Score(2, Measure(1.0, 0.1), Measure(accuracy, 0.1), 0.0)

    return Trial(alpha, of(forget), of(retain))


def test_the_alpha_is_the_best_for_the_kept_among_those_at_the_level_of_strangers():
    unseen = trial(0, 0.5, 0).forget
    trials = [trial(1.0, 0.9, 1.0), trial(1.5, 0.5, 0.97), trial(2.0, 0.4, 0.99), trial(3.0, 0.1, 0.3)]
    assert choose(trials, unseen) == (2.0, True)
    assert choose(trials[:1], unseen) == (1.0, False)
    assert choose([trial(1.0, 0.9, 1.0), trial(2.0, 0.6, 0.2), trial(3.0, 0.7, 0.9)], unseen) == (2.0, False)


def nothing_to_train(*_):
    raise AssertionError("the models are cached")


def test_models_are_built_once_and_again_when_the_settings_change(monkeypatch):
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


def test_the_cache_is_where_the_user_wants_it(monkeypatch, tmp_path):
    assert cache_folder() / "demo" == tmp_path / "cache" / "demo"
    monkeypatch.delenv("EDITKIT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() / "demo" == tmp_path / "xdg" / "editkit" / "demo"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() / "demo" == tmp_path / ".cache" / "editkit" / "demo"


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(demo_module, "TUNING", {"steps": 2, "lr": 1e-2, "batch_size": 8})
    monkeypatch.setattr(demo_module, "ALPHAS", (1.0, 2.0))


def test_a_tiny_demo_leaves_everything_and_the_commands_do_the_same(quick, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    demo = run_demo("my demo", settings=TINY)
    place = tmp_path / "my demo"
    assert {path.name for path in place.iterdir()} == set(demo_module.ENTRIES)
    assert (place / "edited" / "diff" / "report.html").is_file()
    assert read_examples(place / "forget.jsonl").rows == rows(groups(TINY)["forget"])
    assert demo.after["forget"] == next(one.forget for one in demo.trials if one.alpha == demo.alpha)
    assert [(one.group, one.question) for one in demo.answers] == [
        (group, people[index].rows[index]["question"])
        for group, people in groups(TINY).items()
        if group in ("forget", "retain")
        for index in range(3)
    ]
    found = json.loads((place / "demo.json").read_text())
    assert str(tmp_path) not in json.dumps(found)
    assert found["before"]["unseen"]["n"] == 24
    written = (place / "edited" / "model.safetensors").read_bytes()
    for line in demo.commands:
        program, *arguments = shlex.split(line)
        if program == "editkit":
            ran = CliRunner().invoke(main, arguments)
            assert ran.exit_code == 0, ran.output
        else:
            subprocess.run([program, *arguments], check=True)
    assert (place / "edited" / "model.safetensors").read_bytes() == written


def test_only_an_earlier_demo_is_replaced(quick, tmp_path):
    place = tmp_path / "demo"
    run_demo(place, settings=TINY)
    assert run_demo(place, settings=TINY).cached
    (place / "my notes.txt").write_text("keep")
    with pytest.raises(EditError, match=r"holds my notes\.txt besides an earlier demo"):
        run_demo(place, settings=TINY)
    other = tmp_path / "other"
    other.mkdir()
    (other / "thing").write_text("keep")
    with pytest.raises(EditError, match="holds no earlier demo"):
        run_demo(other, settings=TINY)
    with pytest.raises(EditError, match="is a file"):
        run_demo(other / "thing", settings=TINY)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "demo", "other"]


def test_the_command_prints_tables_or_json(quick, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo_module, "Settings", lambda: TINY)
    ran = CliRunner().invoke(main, ["demo"])
    assert ran.exit_code == 0, ran.output
    for said in ("What the model answers", "to forget", "to keep", "never met", "How strong an edit", "taken"):
        assert said in ran.stdout
    assert "editkit-demo/edited/diff/report.html" in ran.stdout
    assert "editkit diff editkit-demo/model editkit-demo/edited" in ran.stdout
    for name in ("eval", "sweep", "attack"):  # what to go on with, as the commands take it
        [line] = [line.strip() for line in ran.stdout.splitlines() if line.strip().startswith(f"editkit {name} ")]
        assert parse(line) is not None
    found = json.loads(CliRunner().invoke(main, ["demo", "--json"]).stdout)
    assert (found["output"], found["cached"], found["before"]["forget"]["n"]) == ("editkit-demo", True, 24)


@pytest.mark.slow
def test_the_demo_forgets_and_keeps(tmp_path):
    demo = run_demo(tmp_path / "demo")
    assert demo.settled and not demo.cached
    assert demo.before["forget"].accuracy.mean > 0.98 and demo.before["retain"].accuracy.mean > 0.98
    assert demo.after["forget"].accuracy.mean <= demo.before["unseen"].accuracy.mean < 0.8
    assert demo.after["retain"].accuracy.mean > 0.95 and demo.after["retain"].exact > 0.8
    assert demo.after["forget"].exact < 0.1
