"""Localization of an adapter: in the factors, as the paper does, and by element."""

import numpy as np
import pytest
from localized import (  # noqa: F401
    FORGET,
    RETAIN,
    chosen,
    each_gradient,
    loaded,
    means,
    near,
    no_pictures,
    one_thread,
    scores,
    sequence,
    sets,
    tuned_on_forget,
)
from safetensors.torch import load_file
from tiny_models import save_llama

from editkit.checkpoint.reader import open_checkpoint
from editkit.localization.localize import localize


@pytest.fixture
def data(tmp_path):
    return sets(tmp_path)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_llama(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="module")
def adapter(base):
    """A LoRA whose B is not zero any more."""
    return tuned_on_forget(base, "lora", lora=4, steps=3, lr=5e-2)


@pytest.fixture
def factors(base, adapter):
    """Means of gradients of an adapter's factors, by the names that peft gives them in a file."""
    from peft import PeftModel, get_peft_model_state_dict

    found = {}
    for label, rows in (("forget", FORGET), ("retain", RETAIN)):
        model = (
            PeftModel.from_pretrained(loaded(base), adapter, is_trainable=True, autocast_adapter_dtype=False)
            .double()
            .eval()
        )
        mine = means(each_gradient(model, map(sequence, rows)))["signed"]
        for name, parameter in model.named_parameters():
            if name in mine:
                parameter.data = mine[name]
        found[label] = {
            name: one.clone()
            for name, one in get_peft_model_state_dict(model, save_embedding_layers=False).items()
            if "lora" in name
        }
    return found


def test_memflex_on_an_adapter_selects_as_the_paper_does(tmp_path, base, adapter, data, factors):
    """Cosines and mean sizes equal those computed with peft, and so does the selection by thresholds."""
    names = sorted(load_file(adapter / "adapter_model.safetensors"))
    assert names == sorted(factors["forget"])
    angles, sizes = {}, {}
    for name in names:
        f, r = factors["forget"][name].reshape(-1), factors["retain"][name].reshape(-1)
        angles[name], sizes[name] = float(f @ r / (f.norm() * r.norm())), float(f.abs().mean())
    mu, sigma = float(np.quantile(list(angles.values()), 0.7)), float(np.quantile(list(sizes.values()), 0.4))
    wanted = {name for name in names if angles[name] < mu and sizes[name] > sigma}
    assert 2 <= len(wanted) < len(names) - 2
    report = localize(
        f"{base}+{adapter}", tmp_path / "loc", method="memflex", mu=mu, sigma=sigma, labels="true", device="cpu", **data
    )
    assert [row["name"] for row in report["tensors"]] == list(open_checkpoint(adapter).tensors)
    for row in report["tensors"]:
        assert row["cosine"] == pytest.approx(angles[row["name"]], abs=1e-5)
        assert row["mean_abs_forget"] == pytest.approx(sizes[row["name"]], rel=1e-5)
    assert {row["name"] for row in report["tensors"] if row["selected"]} == wanted
    assert {name for name, bits in chosen(tmp_path / "loc", adapter).items() if bits.all()} == wanted
    assert report["adapter"]["name"] == "lora" and report["model"]["name"] == "base"
    assert report["settings"]["budget"] is None and report["summary"]["units_selected"] == len(wanted)


def test_an_adapter_is_localized_by_element_as_well(tmp_path, base, adapter, data, factors):
    localize(f"{base}+{adapter}", tmp_path / "loc", method="salun", budget="10%", device="cpu", forget=data["forget"])
    for name, found in scores(tmp_path / "loc").items():
        assert near(found, factors["forget"][name].abs()), name
