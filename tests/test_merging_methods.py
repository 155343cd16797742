"""Merge methods on one tensor, against numpy in float64 on whole tensors, torch step by step, and cases worked by hand."""

from itertools import pairwise
from operator import iadd

import numpy as np
import pytest
import torch

from editkit.errors import EditError
from editkit.merging.compatible import rounded
from editkit.merging.method import Stack, Terms
from editkit.merging.methods import REGISTRY

RNG = np.random.default_rng(0)
BASE = RNG.standard_normal((7, 12)) * 0.02
MODELS = np.stack([BASE + RNG.standard_normal(BASE.shape) * 0.004 for _ in range(3)])
DELTAS = MODELS - BASE
W = [0.6, 0.3, 0.2]


def terms_of(name, shape, settings, each, count, seed=0, precision=None):
    method = REGISTRY[name]
    whole = {key: one.default for key, one in method.settings.items()} | (settings or {})
    own = {key: one.default for key, one in method.model_settings.items()}
    models = tuple(own | (each[j] if each else {}) for j in range(count))
    return Terms("w", shape[0], shape[1], shape[0] * shape[1], whole, models, seed, precision)


def merge(name, base, models, settings=None, each=None, *, dtype=np.float64, cuts=(3, 5), seed=0, precision=None):
    """A method on matrices, cut into blocks after the rows `cuts`, as the engine runs it."""
    method, models = REGISTRY[name], np.asarray(models)
    shape = models.shape[1:]
    edges = [0, *(cut for cut in cuts if cut < shape[0]), shape[0]]
    result = method.merge(terms_of(name, shape, settings, each, len(models), seed, precision))

    def stack(first, last):
        below = None if base is None or method.base == "unused" else base[first:last].astype(dtype)
        values = models[:, first:last].astype(dtype)
        if below is not None and method.deltas:
            values = values - below if precision is None else rounded(values - below, precision)
        return Stack(below, values, first * shape[1], np.empty((last - first, shape[1]), dtype))

    if hasattr(result, "send"):
        total = None
        try:
            while True:
                ask, total = result.send(total), None
                for first, last in pairwise(edges):
                    found = ask(stack(first, last))
                    total = found if total is None else iadd(total, found)
        except StopIteration as done:
            result = done.value
    return np.concatenate([np.array(result(stack(first, last))) for first, last in pairwise(edges)])


def weights(*values, **more):
    return [{"weight": value, **{key: one[j] for key, one in more.items()}} for j, value in enumerate(values)]


def close(one, other):
    np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-13)


# -- means and angles


def test_linear_is_the_weighted_mean():
    mean = sum(w * m for w, m in zip(W, MODELS, strict=True))
    close(merge("linear", None, MODELS, each=weights(*W)), mean / 1.1)
    close(merge("linear", None, MODELS, {"normalize": False}, weights(*W)), mean)
    close(merge("linear", None, MODELS[:2], each=weights(-1.5, 0.5)), 1.5 * MODELS[0] - 0.5 * MODELS[1])


def test_linear_refuses_weights_that_add_up_to_nothing():
    with pytest.raises(EditError, match="the weights add up to 0, which is no mean"):
        merge("linear", None, MODELS[:2], each=weights(1.0, -1.0))


def slerped(t, one, other, straight=0.9995):
    cosine = (one * other).sum() / np.linalg.norm(one) / np.linalg.norm(other)
    if abs(cosine) > straight:
        return (1 - t) * one + t * other
    theta = np.arccos(cosine)
    return (np.sin((1 - t) * theta) * one + np.sin(t * theta) * other) / np.sin(theta)


@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_slerp_walks_on_the_arc(t):
    close(merge("slerp", BASE, MODELS[:1], {"t": t}), slerped(t, BASE, MODELS[0]))
    near = BASE + DELTAS[:1] / 100
    assert (BASE * near).sum() / np.linalg.norm(BASE) / np.linalg.norm(near) > 0.9995
    close(merge("slerp", BASE, near, {"t": t}), (1 - t) * BASE + t * near[0])


