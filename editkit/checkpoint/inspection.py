"""What a checkpoint is made of, from its headers alone: instant on any size, and over the Hub without a download.

>>> facts = inspect_checkpoint("org/name")  # doctest: +SKIP
>>> facts["summary"]["parameters"], facts["layers"]  # doctest: +SKIP
(1100048384, {'model.layers': 22})
"""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from editkit.checkpoint.header import TensorInfo, read_header
from editkit.checkpoint.reader import Checkpoint, checked, locate
from editkit.errors import printable
from editkit.names import parse, tied_pair

SCHEMA = "editkit.inspect/1"


def inspect_checkpoint(source: str | os.PathLike[str] | Checkpoint) -> dict[str, Any]:
    """The facts about a checkpoint, as JSON can hold them.

    summary: `tensors`, `parameters` (elements of all tensors), `bytes` (of all tensors). dtypes: the same three for
    each dtype. layers: number of layers of each stack. modules: the same three, and the shapes, for each kind of
    module. tied: what the `config` says (null: nothing) and whether the `files` hold an embedding without an output
    head (null: no embedding of a known name). quantization: a method or null. files: the same three and the metadata of each weight
    file. tensors: name, dtype, shape, bytes and file of each, in order. provenance: the `editkit.json`, or null.

    Takes what `open_checkpoint` takes, with its errors. Of a Hub id outside the local cache only headers are fetched.
    """
    if isinstance(source, Checkpoint):
        return _facts(source)
    layout = locate(source)
    if layout is not None:
        files = layout.files
        with checked(layout, lambda file: read_header(files[file], layout.shown(file))) as checkpoint:
            return _facts(checkpoint)
    from editkit.checkpoint.hub import remote

    return _facts(checked(*remote(os.fspath(source))))


def _facts(checkpoint: Checkpoint) -> dict[str, Any]:
    config = checkpoint.config or {}
    tensors = list(checkpoint.tensors.values())
    layers: dict[str, set[int]] = {}
    dtypes: dict[str, list[TensorInfo]] = {}
    modules: dict[str, list[TensorInfo]] = {}
    held: dict[str, list[TensorInfo]] = {file: [] for file in checkpoint.files}
    for info in tensors:
        place = parse(info.name)
        if place.layer is not None:
            layers.setdefault(place.stack, set()).add(place.layer)
        dtypes.setdefault(info.dtype, []).append(info)
        modules.setdefault(place.module, []).append(info)
        held[info.file].append(info)
    return {
        "schema": SCHEMA,
        "name": checkpoint.label,
        "architectures": _names(config.get("architectures")),
        "model_type": config["model_type"] if isinstance(config.get("model_type"), str) else None,
        "summary": _sizes(tensors),
        "dtypes": {dtype: _sizes(infos) for dtype, infos in dtypes.items()},
        "layers": {stack: len(numbers) for stack, numbers in layers.items()},
        "modules": [{"module": module, **_sizes(infos), "shapes": _shapes(infos)} for module, infos in modules.items()],
        "tied": _tied(checkpoint),
        "quantization": checkpoint.quantization,
        "files": [
            {"file": file, **_sizes(infos), "metadata": checkpoint.metadata[file]} for file, infos in held.items()
        ],
        "tensors": [
            {"name": info.name, "dtype": info.dtype, "shape": list(info.shape), "bytes": info.nbytes, "file": info.file}
            for info in tensors
        ],
        "provenance": checkpoint.provenance,
    }


def _names(said: Any) -> list[str] | None:
    """What a config lists, where it is names: one text is one name, all else is unknown."""
    names = [said] if isinstance(said, str) else said
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else None


def _sizes(infos: Iterable[TensorInfo]) -> dict[str, int]:
    infos = list(infos)
    return {
        "tensors": len(infos),
        "parameters": sum(info.numel for info in infos),
        "bytes": sum(info.nbytes for info in infos),
    }


def _shapes(infos: Iterable[TensorInfo]) -> list[list[int]]:
    return [list(shape) for shape, _ in Counter(info.shape for info in infos).most_common()]


def _tied(checkpoint: Checkpoint) -> dict[str, bool | None]:
    embedding, head = tied_pair(checkpoint.tensors)
    return {"config": checkpoint.said_tied, "files": None if embedding is None else head is None}


def describe(facts: dict[str, Any]) -> str:
    """The facts of `inspect_checkpoint` as text for a person."""
    summary, tied = facts["summary"], facts["tied"]
    embedding = {
        True: "no output head beside the embedding",
        False: "embedding and output head",
        None: "no embedding of a known name",
    }
    config = {True: "tied", False: "not tied", None: "nothing"}
    head = {
        "model": ", ".join(facts["architectures"] or [facts["model_type"] or "unknown"]),
        "parameters": f"{summary['parameters']:,} in {summary['tensors']} tensors, {_size(summary['bytes'])}",
        "dtypes": ", ".join(f"{dtype} ({_amount(sizes)})" for dtype, sizes in facts["dtypes"].items()) or "none",
        "layers": ", ".join(f"{count} in {stack}" for stack, count in facts["layers"].items()) or "none",
        "tied weights": f"the config says {config[tied['config']]}; the files hold {embedding[tied['files']]}",
        "quantization": facts["quantization"] or "none",
        "made by": _origin(facts["provenance"]),
    }
    files = [(one["file"], _amount(one), _metadata(one["metadata"])) for one in facts["files"]]
    total = max(summary["parameters"], 1)
    modules = [
        (
            one["module"],
            f"{one['tensors']}",
            f"{one['parameters']:,}",
            f"{one['parameters'] / total:.1%}",
            ", ".join(" x ".join(map(str, shape)) or "scalar" for shape in one["shapes"][:2])
            + (f" and {len(one['shapes']) - 2} more" if len(one["shapes"]) > 2 else ""),
        )
        for one in facts["modules"]
    ]
    lines = [facts["name"], *(f"  {key:<13} {value}" for key, value in head.items()), ""]
    lines += [*_table(("file", "tensors", "metadata"), files), ""]
    lines += _table(("module", ">tensors", ">parameters", ">share", "shapes"), modules)
    return "\n".join(printable(line).rstrip() for line in lines)


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Aligned columns; a header that begins with `>` aligns its column to the right."""
    columns = zip(*[tuple(name.lstrip(">") for name in header), *rows], strict=True)
    widths = [max(map(len, column)) for column in columns]
    aligns = [">" if name.startswith(">") else "<" for name in header]
    shown = [tuple(name.lstrip(">") for name in header), *rows]
    return ["  ".join(f"{cell:{a}{w}}" for cell, a, w in zip(row, aligns, widths, strict=True)) for row in shown]


def _amount(sizes: dict[str, Any]) -> str:
    return f"{sizes['tensors']} tensors, {_size(sizes['bytes'])}"


def _size(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def _metadata(metadata: dict[str, str]) -> str:
    text = ", ".join(f"{key}={value}" for key, value in metadata.items())
    return text if len(text) <= 60 else f"{text[:57]}..."


def _origin(provenance: dict[str, Any] | None) -> str:
    if provenance is None:
        return "unknown (no editkit.json)"
    inputs = provenance.get("inputs")
    names = [str(one.get("name")) for one in inputs if isinstance(one, dict)] if isinstance(inputs, list) else []
    made = f"editkit {provenance.get('editkit', '')} {provenance.get('command', '')}"
    return f"{made} from {', '.join(names)}" if names else made
