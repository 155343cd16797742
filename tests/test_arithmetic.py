"""Kernels against torch and against numpy in float64."""

import numpy as np
import pytest
import torch

from editkit.arithmetic.apply import DELTA_TAU, TAU_TAU, project, subtract
from editkit.arithmetic.codec import decode, encode, round_stochastically
from editkit.arithmetic.dtypes import DTYPES
from editkit.arithmetic.measure import (
    BASE_BASE,
    BASE_DELTA,
    BINS,
    CHANGED,
    DELTA,
    DELTA_DELTA,
    FLIPS,
    INF_BASE,
    INF_EDITED,
    INT4,
    INT8,
    LOG2_SMALLEST,
    NAN_BASE,
    NAN_EDITED,
    Sums,
)

HALVES = {"BF16": torch.bfloat16, "F16": torch.float16}


@pytest.mark.parametrize("dtype", HALVES)
def test_every_16_bit_number_decodes_as_in_torch(dtype):
    codes = np.arange(65536).astype(np.uint16)
    expected = torch.from_numpy(codes.view(np.int16)).view(HALVES[dtype]).double().numpy()
    for precision in (np.float32, np.float64):
        np.testing.assert_array_equal(decode(codes.view(np.uint8), dtype, np.empty(65536, precision)), expected)


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F8_E4M3", "F8_E5M2", "F32", "F64"])
def test_encoding_rounds_as_torch(dtype):
    rng = np.random.default_rng(0)
    values = (rng.standard_normal(200_000) * 2.0 ** rng.integers(-160, 125, 200_000)).astype(np.float32)
    ties = (1 + np.arange(64, dtype=np.float32) / 2**12) * np.float32(2) ** rng.integers(-20, 10, 64).astype(np.float32)
    values = np.concatenate([values, ties, np.float32([0, -0.0, np.inf, -np.inf, 65519, 65520, 3.4e38, 1e-45])])
    name = DTYPES[dtype].torch
    expected = torch.from_numpy(values).to(getattr(torch, name)).view(torch.uint8).numpy()
    np.testing.assert_array_equal(encode(values, dtype), expected)
    assert torch.from_numpy(encode(np.float32([np.nan]), dtype)).view(getattr(torch, name)).double().isnan()


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F8_E4M3", "F32"])
def test_float64_is_encoded_as_in_torch(dtype):
    values = np.random.default_rng(5).standard_normal(100_000) * 0.1
    values[:64] = 1 + np.arange(64) / 2**12 + 2.0**-40
    expected = torch.from_numpy(values).to(getattr(torch, DTYPES[dtype].torch)).view(torch.uint8).numpy()
    np.testing.assert_array_equal(encode(values, dtype), expected)


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F8_E4M3", "F32"])
def test_stochastic_rounding_is_unbiased_and_independent_of_blocks(dtype):
    rng = np.random.default_rng(1)
    precision = np.float64 if dtype == "F32" else np.float32
    value = (rng.standard_normal(8) * 0.01).astype(precision)
    draws = np.repeat(value[None], 40_000, axis=0)
    whole = draws.copy()
    round_stochastically(whole, dtype, key=7, first=0)
    down = decode(encode(whole, dtype), dtype, np.empty_like(whole))
    np.testing.assert_array_equal(down, whole)  # already numbers of the dtype
    error = whole.astype(np.float64).mean(axis=0) - value
    assert (np.abs(error) <= 5 * whole.astype(np.float64).std(axis=0) / 200 + 1e-18).all()
    assert (whole.std(axis=0) > 0).all()
    parts = draws.copy()
    round_stochastically(parts[:1000], dtype, key=7, first=0)
    round_stochastically(parts[1000:], dtype, key=7, first=8000)
    np.testing.assert_array_equal(parts, whole)


def test_stochastic_rounding_of_subnormals_stays_on_the_grid():
    values = np.full(10_000, 2.0**-24 * 0.25, np.float32)
    round_stochastically(values, "F16", key=1, first=0)
    assert set(values.tolist()) == {0.0, 2.0**-24}
    assert abs((values > 0).mean() - 0.25) < 0.02


