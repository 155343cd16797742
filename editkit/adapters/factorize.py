"""The best factors of a given rank of a matrix that is read in blocks of rows: W ~ B @ A.

The truncated singular value decomposition loses the least energy (squared L2) of all matrices of its rank (Eckart and Young,
1936). A short side is decomposed exactly, by its Gram matrix in float64. Otherwise the leading directions come from a block
Krylov space with random start (Golub and Kahan's bidiagonalisation by blocks; Halko et al. 2011, https://arxiv.org/abs/0909.4061;
Musco and Musco 2015, https://arxiv.org/abs/1504.05477): ten products of the matrix with a narrow one. Where singular values
decay that is as good to 1e-6 of the energy; on pure noise, of which nothing is worth keeping, it leaves 0.1 % more.

>>> import numpy as np
>>> change = np.outer([1.0, 2.0, 2.0], [3.0, 4.0])                   # of rank 1, its singular value is 3 * 5
>>> found = factorize(lambda first, last: change[first:last], 3, 2, rank=1)
>>> (found.b @ found.a).round(6).tolist(), round(found.energy, 6), found.residual < 1e-12
([[3.0, 4.0], [6.0, 8.0], [6.0, 8.0]], 225.0, True)
"""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from editkit.errors import EditError, listed

GRAM_SIDE = 512  # a side up to this long is decomposed exactly
WHOLE = (
    1 << 24
)  # elements of a matrix that is read once and kept, 64 MB in float32; a larger one is read for every product
BLOCK, FEWEST = 1 << 19, 64  # elements read at a time, but not fewer rows
OVERSAMPLED, STEPS = 8, 5  # columns of a block beyond the rank, and blocks of the Krylov space
SMALLEST = 2.0**-24  # singular values below this share of the largest are rounding errors of float32

ReadRows = Callable[[int, int], np.ndarray]
Blocks = Callable[[], Iterator[tuple[int, np.ndarray]]]


class Factors(NamedTuple):
    """b: float32 [rows, rank]; a: float32 [rank, columns]; both carry the square root of the singular values.

    energy: squared L2 of the matrix; residual: share of it that b @ a lacks, measured on the factors. A matrix of zeros
    has rank 0 and residual 0; one with NaN or infinities has the energy inf, and no factors.
    """

    b: np.ndarray
    a: np.ndarray
    energy: float
    residual: float

    @property
    def rank(self) -> int:
        return len(self.a)


def factorize(
    read_rows: ReadRows, rows: int, columns: int, *, rank: int | None = None, energy: float | None = None, seed: int = 0
) -> Factors:
    """Factors of rank `rank` (less where the matrix has less), or of the smallest rank that keeps the share `energy`.

    `read_rows(first, last)` gives rows [first, last) as a float array [last - first, columns], its own to give again; it is
    called for the same rows several times. Memory: one matrix of at most 16 M elements in float32, or blocks of 2 M of a
    larger one, and 5 * (rank + 8) numbers for each of its rows and columns.
    """
    blocks, unit, squares = _survey(read_rows, rows, columns)
    if not 0 < squares < math.inf:
        return Factors(np.zeros((rows, 0), np.float32), np.zeros((0, columns), np.float32), squares, 0.0)
    short, wanted = min(rows, columns), energy and energy * squares / unit**2
    basis = None
    if short > max(GRAM_SIDE, 3 * STEPS * ((rank or 0) + OVERSAMPLED)):
        basis = _krylov(blocks, rows, columns, rank, wanted, np.random.default_rng(seed))
    right = (_exact(blocks, rows, columns, rank, wanted) if basis is None else basis).astype(np.float32)
    left, lost = np.empty((rows, right.shape[1]), np.float32), 0.0
    for first, block in blocks():
        left[first : first + len(block)] = block @ right
        lost += float(np.square(block - left[first : first + len(block)] @ right.T, dtype=np.float64).sum())
    values = np.linalg.norm(left, axis=0)
    kept = values > SMALLEST * values.max()
    root = np.sqrt(values[kept])
    b, a = left[:, kept] / root * math.sqrt(unit), (right[:, kept] * root).T * math.sqrt(unit)
    return Factors(b.astype(np.float32), a.astype(np.float32), squares, lost * unit**2 / squares)


