"""What of the settings a method and a preset say, and what cannot be."""

import math

import pytest

from editkit.errors import EditError
from editkit.unlearning.methods import NAMED, method
from editkit.unlearning.objectives import FORGET, RETAIN
from editkit.unlearning.settings import BATCH, EVERY, FLOOR, resolve


def settle(name=None, **changes):
    said = {
        "forget_loss": None,
        "retain_loss": None,
        "preset": None,
        "stop": [],
        "retain": True,
        "mask": False,
        "tasks": 1,
        "control": False,
    }
    fixed = {key: changes.pop(key, value) for key, value in said.items()}
    return resolve(name=name, given=changes, **fixed)


@pytest.mark.parametrize("name", [one.name for one in NAMED] + ["me+gd", "idk+ap", "npo+kl", "dpo", "rmu+rmu"])
def test_what_nobody_said_is_what_the_method_says(name):
    found = settle(name)
    chosen = method(name)
    assert found.method == chosen and (found.forget_weight, found.retain_weight) == chosen.weights
    assert (found.batch_size, found.eval_every, found.floor) == (BATCH, EVERY, FLOOR)
    refuses = name in ("idk+ap", "dpo")  # whose teacher-forced accuracy says nothing of what they write
    assert found.by_default and [rule.text for rule in found.rules] == ([] if refuses else ["ma(forget) <= level"])
    assert found.save == "checkpoint" and found.lora is found.steps is found.lr is None


def test_a_method_is_chosen_by_what_there_is_to_keep():
    assert settle().method.name == "npo+gd" and settle(retain=False).method.name == "npo"
    assert settle(forget_loss="me").method.name == "me+gd"
    assert settle(forget_loss="me", retain=False).method.name == "me"
    assert settle(forget_loss="dpo", retain_loss="kl").method.name == "dpo+kl"
    assert settle(forget_loss="wga", retain_loss="none").method.name == "wga"
    assert settle(forget_loss="sga").method.name == "sga"
    assert settle("me+gd", retain_loss="kl").method == method("me+kl")


def test_every_forget_loss_goes_with_every_retain_loss():
    for forget in FORGET:
        for retain in RETAIN:
            if forget != "learn":
                found = settle(forget_loss=forget, retain_loss=retain).method
                assert [phase.forget for phase in found.phases] == [forget] and found.retain == retain


@pytest.mark.parametrize("retain", ["kl", "none"])
def test_a_procedure_keeps_its_phases_with_another_retain_loss(retain):
    for name in ("sga", "tau", "memflex"):
        found = settle(name, retain_loss=retain).method
        assert found.phases == method(name).phases and found.retain == retain
        assert found.localized == method(name).localized


def test_memflex_is_the_weights_of_its_paper():
    found = settle("memflex")
    assert (found.forget_weight, found.retain_weight) == (0.4, 2.0) and found.method.localized


def test_what_is_asked_for_counts_more_than_the_paper_and_the_paper_more_than_the_defaults():
    paper = settle("memflex", preset="paper")
    assert (paper.lora, paper.lr, paper.epochs, paper.save) == (16, 3e-4, 2, "adapter")
    assert settle("memflex", preset="paper", lr=1e-3).lr == 1e-3
    steps = settle("memflex", preset="paper", steps=7)
    assert (steps.steps, steps.epochs) == (7, None)
    epochs = settle("rmu+rmu", preset="paper", epochs=2)
    assert (epochs.steps, epochs.epochs) == (None, 2)


def test_steps_are_passes_over_the_forget_set_where_nothing_else_is_said():
    assert settle(steps=12).most(1000) == 12
    assert settle(epochs=3, batch_size=4).most(10) == 9  # three batches a pass
    assert settle(epochs=2, batch_size=64).most(10) == 2
    found = settle(batch_size=4)
    assert found.most(10) >= 100 and found.most(10) % 3 == 0, "whole passes"
    assert found.most(100_000) == 5 * 25_000, "each example five times, were it ever so many"