@pytest.mark.parametrize("precision", [np.float32, np.float64])
def test_measures_equal_numpy(precision):
    rng = np.random.default_rng(2)
    base = (rng.standard_normal((24, 300)) * 0.02).astype(precision)
    edited = np.where(rng.random(base.shape) < 0.4, base + rng.standard_normal(base.shape) * 3e-3, base).astype(
        precision
    )
    edited[3, 7] = -base[3, 7]
    b, e = base.astype(np.float64), edited.astype(np.float64)
    d = e - b
    sums = Sums(parts=6)
    for first in (0, 10, 20):  # blocks that do not end where parts do: 3 row parts of 8 rows, 2 column parts
        part = Sums(parts=6)
        rows = slice(first, min(first + 10, 24))
        part.add(base[rows], edited[rows], first_row=first, rows_per_part=8, column_parts=2)
        sums.merge(part)
    crossed = [np.rint(b / (a := np.abs(b).max(axis=1, keepdims=True)) * n) != np.rint(e / a * n) for n in (127, 7)]
    expected = {
        CHANGED: base != edited,
        FLIPS: b * e < 0,
        INT8: crossed[0],
        INT4: crossed[1],
        BASE_BASE: b * b,
        BASE_DELTA: b * d,
        DELTA_DELTA: d * d,
        DELTA: d,
    }
    for field, values in expected.items():
        by_part = values.astype(np.float64).reshape(3, 8, 2, 150).sum(axis=(1, 3)).reshape(-1)
        np.testing.assert_allclose(sums.values[:, field], by_part, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(sums.largest, np.abs(d).reshape(3, 8, 2, 150).max(axis=(1, 3)).reshape(-1), rtol=1e-5)
    sampled = np.abs(edited - base)[::16]
    assert sums.histogram[BINS] == (sampled == 0).sum()
    exponents = np.floor(np.log2(sampled[sampled > 0])).astype(int) - LOG2_SMALLEST
    np.testing.assert_array_equal(sums.histogram[:BINS], np.bincount(exponents, minlength=BINS))


@pytest.mark.parametrize("precision", [np.float32, np.float64])
def test_nonfinite_elements_are_counted_and_left_out_of_the_sums(precision):
    base = np.array([[1.0, np.nan, 2.0, np.inf], [1.0, 1.0, 1.0, 1.0]], precision)
    edited = np.array([[3.0, 1.0, np.nan, np.inf], [1.0, 1.0, -np.inf, 2.0]], precision)
    sums = Sums(parts=1)
    sums.add(base, edited, first_row=0, rows_per_part=2, column_parts=1)
    row = sums.values[0]
    assert [row[i] for i in (NAN_BASE, INF_BASE, NAN_EDITED, INF_EDITED)] == [1, 1, 1, 2]
    assert row[CHANGED] == 5  # 1->3, nan->1, 2->nan, 1->-inf, 1->2
    assert row[DELTA_DELTA] == 4 + 0 + 0 + 1 and row[BASE_BASE] == 1 + 1 + 1 + 1 and sums.largest[0] == 2


def test_negative_zero_is_another_number_of_bits():
    sums = Sums(parts=1)
    sums.add(np.float32([[0.0, 1.0]]), np.float32([[-0.0, 1.0]]), first_row=0, rows_per_part=1, column_parts=1)
    assert sums.values[0, CHANGED] == 1 and sums.values[0, FLIPS] == 0


def test_row_of_zeros_has_no_quantization_grid():
    sums = Sums(parts=1)
    sums.add(np.zeros((1, 4), np.float32), np.ones((1, 4), np.float32), first_row=0, rows_per_part=1, column_parts=1)
    assert sums.values[0, INT8] == 0 and sums.values[0, CHANGED] == 4


def test_subtract_in_float64_is_numpy_bit_for_bit():
    rng = np.random.default_rng(3)
    base, tau = (rng.standard_normal((5, 1000)) for _ in range(2))
    edited = subtract(base, tau, 0.7, np.empty_like(base))
    np.testing.assert_array_equal(edited, base - 0.7 * tau)
    sums = project(base, edited, tau)
    assert sums[DELTA_TAU] / sums[TAU_TAU] == pytest.approx(-0.7, rel=1e-12)


@pytest.mark.parametrize("dtype", HALVES)
def test_subtract_for_16_bits_equals_torch_in_float64_also_where_it_cancels(dtype):
    rng = np.random.default_rng(4)
    base = torch.from_numpy(rng.standard_normal(200_000)).to(HALVES[dtype])
    tau = torch.from_numpy(rng.standard_normal(200_000)).to(HALVES[dtype])
    tau[:1000] = base[:1000] / 0.7  # base - 0.7 * tau is almost nothing
    edited = subtract(base.float().numpy(), tau.float().numpy(), 0.7, np.empty(200_000, np.float32))
    want = (base.double() - 0.7 * tau.double()).to(HALVES[dtype])
    assert encode(edited, dtype).tobytes() == want.view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("alpha", [0.0, 1.0, -1.0])
def test_subtracting_nothing_keeps_the_bits(alpha):
    base = np.array([0.0, -0.0, 1.0, -1e-45], np.float32)
    for tau in (np.zeros(4, np.float32), -np.zeros(4, np.float32)):
        assert subtract(base, tau, alpha, np.empty_like(base)).tobytes() == base.tobytes()


@pytest.mark.parametrize("scale", [1e-30, 1e-23, 1e20, 1e37])
def test_numbers_whose_squares_float32_cannot_hold(scale):
    rng = np.random.default_rng(6)
    base = (rng.standard_normal((4, 64)) * scale).astype(np.float32)
    edited = -base
    sums = Sums(parts=1)
    sums.add(base, edited, first_row=0, rows_per_part=4, column_parts=1)
    exact = base.astype(np.float64)
    assert sums.values[0, FLIPS] == sums.values[0, CHANGED] == base.size
    assert sums.values[0, DELTA_DELTA] == pytest.approx(4 * (exact**2).sum(), rel=1e-6)
    assert sums.largest[0] == pytest.approx(2 * np.abs(exact).max(), rel=1e-6)
    steps = np.abs(exact).max(axis=1, keepdims=True) / 127
    assert sums.values[0, INT8] == (np.rint(exact / steps) != np.rint(-exact / steps)).sum()
    tau = project(base, edited, base)
    assert tau[DELTA_TAU] / tau[TAU_TAU] == pytest.approx(-2)