def test_slerp_of_two_directions_by_hand():
    # a right angle: halfway both count sqrt(1/2)
    found = merge("slerp", np.array([[2.0, 0.0]]), np.array([[[0.0, 2.0]]]), {"t": 0.5})
    close(found, [[np.sqrt(2), np.sqrt(2)]])


def test_slerp_of_zeros_is_the_straight_line():
    # without a direction the cosine counts as 0, so that the factors are those of a right angle
    close(merge("slerp", np.zeros((1, 2)), np.ones((1, 1, 2)), {"t": 1.0}), [[1.0, 1.0]])


@pytest.mark.parametrize("based", [True, False])
def test_nuslerp_of_tensors_rows_and_columns(based):
    base, start = (BASE, BASE) if based else (None, 0.0)
    one, other = DELTAS[:2] if based else MODELS[:2]
    flat = merge("nuslerp", base, MODELS[:2], each=weights(0.6, 0.2))
    close(flat, start + slerped(0.25, one, other, 1))
    rows = merge("nuslerp", base, MODELS[:2], {"nuslerp_flatten": False}, weights(0.6, 0.2))
    close(rows, start + np.stack([slerped(0.25, a, b, 1) for a, b in zip(one, other, strict=True)]))
    said = {"nuslerp_flatten": False, "nuslerp_row_wise": True}
    columns = merge("nuslerp", base, MODELS[:2], said, weights(0.6, 0.2))
    close(columns, start + np.stack([slerped(0.25, a, b, 1) for a, b in zip(one.T, other.T, strict=True)], 1))


@pytest.mark.parametrize("pair", [(1.0, -1.0), (-1.0, -1.0)])
@pytest.mark.parametrize("method", ["nuslerp", "multislerp"])
def test_weights_without_a_positive_sum_have_no_direction(method, pair):
    with pytest.raises(EditError, match=f"{method} needs a sum above 0"):
        merge(method, BASE, MODELS[:2], each=weights(*pair))


def test_multislerp_is_a_mean_of_directions_with_a_mean_length():
    flat = DELTAS.reshape(3, -1)
    w = np.array(W) / sum(W)
    lengths = np.linalg.norm(flat, axis=1)
    units = flat / lengths[:, None]
    mean = w @ units
    mean /= np.linalg.norm(mean)
    tangent = w @ (units - (units @ mean)[:, None] * mean)  # of mergekit: rounding noise
    size = np.linalg.norm(tangent) + 1e-8
    there = (mean * np.cos(size) + tangent * np.sin(size) / size) * (w @ lengths)
    np.testing.assert_allclose(
        merge("multislerp", BASE, MODELS, each=weights(*W)), BASE + there.reshape(BASE.shape), rtol=1e-6, atol=1e-9
    )
    close(merge("multislerp", BASE, MODELS[:1], each=weights(0.3)), MODELS[0])


def karchered(models, steps=10, tol=1e-5):
    flat = models.reshape(len(models), -1)
    lengths = np.linalg.norm(flat, axis=1)
    units = flat / lengths[:, None]
    mean = units.mean(0) / np.linalg.norm(units.mean(0))
    for _ in range(steps):
        tangent = np.zeros_like(mean)
        for unit in units:
            cosine = np.clip(mean @ unit, -1, 1)
            theta = np.arccos(cosine)
            if theta >= tol:
                tangent += theta / np.sin(theta) * (unit - cosine * mean) / len(units)
        far = np.linalg.norm(tangent)
        if far < tol:
            break
        mean = np.cos(far) * mean + np.sin(far) * tangent / far
        mean /= np.linalg.norm(mean)
    return (lengths.mean() * mean).reshape(models.shape[1:])


def test_karcher_mean_from_inner_products_is_that_of_whole_tensors():
    apart = MODELS + np.array([0, 0.05, -0.03])[:, None, None] * RNG.standard_normal(MODELS.shape)
    close(merge("karcher", None, apart), karchered(apart))
    once = merge("karcher", None, apart, {"max_iter": 1})
    close(once, karchered(apart, 1))
    assert np.abs(once - karchered(apart)).max() > 1e-6
    assert not merge("karcher", None, np.zeros((2, 1, 4))).any()


