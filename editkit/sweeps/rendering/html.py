"""A sweep as one offline page, a sibling of those of a diff and of an evaluation: the same frame, policy, colours and table."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from editkit.diffing.measures import UNDEFINED
from editkit.diffing.rendering.html import Columns, Rows, compose
from editkit.errors import printable
from editkit.sweeps.rendering import wording
from editkit.sweeps.rendering.charts import looks, over_alpha, pareto
from editkit.sweeps.rendering.marks import AXES, Report, plain, series, value, written
from editkit.sweeps.report import named

ROOT = Path(__file__).parents[2]
"""Where templates are looked for, so that those of an evaluation are found as well."""


def to_html(report: Report) -> str:
    """The whole page. Works from file://, without a network; light and dark follow the reader's system."""
    columns, rows = _table(report)
    return compose(
        "sweeps/rendering/sweep.html.j2",
        ROOT,
        marked="front",
        columns=columns,
        rows=rows,
        names=wording.names(report),
        headline=wording.headline(report),
        swept=wording.swept(report),
        level=wording.level(report),
        warnings=[printable(text) for text in report["warnings"]],
        strip=list(_strip(report)),
        samples=[(looks(report)[name], name) for name in series(report)],
        pareto=pareto(report),
        curves=over_alpha(report),
        derived=wording.DERIVED,
        command=printable(report["command"] or ""),
        chosen=report["chosen"] is not None,
        settings=_settings(report),
        choices=[(printable(one["label"]), f"{one['tensors']:,}", f"{one['elements']:,}", _through(report, place)) for place, one in enumerate(report["choices"])],
        data=[(printable(one["set"]), printable(one["name"]), one["examples"], one["sha256"]) for one in report["sets"]],
        quantities=[(row["name"], row["label"], row["unit"], row["meaning"], row["source"]) for row in report["quantities"]],
        files=[(part, report[part]["sha256"] or {}) for part in ("model", "reference") if report[part]],
        versions=f"{report['schema']}, editkit {report['editkit']}",
    )  # fmt: skip


def _strip(report: Report) -> Iterator[tuple[str, str, str]]:
    """(label, value, note) of the numbers at the top."""
    for role in ("chosen", "knee"):
        if (place := report[role]) is not None:
            alpha = f"alpha {report['points'][place]['alpha']:g}"
            yield (
                role.capitalize(),
                alpha,
                ", ".join([*_where(report, place), *(f"{name} {value(report, place, name)}" for name in AXES)]),
            )
    for name in ("forget", "retain"):
        one = report["points"][0]["values"].get(f"{name}.token_accuracy")
        if one:
            yield (
                f"Unedited, {name}",
                plain(one["value"]),
                f"token accuracy, 95 % interval {written(one).partition(' ')[2]}, n = {one['n']:,}",
            )
    scores = (report["reference"] or {}).get("values") or {}
    if "forgetting" in scores:
        yield (
            "Reference",
            plain(scores["forgetting"]["value"]),
            f"forgetting of {printable(report['reference']['name'])}, which never saw the forget set",
        )
    yield (
        "Points",
        f"{len(report['points']) - 1:,}",
        f"{len(report['front'])} on the front, the unedited model measured as well",
    )


def _where(report: Report, place: int) -> list[str]:
    choice = report["points"][place]["choice"]
    return [printable(report["choices"][choice]["label"])] if len(report["choices"]) > 1 else []


def _through(report: Report, choice: int) -> str:
    """How much of the vector's squared L2 a mask lets through, in the tensors that it touches."""
    shares = [
        point["through"] for point in report["points"] if point["choice"] == choice and point.get("through") is not None
    ]
    return f"{shares[0]:.3%}" if shares else UNDEFINED


def _settings(report: Report) -> list[tuple[str, str]]:
    def text(item: Any) -> str:
        return (
            ", ".join(f"{one:g}" if isinstance(one, float) else printable(str(one)) for one in item)
            if isinstance(item, list)
            else printable(str(item))
        )

    return [(key.replace("_", " "), text(item)) for key, item in report["settings"].items() if item not in (None, [])]


def _table(report: Report) -> tuple[Columns, Rows]:
    """Columns and rows of the full table: a row per point, a column per quantity, with limits of the two that count."""
    names = [row["name"] for row in report["quantities"]]
    kinds = {
        row["name"]: (row["name"], "number", f"{row['label']}{', ' * bool(row['unit'])}{row['unit']}")
        for row in report["quantities"]
    }
    columns = [("point", "text", ""), ("alpha", "text", "")]  # a number as it was asked for, with no digits added
    for name in names:
        columns.append(kinds[name])
        if name in AXES:
            columns += [(f"{name} {end}", "number", f"{end}er limit of the 95 % interval") for end in ("low", "upp")]
    columns = [
        (label.replace(" low", " from").replace(" upp", " to"), kind, meaning) for label, kind, meaning in columns
    ]
    columns += [
        ("elements changed", "count", ""),
        ("lost to rounding", "share", "of the elements asked for"),
        ("front", "text", ""),
        ("status", "text", ""),
    ]
    rows = []
    for place, point in enumerate(report["points"]):
        line: list[Any] = [printable(named(report, place)), point["alpha"]]
        for name in names:
            one = point["values"].get(name) or {}
            line += [one.get(key) for key in (("value", "ci_low", "ci_high") if name in AXES else ("value",))]
        roles = [role for role in ("knee", "chosen") if report[role] == place]
        front = ", ".join(["on it", *roles]) if place in report["front"] else ", ".join(roles)
        status = "" if point["status"] == "ok" else printable(point["status"])
        rows.append([*line, point.get("changed"), point.get("lost_to_rounding"), front, status])
    return columns, rows
