import numpy as np
import pytest

from editkit.errors import EditError
from editkit.localization.method import NAMES, Statistics, method

DICE = np.random.default_rng(7)
W, TAU, G_F, G_R = (DICE.standard_normal((5, 4)) for _ in range(4))
COSINE, U, MU = np.array([[0.3]]), DICE.random((5, 4)), 0.02
SIGNED = Statistics(W, TAU, G_F, G_R, COSINE, U, MU)
SIZES = SIGNED._replace(forget=np.abs(G_F), retain=np.abs(G_R))

FORMULAS = [
    ("memflex", SIGNED, lambda i: abs(G_F[i]) * (1 - 0.3)),
    ("salun", SIGNED, lambda i: abs(G_F[i])),
    ("salun", SIZES, lambda i: abs(G_F[i])),
    ("wagle", SIGNED, lambda i: abs((W[i] - G_R[i] / MU) * G_F[i])),
    ("fisher", SIZES, lambda i: abs(G_F[i]) / abs(G_R[i])),
    ("snip", SIGNED, lambda i: abs(G_F[i] * W[i])),
    ("path", SIGNED, lambda i: -TAU[i] * G_F[i] - (-TAU[i] * G_R[i])),
    ("path", SIGNED._replace(retain=None), lambda i: -TAU[i] * G_F[i]),
    ("magnitude", SIGNED, lambda i: abs(TAU[i])),
    ("magnitude", SIGNED._replace(delta=None), lambda i: abs(W[i])),
    ("random", SIGNED, lambda i: U[i]),
]


@pytest.mark.parametrize(("name", "known", "formula"), FORMULAS)
def test_scores_are_those_of_the_formula(name, known, formula):
    before = [None if one is None else np.copy(one) for one in known]
    found = method(name).score(known)
    assert found == pytest.approx(np.array([[formula((row, column)) for column in range(4)] for row in range(5)]))
    assert all(np.array_equal(one, copy) for one, copy in zip(known, before, strict=True) if one is not None), (
        "in place"
    )


def test_fisher_keeps_the_order_of_the_forget_set_where_the_retain_set_has_no_gradient():
    known = Statistics(
        forget=np.array([[1e-8, 2e-8, 0.0, 1e-8]], np.float32), retain=np.array([[0, 0, 0, 1e-12]], np.float32)
    )
    found = method("fisher").score(known)[0]
    assert np.isfinite(found).all() and found[1] > found[0] > found[3] > found[2] == 0


@pytest.mark.parametrize("name", NAMES)
def test_scores_of_float32_are_float32(name):
    known = Statistics(*(np.float32(one) if isinstance(one, float) else one.astype(np.float32) for one in SIGNED))
    assert method(name).score(known._replace(mu=0.02)).dtype == np.float32


def test_what_every_method_asks_for():
    asked = {name: (one.accumulate, one.retain, one.base) for name, one in ((name, method(name)) for name in NAMES)}
    everything = ("signed", "absolute", "squared")
    assert asked == {
        "memflex": (("signed",), True, False),
        "salun": (everything, False, False),
        "wagle": (("signed",), True, False),
        "fisher": (("squared",), True, False),
        "snip": (everything, False, False),
        "path": (("signed",), False, True),
        "magnitude": ((), False, False),
        "random": ((), False, False),
    }
    with pytest.raises(EditError, match="method 'gradcam' is unknown: choose one of memflex, salun"):
        method("gradcam")
