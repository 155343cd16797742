"""Statistics of a change, taken in one pass over rows that are still in the processor's cache.

For a matrix seen as `rows x columns` and split into equal parts (heads, experts; one part where there are none), every
part gets a row of sums. Sums add up over blocks, so a tensor of any size is measured a block at a time:

>>> import numpy as np
>>> base = np.array([[1.0, 2.0], [4.0, -4.0]]); edited = base + np.array([[0.0, 0.5], [0.0, 8.0]])
>>> sums = Sums(parts=1)
>>> sums.add(base, edited, first_row=0, rows_per_part=2, column_parts=1)
>>> sums.values[0, [CHANGED, DELTA_DELTA, FLIPS]].tolist(), float(sums.largest[0])
([2.0, 64.25, 1.0], 8.0)
"""

from dataclasses import dataclass, field

import numpy as np
from numba import njit

from editkit.arithmetic.bits import float_of_bits, int_of_bits, nearest_integer

CHANGED, FLIPS, INT8, INT4, BASE_BASE, BASE_DELTA, DELTA_DELTA, DELTA, NAN_BASE, INF_BASE, NAN_EDITED, INF_EDITED = (
    range(12)
)
FIELDS = 12
LOG2_SMALLEST, BINS = -64, 96
"""The histogram of |change| has `BINS` bins of one power of two each, the first starting at 2**LOG2_SMALLEST."""
SAMPLING = 16
"""One row in so many enters the histogram."""
_STRIP = 16384  # elements summed in working precision before they are added to a float64 total


@dataclass
class Sums:
    """What `measure` accumulates: `values` [parts, FIELDS], `largest` |change| [parts], `histogram` [BINS + 1].

    Counts: elements whose bits differ (CHANGED), whose sign differs (FLIPS), whose round-to-nearest code differs on the
    base's own absmax grid of its row (INT8: 127 steps, INT4: 7 steps), non-finite elements on either side.
    Sums: b.b, b.d, d.d and d, with d = edited - base, over the elements that are finite on both sides.
    """

    parts: int
    values: np.ndarray = field(init=False)
    largest: np.ndarray = field(init=False)
    histogram: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.values = np.zeros((self.parts, FIELDS))
        self.largest = np.zeros(self.parts)
        self.histogram = np.zeros(BINS + 1, np.int64)  # the last one counts elements without a change

    def add(
        self, base: np.ndarray, edited: np.ndarray, *, first_row: int, rows_per_part: int, column_parts: int
    ) -> None:
        """Measure a block: `base` and `edited` [rows, columns], both float32 or both float64, `first_row` in the tensor."""
        kernel = _measure32 if base.dtype == np.float32 else _measure64
        width = base.shape[1] // column_parts
        kernel(base, edited, first_row, rows_per_part, width, self.values, self.largest, self.histogram)

    def merge(self, other: "Sums") -> "Sums":
        """Add the sums of another block of the same tensor; returns itself."""
        self.values += other.values
        self.histogram += other.histogram
        np.maximum(self.largest, other.largest, out=self.largest)
        return self


@njit(inline="always")
def _add_with_care(base, edited, to_int8, to_int4, totals, largest):
    """A strip with NaN or Inf, or with squares outside of float32, element by element; returns its largest |change|."""
    for i in range(base.size):
        b, e = np.float64(base[i]), np.float64(edited[i])
        totals[CHANGED] += int_of_bits(base[i]) != int_of_bits(edited[i])
        totals[NAN_BASE] += np.isnan(b)
        totals[INF_BASE] += np.isinf(b)
        totals[NAN_EDITED] += np.isnan(e)
        totals[INF_EDITED] += np.isinf(e)
        if np.isfinite(b) and np.isfinite(e):
            d = e - b
            totals[FLIPS] += (b < 0.0) != (e < 0.0) and b != 0.0 and e != 0.0
            totals[INT8] += np.rint(b * to_int8) != np.rint(e * to_int8)
            totals[INT4] += np.rint(b * to_int4) != np.rint(e * to_int4)
            totals[BASE_BASE] += b * b
            totals[BASE_DELTA] += b * d
            totals[DELTA_DELTA] += d * d
            totals[DELTA] += d
            largest = max(largest, abs(d))
    return largest


