"""The folder that a localization writes: its report, its control, its stability, its scores and what is refused."""

import json

import numpy as np
import pytest
import torch
from localized import (  # noqa: F401
    FORGET,
    RETAIN,
    chosen,
    direct,
    near,
    no_pictures,
    one_thread,
    scores,
    sets,
    tuned_on_forget,
    write,
)
from safetensors.torch import load_file, save_file
from sharded import tree
from tiny_models import save_llama, save_tied_twice

from editkit.editing.negate import negate
from editkit.errors import EditError
from editkit.localization.localize import localize
from editkit.names import parse
from editkit.training.finetune import finetune


@pytest.fixture
def data(tmp_path):
    return sets(tmp_path)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_llama(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="module")
def tuned(base):
    return tuned_on_forget(base, "tuned", steps=6, lr=5e-3)


KEYS = {
    "schema": {}, "editkit": {}, "overlap": {}, "warnings": {}, "adapter": {}, "base": {}, "path": {}, "tied": {}, "control": {}, "stability": {},
    "model": {"name", "sha256"},
    "forget": {"name", "sha256", "examples", "tokens", "loss", "loss_sd"},
    "retain": {"name", "sha256", "examples", "tokens", "loss", "loss_sd"},
    "settings": {"method", "granularity", "budget", "per_layer_budget", "mu", "sigma", "accumulate", "labels", "draws", "only", "seed", "dtype", "batch_size", "max_examples", "max_length", "prompt_template"},
    "summary": {"numel", "selected", "selected_fraction", "units", "units_selected", "threshold"},
    "layers": {"stack", "layer", "numel", "selected", "selected_fraction"},
    "modules": {"module", "numel", "selected", "selected_fraction"},
    "tensors": {"name", "shape", "stack", "layer", "module", "expert", "numel", "units", "units_selected", "selected", "selected_fraction", "score_mean", "score_max", "cosine", "mean_abs_forget", "mean_abs_retain"},
    "top_units": {"name", "unit", "index", "numel", "selected", "score"},
    "histogram": {"log2_edges", "counts", "selected", "zero_or_below"},
}  # fmt: skip


@pytest.mark.parametrize("method", ["memflex", "random"])
def test_the_report_has_the_documented_keys_and_is_strict_json(tmp_path, base, data, method):
    if method == "random":
        data = {}
    report = localize(base, tmp_path / "loc", method=method, control=True, device="cpu", **data)

    def refuse(constant):
        raise AssertionError(constant)

    text = (tmp_path / "loc" / "localization.json").read_text()
    assert json.loads(text, parse_constant=refuse) == json.loads(json.dumps(report))
    assert report["schema"] == "editkit.localization/1"
    for key, inner in KEYS.items():
        rows = report[key] if isinstance(report[key], list) else [report[key]]
        assert all(inner <= row.keys() for row in rows if row is not None and inner), key
    assert str(tmp_path) not in text, "a folder of this machine"
    if method == "random":
        assert (
            report["forget"] is report["retain"] is report["stability"] is None
            and report["tensors"][0]["cosine"] is None
        )


@pytest.mark.parametrize("granularity", ["element", "row", "tensor"])
def test_the_control_has_as_much_in_every_layer_and_depends_on_the_seed_alone(tmp_path, base, data, granularity):
    masks = []
    for seed, method in ((0, "salun"), (0, "snip"), (1, "salun")):
        place = tmp_path / f"{seed}{method}"
        report = localize(
            base, place, forget=data["forget"], method=method, granularity=granularity, budget="30%", control=True,
            seed=seed, device="cpu", only=["*layers*"], per_layer_budget=True,
        )  # fmt: skip
        mask, control = chosen(place, base), chosen(place / "control", base)
        masks.append(control)
        assert report["control"]["mask"] == "control/mask.safetensors"
        assert report["control"]["selected"] == sum(int(one.sum()) for one in control.values())
        for layer in (0, 1):
            mine, random = (
                sum(int(one[name].sum()) for name in one if parse(name).layer == layer) for one in (mask, control)
            )
            assert random == mine if granularity == "element" else 0 < random <= mine, "whole units fill what they can"
            assert granularity != "row" or mine - random < 24, "a row would have had room"
        assert any(not np.array_equal(mask[name], control[name]) for name in mask)
        smaller = report["control"]["selected"] < 0.9 * report["summary"]["selected"]
        assert any("the control selects" in warning for warning in report["warnings"]) == smaller
    if granularity == "element":  # as many in every layer, whatever the method
        assert all(np.array_equal(masks[0][name], masks[1][name]) for name in masks[0])
        assert any(not np.array_equal(masks[0][name], masks[2][name]) for name in masks[0])


