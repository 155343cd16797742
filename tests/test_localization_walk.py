"""The way from a base to a model at its edges, with all that is written of it."""

import json

import pytest
import torch
from localized import one_thread, sets  # noqa: F401
from safetensors.torch import load_file, save_file
from tiny_models import save_llama, save_tied_twice

from editkit.errors import EditError
from editkit.localization.localize import localize

MODEL = "model.safetensors"


@pytest.fixture
def place(tmp_path):
    save_llama(tmp_path / "base")
    sets(tmp_path)
    return tmp_path


def moved(place, amount, kind=save_llama, tensors=None):
    """A model whose weights are some way from those of the base."""
    kind(place / "model")
    before, draws = load_file(place / "model" / MODEL), torch.Generator().manual_seed(1)
    after = {
        name: one + amount * torch.randn(one.shape, generator=draws) * (tensors is None or name in tensors)
        for name, one in before.items()
    }
    save_file(after, place / "model" / MODEL, {"format": "pt"})
    return place / "model"


def walk(place, **settings):
    settings = {
        "base": place / "base",
        "forget": place / "forget.jsonl",
        "max_examples": 4,
        "device": "cpu",
        **settings,
    }
    return localize(place / "model", place / "loc", method="path", granularity="tensor", budget=2, **settings)


def test_a_way_through_some_tensors_is_written_with_its_pictures(place):
    moved(place, 0.01)
    report = walk(place, only=["*.mlp.*"])
    assert report["path"]["complete"] is None and report["path"]["forget"]["error"] is None
    assert (place / "loc" / "localization.html").exists() and (place / "loc" / "localization.png").exists()
    assert json.loads((place / "loc" / "localization.json").read_text())["path"] == report["path"]


def test_a_change_too_small_for_the_loss_takes_no_more_points_and_says_so(place):
    """The drop is exactly zero: there is nothing to be a share of."""
    moved(place, 1e-12, tensors=["model.norm.weight"])
    tensors = load_file(place / "model" / MODEL)
    tensors["model.embed_tokens.weight"][-3, 0] += 1e-3  # a token that no example has
    save_file(tensors, place / "model" / MODEL, {"format": "pt"})
    with pytest.raises(EditError, match="no tensor has a path score above zero: no parameter's way from the base"):
        walk(place)


def test_random_labels_are_refused_because_nothing_would_add_up(place):
    moved(place, 0.01)
    with pytest.raises(EditError, match="path adds up to the drop of the loss with true labels: leave --labels out"):
        walk(place, labels="random:0.4")


def test_a_tied_base_may_be_stored_once_where_the_model_is_stored_twice(place):
    model = moved(place, 0.01, kind=save_tied_twice)
    tensors = load_file(model / MODEL)
    save_file(
        tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, model / MODEL, {"format": "pt"}
    )
    save_llama(place / "tied", tied=True)
    report = walk(place, base=place / "tied")
    assert report["path"]["complete"] and report["tied"] == {"lm_head.weight": "model.embed_tokens.weight"}
