"""report.html of a run: its table, its pictures, its steps with their own reports, on one offline page."""

import base64
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from editkit.diffing.rendering.html import Columns, Rows, compose
from editkit.diffing.rendering.wording import plural
from editkit.errors import printable
from editkit.recipes.rendering import wording
from editkit.recipes.rendering.graph import graph
from editkit.recipes.rendering.results import results

PAGE = "report.html"
FOLDER = Path(__file__).parent
PICTURES, BYTES = 12, 6_000_000  # that are in the page, in all; the others are linked
_TYPES = {".png": "image/png", ".svg": "image/svg+xml"}
_DONE = ("computed", "cached")


def write_page(run: Mapping[str, Any], folder: Path) -> None:
    """Write, or replace, `folder`/report.html. `run`: as in run.json; its pictures are read from `folder`."""
    partial = folder / f".{PAGE}.partial"
    partial.write_text(to_html(run, folder), "utf-8")
    partial.replace(folder / PAGE)


def to_html(run: Mapping[str, Any], folder: Path) -> str:
    """The whole page. Works from file://, without a network; light and dark follow the reader's system."""
    columns, rows = _table(run)
    recipe, shown = run["recipe"], [one for one in run["steps"] if one["needed"]]
    return compose(
        "run.html.j2",
        FOLDER,
        marked="computed now",
        columns=columns,
        rows=rows,
        things="calls",
        name=printable(recipe["name"]),
        title=printable(recipe["title"] or recipe["name"]),
        about=[*wording.header(recipe["header"]), *_given(run)],
        headline=wording.headline(run),
        warnings=[printable(text) for text in (*run["failures"], *run["gates"])],
        notes=[printable(text) for text in run["notes"]],
        strip=list(_strip(run)),
        results=results(run["table"]) if run["table"] else None,
        pictures=_pictures(run, folder),
        graph=graph(run),
        steps=[_step(one, run) for one in shown],
        settings=[_setting(name, one) for name, one in run["settings"].items()],
        matrix=[(printable(name), printable(", ".join(map(str, values)))) for name, values in run["matrix"].items()],
        text=recipe["text"] or "",
        versions=f"{run['schema']}, editkit {run['editkit']}, engine {run['engine']}, {run['jobs']} at a time",
    )


def _given(run: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What --set changed, beside what the head of the recipe expects."""
    said = [f"{name} {one['value']}" for name, one in run["settings"].items() if one["given"]]
    return [("Changed", printable(f"by --set: {', '.join(said)}"))] if said else []


def _strip(run: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """(label, value, note) of the numbers at the top."""
    calls = run["calls"]
    known = [one["seconds"] for one in calls if one["seconds"] is not None]
    yield "Calls", f"{len(calls):,}", wording.counted(calls)
    for name, values in run["matrix"].items():
        yield printable(name.capitalize()), f"{len(values):,}", ", ".join(wording.name(str(one)) for one in values)
    yield (
        "Time",
        wording.duration(run["seconds"]),
        f"of this run; {wording.duration(sum(known))} of work, n = {len(known):,} calls",
    )
    failed, gates = len(run["failures"]), len(run["gates"])
    said = f"{gates:,} {plural('gate', gates)} did not pass" if gates else "no gate that did not pass"
    yield "Failed", f"{failed:,}", said


def _pictures(run: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The first pictures of each step, of one call for every row of the table, as far as there is room; and how many more there are."""
    first = {name: run["matrix"][name][0] for name in (run["table"] or {"over": []})["over"]}
    chosen = [
        one for one in run["calls"] if all(one["cell"].get(name, value) == value for name, value in first.items())
    ]
    share = max(1, PICTURES // max(1, len({one["step"] for one in chosen if one["pictures"]})))
    room, taken, inside = BYTES, Counter[str](), list[dict[str, str]]()
    for call, path in [(one, path) for one in chosen for path in one["pictures"]]:
        content = (folder / path).read_bytes() if taken[call["step"]] < share and (folder / path).is_file() else b""
        if content and len(content) <= room and (kind := _TYPES.get(Path(path).suffix.lower())):
            room -= len(content)
            taken[call["step"]] += 1
            source = f"data:{kind};base64,{base64.b64encode(content).decode()}"
            inside.append(
                {"source": source, "says": printable(f"{call['label']}: {Path(path).stem}"), "link": quote(path)}
            )
    return {"inside": inside, "more": sum(len(one["pictures"]) for one in run["calls"]) - len(inside)}


def _step(step: Mapping[str, Any], run: Mapping[str, Any]) -> dict[str, Any]:
    calls = [one for one in run["calls"] if one["step"] == step["step"]]
    known = [one["seconds"] for one in calls if one["seconds"] is not None]
    return {
        "name": printable(step["step"]),
        "function": step["function"],
        "said": ", ".join(filter(None, (wording.counted(calls), wording.duration(sum(known)) if known else ""))),
        "open": len(calls) <= 8,
        "warnings": [printable(text) for text in dict.fromkeys(text for one in calls for text in one["warnings"])],
        "calls": [
            {
                "cell": wording.cell(one["cell"]),
                "state": one["state"],
                "bad": one["state"] not in _DONE,
                "seconds": wording.duration(one["seconds"]),
                "said": printable(". ".join(filter(None, (one["summary"], one["why"])))),
                "links": [(printable(_short(path, one)), quote(path)) for path in (*one["pages"], *one["pictures"])],
                "output": one["output"] and (printable(Path(one["output"]).name), quote(one["output"])),
            }
            for one in calls
        ],
    }


def _short(path: str, call: Mapping[str, Any]) -> str:
    """A path without the folder of its call."""
    return path.removeprefix(f"{call['output']}/")


def _setting(name: str, one: Mapping[str, Any]) -> tuple[str, str, str]:
    return printable(name), printable(str(one["value"])), "given by --set" if one["given"] else ""


def _table(run: Mapping[str, Any]) -> tuple[Columns, Rows]:
    """Columns and rows of the table of all calls."""
    names = list(run["matrix"])
    columns = [("call", "text", ""), ("function", "text", ""), *((printable(name), "text", "") for name in names)]
    columns += [
        ("state", "text", ""), ("computed now", "count", "1: in this run"), ("seconds", "number", "that it took when it was computed"),
        ("key", "text", "what a call is known by: its function, arguments and the content of its inputs"),
        ("says", "text", ""), ("arguments", "text", ""),
    ]  # fmt: skip
    rows = [
        [
            printable(one["label"]), one["function"], *(wording.name(str(one["cell"].get(name, ""))) for name in names),
            one["state"], int(one["state"] == "computed"), one["seconds"], one["key"][:12],
            printable(". ".join(filter(None, (one["summary"], one["why"])))),
            printable(", ".join(f"{name}: {value}" for name, value in one["arguments"].items())),
        ]
        for one in run["calls"]
    ]  # fmt: skip
    return columns, rows