def test_the_learning_rate_falls_with_the_width():
    """0.08 / 4096 is the 2e-5 of models of 7 B; ten times that for an adapter."""
    full, lora = settle(), settle(lora=8)
    assert full.rate(4096, 1.0) / full.rate(1024, 1.0) == pytest.approx(1 / 4)
    assert lora.rate(256, 1.0) == pytest.approx(10 * full.rate(256, 1.0))
    assert full.rate(256, 0.25) == pytest.approx(2 * full.rate(256, 1.0))
    assert full.rate(256, 1e-6) == pytest.approx(10 * full.rate(256, 1.0))
    assert settle(lr=3e-4).rate(4096, 0.25) == 3e-4


WRONG = [
    ({"name": "npo+gd", "forget_loss": "ga"}, r"--method npo\+gd and --forget-loss ga both say what to do"),
    ({"name": "npo+dg"}, r"there is no method 'npo\+dg' \(did you mean npo\+gd\?\)"),
    ({"name": "nppo"}, r"there is no method 'nppo' \(did you mean npo\?\)"),
    ({"name": "learn"}, "there is no method 'learn'"),
    ({"forget_loss": "nop"}, r"there is no method 'nop\+gd'"),
    ({"forget_loss": "npo", "retain_loss": "dg"}, "dg"),
    ({"name": "npo", "retain_loss": "dg"}, "there is no retain loss 'dg': there are none, gd, kl, ap"),
    ({"preset": "papers"}, "--preset 'papers' is unknown: there is paper"),
    ({"lr": 0.0}, r"lr is 0.0, must be a finite number above 0"),
    ({"lr": -1e-3}, "lr is -0.001"),
    ({"lr": math.nan}, "lr is nan"),
    ({"lr": math.inf}, "lr is inf"),
    ({"name": "npo+gd", "retain": False}, r"npo\+gd has a retain loss \(gd\) and there is no retain set, give --retain or --retain-loss none"),
    ({"name": "memflex", "retain": False}, "retain loss"),
    ({"forget_weight": -1.0}, "forget_weight is -1.0"),
    ({"retain_weight": math.nan}, "retain_weight is nan"),
    ({"weight_decay": -0.1}, "weight_decay is -0.1"),
    ({"beta": 0.0}, "beta is 0.0"),
    ({"name": "ga+gd", "beta": 1.0}, r"no loss of ga\+gd has one"),
    ({"floor": 1.0}, "floor is 1.0"),
    ({"floor": 0.0}, "floor is 0.0"),
    ({"name": "tau", "alpha": 0.0}, "alpha is 0.0"),
    ({"name": "tau", "alpha": math.nan}, "alpha is nan"),
    ({"alpha": 2.0}, r"npo\+gd does not"),
    ({"anchor": "original"}, r"npo\+gd does not"),
    ({"name": "tau", "anchor": "start"}, "anchor is 'start', must be one of original, phase"),
    ({"steps": 3, "epochs": 1}, "epochs and steps are both given"),
    ({"steps": 0}, "steps is 0"),
    ({"eval_every": 0}, "eval_every is 0"),
    ({"grad_accum": 0}, "grad_accum is 0"),
    ({"batch_size": -2}, "batch_size is -2"),
    ({"lora": 0}, "lora is 0"),
    ({"lora": 4, "mask": True}, "lora and mask are both given"),
    ({"name": "tau", "lora": 4}, "negates a task vector of all weights, leave lora out"),
    ({"name": "npo", "rectify": True}, "rectify needs the gradient of a retain loss"),
    ({"save": "adapter"}, "save is adapter, and without lora there is none"),
    ({"save": "file"}, "save is 'file', must be one of checkpoint, adapter, vector"),
    ({"control": True}, "has none, give --mask"),
    ({"name": "memflex", "tasks": 2}, "localizes one forget set, give --mask for several"),
    ({"name": "memflex", "retain": False, "retain_loss": "none"}, "and a retain set does not, give --retain or --mask$"),
    ({"seed": -1}, "seed is -1"),
    ({"seed": 2**32}, "seed is 4294967296"),
    ({"dtype": "float16"}, "out of range: give bfloat16 or float32"),
    ({"dtype": "int8"}, "dtype is 'int8'"),
    ({"device": "tpu"}, "device is 'tpu'"),
    ({"stop": ["ma(forget)"]}, "--stop 'ma(forget)' is no rule".replace("(", r"\(").replace(")", r"\)")),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "said"), WRONG, ids=[f"{number}" for number in range(len(WRONG))])
