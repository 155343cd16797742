import json

import numpy as np
import pytest
from localized import chosen, no_pictures, one_thread, sets  # noqa: F401
from tiny_models import save_gpt2, save_llama, save_tied_twice

from editkit.errors import EditError
from editkit.localization.compare import compare
from editkit.localization.localize import localize
from editkit.names import parse


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Localizations of one model: by element and by row, of both, and of a part of the model; and of another one."""
    folder = tmp_path_factory.mktemp("compare")
    save_llama(folder / "model")
    save_gpt2(folder / "gpt2")
    save_tied_twice(folder / "tied")
    common = {"forget": sets(folder)["forget"], "method": "salun", "device": "cpu", "control": True}
    localize(folder / "model", folder / "elements", budget="20%", **common)
    localize(folder / "model", folder / "rows", granularity="row", budget="30%", **common)
    localize(folder / "model", folder / "heads", granularity="head", budget="40%", **common)
    localize(folder / "model", folder / "part", only=["*.mlp.*"], budget="20%", **common)
    localize(folder / "gpt2", folder / "other", **common)
    localize(folder / "tied", folder / "ties", granularity="row", **common)
    return folder


def by_hand(masks, keep):
    one, other = (np.concatenate([bits.reshape(-1) for name, bits in mask.items() if keep(name)]) for mask in masks)
    both, either = int((one & other).sum()), int((one | other).sum())
    return {
        "numel": one.size,
        "one": int(one.sum()),
        "other": int(other.sum()),
        "both": both,
        "jaccard": both / either if either else None,
    }


@pytest.mark.parametrize(
    "pair", [("elements", "rows"), ("rows", "heads"), ("elements", "part"), ("part", "heads"), ("rows", "rows")]
)
def test_overlap_is_that_of_the_elements(place, pair):
    masks = [chosen(place / one, place / "model") for one in pair]
    shapes = {name: bits.shape for mask in masks for name, bits in mask.items()}
    masks = [{name: mask.get(name, np.zeros(shape, bool)) for name, shape in shapes.items()} for mask in masks]
    found = compare(*(place / one for one in pair))
    assert (found["one"], found["other"]) == tuple(str(place / one) for one in pair)
    rows = [(found["all"], lambda name: True)]
    rows += [(row, lambda name, row=row: name == row["name"]) for row in found["tensors"]]
    rows += [(row, lambda name, row=row: parse(name).module == row["module"]) for row in found["modules"]]
    rows += [(row, lambda name, row=row: parse(name)[:2] == (row["stack"], row["layer"])) for row in found["layers"]]
    if pair == ("part", "heads"):  # nothing in common
        assert found["all"]["jaccard"] == found["all"]["both"] == 0
    for row, keep in rows:
        wanted = by_hand(masks, keep)
        assert {key: row[key] for key in wanted} == wanted
    assert len(found["tensors"]) == len(shapes) and len(found["layers"]) == len({parse(name)[:2] for name in shapes})
    if pair == ("rows", "rows"):
        assert found["all"]["jaccard"] == 1
    json.dumps(found, allow_nan=False)


def test_chance_is_that_of_random_selections_with_the_same_shares_of_every_tensor(place):
    masks = [chosen(place / one, place / "model") for one in ("elements", "rows")]
    dice, found = np.random.default_rng(0), []
    for _ in range(200):
        both = either = 0
        for name in masks[0]:
            one, other = (dice.permutation(mask[name].reshape(-1)) for mask in masks)
            both, either = both + (one & other).sum(), either + (one | other).sum()
        found.append(both / either)
    expected = compare(place / "elements", place / "rows")["all"]["expected_of_random"]
    assert expected == pytest.approx(np.mean(found), abs=5 * np.std(found) / np.sqrt(200) + 1e-4)


def test_a_selection_is_compared_with_its_control(place):
    masks = [chosen(place / one, place / "model") for one in ("elements", "elements/control")]
    row = compare(place / "elements", place / "elements" / "control")["all"]
    wanted = by_hand(masks, lambda name: True)
    assert {key: row[key] for key in wanted} == wanted
    assert row["jaccard"] == pytest.approx(row["expected_of_random"], abs=0.03)


def test_tied_copies_count_once(place):
    found = compare(place / "ties", place / "ties")
    assert (
        found["all"]["jaccard"] == 1
        and found["all"]["numel"] == json.loads((place / "ties" / "localization.json").read_text())["summary"]["numel"]
    )


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (("elements", "other"), "elements and .*other are of different models"),
        (("elements", "model"), "model is no localization"),
        (("elements", "nowhere"), "nowhere is no localization"),
    ],
)
def test_what_cannot_be_compared_is_refused(place, pair, message):
    with pytest.raises(EditError, match=message):
        compare(*(place / one for one in pair))


def test_a_localization_of_another_version_is_refused(place, tmp_path):
    (tmp_path / "localization.json").write_text('{"schema": "editkit.localization/9"}')
    with pytest.raises(EditError, match=r"another version: this editkit reads editkit.localization/1"):
        compare(place / "rows", tmp_path)


@pytest.fixture
def pair_of_random(tmp_path):
    save_llama(tmp_path / "model")
    for seed, name in enumerate(("one", "other")):
        localize(tmp_path / "model", tmp_path / name, method="random", seed=seed)
    return tmp_path


@pytest.mark.parametrize("missing", ["tied", "tensors", "model"])
def test_a_damaged_report_is_said_to_be_damaged(pair_of_random, missing):
    path = pair_of_random / "one" / "localization.json"
    report = json.loads(path.read_text())
    del report[missing]
    path.write_text(json.dumps(report))
    with pytest.raises(EditError, match=f"one has a localization.json that is damaged .*{missing}.*: localize again"):
        compare(pair_of_random / "one", pair_of_random / "other")


def test_a_folder_without_its_mask_is_refused(pair_of_random):
    (pair_of_random / "one" / "mask.safetensors").unlink()
    with pytest.raises(
        EditError, match=r"one has no mask\.safetensors: give a mask file, or the folder of a localization"
    ):
        compare(pair_of_random / "one", pair_of_random / "other")
