import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_localization_gradients import (  # noqa: F401
    FORGET,
    RETAIN,
    direct,
    each_gradient,
    in_files,
    loaded,
    loss,
    means,
    near,
    no_pictures,
    one_thread,
    scores,
    sequence,
    sets,
    write,
)
from tiny_models import save_llama, save_tied_twice

from editkit.checkpoint.blocks import Block
from editkit.checkpoint.reader import open_checkpoint
from editkit.editing.negate import negate
from editkit.errors import EditError
from editkit.localization.localize import localize
from editkit.masks.mask import Mask
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
    """`base` after some steps on FORGET."""
    path = write(base.parent / "tuning.jsonl", FORGET)
    finetune(base, path, base.parent / "tuned", steps=6, lr=5e-3, device="cpu")
    return base.parent / "tuned"


@pytest.fixture(scope="module")
def adapter(base, tuned):
    """A LoRA whose B is not zero any more."""
    finetune(base, base.parent / "tuning.jsonl", base.parent / "lora", lora=4, steps=3, lr=5e-2, device="cpu")
    return base.parent / "lora"


def chosen(folder, model):
    """What the mask selects, as the library that edits reads it: name -> bool of the tensor's shape."""
    with open_checkpoint(model) as base:
        mask = Mask(folder, base)
        found = {}
        for name in mask.file.tensors:
            info = base.tensors[name]
            bits = mask.chosen(name, Block(info, 0, info.rows))
            found[name] = np.broadcast_to(bits, (info.rows, info.columns)).reshape(info.shape)
        mask.file.close()
    return found


def layer_of(name):
    """The layer, or the tensor itself where it is outside of layers."""
    return name if parse(name).layer is None else parse(name).layer


def expected(values, costs, limit, per_layer=False):
    """Names and indices of the best `values` (name -> [units]) until the next would be over the limit of its layer."""
    found = {name: np.zeros(len(one), bool) for name, one in values.items()}
    for layer in {layer_of(name) if per_layer else None for name in values}:
        names = [name for name in values if not per_layer or layer_of(name) == layer]
        units = [(name, index) for name in names for index in range(len(values[name]))]
        left = limit(names)
        for name, index in sorted(units, key=lambda unit: -values[unit[0]][unit[1]]):
            left -= costs(name)
            if left < 0 or values[name][index] <= 0:
                break
            found[name][index] = True
    return found


def units_of_heads(name, shape):
    """Rows of 8 of q, k and v, columns of 8 of o; None for the others."""
    if "self_attn" not in name:
        return None
    rows = torch.arange(shape[0])[:, None].expand(shape)
    columns = torch.arange(shape[1])[None].expand(shape)
    return (columns if "o_proj" in name else rows) // 8


UNITS = {
    "tensor": lambda name, shape: torch.zeros(shape, dtype=int),
    "row": lambda name, shape: (
        torch.arange(shape[0])[:, None].expand(shape) if len(shape) > 1 else torch.zeros(shape, dtype=int)
    ),
    "head": units_of_heads,
    "element": lambda name, shape: torch.arange(torch.Size(shape).numel()).reshape(shape),
}
BUDGETS = [
    ("tensor", "40%"),
    ("tensor", 4),
    ("row", "7%"),
    ("row", 11),
    ("head", "30%"),
    ("head", 3),
    ("element", "5%"),
    ("element", 100),
]