def test_what_cannot_be_is_refused_in_one_sentence(changes, said):
    with pytest.raises(EditError, match=said) as caught:
        settle(**changes)
    assert "\n" not in str(caught.value)


def test_all_that_is_wrong_is_said_at_once():
    with pytest.raises(EditError) as caught:
        settle("npo", rectify=True, lr=0.0, floor=2.0, retain=False, batch_size=0, save="adapter")
    for said in ("rectify needs", "lr is 0.0", "floor is 2.0", "batch_size is 0", "save is adapter"):
        assert said in str(caught.value)


def test_what_the_report_says_of_settings_is_flat():
    found = settle("tau", stop=["ma(forget) < 0.2"], alpha=2.0).described()
    assert found["forget_loss"] == "ga then learn" and found["stop"] == ["ma(forget) < 0.2"] and found["alpha"] == 2.0
    assert not any(isinstance(value, dict | tuple) for value in found.values())


FORMULAS = [
    ({"name": "memflex"}, "MemFlex", "0.4 L_GA(F) + 2 L_GD(R) on the located parameters"),
    ({"name": "memflex", "retain_loss": "kl"}, "MemFlex with KL", "0.4 L_GA(F) + 2 L_KL(R) on the located parameters"),
    ({"name": "memflex", "retain_loss": "none"}, "MemFlex with no retain loss", "0.4 L_GA(F) on the located parameters"),
    ({"name": "memflex", "forget_loss": "npo", "retain_loss": "kl", "forget_weight": 1.0, "retain_weight": 0.5},
     "MemFlex with NPO and KL", "L_NPO(F) + 0.5 L_KL(R) on the located parameters"),
    ({"name": "ga+gd", "retain_weight": 3.0}, "GA+GD", "L_GA(F) + 3 L_GD(R)"),
    ({"name": "npo"}, "NPO", "L_NPO(F)"),
    ({"name": "sga", "retain": False}, "SGA", "L_GA(F), F the examples with MA ≥ 0.7 and the most memorised one"),
    ({"name": "tau", "forget_loss": "wga"}, "TAU with WGA", "θ₀ − α (θₜ − θ₀): SGA by L_WGA(F) + L_GD(R) gives θ₀, fine-tuning on F gives θₜ"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "label", "formula"), FORMULAS)
def test_label_and_formula_are_of_the_losses_and_weights_that_are_used(changes, label, formula):
    found = settle(**changes)
    assert (found.method.label, found.formula) == (label, formula)


def test_a_mask_takes_the_place_of_the_papers_adapter():
    found = settle("memflex", preset="paper", mask=True)
    assert found.lora is None and found.save == "checkpoint" and found.lr == 3e-4
    with pytest.raises(EditError, match="lora and mask are both given"):
        settle("memflex", preset="paper", mask=True, lora=8)


@pytest.mark.parametrize("forget", [name for name in FORGET if name != "learn"])
@pytest.mark.parametrize("retain", RETAIN)
def test_every_method_can_be_had_as_published(forget, retain):
    found = settle(name=f"{forget}+{retain}", preset="paper")
    assert (found.epochs is None) != (found.steps is None)
