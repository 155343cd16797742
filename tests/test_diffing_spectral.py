"""Singular values from blocks of rows, against a full SVD in float64."""

import numpy as np
import pytest

from editkit.diffing import spectral as module
from editkit.diffing.spectral import RANKS, spectral


def compare(matrix, *, norm, energy, method):
    """`spectral` of a matrix against numpy's SVD, with relative tolerances."""
    longest = 0

    def read_rows(first, last):
        nonlocal longest
        longest = max(longest, (last - first) * matrix.shape[1])
        return matrix[first:last]

    got = spectral(read_rows, *matrix.shape)
    values = np.linalg.svd(matrix.astype(np.float64), compute_uv=False)
    shares = np.cumsum(values**2) / np.sum(values**2)
    assert got["method"] == method and longest <= max(module.BLOCK, matrix.shape[1])
    assert got["norm"] == pytest.approx(values[0], rel=norm)
    assert got["stable_rank"] == pytest.approx(np.sum(values**2) / values[0] ** 2, rel=2.1 * norm)
    for rank in RANKS:
        assert got["energy"][str(rank)] == pytest.approx(shares[min(rank, values.size) - 1], rel=energy)
    return got


def noise(rows, columns, seed=0):
    return np.random.default_rng(seed).standard_normal((rows, columns))


def low_rank(rows, columns, rank, noise_level):
    scale = np.geomspace(1, 0.1, rank)
    return noise(rows, rank, 1) * scale @ noise(rank, columns, 2) / np.sqrt(columns) + noise_level * noise(
        rows, columns, 3
    ) / np.sqrt(columns)


@pytest.mark.parametrize("shape", [(500, 40), (40, 500), (64, 64), (1, 300), (300, 1), (1, 1)])
@pytest.mark.parametrize("block", [1 << 22, 1000])
def test_gram_is_exact(monkeypatch, shape, block):
    monkeypatch.setattr(module, "BLOCK", block)
    compare(noise(*shape), norm=1e-10, energy=1e-10, method="gram")
    compare(noise(*shape).astype(np.float32), norm=1e-10, energy=1e-10, method="gram")


def test_gram_of_a_wide_matrix_in_many_blocks(monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 20_000)
    compare(low_rank(150, 1100, 5, 0.1), norm=1e-10, energy=1e-10, method="gram")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_randomized_is_accurate_on_low_rank_changes_under_noise(monkeypatch, dtype):
    monkeypatch.setattr(module, "BLOCK", 300_000)
    monkeypatch.setattr(module, "GRAM_SIDE", 256)
    matrix = low_rank(700, 900, 16, 0.02).astype(dtype)
    got = compare(matrix, norm=1e-5, energy=1e-5, method="randomized")
    assert got["energy"]["16"] > 0.9


def test_randomized_on_noise_errs_low_and_little(monkeypatch):
    monkeypatch.setattr(module, "GRAM_SIDE", 256)
    matrix = noise(1100, 1300)
    got = compare(matrix, norm=5e-3, energy=4e-2, method="randomized")
    assert got["norm"] <= np.linalg.norm(matrix, 2) * (1 + 1e-6)


def test_a_rank_below_the_sketch_does_not_make_values_too_large(monkeypatch):
    monkeypatch.setattr(module, "GRAM_SIDE", 256)
    got = compare(low_rank(600, 500, 3, 0.0), norm=1e-5, energy=1e-5, method="randomized")
    assert got["energy"]["4"] == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e20, 1e30])
@pytest.mark.parametrize("side", [256, 1024])
def test_tiny_and_huge_changes_neither_vanish_nor_overflow(monkeypatch, scale, side):
    monkeypatch.setattr(module, "GRAM_SIDE", side)
    matrix = low_rank(600, 500, 4, 0.01).astype(np.float32)
    plain = spectral(lambda first, last: matrix[first:last], *matrix.shape)
    scaled = spectral(lambda first, last: matrix[first:last] * np.float32(scale), *matrix.shape)
    assert scaled["norm"] == pytest.approx(plain["norm"] * scale, rel=1e-4)
    assert scaled["stable_rank"] == pytest.approx(plain["stable_rank"], rel=1e-3)


def test_same_seed_same_result(monkeypatch):
    monkeypatch.setattr(module, "GRAM_SIDE", 256)
    matrix = noise(400, 420).astype(np.float32)
    results = [spectral(lambda first, last: matrix[first:last], 400, 420, seed=seed) for seed in (3, 3, 4)]
    assert results[0] == results[1] and results[0]["norm"] != results[2]["norm"]


def test_known_by_hand():
    matrix = np.zeros((5, 3))
    matrix[0, 0], matrix[4, 2] = 3.0, -4.0  # singular values 4, 3, 0; energy 25
    got = spectral(lambda first, last: matrix[first:last], 5, 3)
    assert got["norm"] == pytest.approx(4) and got["stable_rank"] == pytest.approx(25 / 16)
    assert got["energy"] == pytest.approx({"1": 16 / 25, "4": 1, "16": 1, "64": 1})


def test_nothing_and_not_a_number():
    nothing = {"1": None, "4": None, "16": None, "64": None}
    for shape in ((4, 6), (0, 6), (4, 0)):
        got = spectral(lambda first, last, shape=shape: np.zeros((last - first, shape[1])), *shape)
        assert got == {"norm": 0.0, "stable_rank": None, "energy": nothing, "method": "gram"}
    for bad in (np.nan, np.inf):
        got = spectral(lambda first, last, bad=bad: np.full((last - first, 3), bad), 4, 3)
        assert got["norm"] is None and got["energy"] == nothing and got["method"] == "skipped: NaN or Inf in the change"
