from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from editkit.checkpoint.blocks import blocks
from editkit.checkpoint.reader import open_checkpoint
from editkit.errors import EditError
from editkit.localization import evidence as module
from editkit.localization.evidence import OTHER, Evidence, GradientMeans
from editkit.localization.gradients import HALF
from editkit.localization.method import method
from editkit.masks.units import units_of

DICE = torch.Generator().manual_seed(3)
SHAPES = {"a.weight": (9, 5), "b.weight": (4, 6), "c.weight": (4, 6), "norm.weight": (6,)}
COUNTS = {"forget": 6, HALF: 4, "retain": 3}


def drawn(shapes):
    return {name: torch.randn(shape, generator=DICE) for name, shape in shapes.items()}


WEIGHTS, BEFORE = drawn(SHAPES), drawn(SHAPES)
SUMS = {label: drawn(SHAPES) for label in COUNTS}
SUBJECT = SimpleNamespace(
    # b and c are one parameter in the model, [2, 6, 4], the files hold its halves turned
    homes={"a.weight": "a", "norm.weight": "norm", "b.weight": "fused", "c.weight": "fused"},
    whole={"a.weight", "norm.weight"},
    parts=lambda name, values: {"b.weight": values[0].T, "c.weight": values[1].T},
)


def held(sums):
    """By parameter, as the model has them."""
    fused = torch.stack([sums["b.weight"].T, sums["c.weight"].T])
    return {"a": sums["a.weight"], "norm": sums["norm.weight"], "fused": fused}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(module, "blocks", partial(blocks, elements=10))


@pytest.fixture
def layout(tmp_path):
    save_file(WEIGHTS, tmp_path / "w.safetensors")
    return open_checkpoint(tmp_path / "w.safetensors")


@pytest.fixture
def base(tmp_path):
    save_file(BEFORE, tmp_path / "before.safetensors")
    return open_checkpoint(tmp_path / "before.safetensors")


def made(layout, name, granularity="tensor", **known):
    units = {info.name: units_of(info, granularity, None) for info in layout.tensors.values()}
    gradients = GradientMeans(SUBJECT, {label: held(sums) for label, sums in SUMS.items()}, COUNTS)
    return Evidence(method(name), layout, units, **{"gradients": gradients, **known})


def mean(label, name):
    return SUMS[label][name].double().numpy() / COUNTS[label]


def every(layout, function):
    """What `function` gives for the blocks of every tensor, as whole tensors."""
    found = {}
    for info in layout.tensors.values():
        parts = [np.array(function(block)) for block in module.blocks(info)]
        assert len(parts) > 1 or info.name == "norm.weight"
        found[info.name] = np.concatenate(parts).reshape(info.shape)
    return found


@pytest.mark.parametrize("label", COUNTS)
def test_means_of_gradients_come_under_the_names_and_in_the_shapes_of_the_files(layout, label):
    means = GradientMeans(SUBJECT, {label: held(sums) for label, sums in SUMS.items()}, COUNTS)
    for name, found in every(layout, partial(means.rows, label)).items():
        assert found == pytest.approx(mean(label, name), rel=1e-6)


def test_the_other_half_is_what_the_first_one_leaves(layout):
    means = GradientMeans(SUBJECT, {label: held(sums) for label, sums in SUMS.items()}, COUNTS)
    for name, found in every(layout, partial(means.rows, OTHER)).items():
        wanted = (SUMS["forget"][name].double() - SUMS[HALF][name].double()).numpy() / 2
        assert found == pytest.approx(wanted, rel=1e-5, abs=1e-6)


def test_the_other_half_is_exactly_zero_where_its_examples_have_no_gradient(layout):
    """A remainder of rounding would be divided by nothing in Fisher's ratio and come out on top."""
    sums = {HALF: held(SUMS[HALF]), "forget": held(SUMS[HALF])}
    means = GradientMeans(SUBJECT, sums, {"forget": 13, HALF: 7})
    for found in every(layout, partial(means.rows, OTHER)).values():
        assert not found.any()


