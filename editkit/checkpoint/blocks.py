"""Tensors cut into blocks of rows that fit the processor's cache, and worked on by all cores in a fixed order.

>>> from editkit.checkpoint.header import TensorInfo
>>> info = TensorInfo("w", "F32", (4, 1000), "model.safetensors", 0, 16000)
>>> [(block.first, block.last) for block in blocks(info, elements=2000)]
[(0, 2), (2, 4)]
"""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import numpy as np

from editkit.arithmetic.codec import decode
from editkit.checkpoint.header import TensorInfo
from editkit.checkpoint.reader import Checkpoint

ELEMENTS = 1 << 19
"""Elements of a block: in float32 it takes 2 MB, so that a few of them stay in the processor's cache."""

Progress = Callable[[int, int], None]
"""What long work calls from time to time, with how much is done and how much there is in all."""

Item = TypeVar("Item")
Result = TypeVar("Result")


class Block(NamedTuple):
    """Rows first..last of the matrix view of a tensor; a row is never cut."""

    info: TensorInfo
    first: int
    last: int

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns; a long vector's last row is shorter than the others."""
        start = self.first * self.info.columns
        size = min(self.last * self.info.columns, self.info.numel) - start
        return (self.last - self.first, self.info.columns) if size % self.info.columns == 0 else (1, size)

    @property
    def offset(self) -> int:
        """First byte, counted from the beginning of the tensor."""
        return self.first * self.info.columns * self.info.item.bytes

    @property
    def nbytes(self) -> int:
        rows, columns = self.shape
        return rows * columns * self.info.item.bytes


def blocks(info: TensorInfo, elements: int = ELEMENTS) -> Iterator[Block]:
    """The blocks of a tensor, in order, of at most `elements` elements or one row."""
    if info.numel == 0:
        return
    step = max(1, elements // info.columns) if len(info.shape) != 1 else 1
    for first in range(0, info.rows, step):
        yield Block(info, first, min(first + step, info.rows))


class Scratch(threading.local):
    """Arrays that every thread uses again for its next block: fresh pages cost more than the arithmetic on them."""

    def __init__(self) -> None:
        self._memory: dict[str, np.ndarray] = {}

    def array(self, purpose: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """An uninitialised array, valid until the same thread asks for the same purpose again."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        memory = self._memory.get(purpose)
        if memory is None or memory.size < size:
            memory = self._memory[purpose] = np.empty(size, np.uint8)
        return memory[:size].view(dtype).reshape(shape)

    def read(self, purpose: str, checkpoint: Checkpoint, name: str, block: Block, dtype: Any) -> np.ndarray:
        """The rows of `block` of the tensor `name`, decoded to `dtype` (float32 or float64). `name` has block's shape."""
        info = checkpoint.tensors[name]
        size = block.shape[0] * block.shape[1]
        raw = self.array(f"{purpose} raw", (size * info.item.bytes,), np.uint8)
        checkpoint.read_into(name, block.first * block.info.columns * info.item.bytes, raw)
        return decode(raw, info.dtype, self.array(purpose, block.shape, dtype))


def default_threads() -> int:
    """The cores that this process may use, at most 16: more only compete for memory."""
    return min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, 16)


def counted(progress: Progress | None, total: int) -> Callable[[int], None]:
    """A function to call with the bytes that were just done."""
    done = 0

    def advance(more: int) -> None:
        nonlocal done
        done += more
        if progress:
            progress(done, total)

    return advance


@contextmanager
def ordered_map(
    function: Callable[[Item], Result], items: Iterable[Item], threads: int | None
) -> Iterator[Iterator[Result]]:
    """Results of `function` in the order of `items`, computed by `threads` threads with few items in flight.

    >>> with ordered_map(abs, [-1, 2, -3], threads=2) as results:
    ...     list(results)
    [1, 2, 3]

    Leaving the block waits for the threads, also after an exception.
    """
    threads = threads or default_threads()
    pool = ThreadPoolExecutor(threads, "editkit")

    def results() -> Iterator[Result]:
        pending: deque[Future[Result]] = deque()
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) >= 4 * threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()

    try:
        yield results()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