@pytest.mark.parametrize("granularity", ["row", "element"])
def test_stability_is_the_overlap_of_the_selections_from_two_halves(tmp_path, base, data, granularity):
    settings = {"method": "salun", "granularity": granularity, "budget": "4%", "device": "cpu"}
    whole = localize(base, tmp_path / "loc", forget=data["forget"], control=True, **settings)
    masks, entries = [], []
    for start in (0, 1):
        half = write(tmp_path / f"half{start}.jsonl", FORGET[start::2])
        localize(base, tmp_path / f"loc{start}", forget=half, **settings)
        entries.append(chosen(tmp_path / f"loc{start}", base))
        masks.append(np.concatenate([one.reshape(-1) for one in entries[-1].values()]))
    found = whole["stability"]
    assert found["halves"] == [7, 6]
    wanted = (masks[0] & masks[1]).sum() / (masks[0] | masks[1]).sum()
    assert found["jaccard"] == pytest.approx(wanted, abs=1e-12 if granularity == "row" else 2e-3)
    assert 0.05 < wanted < 0.95, "this test would not notice"
    shared = sum(one.sum() * entries[1][name].sum() / one.size for name, one in entries[0].items())
    chance = shared / (masks[0].sum() + masks[1].sum() - shared)
    assert found["expected_of_random"] == pytest.approx(chance, rel=1e-9 if granularity == "row" else 1e-2)


def test_the_folder_that_a_config_remembers_is_not_written(tmp_path, data):
    base = save_llama(tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"_name_or_path": "/home/ada/secret"}))
    localize(base, tmp_path / "loc", method="random")
    assert "secret" not in (tmp_path / "loc" / "localization.json").read_text()


def test_one_example_has_no_halves(tmp_path, base, data):
    forget = write(tmp_path / "one.jsonl", FORGET[:1])
    report = localize(base, tmp_path / "loc", forget=forget, method="salun", control=True, device="cpu")
    assert report["stability"] is None and report["control"]["selected"] == report["summary"]["selected"]
    assert report["forget"]["loss_sd"] is None and "the stability is unknown" in report["warnings"][0]


@pytest.mark.parametrize("accumulate", ["signed", "squared"])
def test_bytes_do_not_depend_on_where_sums_are_kept_nor_on_threads(tmp_path, base, data, accumulate):
    settings = {"method": "salun", "accumulate": accumulate, "device": "cpu", "control": True, **data}
    first = None
    for offload, threads in (("auto", None), ("none", 1), ("cpu", 3), ("disk", 2)):
        place = tmp_path / f"{offload}"
        localize(base, place, offload=offload, threads=threads, **settings)
        first = first or tree(place)
        assert tree(place) == first, offload
    localize(base, tmp_path / "alone", **(settings | {"control": False}))
    alone = tree(tmp_path / "alone")
    assert all(alone[name] == first[name] for name in ("scores.safetensors", "mask.safetensors"))
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


METHODS = [
    ("memflex", {"labels": "true"}, lambda f, r, w, b, c: f["signed"].abs() * (1 - c)),
    ("salun", {"accumulate": "absolute"}, lambda f, r, w, b, c: f["absolute"]),
    ("wagle", {"mu": 1e-3}, lambda f, r, w, b, c: ((w - r["signed"] / 1e-3) * f["signed"]).abs()),
    ("wagle", {}, lambda f, r, w, b, c: ((w - r["signed"] / 1e-6) * f["signed"]).abs()),
    ("fisher", {}, lambda f, r, w, b, c: f["squared"] / (r["squared"] + 1e-20)),
    ("snip", {}, lambda f, r, w, b, c: (f["signed"] * w).abs()),
    ("snip", {"accumulate": "absolute"}, lambda f, r, w, b, c: (f["absolute"] * w).abs()),
    ("magnitude", {}, lambda f, r, w, b, c: w.abs()),
    ("magnitude", {"base": True}, lambda f, r, w, b, c: (w - b).abs()),
]


@pytest.mark.parametrize(("method", "settings", "formula"), METHODS)
def test_scores_on_disk_are_the_formula_of_gradients_and_weights(
    tmp_path, base, tuned, data, method, settings, formula
):
    if settings.get("base"):
        settings = {"base": base}
    localize(tuned, tmp_path / "loc", method=method, device="cpu", **settings, **data)
    forget, retain = direct(tuned, FORGET), direct(tuned, RETAIN)
    weights, before = load_file(tuned / "model.safetensors"), load_file(base / "model.safetensors")
    for name, found in scores(tmp_path / "loc").items():
        f, r = ({kind: one[kind][name] for kind in one} for one in (forget, retain))
        g, h = f["signed"].reshape(-1), r["signed"].reshape(-1)
        wanted = formula(f, r, weights[name].double(), before[name].double(), g @ h / (g.norm() * h.norm()))
        sure = r["squared"] > 1e-14 if method == "fisher" else torch.ones_like(found, dtype=bool)
        relative = ((found.double() - wanted) / wanted.clamp_min(1e-30))[sure].abs()
        assert float(relative.quantile(0.99)) < 1e-3, name  # single elements near zero lose digits
        assert near(found[sure], wanted[sure], 1e-4), name