@pytest.mark.parametrize("filter_wise", [False, True])
def test_model_stock(filter_wise):
    def share(a, b):
        cosine = (a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b)
        return np.clip(2 * cosine / (1 + cosine), 0, 1)

    tuned = BASE + np.stack([DELTAS[0] + DELTAS[2], DELTAS[1] + DELTAS[2]])
    one, other = tuned - BASE
    t = np.array([share(a, b) for a, b in zip(one, other, strict=True)])[:, None] if filter_wise else share(one, other)
    assert (np.asarray(t) > 0).any()
    close(merge("model_stock", BASE, tuned, {"filter_wise": filter_wise}), t * tuned.mean(0) + (1 - t) * BASE)


def test_model_stock_of_opposite_changes_is_the_base_and_not_beyond_it():
    opposite = BASE + np.stack([DELTAS[0], -0.9 * DELTAS[0] + 0.1 * DELTAS[1]])
    assert np.array_equal(merge("model_stock", BASE, opposite), BASE)


# -- sums of differences


def test_task_arithmetic():
    wanted = sum(w * d for w, d in zip(W, DELTAS, strict=True))
    close(merge("task_arithmetic", BASE, MODELS, {"lambda": 0.5}, weights(*W)), BASE + 0.5 * wanted)
    close(merge("task_arithmetic", BASE, MODELS, {"normalize": True}, weights(*W)), BASE + wanted / 1.1)


def test_a_negative_weight_takes_away_whatever_normalize_says():
    for method in ("task_arithmetic", "ties", "breadcrumbs", "dare_linear", "dare_ties", "della", "della_linear"):
        for normalize in (False, True):
            found = merge(method, BASE, MODELS[:1], {"normalize": normalize}, weights(-1.0))
            close(found, BASE - DELTAS[0])


def test_weights_that_cancel_out_do_not_blow_up():
    found = merge("task_arithmetic", BASE, MODELS[:2], {"normalize": True}, weights(1.0, -1.0))
    close(found, BASE + (DELTAS[0] - DELTAS[1]) / 2)


def test_negative_zeros_stay_where_nothing_changes():
    base = np.full((2, 3), -0.0)
    for method in ("task_arithmetic", "ties", "dare_ties", "model_stock", "sce", "breadcrumbs", "nuslerp"):
        each = weights(1.0, 1.0) if "weight" in REGISTRY[method].model_settings else None
        found = merge(method, base, np.stack([base, base]), each=each)
        assert np.signbit(found).all(), method


def trimmed(delta, density):
    kept = np.zeros(delta.size)
    kept[np.argsort(-np.abs(delta).reshape(-1), kind="stable")[: max(1, int(density * delta.size))]] = 1
    return delta * kept.reshape(delta.shape)


def elected(deltas, w, normalize=True):
    values = np.asarray(w)[:, None, None] * deltas
    agree = np.sign(values) == np.where(values.sum(0) >= 0, 1, -1)
    share = (np.abs(w)[:, None, None] * agree).sum(0)
    return (values * agree).sum(0) / np.where(share == 0, 1, share) if normalize else (values * agree).sum(0)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("w", [W, [1.0, -0.5, 0.2], [0.0, 1.0, 1.0]])
def test_ties(w, normalize):
    densities = [0.5, 0.21, 1.0]
    sparse = np.stack([trimmed(d, density) for d, density in zip(DELTAS, densities, strict=True)])
    found = merge("ties", BASE, MODELS, {"normalize": normalize, "lambda": 0.7}, weights(*w, density=densities))
    close(found, BASE + 0.7 * elected(sparse, w, normalize))


