"""Runs of a recipe written by hand, as run.json has them."""

from copy import deepcopy

PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010806000000" "1f15c4890000000d49444154789c6360000002000001e221bc33"
    "0000000049454e44ae426082"
)  # fmt: skip
"""A PNG."""


def value(number, **more):
    return {"value": number, "sd": None, "n": None, "of": None, "unit": "", "status": "ok", "each": [number], **more}


def call(step, function, cell=None, **more):
    cell = cell or {}
    said = ", ".join(f"{name} {one}" for name, one in cell.items())
    label = f"{step} ({said})" if cell else step
    output = f"steps/{step}-{'-'.join(map(str, cell.values())) or 'all'}/{step}"
    usual = {
        "step": step, "function": function, "cell": cell, "label": label, "key": "ab" * 32, "state": "computed", "why": None,
        "needs": [], "arguments": {}, "seconds": 2.0, "cached": False, "output": output, "pages": [], "pictures": [],
        "summary": "", "warnings": [],
    }  # fmt: skip
    return usual | more


def step(name, function, needs=(), variables=(), needed=True):
    return {"step": name, "function": function, "needs": list(needs), "variables": list(variables), "needed": needed}


def two_methods(**more):
    """Two methods with two seeds each; of the second one a seed failed at a gate."""
    cells = [{"method": method, "seed": seed} for method in ("npo+gd", "me+gd") for seed in (0, 1)]
    edited = [call("edited", "unlearn", cell, summary="reached at step 20") for cell in cells]
    for one in edited:
        one["pages"] = [f"{one['output']}/unlearning/report.html"]
        one["pictures"] = [f"{one['output']}/unlearning/curves.png"]
    failed = {"state": "gate failed", "why": "no weight differs from the base", "output": None, "summary": ""}
    edited[3] |= failed | {"pages": [], "pictures": []}
    scored = [call("scored", "evaluate", cell, seconds=1.5) for cell in cells]
    scored[3] |= {
        "state": "not run",
        "why": "edited (method me+gd, seed 1) has no output",
        "seconds": None,
        "output": None,
    }
    people = call("people", "invent", state="cached", cached=True, seconds=20.0, arguments={"forget": 8})
    reason = "unknown: edited (method me+gd, seed 1) has no result"
    rows = [
        {
            "cell": {"method": "npo+gd"},
            "values": {
                "forget MA": value(0.24, sd=0.0283, n=2, of="seed", each=[0.22, 0.26]),
                "4 bit": value("survives 1, recovers 1", n=2, of="seed", each=["survives", "recovers"]),
            },
        },
        {
            "cell": {"method": "me+gd"},
            "values": {"forget MA": value(0.5, sd=0.1414, n=2, of="seed", each=[0.4, 0.6]), "4 bit": value(None, status=reason, each=[])},
        },
    ]  # fmt: skip
    run = {
        "schema": "editkit.run/1", "editkit": "0.1.0", "dry_run": False, "exit_code": 1, "seconds": 75.0,
        "recipe": {
            "name": "methods", "title": "Two methods", "header": "What: forget, in\ntwo ways\nPaper: arXiv 2410.08109", "text": "editkit: 1\n",
        },
        "settings": {"model": {"value": "${people}/model", "given": False}, "lr": {"value": 0.5, "given": True}},
        "matrix": {"method": ["npo+gd", "me+gd"], "seed": [0, 1]}, "engine": "processes", "jobs": 1,
        "steps": [
            step("people", "invent"), step("edited", "unlearn", ["people"], ["method", "seed"]),
            step("scored", "evaluate", ["people", "edited"], ["method", "seed"]), step("spare", "diff", ["people"], needed=False),
        ],
        "calls": [people, *edited, *scored],
        "table": {"over": ["seed"], "variables": ["method"], "columns": ["forget MA", "4 bit"], "rows": rows},
        "notes": ["people was made again: it is of editkit 0.0.9"], "failures": [],
        "gates": ["edited (method me+gd, seed 1): no weight differs from the base"],
    }  # fmt: skip
    return deepcopy(run | more)


def written(run, folder):
    """Put the pictures where the run says they are."""
    for one in run["calls"]:
        for path in one["pictures"]:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(PIXEL)
    return folder