def test_a_gradient_in_one_set_alone_points_nowhere_near_the_other(tmp_path, data):
    """The row of a letter that only the forget set has: its cosine is unknown, as after torch's own rule it counts as 0."""
    base = save_llama(tmp_path / "base")
    report = localize(
        base,
        tmp_path / "loc",
        granularity="row",
        mu=0.5,
        sigma=1e-9,
        labels="true",
        only=["*embed_tokens*"],
        device="cpu",
        **data,
    )
    forget, retain = direct(base, FORGET)["signed"], direct(base, RETAIN)["signed"]
    name = "model.embed_tokens.weight"
    cosine = torch.nn.functional.cosine_similarity(forget[name], retain[name], dim=1)
    wanted = (cosine < 0.5) & (forget[name].abs().mean(1) > 1e-9)
    assert bool((retain[name].abs().sum(1)[wanted] == 0).any()), "this test would not notice"
    assert np.array_equal(chosen(tmp_path / "loc", base)[name].all(1), wanted.numpy())
    assert report["summary"]["units_selected"] == int(wanted.sum())


def test_thresholds_that_select_nothing_say_what_would(tmp_path, base, data):
    import re

    settings = {"labels": "true", "device": "cpu", **data}
    with pytest.raises(EditError) as caught:
        localize(base, tmp_path / "loc", mu=-0.999, sigma=50.0, **settings)
    message = str(caught.value)
    forget, retain = direct(base, FORGET)["signed"], direct(base, RETAIN)["signed"]
    sizes = [float(one.abs().mean()) for one in forget.values()]
    angles = [float((one * retain[name]).sum() / (one.norm() * retain[name].norm())) for name, one in forget.items()]
    assert "select none of 21 tensors" in message
    for values in (angles, sizes):
        low, median, high = np.quantile(values, [0.05, 0.5, 0.95])
        assert f"{low:.3g} to {high:.3g} (median {median:.3g})" in message, message
    mu, sigma = (
        float(value)
        for value in re.search(r"5 % to 95 %; --mu (\S+) --sigma (\S+) would select some", message).groups()
    )
    assert not (tmp_path / "loc").exists()
    with pytest.raises(EditError, match="was begun and not finished: go on with --resume"):
        localize(base, tmp_path / "loc", mu=mu, sigma=sigma, **settings)
    report = localize(base, tmp_path / "loc", mu=mu, sigma=sigma, resume=True, **settings)
    assert 1 <= report["summary"]["units_selected"] < 21


def test_stability_is_unknown_where_a_half_selects_nothing(tmp_path, base, data):
    """The largest mean |G| of all examples lies between those of the halves, and so does sigma."""
    halves = [direct(base, rows)["signed"] for rows in (FORGET[::2], FORGET[1::2], FORGET)]
    first, second, whole = (max(float(one.abs().mean()) for one in half.values()) for half in halves)
    sigma = (min(first, second) + whole) / 2
    assert min(first, second) < sigma * 0.999 < sigma < whole * 0.999, "this test would not notice"
    settings = {"mu": 2.0, "sigma": sigma, "labels": "true", "control": True, "device": "cpu", **data}
    report = localize(base, tmp_path / "loc", **settings)
    assert report["stability"] is None and report["summary"]["units_selected"] == 1
    assert any("half" in warning for warning in report["warnings"])


def test_tied_copies_are_selected_alike_and_an_edit_takes_the_mask(tmp_path, data):
    base = save_tied_twice(tmp_path / "base")
    finetune(base, data["forget"], tmp_path / "tuned", steps=2, lr=1e-2, device="cpu")
    for granularity in ("element", "row", "tensor"):
        place = tmp_path / granularity
        report = localize(
            base,
            place,
            forget=data["forget"],
            method="salun",
            granularity=granularity,
            budget="50%",
            control=True,
            device="cpu",
        )
        assert "lm_head.weight" not in {row["name"] for row in report["tensors"]}, "one parameter, counted once"
        for folder in (place, place / "control"):
            mask = chosen(folder, base)
            assert np.array_equal(mask["lm_head.weight"], mask["model.embed_tokens.weight"])
        negate(base, tmp_path / "tuned", tmp_path / f"edited-{granularity}", alpha=1.0, mask=place)
        before, after = (
            load_file(base / "model.safetensors"),
            load_file(tmp_path / f"edited-{granularity}" / "model.safetensors"),
        )
        mask = chosen(place, base)
        assert all(not ((before[name] != after[name]).numpy() & ~mask[name]).any() for name in before)
        assert torch.equal(after["lm_head.weight"], after["model.embed_tokens.weight"])
        assert any(not torch.equal(before[name], after[name]) for name in before)


