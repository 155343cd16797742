"""The files of an output: the base's own, or new ones of a given size.

>>> shards = new_shards({name: TensorInfo(name, "F32", (4,), "one", 0, 16) for name in "ab"}, {}, shard_size=16)
>>> list(shards)
['model-00001-of-00002.safetensors', 'model-00002-of-00002.safetensors']
"""

import os
from collections.abc import Mapping
from dataclasses import replace
from math import prod
from typing import NamedTuple

from editkit.arithmetic.dtypes import DTYPES
from editkit.checkpoint.header import TensorInfo, encode
from editkit.checkpoint.reader import Checkpoint


class Shard(NamedTuple):
    """One file of the output: its header with the 8 bytes of its length, its tensors in order, its size in bytes."""

    header: bytes
    tensors: list[TensorInfo]
    size: int


def base_shards(base: Checkpoint) -> dict[str, Shard]:
    tensors: dict[str, list[TensorInfo]] = {file: [] for file in base.files}
    for info in base.tensors.values():
        tensors[info.file].append(info)
    shards = {}
    for file, data in base.data.items():
        header = os.pread(base.descriptor(file), data, 0)
        shards[file] = Shard(header, tensors[file], data + sum(info.nbytes for info in tensors[file]))
    return shards


def placeless(tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> dict[str, TensorInfo]:
    """Tensors (name -> dtype, shape) that lie in no file yet."""
    return {
        name: TensorInfo(name, dtype, shape, "", 0, prod(shape) * DTYPES[dtype].bytes)
        for name, (dtype, shape) in tensors.items()
    }


def usual_size(base: Checkpoint) -> int:
    """Bytes of tensor data for each file of an output that cannot have the files of its base: as in the largest of these.

    5 GB where the base has one file, as in transformers.
    """
    sizes = [sum(info.nbytes for info in shard.tensors) for shard in base_shards(base).values()]
    return max(sizes) if len(sizes) > 1 else 5_000_000_000


def new_shards(tensors: Mapping[str, TensorInfo], metadata: Mapping[str, str], shard_size: int) -> dict[str, Shard]:
    """Fill files with up to `shard_size` bytes of `tensors`, in order; a larger tensor gets a file of its own."""
    groups: list[list[TensorInfo]] = [[]]
    filled = 0
    for info in tensors.values():
        if groups[-1] and filled + info.nbytes > shard_size:
            groups.append([])
            filled = 0
        groups[-1].append(info)
        filled += info.nbytes
    shards = {}
    for number, group in enumerate(groups, 1):
        file = f"model-{number:05d}-of-{len(groups):05d}.safetensors" if len(groups) > 1 else "model.safetensors"
        group.sort(key=lambda info: -info.item.bytes)  # stable; wide items first keeps each of them aligned
        header = encode({info.name: (info.dtype, info.shape) for info in group}, metadata)
        placed, position = [], len(header)
        for info in group:
            placed.append(replace(info, file=file, start=position, end=position + info.nbytes))
            position += info.nbytes
        shards[file] = Shard(header, placed, position)
    return shards