def test_ties_by_hand():
    # of each model the 2 largest of 4 stay: (3, -2, 0, 0), (0, 5, 1, 0); signs elected: +, +, +; means over those who agree
    models = np.array([[[3.0, -2.0, 1.0, 0.5]], [[0.5, 5.0, 1.0, 0.0]]])
    found = merge("ties", np.zeros((1, 4)), models, each=weights(1.0, 1.0, density=[0.5, 0.5]))
    assert found.tolist() == [[3.0, 5.0, 1.0, 0.0]]


def test_of_equal_elements_the_first_ones_stay_across_blocks():
    ones = np.ones((1, 6, 2))
    found = merge("ties", np.zeros((6, 2)), ones, each=weights(1.0, density=[0.6]), cuts=(1, 2, 5))
    assert found.reshape(-1).tolist() == [1.0] * 7 + [0.0] * 5  # int(0.6 * 12) = 7
    last = merge("breadcrumbs", np.zeros((6, 2)), ones, each=weights(1.0, density=[0.5], gamma=[0.25]), cuts=(1, 2, 5))
    assert last.reshape(-1).tolist() == [0.0] * 3 + [1.0] * 6 + [0.0] * 3  # the last 3 of 12 count as the largest


def between(delta, density, gamma):
    """As breadcrumbs keeps: sorted upwards, the kept ones are the `count` below the largest."""
    count, over = max(1, int(density * delta.size)), int(gamma * delta.size)
    bottom = max(0, delta.size - count - over)
    kept = np.zeros(delta.size)
    kept[np.argsort(np.abs(delta).reshape(-1), kind="stable")[bottom : bottom + count]] = 1
    return delta * kept.reshape(delta.shape)


def test_breadcrumbs():
    densities, gammas = [0.5, 0.97, 0.3], [0.1, 0.05, 0.0]
    sparse = np.stack([between(*one) for one in zip(DELTAS, densities, gammas, strict=True)])
    each = weights(*W, density=densities, gamma=gammas)
    close(merge("breadcrumbs", BASE, MODELS, each=each), BASE + np.tensordot(W, sparse, 1))
    close(merge("breadcrumbs_ties", BASE, MODELS, each=each), BASE + elected(sparse, W, False))


def test_rescale_keeps_the_sum_of_the_differences():
    sparse = np.stack([trimmed(d, 0.5) for d in DELTAS])
    sparse *= (np.abs(DELTAS).sum((1, 2)) / np.abs(sparse).sum((1, 2)))[:, None, None]
    found = merge("ties", BASE, MODELS, {"rescale": True}, weights(*W, density=[0.5] * 3))
    close(found, BASE + elected(sparse, W))


@pytest.mark.parametrize(
    "method", ["ties", "dare_linear", "dare_ties", "della", "della_linear", "breadcrumbs", "breadcrumbs_ties"]
)
def test_densities_of_zero_and_one_and_tensors_of_one_element(method):
    nothing = merge(method, BASE, MODELS[:1], each=weights(1.0, density=[0.0]))
    assert np.array_equal(nothing, BASE)
    close(merge(method, BASE, MODELS[:1], each=weights(1.0, density=[1.0])), MODELS[0])
    one, other = np.array([[2.0]]), np.array([[[5.0]]])
    found = [merge(method, one, other, each=weights(1.0, density=[0.5]), seed=seed).item() for seed in range(20)]
    wanted = {2.0, 8.0} if method.startswith(("dare", "della")) else {5.0}  # drawn: nothing, or 3 / 0.5 on top
    assert set(found) == wanted


@pytest.mark.parametrize(("method", "count"), [("dare_linear", 2), ("della_linear", 2), ("dare_ties", 1), ("della", 1)])
def test_the_mean_over_200_seeds_is_the_merge_without_drops(method, count):
    generator = np.random.default_rng(1)
    base = generator.standard_normal((20, 50))
    models = base + generator.standard_normal((count, 20, 50))
    each = weights(*[1.0, 0.5][:count], density=[0.4, 0.7])
    whole = merge("task_arithmetic", base, models, each=[{"weight": one["weight"]} for one in each])
    drawn = np.stack([merge(method, base, models, each=each, seed=seed) for seed in range(200)])
    error = (drawn.mean(0) - whole) / (drawn.std(0, ddof=1) / np.sqrt(200))
    assert np.abs(error).max() < 4.5  # of 1000 elements
    assert abs(error.mean()) < 4 / np.sqrt(1000)
    assert error.std() == pytest.approx(1, abs=0.15)


