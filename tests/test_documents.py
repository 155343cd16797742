"""docs/formats.md says what the files hold: every key of real reports, every metric; and the help says the defaults of the functions."""

import inspect
import json
import re
from typing import Any

import click
import pytest
from safetensors.numpy import save_file
from test_evaluation_similarity import save_nli
from test_house import GROUP, ROOT, command
from test_localization_gradients import one_thread  # noqa: F401
from tiny_models import save_llama, save_tied_twice

import editkit
from editkit.evaluation.measuring import COLUMNS
from editkit.evaluation.suites import METRICS
from editkit.vectors.open import open_vector

FORMATS = (ROOT / "docs" / "formats.md").read_text("utf-8")
CPU = {"device": "cpu"}
BY_NAME = ("sha256", "config", "tied", "values", "lm_eval")  # whose keys are files, tensors, quantities, models


def section(title):
    """The text under a heading of the formats."""
    found = re.search(rf"^## {re.escape(title)}.*?(?=^## |\Z)", FORMATS, re.MULTILINE | re.DOTALL)
    assert found is not None, title
    return found[0]


def documented(text):
    return set(re.findall(r"`(\w+)`", text))


def described(text):
    """What has a row of its own in the tables of keys."""
    first = re.findall(r"^\| (`[^|]*`) \|", text, re.MULTILINE)
    return {key for cell in first for key in re.findall(r"`(\w+)`", cell)}


def keys(item: Any) -> set[str]:
    """All keys of a report, but those that are names of something."""
    if isinstance(item, list):
        return {key for value in item for key in keys(value)}
    if not isinstance(item, dict):
        return set()
    found = {key for name, value in item.items() if name not in BY_NAME for key in keys(value)}
    found |= {key for name in BY_NAME for value in item.get(name, {}).values() for key in keys(value)}
    return found | set(item)


def read(path):
    return json.loads(path.read_text("utf-8"))


def rows(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def lines(path, examples):
    path.write_text("".join(json.dumps(one) + "\n" for one in examples))
    return path