def unit_index(granularity, shape):
    """The unit of every element."""
    rows = shape[0] if granularity == "row" and len(shape) > 1 else 1
    return np.repeat(np.arange(rows), np.prod(shape) // rows)


@pytest.mark.parametrize("granularity", ["tensor", "row"])
@pytest.mark.parametrize("threads", [1, 3])
def test_units_are_measured_in_float64(layout, base, granularity, threads):
    found = made(layout, "path", granularity, base=base).measure(list(layout.tensors.values()), threads)
    for name, shape in SHAPES.items():
        f, r = mean("forget", name).reshape(-1), mean("retain", name).reshape(-1)
        tau = (WEIGHTS[name] - BEFORE[name]).double().numpy().reshape(-1)
        products = [f * r, f * f, r * r, abs(f), abs(r), -tau * f, -tau * r]
        wanted = np.array([np.bincount(unit_index(granularity, shape), one) for one in products]).T
        assert found[name] == pytest.approx(wanted, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("granularity", ["tensor", "row"])
def test_memflex_takes_the_cosine_of_the_unit(layout, granularity):
    infos, known = list(layout.tensors.values()), made(layout, "memflex", granularity)
    known.measure(infos, 2)
    scores, _ = known.score_units(infos, 2)
    for name, found in every(layout, known.scores).items():
        unit = unit_index(granularity, SHAPES[name])
        f, r = mean("forget", name).reshape(-1), mean("retain", name).reshape(-1)
        dot, f2, r2 = (np.bincount(unit, one) for one in (f * r, f * f, r * r))
        wanted = abs(f) * (1 - (dot / np.sqrt(f2 * r2))[unit])
        assert found.reshape(-1) == pytest.approx(wanted, rel=1e-5)
        assert scores[name] == pytest.approx(np.bincount(unit, wanted) / np.bincount(unit), rel=1e-5)


def test_scores_of_units_are_means_and_those_of_a_path_are_sums(layout, base):
    infos = list(layout.tensors.values())
    for name, reduce in (("snip", np.mean), ("path", np.sum)):
        scores, highest = made(layout, name, base=base if name == "path" else None).score_units(infos, 2)
        for file in SHAPES:
            f, r, w, before = mean("forget", file), mean("retain", file), WEIGHTS[file].numpy(), BEFORE[file].numpy()
            each = abs(f * w) if name == "snip" else -(w.astype(float) - before) * (f - r)
            assert scores[file] == pytest.approx([reduce(each)], rel=1e-4, abs=1e-6)
            assert highest[file] == pytest.approx(each.max(), rel=1e-5)


def test_random_gives_units_of_all_sizes_the_same_chance(tmp_path):
    """A mean over many draws is near one half: large units would never come first, nor last."""
    sizes = [1, 2, 10, 100, 1000, 3000]
    shapes = {f"t{size}": torch.zeros(10, size) for size in sizes}
    save_file(shapes, tmp_path / "w.safetensors")
    with open_checkpoint(tmp_path / "w.safetensors") as layout:
        for granularity in ("tensor", "row"):
            units = {info.name: units_of(info, granularity, None) for info in layout.tensors.values()}
            first = []
            for seed in range(120):
                evidence = Evidence(method("random"), layout, units, seed=seed)
                scores, _ = evidence.score_units(list(layout.tensors.values()), 1)
                first.append(max(scores, key=lambda name: scores[name].max()))
            counts = np.array([first.count(f"t{size}") for size in sizes])
            assert ((counts - 20) ** 2 / 20).sum() < 20.5, counts  # chi-squared of 5 degrees, one in a thousand


def test_random_elements_do_not_depend_on_blocks_and_differ_by_tensor_and_seed(layout, monkeypatch):
    found = {}
    for elements in (10, 1000):
        monkeypatch.setattr(module, "blocks", partial(blocks, elements=elements))
        for seed in (0, 1):
            known = made(layout, "random", "element", gradients=None, seed=seed)
            parts = {
                info.name: [known.scores(block).copy() for block in module.blocks(info)]
                for info in layout.tensors.values()
            }
            found[elements, seed] = np.concatenate([np.concatenate(one).reshape(-1) for one in parts.values()])
    assert np.array_equal(found[10, 0], found[1000, 0]) and not np.array_equal(found[10, 0], found[10, 1])
    assert len(np.unique(found[10, 0])) == len(found[10, 0])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_scores_that_are_no_numbers_name_their_tensor(tmp_path, bad):
    weights = torch.ones(9, 5)
    weights[8, 1] = bad
    save_file({"fine": torch.ones(3), "broken": weights}, tmp_path / "w.safetensors")
    with open_checkpoint(tmp_path / "w.safetensors") as layout:
        known = made(layout, "magnitude", gradients=None)
        with pytest.raises(EditError, match=r"^broken gets scores that are NaN or Inf"):
            known.score_units(list(layout.tensors.values()), 1)
