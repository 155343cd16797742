"""A plan as JSON for the provenance of a merge, and back: what most tensors have in common is written once.

>>> plan = Plan("linear", None, (Model("models/a"),), (Target("w", None, (Part(0, "w", {"weight": 1.0}),), {}),), like=0)
>>> recorded(plan)["targets"], recorded(plan)["models"][0]["source"]
([['w', None, 0, [[0, 'w', 1]]]], 'models/a')
>>> restored(recorded(plan), {"model 1": "models/a"}.__getitem__) == plan
True
"""

import json
import os
from collections.abc import Callable, Mapping
from typing import Any

from editkit.errors import printable
from editkit.merging.plan import Model, Part, Plan, Rule, Target


def recorded(plan: Plan, name: Callable[[str], str] = lambda source: last_part(source)) -> dict[str, Any]:
    """The plan, with sources named by their last part, so that no folder of this machine is told.

    settings: all that occur. targets: [name, name in the base, number of its settings, [[model, name, number of settings] ...]].
    """
    numbers: dict[str, int] = {}

    def number(settings: Mapping[str, Any]) -> int:
        return numbers.setdefault(json.dumps(dict(settings), sort_keys=True), len(numbers))

    targets = [
        [one.name, one.base, number(one.settings), [[p.model, p.name, number(p.settings)] for p in one.parts]]
        for one in plan.targets
    ]
    models = [
        {
            "source": name(one.source),
            "adapters": [name(adapter) for adapter in one.adapters],
            "vector": one.vector,
            "mask": None if one.mask is None else name(one.mask),
        }
        for one in plan.models
    ]
    whole = {key: value for key, value in plan._asdict().items() if key not in ("models", "targets")}
    return {
        **whole,
        "base": None if plan.base is None else name(plan.base),
        "notes": list(plan.notes),
        "rules": [list(one) for one in plan.rules],
        "config": dict(plan.config),
        "files": dict(plan.files),
        "models": models,
        "settings": [json.loads(one) for one in numbers],
        "targets": targets,
    }


def restored(record: Mapping[str, Any], place: Callable[[str], str] = lambda role: role) -> Plan:
    """The plan again. place: from the role that a source has in the provenance ("base", "model 1", "model 1 adapter 1",
    "model 1 mask") to where it is."""
    models = tuple(
        Model(
            place(f"model {number}"),
            tuple(place(f"model {number} adapter {part}") for part, _ in enumerate(one["adapters"], 1)),
            one["vector"],
            None if one["mask"] is None else place(f"model {number} mask"),
        )
        for number, one in enumerate(record["models"], 1)
    )
    said = record["settings"]
    targets = tuple(
        Target(name, base, tuple(Part(model, there, said[own]) for model, there, own in parts), said[settings])
        for name, base, settings, parts in record["targets"]
    )
    known = {key: value for key, value in record.items() if key in Plan._fields}
    base = None if record["base"] is None else place("base")
    return Plan(
        **{
            **known,
            "base": base,
            "models": models,
            "targets": targets,
            "notes": tuple(record["notes"]),
            "rules": tuple(Rule(*one) for one in record["rules"]),
        }
    )


def last_part(source: str) -> str:
    """A path without the folders of this machine; a Hub id as it is."""
    there = os.path.expanduser(source)
    return printable(os.path.basename(os.path.abspath(there)) if os.path.exists(there) else source)
