"""From the gradients of single examples to the elements that the mask gives to an edit."""

import numpy as np
import pytest
import torch
from localized import FORGET, chosen, direct, near, no_pictures, one_thread, scores, sets  # noqa: F401
from safetensors.torch import load_file
from tiny_models import save_llama

from editkit.localization.localize import localize
from editkit.names import parse


@pytest.fixture
def data(tmp_path):
    return sets(tmp_path)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_llama(tmp_path_factory.mktemp("models") / "base")


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