@pytest.mark.parametrize("per_layer", [False, True])
@pytest.mark.parametrize(("granularity", "budget"), BUDGETS)
def test_the_mask_selects_the_best_units_within_the_budget(tmp_path, base, data, granularity, budget, per_layer):
    """From the gradients of single examples to the elements that the mask gives to an edit."""
    if per_layer and (granularity, budget) == ("tensor", 4):
        budget = 2
    report = localize(
        base, tmp_path / "loc", forget=data["forget"], method="salun", granularity=granularity, budget=budget,
        per_layer_budget=per_layer, device="cpu",
    )  # fmt: skip
    found, sizes = (
        scores(tmp_path / "loc"),
        {name: one.numel() for name, one in load_file(base / "model.safetensors").items()},
    )
    values, owner = {}, {}
    for name, gradient in direct(base, FORGET)["signed"].items():
        owner[name] = UNITS[granularity](name, gradient.shape)
        if owner[name] is None:
            del owner[name]
            continue
        flat = owner[name].reshape(-1)
        wanted = torch.bincount(flat, gradient.abs().reshape(-1)) / torch.bincount(flat)
        assert near(found[name].reshape(-1), wanted), name
        values[name] = found[name].reshape(-1).numpy()  # the order of the scores that are written is that of the mask
    assert list(found) == list(values) or sorted(found) == sorted(values)
    values = {name: values[name] for name in load_file(base / "model.safetensors") if name in values}

    def costs(name):
        return 1 if isinstance(budget, int) else sizes[name] // len(values[name])

    def limit(names):
        return budget if isinstance(budget, int) else int(float(budget[:-1]) / 100 * sum(sizes[name] for name in names))

    wanted = expected(values, costs, limit, per_layer)
    mask = chosen(tmp_path / "loc", base)
    assert mask.keys() == wanted.keys()
    for name, bits in wanted.items():
        assert np.array_equal(mask[name], bits[owner[name].numpy()]), name
    assert report["summary"]["selected"] == sum(int(one.sum()) for one in mask.values())
    assert report["summary"]["units_selected"] == sum(int(one.sum()) for one in wanted.values()) > 0
    assert report["summary"]["units"] == sum(len(one) for one in wanted.values())
    assert report["summary"]["numel"] == sum(sizes[name] for name in wanted)
    for row in report["tensors"]:
        name = row["name"]
        assert row["selected"] == mask[name].sum() and row["numel"] == sizes[name] == mask[name].size
        assert row["units_selected"] == wanted[name].sum() and row["units"] == len(wanted[name])
        assert row["score_mean"] == pytest.approx(values[name].mean(), rel=1e-5)
        assert row["score_max"] == pytest.approx(values[name].max(), rel=1e-5)
    for key in ("layer", "module"):
        for row in report[f"{key}s"]:
            names = [name for name in mask if getattr(parse(name), key) == row[key]]
            assert row["selected"] == sum(mask[name].sum() for name in names)
            assert row["selected_fraction"] == pytest.approx(row["selected"] / sum(sizes[name] for name in names))
    everything = np.concatenate([values[name] for name in wanted])
    picked = np.concatenate([wanted[name] for name in wanted])
    if per_layer:
        assert report["summary"]["threshold"] is None, "layers have thresholds of their own"
    else:
        assert report["summary"]["threshold"] == pytest.approx(everything[picked].min(), rel=1e-6)
    histogram = report["histogram"]
    assert len(histogram["log2_edges"]) == len(histogram["counts"]) + 1
    edges = 2.0 ** np.array(histogram["log2_edges"])
    assert histogram["counts"] == np.histogram(everything[everything > 0], edges)[0].tolist()
    assert histogram["selected"] == np.histogram(everything[picked], edges)[0].tolist()
    assert histogram["zero_or_below"] == int((everything <= 0).sum())
    best = report["top_units"]
    assert 0 < len(best) <= 20
    for row in best:
        name, bits = row["name"], mask[row["name"]]
        if granularity == "element":
            bits = bits[row["index"]] if bits.ndim > 1 else bits
            assert row["unit"] == "row" and row["score"] is None
            assert row["selected"] == bits.sum() > 0 and row["numel"] == bits.size
        else:
            assert row["unit"] == granularity
            assert row["selected"] == row["numel"] == bits[owner[name].numpy() == row["index"]].sum()
            assert row["score"] == pytest.approx(values[name][row["index"]], rel=1e-6)
    order = [row["selected"] if granularity == "element" else row["score"] for row in best]
    assert order == sorted(order, reverse=True)
    if granularity != "element":
        assert len(best) == min(20, int(picked.sum())) and order[0] == pytest.approx(everything[picked].max(), rel=1e-6)


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
                sum(int(one[name].sum()) for name in one if layer_of(name) == layer) for one in (mask, control)
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


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("accumulate", ["signed", "squared"])
def test_bytes_do_not_depend_on_where_sums_are_kept_nor_on_threads(tmp_path, base, data, accumulate):
    settings = {"method": "salun", "accumulate": accumulate, "device": "cpu", "control": True, **data}
    first = None
    for offload, threads in (("auto", None), ("none", 1), ("cpu", 3), ("disk", 2)):
        place = tmp_path / f"{offload}"
        localize(base, place, offload=offload, threads=threads, **settings)
        first = first or files(place)
        assert files(place) == first, offload
    localize(base, tmp_path / "alone", **(settings | {"control": False}))
    alone = files(tmp_path / "alone")
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


