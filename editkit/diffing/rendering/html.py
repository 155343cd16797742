"""The report as one offline page: what the template needs, worked out of the report.

Tensor names come from files of strangers. Jinja escapes all text, JSON inside the page has no `<`, and the page's own
policy lets no script run but the one written here, and nothing be fetched.
"""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from editkit.diffing.measures import MEASURES, UNDEFINED, count, crossed, number, share
from editkit.diffing.rendering.charts import PALETTE, edit_bars, histogram, panel
from editkit.diffing.rendering.heatmap import layer_maps, outside, part_maps
from editkit.diffing.rendering.wording import audit, headline, missed, outside_mask, structure, survival, warnings
from editkit.errors import printable

Report = Mapping[str, Any]
Columns = Sequence[tuple[str, str, str]]
Rows = Sequence[Sequence[Any]]

FOLDER = Path(__file__).parent

NUMBERS = (
    *("numel", "changed", "changed_fraction", "rel_l2", "l2", "max_abs", "mean", "cosine", "sign_flips"),
    *("nan_after", "inf_after"),
)
"""The measures among the columns of the full table."""
TOP, OUTSIDE, PARTS = 12, 24, 30_000  # entries of the lists; cells of heads and experts, above which they are left out


def to_html(report: Report) -> str:
    """The whole page. Works from file://, without a network; light and dark follow the reader's system."""
    layers, parts = layer_maps(report), part_maps(report)
    if sum(len(map_.cells) for map_ in parts) > PARTS:
        parts = []
    alone = outside(report)
    columns, rows = _table(report["tensors"])
    return compose(
        "report.html.j2",
        marked="changed",
        columns=columns,
        rows=rows,
        base=printable(report["base"]["name"]),
        edited=printable(report["edited"]["name"]),
        files=[(side, report[side].get("sha256") or {}) for side in ("base", "edited")],
        schema=report["schema"],
        headline=headline(report),
        warnings=warnings(report),
        audit=audit(report),
        strays=outside_mask(report),
        strip=_strip(report["summary"]),
        edit=_edit(report),
        panel=panel(layers),
        parts=panel(parts),
        outside=_ranked(alone)[:OUTSIDE],
        outside_count=len(alone),
        histogram=histogram(report["histogram"]),
        survival=[(bits, value, share(value)) for bits, value in survival(report)],
        changed=count(report["summary"]["changed"]),
        top=_ranked([row for row in report["tensors"] if row["changed"]])[:TOP],
        structure=[(text, kind, _structure(report[kind])) for kind, text in structure(report).items()],
        has_changes=bool(report["summary"]["changed"]),
    )


def compose(
    template: str,
    folder: Path = FOLDER,
    *,
    marked: str,
    columns: Columns,
    rows: Rows,
    things: str = "tensors",
    **values: Any,
) -> str:
    """A page: `template`, from `folder`, fills the frame of page.html.j2, which ends in a table of `rows`.

    columns: (label, kind, meaning) each. marked: label of the column whose zeros grey a row out and can be hidden. things: what the rows are.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader([folder, FOLDER]), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    script = environment.get_template("report.js.j2").render(marked=marked, things=things)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    table = json.dumps({"columns": columns, "rows": rows}, separators=(",", ":"), allow_nan=False)
    table = table.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    page = environment.get_template(template).render(
        palette=PALETTE, script=Markup(script), digest=digest, table=Markup(table), **values
    )
    return page.encode("utf-8", "replace").decode("utf-8")


def _strip(summary: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(label, value, note) of the numbers at the top."""
    n = f"{count(summary['numel'])} elements"

    def text(name: str) -> str:
        return MEASURES[name].write(summary.get(name))

    flips = summary.get("sign_flips")
    flipped = f"{share(flips / summary['numel'])} of {n}" if flips is not None and summary["numel"] else n
    return [
        ("Elements changed", text("changed_fraction"), f"{count(summary['changed'])} of {n}"),
        ("Tensors changed", f"{summary['tensors_changed']:,}", f"of {summary['tensors']:,} compared"),
        ("Relative change", text("rel_l2"), f"L2 {text('l2')} (weight units) over L2 of base"),
        ("Largest change", text("max_abs"), "of one element, in weight units"),
        ("Sign flips", text("sign_flips"), flipped),
        ("Cosine", text("cosine"), "of base and edited, all elements"),
    ]