def test_dare_draws_each_element_alone_and_scales_by_the_inverse_density():
    ones = np.ones((1, 40, 50))
    found = merge("dare_linear", np.zeros((40, 50)), ones, each=weights(1.0, density=[0.25]))
    assert set(np.unique(found)) == {0.0, 4.0}
    assert (found > 0).mean() == pytest.approx(0.25, abs=4 * np.sqrt(0.25 * 0.75 / 2000))
    both = merge("dare_linear", np.zeros((40, 50)), np.ones((2, 40, 50)), each=weights(1.0, 1.0, density=[0.25] * 2))
    assert set(np.unique(both)) == {0.0, 4.0, 8.0}  # the two models draw for themselves
    assert not np.array_equal(
        found, merge("dare_linear", np.zeros((40, 50)), ones, each=weights(1.0, density=[0.25]), seed=1)
    )


def test_della_keeps_large_differences_more_often():
    rows = np.tile(np.arange(1.0, 11.0), (1, 4000, 1))
    found = merge("della_linear", np.zeros((4000, 10)), rows, each=weights(1.0, density=[0.5], epsilon=[0.3]))
    kept = (found != 0).mean(0)
    np.testing.assert_allclose(kept, np.linspace(0.2, 0.8, 10), atol=4 * np.sqrt(0.25 / 4000))
    scale = found.max(0) / np.arange(1.0, 11.0)
    np.testing.assert_allclose(scale, 1 / np.linspace(0.2, 0.8, 10), rtol=1e-6)


def test_della_refuses_probabilities_outside_of_0_to_1():
    with pytest.raises(
        EditError, match=r"density 0.9 with epsilon 0.15 makes probabilities outside of 0 to 1: .* below 0.1"
    ):
        merge("della", BASE, MODELS[:1], each=weights(1.0, density=[0.9]))


@pytest.mark.parametrize("method", [name for name in REGISTRY if REGISTRY[name].deltas])
def test_blocks_change_nothing(method):
    settings = {"select_topk": 0.5} if method == "sce" else None
    own = REGISTRY[method].model_settings
    each = [
        {key: value for key, value in {"weight": w, "density": 0.5, "gamma": 0.1}.items() if key in own} for w in W[:2]
    ]
    whole = merge(method, BASE, MODELS[:2], settings, each, cuts=())
    parts = merge(method, BASE, MODELS[:2], settings, each, cuts=(1, 2, 6))
    if method in ("nuslerp", "multislerp", "model_stock", "sce"):  # sums of blocks
        np.testing.assert_allclose(whole, parts, rtol=1e-14)
    else:
        assert np.array_equal(whole, parts)


# -- the others


@pytest.mark.parametrize("topk", [1.0, 0.4, 0.0])
def test_sce(topk):
    variance = DELTAS.var(0).astype(np.float32)
    count = int(np.count_nonzero(variance) * topk)
    kept = np.zeros(variance.size)
    kept[np.argsort(-variance.reshape(-1), kind="stable")[:count]] = 1
    sparse = DELTAS * kept.reshape(variance.shape)
    squares = (sparse**2).mean((1, 2))
    w = squares / squares.sum() if topk else np.ones(3) / 3
    agree = np.sign(sparse) == np.where(sparse.sum(0) >= 0, 1, -1)
    share = (w[:, None, None] * agree).sum(0)
    wanted = BASE + (w[:, None, None] * sparse * agree).sum(0) / np.where(share == 0, 1, share)
    close(merge("sce", BASE, MODELS, {"select_topk": topk}), wanted)


def softmax(values):
    grown = np.exp(values - values.max(1, keepdims=True))
    return grown / grown.sum(1, keepdims=True)


