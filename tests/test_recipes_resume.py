"""An interrupted call goes on with its own work with `resume`, and begins anew without."""

from contextlib import nullcontext

import pytest
from memorised import memorised

import editkit

RECIPE = {
    "editkit": 1,
    "settings": {"place": "made by the test"},
    "steps": {
        "scored": {"evaluate": {"models": ["${place}/model", "${place}/new"], "forget": "${place}/forget.jsonl"}}
    },
    "table": {"MA": "${scored: results[model=model, metric=memorization/ma@1, set=forget, bucket=null]}"},
}
RECIPE["steps"]["scored"]["evaluate"] |= {"metrics": ["memorization/ma@1"], "device": "cpu"}


def run(output, stage=None, **settings):
    return editkit.run(RECIPE, output, settings={"place": str(memorised())}, stage=stage or Stages(), **settings)


class Stages:
    """Notes the parts of the work, and ends the run in the one of this number."""

    def __init__(self, last=None):
        self.names, self._last = [], last

    def __call__(self, name):
        self.names.append(name)
        if len(self.names) == self._last:
            raise KeyboardInterrupt
        return nullcontext()


def test_an_interrupted_call_goes_on_with_resume_alone(tmp_path):
    whole = Stages()
    expected = run(tmp_path / "whole", whole)
    assert all(name.startswith("scored: ") for name in whole.names) and len(whole.names) == 2
    for resume, names in ((True, whole.names[1:]), (False, whole.names)):
        place = tmp_path / f"resume-{resume}"
        with pytest.raises(KeyboardInterrupt):
            run(place, Stages(last=2))
        assert list(place.glob("steps/scored-*/.scored.unfinished")) and not list(place.glob("steps/*/call.json"))
        after = Stages()
        found = run(place, after, resume=resume)
        assert after.names == names and found["table"] == expected["table"]
        assert not list(place.glob("steps/*/.*"))