def _edit(report: Report) -> dict[str, Any] | None:
    edit = report.get("edit")
    if not edit:
        return None
    rows = [row for row in report.get("layers", ()) if row.get("edit")]
    reached, expected = edit.get("projection"), edit.get("expected_projection")

    def text(row: Mapping[str, Any], key: str) -> str:
        value = row.get(key)
        if value is None:
            return UNDEFINED
        return share(value) if key == "lost_to_rounding" else f"{value:g}" if key == "alpha" else number(value)

    keys = ("alpha", "requested_l2", "applied_l2", "projection", "lost_to_rounding")
    return {
        "command": edit["command"],
        "one_alpha": edit.get("alpha") is not None,
        **{key: text(edit, key) for key in keys},
        "projection": UNDEFINED if reached is None else f"{reached:.6f}",
        "expected": None if expected is None else f"{expected:g}",
        "missed": reached is not None and missed(reached, expected),
        "bars": edit_bars(rows),
        "layers": [
            {"label": _layer_label(row), **{key: text(row["edit"], key) for key in keys}, "numel": count(row["numel"])}
            for row in rows
        ],
    }


def _layer_label(row: Mapping[str, Any]) -> str:
    return "outside layers" if row["layer"] is None else printable(f"{row['stack']}.{row['layer']}")


def _ranked(rows: list[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows by falling relative change, then by changed elements, as texts with the length of their bar."""
    rows = sorted(rows, key=lambda row: (-(row.get("rel_l2") or 0), -row["changed"], row["name"]))
    largest = max((row.get("rel_l2") or 0 for row in rows), default=0)
    return [
        {
            "name": printable(row["name"]),
            "bar": round(100 * (row.get("rel_l2") or 0) / largest, 2) if largest else 0,
            "value": MEASURES["rel_l2"].write(row.get("rel_l2")),
            "note": f"{share(row['changed_fraction']) if row['changed'] else '0 %'} of {count(row['numel'])} elements",
        }
        for row in rows
    ]


def _structure(items: list[Mapping[str, Any]]) -> list[tuple[str, str]]:
    def shape(sizes: list[int]) -> str:
        return " × ".join(map(str, sizes)) or "scalar"

    def what(item: Mapping[str, Any]) -> str:
        if "base_shape" in item:
            return f"{shape(item['base_shape'])} → {shape(item['edited_shape'])}"
        if "base_dtype" in item:
            return f"{item['base_dtype']} → {item['edited_dtype']}"
        return f"{item['dtype']}, {shape(item['shape'])}"

    return [(printable(item["name"]), what(item)) for item in items]


def _table(rows: list[Mapping[str, Any]]) -> tuple[Columns, Rows]:
    """Columns and rows of the full table."""
    columns = [
        ("tensor", "text", ""),
        ("dtype", "text", "storage format of the base"),
        ("shape", "text", ""),
        *((m.label, m.kind, m.meaning) for name in NUMBERS for m in [MEASURES[name]]),
        ("survive 8 bit", "share", "share of the changed elements on another 8-bit code"),
        ("survive 4 bit", "share", "share of the changed elements on another 4-bit code"),
    ]
    spectral = any(row.get("spectral") for row in rows)
    if spectral:
        columns += [
            ("spectral norm", "number", "largest singular value of the change, weight units"),
            ("stable rank", "number", "(L2 / spectral norm) squared"),
            ("energy top 4", "share", "share of the squared L2 in the 4 largest singular directions"),
        ]
    lines = []
    for row in rows:
        line = [printable(row["name"]), row["dtype"], "×".join(map(str, row["shape"])) or "scalar"]
        line += [_short(row.get(name)) for name in NUMBERS]
        line += [_short(crossed(row, bits)) for bits in (8, 4)]
        if spectral:
            found = row.get("spectral") or {}
            line += [found.get("norm"), found.get("stable_rank"), (found.get("energy") or {}).get("4")]
        lines.append(line)
    return columns, lines


def _short(value: Any) -> Any:
    return float(f"{value:.9g}") if isinstance(value, float) else value