def interpolated(base, tuned, t):
    model, before, after = loaded(tuned), load_file(base / "model.safetensors"), load_file(tuned / "model.safetensors")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.lerp(before[name].double(), after[name].double(), t))
    return model


def attributions(base, tuned, rows, points):
    """-tau times the mean gradient at the midpoints, and the drop of the loss: by tensor, and in all."""
    before, after = load_file(base / "model.safetensors"), load_file(tuned / "model.safetensors")
    total = dict.fromkeys(before, 0.0)
    for k in range(points):
        found = means(each_gradient(interpolated(base, tuned, (k + 0.5) / points), map(sequence, rows)))["signed"]
        for name, gradient in found.items():
            total[name] = total[name] - (after[name].double() - before[name].double()) * gradient / points
    ends = [[float(loss(interpolated(base, tuned, t), *sequence(row)).detach()) for row in rows] for t in (0, 1)]
    return total, np.mean(ends[0]) - np.mean(ends[1])


@pytest.mark.parametrize("retain", [False, True])
def test_a_path_attributes_the_drop_of_the_loss_to_parameters(tmp_path, base, tuned, data, retain):
    settings = data if retain else {"forget": data["forget"]}
    report = localize(
        tuned, tmp_path / "loc", base=base, method="path", granularity="tensor", budget=3, device="cpu", **settings
    )
    path = report["path"]
    assert path["points"] in (5, 15, 45)
    at_the_model = np.mean([float(loss(loaded(tuned), *sequence(row)).detach()) for row in FORGET])
    assert report["forget"]["loss"] == pytest.approx(at_the_model, rel=1e-5)
    wanted, drop = attributions(base, tuned, FORGET, path["points"])
    kept, other = attributions(base, tuned, RETAIN, path["points"]) if retain else ({}, 0.0)
    sums = {name: float(one.sum()) for name, one in wanted.items()}
    assert path["forget"]["drop"] == pytest.approx(drop, abs=1e-5) and abs(drop) > 0.1
    assert path["forget"]["attributed"] == pytest.approx(sum(sums.values()), abs=1e-5)
    assert abs(path["forget"]["attributed"] - path["forget"]["drop"]) <= 0.01 * max(abs(drop), abs(other))
    assert path["forget"]["error"] <= 0.01
    if retain:
        assert path["retain"]["drop"] == pytest.approx(other, abs=1e-5)
        assert path["retain"]["attributed"] == pytest.approx(sum(float(one.sum()) for one in kept.values()), abs=1e-5)
    else:
        assert path["retain"] is None
    found = scores(tmp_path / "loc")
    for row in report["tensors"]:
        name = row["name"]
        less = float(kept[name].sum()) if retain else 0.0
        assert row["attribution_forget"] == pytest.approx(sums[name], abs=1e-5)
        assert row["attribution_retain"] == (pytest.approx(less, abs=1e-5) if retain else None)
        assert float(found[name]) == pytest.approx(sums[name] - less, abs=1e-5)
    best = sorted(found, key=lambda name: -float(found[name]))[:3]
    assert {name for name, bits in chosen(tmp_path / "loc", tuned).items() if bits.all()} == set(best)


def test_a_path_by_element_selects_elements_that_carried_it(tmp_path, base, tuned, data):
    report = localize(tuned, tmp_path / "loc", base=base, method="path", device="cpu", forget=data["forget"])
    wanted, _ = attributions(base, tuned, FORGET, report["path"]["points"])
    for row in report["tensors"]:
        found = scores(tmp_path / "loc")[row["name"]]
        assert near(found, wanted[row["name"]], 1e-4)
        assert row["score_mean"] == pytest.approx(float(found.double().mean()), rel=1e-3, abs=1e-9)
        assert row["score_max"] == float(found.max())
    assert not any(
        (bits & (scores(tmp_path / "loc")[name].numpy() <= 0)).any()
        for name, bits in chosen(tmp_path / "loc", tuned).items()
    )


