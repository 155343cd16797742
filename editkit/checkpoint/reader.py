"""Checkpoints: safetensors files opened as one lazy mapping from tensor name to tensor.

>>> with open_checkpoint("model") as model:  # doctest: +SKIP
...     model["model.embed_tokens.weight"].shape
torch.Size([32000, 2048])
"""

import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from editkit.checkpoint import digests
from editkit.checkpoint.header import Header, TensorInfo, read_header
from editkit.checkpoint.layout import INDEX, Layout, find_layout, other_files
from editkit.errors import EditError, listed
from editkit.names import tied_pair

if TYPE_CHECKING:
    import torch

_HUB_ID = re.compile(
    r"(?!(?:models|datasets|spaces)/)[\w-][\w.-]*/[\w.-]+(@[\w./-]+)?"
)  # these three belong to the Hub itself
_SCALES = {  # ends of tensor names that only quantized checkpoints have
    ".qweight": "gptq or awq",
    ".weight_scale_inv": "fp8 with block scales",
    ".weight_scale": "fp8 or int8 with scales",
    ".weight_packed": "compressed-tensors",
    ".absmax": "bitsandbytes",
    ".SCB": "bitsandbytes",
    "_proj_blocks": "mxfp4",
}


class Checkpoint(Mapping[str, "torch.Tensor"]):
    """A checkpoint on disk: `checkpoint[name]` reads one tensor, nothing is kept. Opened by `open_checkpoint`.

    label: what the user typed, for messages. path: the folder. files: weight files by name, in the order of the index.
    tensors: TensorInfo by name, in the order of the bytes. metadata: the `__metadata__` of every file.
    data: offset of the first data byte of every file. config, index, provenance: the parsed JSON beside the weights, or
    None. lone: the checkpoint is one file, not a folder.
    """

    def __init__(self, layout: Layout, headers: dict[str, Header]) -> None:
        self.layout = layout
        self.label, self.path, self.files = layout.label, layout.folder, layout.files
        self.config, self.index, self.provenance, self.lone = (
            layout.config,
            layout.index,
            layout.provenance,
            layout.lone,
        )
        self.tensors: dict[str, TensorInfo] = {t.name: t for header in headers.values() for t in header.tensors}
        self.metadata: dict[str, dict[str, str]] = {file: header.metadata for file, header in headers.items()}
        self.data: dict[str, int] = {file: header.data for file, header in headers.items()}
        self._descriptors: dict[str, int] = {}
        self._hashes: dict[str, Future[str]] = {}
        self._lock, self._closed = threading.Lock(), threading.Event()

    def __getitem__(self, name: str) -> "torch.Tensor":
        import torch

        info = self.tensors[name]
        dtype = getattr(torch, info.item.torch)
        raw = self.array(name)
        return (
            torch.from_numpy(raw).view(dtype).reshape(info.shape)
            if info.numel
            else torch.empty(info.shape, dtype=dtype)
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def __contains__(self, name: object) -> bool:
        return name in self.tensors

    def __repr__(self) -> str:
        return f"<Checkpoint {self.label}: {len(self)} tensors in {len(self.files)} files>"

    def __enter__(self) -> "Checkpoint":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the files and stop hashing. A closed checkpoint opens its files again when it is read again."""
        self._closed.set()
        for future in self._hashes.values():
            future.cancel() or future.exception()
        self._hashes.clear()
        with self._lock:
            while self._descriptors:
                os.close(self._descriptors.popitem()[1])
        self._closed.clear()

    def descriptor(self, file: str) -> int:
        """The open file descriptor of a weight file, for positioned reads; kept until `close`."""
        with self._lock:
            if file not in self._descriptors:
                with self.reading(file):
                    self._descriptors[file] = os.open(self.files[file], os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
            return self._descriptors[file]

    @contextmanager
    def reading(self, file: str) -> Iterator[None]:
        """Failures to read one of the files of the checkpoint become one sentence."""
        try:
            yield
        except OSError as error:
            raise EditError(
                f"{self.layout.shown(file)} cannot be read ({error.strerror}): check the file and its permissions"
            ) from error

    def read_into(self, name: str, first_byte: int, buffer: np.ndarray) -> None:
        """Fill `buffer` (uint8, contiguous) from byte `first_byte` of the tensor on. Threads may call it at once."""
        info = self.tensors[name]
        self._read(info.file, info.start + first_byte, buffer.data.cast("B") if buffer.size else memoryview(b""))

    def array(self, name: str) -> np.ndarray:
        """The raw bytes of a tensor: uint8, shape (nbytes,)."""
        raw = np.empty(self.tensors[name].nbytes, np.uint8)
        self.read_into(name, 0, raw)
        return raw

    def _read(self, file: str, position: int, view: memoryview) -> None:
        descriptor, done = self.descriptor(file), 0
        while done < len(view):
            with self.reading(file):
                count = os.preadv(descriptor, [view[done:]], position + done)
            if count == 0:
                raise EditError(
                    f"{self.layout.shown(file)} became shorter while it was read: do not change it meanwhile"
                )
            done += count

    def other_files(self) -> list[Path]:
        """Everything in the folder that is no weight file (config, tokenizer, code), as relative paths, sorted."""
        return other_files(self.layout)

    @property
    def source(self) -> Path:
        """What was opened: the folder, or the lone file."""
        return self.path / next(iter(self.files)) if self.lone else self.path

    @property
    def said_tied(self) -> bool | None:
        """What the config says about tied embeddings; None where it says nothing."""
        for config in (self.config or {}, (self.config or {}).get("text_config")):
            if isinstance(config, dict) and isinstance(said := config.get("tie_word_embeddings"), bool):
                return said
        return None

    @property
    def tied(self) -> bool:
        """Whether input embedding and output head are one tensor: as the config says, else as the files show."""
        if self.said_tied is not None:
            return self.said_tied
        embedding, head = tied_pair(self.tensors)
        return embedding is not None and head is None

    @property
    def quantization(self) -> str | None:
        """The method the weights are quantized with, None where they are plain numbers."""
        said = (self.config or {}).get("quantization_config") or (self.config or {}).get("compression_config")
        if said:
            return str(said.get("quant_method", "unknown")) if isinstance(said, dict) else "unknown"
        return next((method for name in self.tensors for end, method in _SCALES.items() if name.endswith(end)), None)

    def start_hashing(self) -> None:
        """Begin `sha256` in two background threads; they release the GIL."""
        if not self._hashes:
            pool = ThreadPoolExecutor(2, "sha256")
            self._hashes = {file: pool.submit(self._hash, file) for file in self.files}
            pool.shutdown(wait=False)

    def sha256(self) -> dict[str, str]:
        """The sha256 of every weight file, in hex, computed by two threads; see `digests.py` for when it is remembered."""
        self.start_hashing()
        return {file: future.result() for file, future in self._hashes.items()}

    def _hash(self, file: str) -> str:
        return digests.sha256(self.descriptor(file), self._closed.is_set)


def open_checkpoint(source: str | os.PathLike[str]) -> Checkpoint:
    """Open a folder, one `.safetensors` file, or a Hub id (`org/name`, `org/name@revision`; local cache first).

    >>> open_checkpoint("model.safetensors")["lm_head.weight"].dtype  # doctest: +SKIP
    torch.bfloat16

    A path that exists wins over a Hub id. A folder is sharded with an index, or holds one file of weights, an adapter
    or a task vector. Every header is checked; no tensor is read. Raises EditError that lists every fault of every file.
    """
    layout = locate(source)
    if layout is None:
        from editkit.checkpoint.hub import download

        layout = download(os.fspath(source))
    return checked(layout, lambda file: read_header(layout.files[file], layout.shown(file)))


def locate(source: str | os.PathLike[str]) -> Layout | None:
    """The layout of a checkpoint on this machine: a path, or a Hub id in the local cache. None for other Hub ids.

    Raises EditError where `source` can only be a path, and nothing is there.
    """
    label = os.fspath(source)
    path = Path(label).expanduser()
    if os.path.exists(path):  # unlike Path.exists, also where the name is too long
        return find_layout(path, label.rstrip("/") or label)
    if not _HUB_ID.fullmatch(label) or label.startswith(".") or label.endswith(".safetensors"):
        raise EditError(f"{label} does not exist: give a folder, a .safetensors file or a Hub id such as org/name")
    from editkit.checkpoint.hub import cached

    return cached(label)


def checked(layout: Layout, read: Callable[[str], Header]) -> Checkpoint:
    """A checkpoint of which every header was read through `read(file)` and agrees with the index and the others."""
    headers: dict[str, Header] = {}
    problems: list[str] = []
    for file in layout.files:
        try:
            headers[file] = read(file)
        except EditError as error:
            problems.append(str(error))
    problems += _disagreements(layout, headers)
    if problems:
        raise EditError("; ".join(problems))
    return Checkpoint(layout, headers)


def _disagreements(layout: Layout, headers: dict[str, Header]) -> list[str]:
    """Tensors that two files hold, and those that index and files do not both know."""
    homes: dict[str, str] = {}
    doubles = []
    for file, header in headers.items():
        for tensor in header.tensors:
            if homes.setdefault(tensor.name, file) != file:
                doubles.append(f"{tensor.name} (in {homes[tensor.name]} and {file})")
    problems = [f"{layout.label} holds tensors twice: {listed(doubles)}: remove one of the two"] if doubles else []
    if layout.index is not None:
        mapped: dict[str, Any] = layout.index["weight_map"]
        held = {(tensor.name, file) for file, header in headers.items() for tensor in header.tensors}
        absent = [f"{name} ({file})" for name, file in mapped.items() if file in headers and (name, file) not in held]
        extra = [f"{name} ({file})" for name, file in homes.items() if name not in mapped]
        if absent:
            problems.append(
                f"{layout.shown(INDEX)} names tensors that are not in their files: {listed(absent)}: download it again"
            )
        if extra:
            problems.append(f"{layout.shown(INDEX)} does not name the tensors {listed(extra)}: write the index again")
    return problems
