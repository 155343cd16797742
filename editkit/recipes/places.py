"""The files, folders and Hub ids that a recipe names, and what the key of a call goes by: their contents, not their times.

>>> import tempfile
>>> with tempfile.TemporaryDirectory() as folder:
...     _ = Path(folder, "forget.jsonl").write_text("{}")
...     found = Places().find(Text("forget.jsonl", Path(folder)))
>>> found.written, found.content[:12]
('forget.jsonl', '44136fa355b3')
>>> Places().find(Text("org/model@main", Path(folder))).content
'org/model@main'
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from editkit.checkpoint.digests import sha256_of
from editkit.recipes.arguments import Place, Text, without_folders

_HUB = re.compile(r"[\w-][\w.-]*/[\w.-]+(?:@\S+)?")
_FILES = re.compile(r".*\.(jsonl?|txt|csv|parquet|ya?ml|safetensors|editpatch)")
_WORDS = ("none",)
"""What stands in the place of a path and is none: a sweep without a mask."""


class Places:
    """Looks up places, and hashes each once. contents: of the files and folders. called: what the recipe calls them. named: ids on the Hub, which nothing is known of."""

    def __init__(self) -> None:
        self.contents: dict[Path, str] = {}
        self.called: dict[str, str] = {}
        self.named: list[str] = []

    def find(self, text: Text, *, hub: bool = True) -> Place:
        """The place that is meant: from its home on, MODEL+ADAPTER, or, if `hub`, a Hub id. Raises LookupError where it is not there."""
        written = str(text)
        if (path := there(text)) is not None:
            self.called[str(path)] = without_folders(written)
            return Place(str(path), written, self._content(path))
        model, plus, adapter = written.partition("+")
        if plus and model and adapter:
            one, other = (self.find(Text(part, text.home), hub=hub) for part in (model, adapter))
            return Place(f"{one.path}+{other.path}", written, f"{one.content}+{other.content}")
        if (hub and _of_the_hub(written, text.home)) or written in _WORDS:
            self.named += [written] if "/" in written and written not in self.named else []
            return Place(written, written, written)
        raise LookupError(written)

    def _content(self, path: Path) -> str:
        if path not in self.contents:
            self.contents[path] = content(path)
        return self.contents[path]


def there(text: Text) -> Path | None:
    """The file or folder that a text names, None where there is none."""
    path = text.home / os.path.expanduser(text)
    try:
        if not text or not path.exists():
            return None
    except (OSError, ValueError):  # no name that a file can have
        return None
    return path.resolve() if ".." in path.parts else Path(os.path.abspath(path))  # behind a link .. is elsewhere


def content(path: Path) -> str:
    """The sha256 of a file, or of the names and hashes of all files in a folder; hidden ones are left out."""
    if path.is_file():
        return sha256_of(path)
    listing = {str(file.relative_to(path)): sha256_of(file) for file in _files(path)}
    return hashlib.sha256(json.dumps(listing, sort_keys=True).encode("utf-8", "backslashreplace")).hexdigest()


def _files(folder: Path) -> Iterator[Path]:
    for place, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        paths = (Path(place, name) for name in sorted(files) if not name.startswith("."))
        yield from (path for path in paths if path.is_file() or path.is_symlink())  # no pipes


def _of_the_hub(text: str, home: Path) -> bool:
    return bool(_HUB.fullmatch(text)) and not _FILES.fullmatch(text) and not (home / text.split("/")[0]).is_dir()