@pytest.fixture(scope="module")
def far(base, tuned):
    """Eight times as far from `base` as `tuned`, where five points are too few."""
    import shutil

    folder = base.parent / "far"
    shutil.copytree(tuned, folder)
    before, after = load_file(base / "model.safetensors"), load_file(tuned / "model.safetensors")
    moved = {name: before[name] + 8 * (after[name] - before[name]) for name in after}
    save_file(moved, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_points_triple_until_the_attributions_add_up(tmp_path, base, far, data):
    forget = write(tmp_path / "few.jsonl", FORGET[:2])
    report = localize(
        far, tmp_path / "loc", base=base, method="path", granularity="tensor", budget=3, device="cpu", forget=forget
    )
    points = report["path"]["points"]
    assert points in (15, 45, 135)
    for count in (5, points // 3, points):  # those before were not enough
        sums, drop = attributions(base, far, FORGET[:2], count)
        error = abs(sum(float(one.sum()) for one in sums.values()) - drop) / abs(drop)
        assert (error <= 0.01) == (count == points), (count, error)
    assert report["path"]["forget"]["error"] == pytest.approx(error, abs=1e-4)
    assert all(
        row["attribution_forget"] == pytest.approx(float(sums[row["name"]].sum()), abs=1e-4)
        for row in report["tensors"]
    )


def test_a_path_through_some_tensors_does_not_claim_to_be_complete(tmp_path, base, tuned, data):
    report = localize(
        tuned, tmp_path / "loc", base=base, method="path", only=["*.mlp.*"], granularity="tensor", budget=2, device="cpu",
        forget=data["forget"],
    )  # fmt: skip
    assert report["path"]["forget"]["error"] is None and report["path"]["points"] == 5 and not report["warnings"]
    wanted, _ = attributions(base, tuned, FORGET, 5)
    part = sum(float(one.sum()) for name, one in wanted.items() if ".mlp." in name)
    assert report["path"]["forget"]["attributed"] == pytest.approx(part, abs=1e-5)


@pytest.fixture
def factors(base, adapter):
    """Means of gradients of an adapter's factors, by the names that peft gives them in a file."""
    from peft import PeftModel, get_peft_model_state_dict

    found = {}
    for label, rows in (("forget", FORGET), ("retain", RETAIN)):
        model = (
            PeftModel.from_pretrained(loaded(base), adapter, is_trainable=True, autocast_adapter_dtype=False)
            .double()
            .eval()
        )
        mine = means(each_gradient(model, map(sequence, rows)))["signed"]
        for name, parameter in model.named_parameters():
            if name in mine:
                parameter.data = mine[name]
        found[label] = {
            name: one.clone()
            for name, one in get_peft_model_state_dict(model, save_embedding_layers=False).items()
            if "lora" in name
        }
    return found


def test_memflex_on_an_adapter_selects_as_the_paper_does(tmp_path, base, adapter, data, factors):
    """Cosines and mean sizes equal those computed with peft, and so does the selection by thresholds."""
    names = sorted(load_file(adapter / "adapter_model.safetensors"))
    assert names == sorted(factors["forget"])
    angles, sizes = {}, {}
    for name in names:
        f, r = factors["forget"][name].reshape(-1), factors["retain"][name].reshape(-1)
        angles[name], sizes[name] = float(f @ r / (f.norm() * r.norm())), float(f.abs().mean())
    mu, sigma = float(np.quantile(list(angles.values()), 0.7)), float(np.quantile(list(sizes.values()), 0.4))
    wanted = {name for name in names if angles[name] < mu and sizes[name] > sigma}
    assert 2 <= len(wanted) < len(names) - 2
    report = localize(
        f"{base}+{adapter}", tmp_path / "loc", method="memflex", mu=mu, sigma=sigma, labels="true", device="cpu", **data
    )
    assert [row["name"] for row in report["tensors"]] == list(open_checkpoint(adapter).tensors)
    for row in report["tensors"]:
        assert row["cosine"] == pytest.approx(angles[row["name"]], abs=1e-5)
        assert row["mean_abs_forget"] == pytest.approx(sizes[row["name"]], rel=1e-5)
    assert {row["name"] for row in report["tensors"] if row["selected"]} == wanted
    assert {name for name, bits in chosen(tmp_path / "loc", adapter).items() if bits.all()} == wanted
    assert report["adapter"]["name"] == "lora" and report["model"]["name"] == "base"
    assert report["settings"]["budget"] is None and report["summary"]["units_selected"] == len(wanted)


def test_an_adapter_is_localized_by_element_as_well(tmp_path, base, adapter, data, factors):
    localize(f"{base}+{adapter}", tmp_path / "loc", method="salun", budget="10%", device="cpu", forget=data["forget"])
    for name, found in scores(tmp_path / "loc").items():
        assert near(found, factors["forget"][name].abs()), name


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
