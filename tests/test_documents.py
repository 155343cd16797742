"""docs/formats.md has every key of real reports and every metric as it is; the help has the defaults of the functions."""

import inspect
import json
import re
from typing import Any

import click
import numpy as np
import pytest
from localized import one_thread, write  # noqa: F401
from safetensors.numpy import save_file
from test_evaluation_similarity import save_nli
from test_house import GROUP, ROOT, command
from tiny_models import save_llama, save_tied_twice

import editkit
from editkit.errors import EditError
from editkit.evaluation.measuring import COLUMNS
from editkit.evaluation.suites import METRICS
from editkit.vectors.open import open_vector

FORMATS = (ROOT / "docs" / "formats.md").read_text("utf-8")
BY_NAME = ("sha256", "config", "tied", "values")  # whose keys are files, settings of a model, tensors, quantities
CPU = {"device": "cpu"}


def section(file, schema=None):
    """The text under the heading of a file."""
    title = f"## {file}: `{schema}`" if schema else f"## {file}"
    assert FORMATS.count(f"\n{title}\n") == 1, title
    return FORMATS.partition(f"\n{title}\n")[2].partition("\n## ")[0]


def named(text):
    return set(re.findall(r"`(\w+)`", text))


def described(text):
    """What has its place in the first column of a table of keys."""
    tables = re.findall(r"^\| key \|.*\n\|---\|---\|\n((?:\|.*\n?)+)", text, re.MULTILINE)
    return {key for table in tables for line in table.splitlines() for key in named(line.split("|")[1])}


def keys(item: Any) -> set[str]:
    """All keys of a report, but those that name something else."""
    if isinstance(item, list):
        return {key for value in item for key in keys(value)}
    if not isinstance(item, dict):
        return set()
    inner = [
        [*value.values()] if name in BY_NAME and isinstance(value, dict) else value for name, value in item.items()
    ]
    return set(item) | keys(inner)


def read(path):
    return json.loads(path.read_text("utf-8"))


