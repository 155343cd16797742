"""Attributions along the way from one model to another: they add up to the drop of the loss."""

import numpy as np
import pytest
import torch
from localized import (  # noqa: F401
    FORGET,
    RETAIN,
    chosen,
    each_gradient,
    loaded,
    loss,
    means,
    near,
    no_pictures,
    one_thread,
    scores,
    sequence,
    sets,
    tuned_on_forget,
    write,
)
from safetensors.torch import load_file, save_file
from tiny_models import save_llama

from editkit.localization.localize import localize


@pytest.fixture
def data(tmp_path):
    return sets(tmp_path)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_llama(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="module")
def tuned(base):
    return tuned_on_forget(base, "tuned", steps=6, lr=5e-3)


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
