"""Singular values of a change, from blocks of its rows: the matrix itself never has to fit in memory.

>>> import numpy as np
>>> change = np.diag([3.0, 4.0, 0.0])
>>> found = spectral(lambda first, last: change[first:last], rows=3, columns=3)
>>> round(found["norm"], 6), round(found["stable_rank"], 6), round(found["energy"]["1"], 6), found["method"]
(4.0, 1.5625, 0.64, 'gram')
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

RANKS = (1, 4, 16, 64)
GRAM_SIDE = 1024  # the Gram matrix of a side up to this long is taken whole: 8 MB, exact
BLOCK = 1 << 22  # elements read at a time: 32 MB in float64
SKETCH, PASSES = 40, 8  # for one amount of work, a narrow block and many passes are the more accurate

ReadRows = Callable[[int, int], np.ndarray]


def spectral(read_rows: ReadRows, rows: int, columns: int, *, seed: int = 0) -> dict[str, Any]:
    """Spectral norm, stable rank, and the share of the energy (squared L2) in the top 1, 4, 16 and 64 directions.

    `read_rows(first, last)` gives rows [first, last) as a float array [last - first, columns]; it is called several times
    for the same rows of a matrix of more than one block. The result is the `spectral` entry of a tensor in the report, in the weights' own unit:
    {"norm", "stable_rank": (L2 / norm)**2, "energy": {"1", "4", "16", "64"}, "method"}.

    `method` is "gram" where the shorter side has at most 1024 entries: eigenvalues of the exact float64 Gram matrix, good
    to 1e-10. Otherwise "randomized": 8 passes of a block Krylov method from 40 random vectors, good to 1e-5 where
    singular values decay, as in low-rank changes, also under noise; on pure noise it errs to the low side, by up to
    0.5 % of the norm and 4 % of the energies.

    A change of zeros has norm 0, and null for the rest. NaN or infinities give nulls, and the method says so.
    Memory: one block of 4 M elements and, when randomized, columns x 320 float64 numbers.
    """
    if rows * columns <= BLOCK:
        whole = read_rows(0, rows)
        read_rows = lambda first, last: whole[first:last]  # noqa: E731
    unit, energy = _survey(read_rows, rows, columns)
    if not np.isfinite(energy):
        return _entry(None, None, None, "skipped: NaN or Inf in the change")
    if energy == 0:
        return _entry(0.0, None, None, "gram")

    def blocks() -> Iterator[np.ndarray]:  # in units near the largest entry: squares of tiny changes must not underflow
        return (block / block.dtype.type(unit) for block in _blocks(read_rows, rows, columns))

    if min(rows, columns) <= GRAM_SIDE:
        squares, method = np.linalg.eigvalsh(_gram(blocks, rows, columns)), "gram"
    else:
        squares, method = _krylov(blocks, columns, np.random.default_rng(seed)), "randomized"
    squares = np.sort(np.clip(squares, 0, None))[::-1]
    shares = np.minimum(np.cumsum(squares) / energy, 1)
    top = {str(rank): float(shares[min(rank, shares.size) - 1]) for rank in RANKS}
    return _entry(unit * float(np.sqrt(squares[0])), float(energy / squares[0]), top, method)


def _entry(norm: float | None, stable_rank: float | None, energy: dict | None, method: str) -> dict[str, Any]:
    return {
        "norm": norm,
        "stable_rank": stable_rank,
        "energy": energy or dict.fromkeys(map(str, RANKS)),
        "method": method,
    }


def _blocks(read_rows: ReadRows, rows: int, columns: int) -> Iterator[np.ndarray]:
    step = max(1, BLOCK // max(columns, 1))
    for first in range(0, rows, step):
        yield read_rows(first, min(first + step, rows))


def _survey(read_rows: ReadRows, rows: int, columns: int) -> tuple[float, float]:
    """The power of two just below the largest magnitude, and the sum of squares in that unit; (., inf) if not finite."""
    unit, energy = 1.0, 0.0
    for block in _blocks(read_rows, rows, columns) if columns else ():
        top = float(np.abs(block).max())
        if not np.isfinite(top):
            return unit, np.inf
        if top >= 2 * unit or (top and not energy):
            larger = 2.0 ** (math.frexp(top)[1] - 1)  # a power of two: the division rounds nothing
            unit, energy = larger, energy * (unit / larger) ** 2
        energy += float(np.sum(np.square(block.astype(np.float64) / unit)))
    return unit, energy


def _gram(blocks: Callable[[], Iterator[np.ndarray]], rows: int, columns: int) -> np.ndarray:
    """A.T A of a tall matrix in one pass; A A.T of a wide one from pairs of its blocks."""
    if columns <= GRAM_SIDE:
        gram = np.zeros((columns, columns))
        for block in blocks():
            block = block.astype(np.float64)
            gram += block.T @ block
        return gram
    gram = np.zeros((rows, rows))
    first = 0
    for left in blocks():
        left = left.astype(np.float64)
        start = 0
        for right in blocks():
            if start > first:
                break
            gram[first : first + len(left), start : start + len(right)] = left @ right.astype(np.float64).T
            start += len(right)
        first += len(left)
    return gram  # the lower triangle, which is all that eigvalsh reads


def _krylov(blocks: Callable[[], Iterator[np.ndarray]], columns: int, random: np.random.Generator) -> np.ndarray:
    """Ritz values of A.T A on span(Q, A.T A Q, (A.T A)**2 Q, ...): lower bounds of its eigenvalues.

    Musco and Musco (2015), https://arxiv.org/abs/1504.05477: block Krylov needs a square root of the passes of plain
    subspace iteration.
    """
    basis = np.zeros((columns, PASSES * SKETCH))
    ritz = np.zeros((PASSES * SKETCH, PASSES * SKETCH))
    candidates = random.standard_normal((columns, SKETCH))
    for start in range(0, PASSES * SKETCH, SKETCH):
        known, new = basis[:, :start], slice(start, start + SKETCH)
        for _ in range(2):  # once is not enough: what is left after the first may be mostly rounding errors
            candidates = np.linalg.qr(candidates - known @ (known.T @ candidates))[0]
        basis[:, new] = candidates
        narrow = candidates.astype(np.float32)
        image = np.zeros((columns, SKETCH))
        for block in blocks():
            block = block.astype(np.float32, copy=False)
            image += block.T @ (block @ narrow)
        ritz[:, new] = basis.T @ image
        ritz[new, :] = ritz[:, new].T
        candidates = image
    return np.linalg.eigvalsh(ritz)
