"""Stored bytes <-> float32 or float64, one rounding (to nearest, ties to even) on the way back.

>>> import numpy as np
>>> values = decode(np.array([0x80, 0x3F], np.uint8), "BF16", np.empty(1, np.float32))
>>> values, encode(values, "BF16").tolist()
(array([1.], dtype=float32), [128, 63])
"""

import numpy as np
from numba import njit

from editkit.arithmetic.bits import float_of_bits, int_of_bits
from editkit.arithmetic.draws import splitmix
from editkit.arithmetic.dtypes import DTYPES

_NUMPY = {"F64": np.float64, "F32": np.float32}
_FP8 = ("F8_E4M3", "F8_E5M2")
_MANTISSA = {"F32": (23, -126), "F16": (10, -14), "BF16": (7, -126), "F8_E4M3": (3, -6), "F8_E5M2": (2, -14)}
"""dtype -> explicit mantissa bits, exponent of the smallest normal number."""


def working_dtype(dtype: str) -> type:
    """Precision of the arithmetic on a tensor stored as `dtype`: float64 for 32 and 64 bits, else float32."""
    return np.float64 if dtype in ("F64", "F32") else np.float32


def decode(raw: np.ndarray, dtype: str, out: np.ndarray) -> np.ndarray:
    """Write the values of `raw` (uint8, contiguous) into `out` (float32 or float64, any shape of that many elements)."""
    flat = out.reshape(-1)
    if dtype in ("BF16", "F16"):
        (_decode_bf16 if dtype == "BF16" else _decode_f16)(raw.view(np.uint16), flat)
    elif dtype in _FP8:
        import torch

        flat[:] = torch.from_numpy(raw).view(getattr(torch, DTYPES[dtype].torch)).float().numpy()
    else:
        np.copyto(flat, raw.view(_NUMPY[dtype]), casting="same_kind")
    return out


def encode(values: np.ndarray, dtype: str) -> np.ndarray:
    """The bytes (uint8) of `values` in `dtype`, bit for bit as torch converts them; overflow becomes Inf (NaN in F8_E4M3).

    float64 goes to 16 and 8 bits through float32, as in torch. Where a value lies within 1e-8 of the middle of two
    neighbours, that may give the other one than a single rounding would.
    """
    flat = values.reshape(-1)
    if dtype in _NUMPY:
        with np.errstate(over="ignore"):
            return flat.astype(_NUMPY[dtype]).view(np.uint8)
    with np.errstate(over="ignore"):
        flat = flat.astype(np.float32, copy=False)
    if dtype in _FP8:
        import torch

        return torch.from_numpy(flat).to(getattr(torch, DTYPES[dtype].torch)).view(torch.uint8).numpy()
    out = np.empty(flat.size, np.uint16)
    (_encode_bf16 if dtype == "BF16" else _encode_f16)(flat, out)
    return out.view(np.uint8)


def round_stochastically(values: np.ndarray, dtype: str, key: int, first: int) -> None:
    """Round `values` in place to neighbours in `dtype`, up with the probability of the remainder, so that E[x'] = x.

    The draw of an element depends on `key` (of tensor and seed) and on its index (from `first`) alone, so that
    block size and threads don't matter.
    """
    mantissa, smallest = _MANTISSA[dtype]
    _round_stochastically(values.reshape(-1), mantissa, smallest, np.uint64(key), np.uint64(first))


@njit(cache=True, nogil=True)
def _decode_bf16(raw, out):
    for i in range(raw.size):
        out[i] = float_of_bits(np.int32(np.int32(raw[i]) << np.int32(16)))


@njit(cache=True, nogil=True)
def _encode_bf16(values, out):
    for i in range(values.size):
        bits = np.int32(int_of_bits(values[i]))
        if np.int32(bits & np.int32(0x7FFFFFFF)) > np.int32(0x7F800000):  # NaN: keep it one, quiet
            out[i] = np.uint16(np.int32(bits >> np.int32(16)) | np.int32(0x40))
        else:
            odd = np.int32(np.int32(bits >> np.int32(16)) & np.int32(1))
            out[i] = np.uint16(np.int32(np.int32(bits + np.int32(0x7FFF)) + odd) >> np.int32(16))


@njit(cache=True, nogil=True)
def _decode_f16(raw, out):
    shift = float_of_bits(
        np.int32(0x77800000)
    )  # 2^112, the distance of the two exponent biases; also right for subnormals
    for i in range(raw.size):
        half = np.int32(raw[i])
        bits = np.int32(np.int32(half & np.int32(0x7FFF)) << np.int32(13))
        magnitude = int_of_bits(np.float32(float_of_bits(bits) * shift))
        if np.int32(half & np.int32(0x7C00)) == np.int32(0x7C00):  # Inf, NaN
            magnitude = np.int32(bits | np.int32(0x7F800000))
        out[i] = float_of_bits(np.int32(magnitude | np.int32(np.int32(half & np.int32(0x8000)) << np.int32(16))))


@njit(cache=True, nogil=True)
def _encode_f16(values, out):
    for i in range(values.size):
        bits = np.int32(int_of_bits(values[i]))
        magnitude = np.int32(bits & np.int32(0x7FFFFFFF))
        if magnitude > np.int32(0x7F800000):
            half = np.int32(0x7E00)
        elif magnitude >= np.int32(0x477FF000):  # 65520 and above round to Inf
            half = np.int32(0x7C00)
        elif magnitude < np.int32(0x38800000):  # below 2^-14: the addition does the rounding to multiples of 2^-24
            rounded = np.float32(float_of_bits(magnitude) + np.float32(0.5))
            half = np.int32(int_of_bits(rounded) - np.int32(0x3F000000))
        else:
            odd = np.int32(np.int32(magnitude >> np.int32(13)) & np.int32(1))
            half = np.int32(np.int32(magnitude - np.int32(0x38000000)) + np.int32(0xFFF) + odd) >> np.int32(13)
        out[i] = np.uint16(np.int32(half) | np.int32(np.int32(bits >> np.int32(16)) & np.int32(0x8000)))


@njit(cache=True, nogil=True)
def _round_stochastically(values, mantissa, smallest, key, first):
    for i in range(values.size):
        value = np.float64(values[i])
        if value == 0.0 or not np.isfinite(value):
            continue
        draw = splitmix(key, first + np.uint64(i))
        exponent = max(np.int64((int_of_bits(value) >> 52) & 0x7FF) - 1023, smallest)
        unit = float_of_bits(np.int64(exponent - mantissa + 1023) << 52)
        values[i] = np.floor(value / unit + np.float64(draw >> np.uint64(11)) * 2.0**-53) * unit
