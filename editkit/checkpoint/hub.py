"""Hub ids, `org/name` or `org/name@revision`: from the local cache, downloaded, or headers only over the network.

>>> split("org/name@refs/pr/1")
('org/name', 'refs/pr/1')
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from editkit.checkpoint.header import Header, fetch_header
from editkit.checkpoint.layout import CONFIG, INDEX, PROVENANCE, Layout, find_layout, parse_json, weight_files
from editkit.errors import EditError

_WANTED = [
    "*.safetensors",
    "*.json",
    "*.jinja",
    "*.txt",
    "*.model",
    "*.tiktoken",
    "*.spm",
    "*.py",
    "*.md",
    "LICENSE*",
    "NOTICE*",
]
_UNWANTED = ["*/*.safetensors", "consolidated*.safetensors"]  # the same weights once more, under other names
_REQUESTS = 8  # at once


def split(label: str) -> tuple[str, str | None]:
    """Repository and revision of a Hub id."""
    repository, _, revision = label.partition("@")
    return repository, revision or None


def cached(label: str) -> Layout | None:
    """The checkpoint in the local Hub cache, None where its weights are not there in full. Opens no connection.

    The cache may be older than the Hub, and holds the files that were asked for before: `download` completes it.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    repository, revision = split(label)
    try:
        return find_layout(
            Path(snapshot_download(repository, revision=revision, local_files_only=True)), label, hub=True
        )
    except (LocalEntryNotFoundError, HFValidationError, EditError):
        return None


def download(label: str) -> Layout:
    """Download weights, configuration, tokenizer and code into the Hub cache. Raises EditError where that fails."""
    from huggingface_hub import snapshot_download

    repository, revision = split(label)
    with _reaching(label):
        path = snapshot_download(repository, revision=revision, allow_patterns=_WANTED, ignore_patterns=_UNWANTED)
    try:
        return find_layout(Path(path), label, hub=True)
    except EditError as error:  # without a network, snapshot_download gives what is in the cache
        raise EditError(f"{error} (as far as the Hub is in reach, or else its cache goes)") from error


def remote(label: str) -> tuple[Layout, Callable[[str], Header]]:
    """The layout of a checkpoint on the Hub, and a function that gives the header of one of its files.

    Of the weights only headers are fetched: a few kB per file.
    """
    from huggingface_hub import HfFileSystem

    repository, revision = split(label)
    root = f"{repository}@{quote(revision, safe='')}" if revision else repository
    with _reaching(label):
        hub: Any = HfFileSystem()
        sizes = {
            entry["name"].rsplit("/", 1)[-1]: entry["size"]
            for entry in hub.ls(root, detail=True)
            if entry["type"] == "file"
        }
        index, config, provenance = (
            parse_json(hub.cat_file(f"{root}/{name}"), f"{label}/{name}") if name in sizes else None
            for name in (INDEX, CONFIG, PROVENANCE)
        )
        names = weight_files(sizes, index, label)
        layout = Layout(
            label,
            Path(repository),
            {name: Path(repository, name) for name in names},
            index,
            config,
            provenance,
            hub=True,
        )

        def fetch(name: str) -> Header:
            def read(begin: int, end: int) -> bytes:
                return hub.cat_file(f"{root}/{name}", start=begin, end=end)

            with _reaching(label):
                return fetch_header(read, sizes[name], name, layout.shown(name))

        with ThreadPoolExecutor(_REQUESTS) as pool:
            fetched = {name: pool.submit(fetch, name) for name in names}
    return layout, lambda name: fetched[name].result()


@contextmanager
def _reaching(label: str) -> Iterator[None]:
    """Whatever goes wrong on the way to the Hub becomes one sentence."""
    from huggingface_hub import errors

    try:
        yield
    except EditError:
        raise
    except Exception as error:  # requests, httpx, fsspec and huggingface_hub each raise their own
        reasons: list[tuple[type, str]] = [
            (errors.GatedRepoError, "its terms must be accepted on the Hub first, then 'hf auth login'"),
            (errors.RevisionNotFoundError, "there is no such revision"),
            (errors.RepositoryNotFoundError, "the Hub has no such repository, or it is private: 'hf auth login'"),
            (FileNotFoundError, "the Hub is out of reach, or has no such repository"),
            (Exception, f"the Hub is out of reach ({' '.join(str(error).split())[:200] or type(error).__name__})"),
        ]
        reason = next(text for kind, text in reasons if isinstance(error, kind))
        raise EditError(
            f"{label} is no local path, is not in the Hub cache, and cannot be fetched: {reason}"
        ) from error