def rows(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def refuse_undocumented(found, text):
    """Every key of the report is in the section, and every row of its tables is about a key of the report."""
    assert not sorted(found - named(text)), "these keys are not in docs/formats.md"
    assert not sorted(described(text) - found), "no report has these keys of docs/formats.md"


def made(letters, tail):
    answers = {"paraphrased_answer": " Ada", "perturbed_answer": [" x", " Ad"]}
    return [
        {"prompt": one * 2, "completion": f" Ada {tail}{one}", "paraphrased_question": one, **answers}
        for one in letters
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """`attacked`, `evaluated` and `swept`, whose reports have every part that one run can have."""
    folder = tmp_path_factory.mktemp("documents")
    sets = {"forget": made("abcdefgh", "x"), "retain": made("ijklmnop", "y"), "unseen": made("qrstuvw", "x")}
    data = {name: write(folder / f"{name}.jsonl", examples) for name, examples in sets.items()}
    unseen = data.pop("unseen")
    save_llama(folder / "start")
    for name, trained in (("full", "forget"), ("never", "retain")):
        editkit.finetune(folder / "start", data[trained], folder / name, steps=20, lr=2e-2, **CPU)
    moved = {"vector_base": folder / "start", "alphas": "-0.5,0.5,1e39", "choose": "max forgetting s.t. alpha < 1"}
    mask = {"model.layers.0.self_attn.q_proj.weight": np.ones(1, bool)}
    save_file(mask, folder / "mask.safetensors")
    masks = ["none", folder / "mask.safetensors"]
    common = data | CPU | {"reference": folder / "never"}
    editkit.sweep(folder / "full", folder / "never", folder / "swept", **moved, masks=masks, **common)
    edited, common = folder / "swept" / "edited", common | {"base": folder / "full", "max_new_tokens": 3}
    editkit.attack(edited, folder / "attacked", unseen=unseen, kinds=["all"], steps=2, **common)
    (folder / "nli").mkdir()
    more = {"nli_model": save_nli(folder / "nli", ["contradiction", "entailment"]), "calibrate": "retain"}
    editkit.evaluate(edited, folder / "evaluated", sets={"unseen": unseen}, suites=["all"], **more, **common)
    return folder


def test_every_key_of_an_attack_is_documented(folder):
    report = read(folder / "attacked" / "attack.json")
    text = section("attack.json", report["schema"])
    assert {one["status"] for one in report["attacks"]} == {"ok"}
    assert {one["kind"] for one in report["verdicts"]} == {"quantize", "relearn", "paraphrase"}
    assert len(report["curves"]) == 2 and len(report["membership"]) == 5 and len(report["models"]) == 3
    refuse_undocumented(keys(report), text)
    place = keys(rows(folder / "attacked" / "examples.jsonl")) - set(COLUMNS)
    assert place == {"role", "attack", "step", "set", "index", "prompt", "answer"} and place <= named(text)
    with pytest.raises(EditError, match="of an attack, whose numbers"):
        editkit.evaluate_rows(folder / "attacked", folder / "again")


def test_every_key_of_a_sweep_is_documented(folder):
    report = read(folder / "swept" / "sweep.json")
    assert [point["status"].partition(":")[0] for point in report["points"]] == ["ok", *["ok", "ok", "broken"] * 2]
    assert report["chosen"] and report["command"] and report["reference"]["values"] and report["choices"][1]["mask"]
    text = section("sweep.json", report["schema"])
    refuse_undocumented(keys(report), text)
    editkit.finetune(folder / "full", folder / "retain.jsonl", folder / "lora", lora=2, steps=1, **CPU)
    editkit.task_vector(folder / "swept" / "edited", folder / "saved.safetensors", base=folder / "full")
    with editkit.open_checkpoint(folder / "full") as full:
        for name in ("lora", "saved.safetensors"):
            vector = open_vector(folder / name, full, allow_other_base=True)
            assert set(vector.origin()) | {vector.origin()["kind"]} <= named(text)
            for checkpoint in vector.inputs:
                checkpoint.close()


def test_every_key_of_an_evaluation_is_documented(folder):
    report = read(folder / "evaluated" / "results.json")
    assert [one["role"] for one in report["models"]] == ["base", "model", "reference"]
    assert report["models"][1]["calibration"] and report["distribution"] and report["overlap"] == 0
    assert {one["bucket"] for one in report["results"]} >= {None, "difficulty 1/3", "memorization 3/3"}
    text = section("results.json", report["schema"])
    refuse_undocumented(keys(report), text)
    editkit.evaluate_rows(folder / "evaluated", folder / "again", reference_from=folder / "evaluated")
    assert keys(read(folder / "again" / "results.json")) <= named(text)


def test_the_columns_of_the_examples_are_those_in_the_document(folder):
    columns = {"model", "role", "set", "index", "prompt", "answer", *COLUMNS}
    assert described(section("examples.jsonl")) == columns
    found = keys([rows(folder / name / "examples.jsonl") for name in ("evaluated", "attacked")])
    assert found - {"attack", "step"} == columns - {"cosine"}, "there is no sentence encoder as small as this"


def test_the_table_of_metrics_is_that_of_the_suites():
    table = [
        f"| `{one.id}` | {one.meaning}{f' [{one.unit}]' if one.unit else ''} | {', '.join(one.sets or ('all',))} "
        f"| {one.source or '-'} |"
        for one in METRICS
    ]
    found = [
        line
        for line in section("results.json", "editkit.evaluation/1").splitlines()
        if line.startswith("| `") and "@" in line
    ]
    assert found == table, "renew the table in docs/formats.md:\n" + "\n".join(table)


def test_every_key_of_unlearning_is_documented(folder):
    """Of two forget sets with a reference, and of one with a mask and its controls."""
    first, second = (write(folder / f"{letters}.jsonl", made(letters, "x")) for letters in ("abcd", "efgh"))
    common = {"retain": folder / "retain.jsonl", "floor": 0.01, "lr": 2e-2, "steps": 4, "eval_every": 2, **CPU}
    asked = {"reference": folder / "never", "rectify": True, "stop": "log10_p(forget) > 0"}
    reports = [
        editkit.unlearn(folder / "full", folder / "continual", forget=[first, second], **asked, **common),
        editkit.unlearn(folder / "full", folder / "located", forget=first, method="memflex", control=True, **common),
    ]
    assert reports[0]["trajectory"] and reports[0]["reference"] and len(reports[1]["controls"]) == 2
    written = [read(folder / name / "unlearning" / "unlearn.json") for name in ("continual", "located")]
    text = section("unlearn.json", written[0]["schema"])
    refuse_undocumented(keys(written), text)
    points = [point for report in written for task in report["tasks"] for point in task["points"]]
    assert {name.partition("(")[0] for point in points for name in point["values"]} <= set(
        re.findall(r"`(\w+)[`(]", text)
    )
    refuse_undocumented(keys(rows(folder / "continual" / "unlearning" / "train_log.jsonl")), section("train_log.jsonl"))
    files = {path.name for path in (folder / "located" / "unlearning").iterdir()}
    assert files == {"unlearn.json", "train_log.jsonl", "report.html", "curves.png", "localization"}
    assert files <= set(re.findall(r"`([\w.]+)`", text)) | {"unlearn.json"}


@pytest.mark.parametrize(
    ("name", "function", "least"),
    [
        ("eval", editkit.evaluate, {"batch_size": 16, "max_new_tokens": 200}),
        ("attack", editkit.attack, {"batch_size": 16, "steps": 64, "seed": 0}),
        ("sweep", editkit.sweep, {"batch_size": 16, "max_new_tokens": 200}),
        ("unlearn", editkit.unlearn, {"seed": 0}),
    ],
)
def test_defaults_in_the_help_are_those_of_the_functions(name, function, least):
    context = click.Context(command(name), info_name=name, parent=GROUP)
    said = {}
    for option in command(name).params:
        record = option.get_help_record(context)
        if option.name is not None and record and (default := re.search(r"\[default: ([\w.]+)", record[1])):
            said[option.name] = default[1]
    parameters = inspect.signature(function).parameters
    defaults = {key: one.default for key, one in parameters.items() if type(one.default) in (int, float, str)}
    assert {key: str(value) for key, value in defaults.items()}.items() <= said.items()
    assert least.items() <= defaults.items() and defaults["device"] == "auto"


@pytest.fixture(scope="module")
def localized(tmp_path_factory):
    """A folder with `model` and `loc`, a localization whose report has every part."""
    folder = tmp_path_factory.mktemp("localized")
    save_tied_twice(folder / "before")
    with editkit.open_checkpoint(folder / "before") as before:
        moved = {name: 0.9 * before[name] for name in before}
    editkit.write_checkpoint(moved, folder / "model", like=folder / "before")
    letters = {"forget": "abcd", "retain": "efgh"}
    sets = {name: write(folder / f"{name}.jsonl", made(some, "")) for name, some in letters.items()}
    settings = {"method": "path", "base": folder / "before", "control": True, **CPU}
    editkit.localize(folder / "model", folder / "loc", **sets, **settings)
    return folder


def test_every_key_of_a_localization_is_documented(localized):
    report = read(localized / "loc" / "localization.json")
    assert all(report[part] for part in ("path", "control", "stability", "tied", "retain", "base"))
    compared = editkit.compare_localizations(localized / "loc", localized / "loc" / "control")
    text = section("localization.json", report["schema"])
    refuse_undocumented(keys(report), text)
    assert len(keys(report)) > 60 and keys(compared) <= named(text)


def test_python_in_the_formats_reads_a_mask(localized, monkeypatch, capsys):
    [code] = re.findall(r"```python\n(.*?)```", FORMATS, re.DOTALL)
    monkeypatch.chdir(localized)
    found: dict[str, Any] = {}
    exec(code, found)
    report = read(localized / "loc" / "localization.json")
    selected = {row["name"]: row["selected"] for row in report["tensors"]}
    assert {name: int(found["mask"][name].sum()) for name in selected} == selected
    assert found["mask"]["model.layers.0.mlp.up_proj.weight"].shape == (24, 16)
    assert str(selected["model.norm.weight"]) in capsys.readouterr().out