def check_rank(rank: int, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise EditError where `rank` is no rank, or none of the matrices (name -> shape) is large enough to have it.

    A matrix whose own rank is smaller is taken over whole: that loses nothing.
    """
    largest = max(map(min, shapes.values()))
    if rank < 1:
        raise EditError(f"rank {rank} is no rank: give one from 1 to {largest}")
    if rank > largest:
        tall = [f"{name} {list(shape)}" for name, shape in shapes.items()]
        raise EditError(
            f"rank {rank} is larger than the matrix: {listed(tall, limit=3)}: give a rank from 1 to {largest}"
        )


def _survey(read_rows: ReadRows, rows: int, columns: int) -> tuple[Blocks, float, float]:
    """The matrix in units of a power of two near its largest entry, that unit, and the energy; (., 1, inf) if not finite."""
    step = max(FEWEST, BLOCK // max(columns, 1))
    spans = [(first, min(first + step, rows)) for first in range(0, rows, step)] if columns else []
    whole = np.empty((rows, columns), np.float32) if rows * columns <= WHOLE else None
    top = energy = 0.0
    for first, last in spans:
        block = read_rows(first, last)
        largest = float(np.abs(block).max())
        energy += float(np.square(block, dtype=np.float64).sum())
        if not math.isfinite(largest):
            return lambda: iter(()), 1.0, math.inf
        top = max(top, largest)
        if whole is not None:
            whole[first:last] = block
    unit = 2.0 ** math.frexp(top)[1]  # the division rounds nothing, and squares of tiny changes do not underflow
    if whole is not None:
        whole /= np.float32(unit)
        return lambda: ((first, whole[first:last]) for first, last in spans), unit, energy
    return lambda: ((first, (read_rows(first, last) / unit).astype(np.float32)) for first, last in spans), unit, energy


def _needed(squares: np.ndarray, rank: int | None, wanted: float | None) -> int | None:
    """How many of the largest `squares` of singular values are kept; None where they do not reach the wanted energy."""
    if rank is not None:
        return min(rank, squares.size)
    reached = np.cumsum(squares) >= wanted
    return int(np.argmax(reached)) + 1 if reached.any() else None


def _krylov(
    blocks: Blocks, rows: int, columns: int, rank: int | None, wanted: float | None, random: np.random.Generator
) -> np.ndarray | None:
    """Orthonormal columns [columns, rank] near the leading right singular vectors; None where that takes too many steps."""
    width = (rank or 4 * OVERSAMPLED) + OVERSAMPLED
    lefts: list[np.ndarray] = []
    images: list[np.ndarray] = []
    starts: list[np.ndarray] = []
    start, beyond = random.standard_normal((columns, width), np.float32), 0
    while 3 * width * (len(lefts) + 1) <= min(rows, columns):
        product = np.concatenate([block @ start for _, block in blocks()])
        lefts.append(_orthonormal(product, lefts))
        image = np.zeros((columns, width), np.float32)
        for first, block in blocks():
            image += block.T @ lefts[-1][first : first + len(block)]
        images.append(image)
        if len(images) >= STEPS:
            # The matrix projected on all of `lefts` is lefts @ images.T, so that the images alone tell its right side.
            basis, triangle = np.linalg.qr(np.concatenate(images, axis=1, dtype=np.float64))
            turned, values, _ = np.linalg.svd(triangle)
            count = _needed(values**2, rank, wanted)
            beyond += count is not None
            if count is not None and (rank is not None or beyond > 1):  # the energy may be had for less a step later
                return basis @ turned[:, :count]
        start = _orthonormal(image, starts)
        starts.append(start)
    return None


def _orthonormal(columns: np.ndarray, basis: list[np.ndarray]) -> np.ndarray:
    for _ in range(2):  # once is not enough: what is left after the first may be mostly rounding errors
        for known in basis:
            columns = columns - known @ (known.T @ columns)
        columns = np.linalg.qr(columns)[0]
    return columns


def _exact(blocks: Blocks, rows: int, columns: int, rank: int | None, wanted: float | None) -> np.ndarray:
    """The leading right singular vectors, [columns, rank] in float64, from the Gram matrix of the shorter side."""
    short = min(rows, columns)
    gram = np.zeros((short, short))
    for first, block in blocks():
        left = block.astype(np.float64)
        if columns <= rows:
            gram += left.T @ left
            continue
        for start, right in blocks():
            if start > first:
                break  # the lower triangle is all that eigh reads
            gram[first : first + len(left), start : start + len(right)] = left @ right.astype(np.float64).T
    squares, vectors = np.linalg.eigh(gram)
    squares = np.clip(squares[::-1], 0, None)
    leading = vectors[:, ::-1][:, : _needed(squares, rank, wanted) or short]
    if columns <= rows:
        return leading
    image = np.zeros((columns, leading.shape[1]))
    for first, block in blocks():
        image += block.T.astype(np.float64) @ leading[first : first + len(block)]
    return np.linalg.qr(image)[0]