def test_arcee_fusion():
    p, q = softmax(MODELS[0]) + 1e-8, softmax(BASE) + 1e-8
    importance = (np.abs(DELTAS[0]) * (p * np.log(p / q)).sum(1, keepdims=True)).astype(np.float32)
    ordered = np.sort(importance, axis=None)
    lower, median, upper = (float(ordered[int(share * (BASE.size - 1))]) for share in (0.25, 0.5, 0.75))
    taken = importance >= np.float32(median + 1.5 * (upper - lower))
    assert 0 < taken.mean() < 0.5
    assert np.array_equal(merge("arcee_fusion", BASE, MODELS[:1]), np.where(taken, MODELS[0], BASE))
    assert np.array_equal(merge("arcee_fusion", BASE, BASE[None]), BASE)


def test_nearswap_by_hand():
    base, model = np.array([[1.0, 1.0, 1.0, -0.0]]), np.array([[[1.001, 2.0, 0.5, -0.0]]])
    found = merge("nearswap", base, model, {"t": 0.1})
    close(found, [[1.001, 1.1, 0.9, 0.0]])  # near: taken over; far: 0.1 on the way
    assert np.signbit(found[0, 3])


def test_passthrough_scales():
    close(merge("passthrough", None, MODELS[:1], each=[{"scale": -0.5}]), -0.5 * MODELS[0])


# -- precision


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "slerp", "linear"])
def test_float32_blocks_are_summed_in_float64_and_rounded_once(method):
    base, models = (rounded(one.astype(np.float32), "BF16").astype(np.float64) for one in (BASE, MODELS))
    settings = {"t": 0.3} if method == "slerp" else None
    each = None if method == "slerp" else weights(*W)
    count = 1 if method == "slerp" else 3
    wide = merge(method, base, models[:count], settings, each)
    narrow = merge(method, base, models[:count], settings, each, dtype=np.float32)
    assert np.array_equal(narrow, wide.astype(np.float32))


@pytest.mark.parametrize("precision", ["F32", "BF16", "F16"])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("method", ["task_arithmetic", "ties"])
def test_compatible_arithmetic_is_that_of_torch_in_the_dtype_of_the_merge(method, normalize, precision):
    dtype = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}[precision]
    w = [0.6, -0.7, 0.3]
    base, models = torch.tensor(BASE).to(dtype), torch.tensor(MODELS).to(dtype)
    scales = torch.tensor(w, dtype=dtype)[:, None, None]
    values = (models - base) * scales
    if method == "ties":
        mask = values.sign() == torch.where(values.sum(0) >= 0, 1, -1)
        mixed, divisor = (values * mask).sum(0), (scales * mask).sum(0)
        divisor[divisor == 0] = 1
    else:
        mixed, divisor = values.sum(0), scales.sum(0)
    wanted = base + (mixed / divisor if normalize else mixed) * 0.7
    found = merge(
        method,
        base.float().numpy(),
        models.float().numpy(),
        {"normalize": normalize, "lambda": 0.7},
        weights(*w),
        dtype=np.float32,
        precision=precision,
    )
    assert torch.equal(torch.from_numpy(rounded(found, precision)), wanted.float())


def test_compatible_divides_by_the_signed_sum_as_mergekit_does():
    found = merge("ties", BASE, MODELS[:1], each=weights(-1.0), dtype=np.float32, precision="F32")
    np.testing.assert_allclose(found, MODELS[0], rtol=1e-5, atol=1e-9)  # weight -1 turned into +1


def test_every_method_says_where_it_is_from_and_that_it_differs():
    for name, method in REGISTRY.items():
        assert method.link.startswith("https://") and method.label, name
    assert "sum of |weight|" in (REGISTRY["ties"].remark(terms_of("ties", (1, 1), None, weights(-1.0), 1)) or "")
    assert REGISTRY["ties"].remark(terms_of("ties", (1, 1), None, weights(1.0), 1)) is None
    drawn = terms_of("dare_ties", (1, 1), None, weights(1.0, density=[0.5]), 1)
    assert "divided by the probability" in (REGISTRY["dare_ties"].remark(drawn) or "")