def _make_measure(real, whole, low, high, infinity, shift, bias):
    # One function for both precisions: numba needs every constant in the width of the data to use full vectors.
    @njit(cache=True, nogil=True, fastmath={"reassoc", "contract", "nsz"}, error_model="numpy")
    def measure(base, edited, first_row, rows_per_part, width, values, largest, histogram):
        rows, columns = base.shape
        column_parts = columns // width if width else 0
        for row in range(rows):
            highest = whole(0)
            for c in range(columns):
                highest = max(highest, whole(int_of_bits(abs(base[row, c]))))
            absmax = float_of_bits(highest)
            usable = whole(0) < highest and highest < infinity
            steps8 = 127.0 / np.float64(absmax) if usable else 0.0
            steps4 = 7.0 / np.float64(absmax) if usable else 0.0
            to_int8, to_int4 = real(steps8), real(steps4)
            for part in range(column_parts):
                target = (first_row + row) // rows_per_part * column_parts + part
                totals = values[target]
                for start in range(part * width, (part + 1) * width, _STRIP):
                    stop = min(start + _STRIP, (part + 1) * width)
                    old, new = base[row, start:stop], edited[row, start:stop]
                    bb, bd, dd, ds = real(0), real(0), real(0), real(0)
                    top, top_new = whole(0), whole(0)
                    changed, flips, int8, int4 = whole(0), whole(0), whole(0), whole(0)
                    for i in range(old.size):
                        b, e = old[i], new[i]
                        d = e - b
                        bb += b * b
                        bd += b * d
                        dd += d * d
                        ds += d
                        top = max(top, whole(int_of_bits(abs(d))))
                        top_new = max(top_new, whole(int_of_bits(abs(e))))
                        changed = whole(changed + whole(int_of_bits(b) != int_of_bits(e)))
                        flips = whole(
                            flips + whole((b < real(0)) & (e > real(0))) + whole((b > real(0)) & (e < real(0)))
                        )
                        int8 = whole(int8 + whole(nearest_integer(b * to_int8) != nearest_integer(e * to_int8)))
                        int4 = whole(int4 + whole(nearest_integer(b * to_int4) != nearest_integer(e * to_int4)))
                    peak = max(highest, top_new)
                    if peak >= high or (whole(0) < peak and peak < low):
                        largest[target] = _add_with_care(old, new, steps8, steps4, totals, largest[target])
                        continue
                    totals[CHANGED] += changed
                    totals[FLIPS] += flips
                    totals[INT8] += int8
                    totals[INT4] += int4
                    totals[BASE_BASE] += bb
                    totals[BASE_DELTA] += bd
                    totals[DELTA_DELTA] += dd
                    totals[DELTA] += ds
                    largest[target] = max(largest[target], float_of_bits(top))
            if (first_row + row) % SAMPLING == 0:
                for c in range(columns):
                    d = abs(edited[row, c] - base[row, c])
                    if d == real(0):
                        histogram[BINS] += 1
                    elif np.isfinite(d):
                        exponent = (int_of_bits(d) >> shift) - bias - LOG2_SMALLEST
                        histogram[min(max(exponent, 0), BINS - 1)] += 1

    return measure


def _bits(value):
    return value.view(np.int32 if value.dtype == np.float32 else np.int64)


# Between `low` and `high` the squares of a row and their sums are well inside the range of the format.
_measure32 = _make_measure(
    np.float32, np.int32, _bits(np.float32(1e-12)), _bits(np.float32(1e15)), _bits(np.float32(np.inf)), 23, 127
)
_measure64 = _make_measure(
    np.float64, np.int64, _bits(np.float64(1e-140)), _bits(np.float64(1e150)), _bits(np.float64(np.inf)), 52, 1023
)