def test_examples_in_both_sets_are_counted_and_warned_of(tmp_path, base):
    forget = write(tmp_path / "forget.jsonl", FORGET[:6])
    retain = write(tmp_path / "retain.jsonl", [*RETAIN, FORGET[1], FORGET[4]])
    report = localize(base, tmp_path / "loc", forget=forget, retain=retain, method="fisher", device="cpu")
    assert report["overlap"] == 2
    assert (
        len(report["warnings"]) == 1
        and "2 of the examples to forget are in the retain set too" in report["warnings"][0]
    )


def test_overlap_is_that_of_the_examples_that_were_taken(tmp_path, base):
    forget = write(tmp_path / "forget.jsonl", FORGET[:6])
    retain = write(tmp_path / "retain.jsonl", [RETAIN[0], FORGET[0], RETAIN[1], FORGET[4]])
    report = localize(
        base, tmp_path / "loc", forget=forget, retain=retain, method="fisher", max_examples=3, device="cpu"
    )
    assert report["overlap"] == 1 and report["forget"]["examples"] == report["retain"]["examples"] == 3


def test_sets_of_the_same_size_that_share_some_examples_are_not_the_same(tmp_path, base):
    forget = write(tmp_path / "forget.jsonl", [FORGET[0], FORGET[0], FORGET[1]])
    retain = write(tmp_path / "retain.jsonl", [FORGET[0], FORGET[1], RETAIN[0]])
    assert localize(base, tmp_path / "loc", forget=forget, retain=retain, method="fisher", device="cpu")["overlap"] == 3


def test_the_same_examples_in_another_order_are_refused(tmp_path, base):
    forget = write(tmp_path / "forget.jsonl", FORGET[:4])
    retain = write(tmp_path / "retain.jsonl", FORGET[3::-1])
    with pytest.raises(EditError, match=r"forget.jsonl and .*retain.jsonl hold the same examples"):
        localize(base, tmp_path / "loc", forget=forget, retain=retain, method="fisher", device="cpu")


@pytest.mark.parametrize(("share", "count"), [("29%", 29), ("7%", 7), ("57%", 57), ("1%", 1), ("99.9%", 99)])
def test_a_share_is_rounded_down_once(tmp_path, share, count):
    folder = tmp_path / "base"
    folder.mkdir()
    save_file({"w": torch.arange(1.0, 101.0).reshape(10, 10)}, folder / "model.safetensors")
    assert localize(folder, tmp_path / "loc", method="magnitude", budget=share)["summary"]["selected"] == count


def test_a_budget_below_one_element_names_one_that_selects_some(tmp_path):
    import re

    folder = tmp_path / "base"
    folder.mkdir()
    save_file({"w": torch.ones(7, 10)}, folder / "model.safetensors")
    with pytest.raises(EditError, match=r"budget 1% of 70 parameters is 0.7 of one element") as caught:
        localize(folder, tmp_path / "loc", method="magnitude", budget="1%")
    share = re.search(r"at least (\S+%)", str(caught.value))[1]
    assert localize(folder, tmp_path / "loc", method="magnitude", budget=share)["summary"]["selected"] == 1


def test_a_count_for_every_layer_is_no_more_than_a_layer_has(tmp_path, base):
    """9 tensors in a layer and 3 outside of layers: 9 of each would be all."""
    settings = {"method": "random", "granularity": "tensor", "per_layer_budget": True}
    with pytest.raises(EditError, match="selects everything"):
        localize(base, tmp_path / "loc", budget=9, **settings)
    report = localize(base, tmp_path / "loc", budget=4, **settings)
    assert {(row["layer"], row["selected_fraction"] == 1) for row in report["layers"]} == {
        (None, True),
        (0, False),
        (1, False),
    }
    assert report["summary"]["units_selected"] == 3 + 4 + 4 and report["warnings"] == []


@pytest.mark.parametrize(("inside", "numel", "warned"), [(40, 700, True), (60, 700, False), (10, 200, False)])
def test_a_selection_that_hardly_reaches_the_layers_is_warned_of(inside, numel, warned):
    """Of 100 selected in 1000 parameters; where most parameters lie outside the layers, so may the selection."""
    from editkit.localization.localize import _warnings

    layers = [{"stack": "h", "layer": 0, "selected": inside, "numel": numel}, {"stack": "", "layer": None}]
    report = {
        "overlap": 0,
        "layers": layers,
        "summary": {"selected": 100, "numel": 1000},
        "control": None,
        "path": None,
    }
    said = _warnings({**report, "settings": {"accumulate": "signed"}}, True)
    assert bool(said) == warned
    assert not warned or (said[0].startswith("60% of the selection lies outside") and "--only 'h.*'" in said[0])
