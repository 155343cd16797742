import pytest

from editkit.errors import EditError
from editkit.localization.settings import resolve


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ({"method": "memflex", "retain": True}, ("element", "5%", "signed", "random:0.4", 3, None)),
        ({"method": "memflex", "retain": True, "labels": "true"}, ("element", "5%", "signed", "true", 1, None)),
        ({"method": "memflex", "retain": True, "draws": 7}, ("element", "5%", "signed", "random:0.4", 7, None)),
        ({"method": "salun", "labels": "random:0.2"}, ("element", "5%", "signed", "random:0.2", 1, None)),
        ({"method": "salun", "budget": 4, "granularity": "row"}, ("row", "4", "signed", "true", 1, None)),
        ({"method": "wagle", "retain": True}, ("element", "5%", "signed", "true", 1, 1e-6)),
        ({"method": "wagle", "retain": True, "mu": 0.5}, ("element", "5%", "signed", "true", 1, 0.5)),
        ({"method": "fisher", "retain": True}, ("element", "5%", "squared", "true", 1, None)),
        ({"method": "path", "base": True}, ("element", "5%", "signed", "true", 1, None)),
        ({"method": "random", "forget": False}, ("element", "5%", None, "true", 1, None)),
        ({"method": "magnitude", "base": True, "forget": False}, ("element", "5%", None, "true", 1, None)),
        (
            {"method": "memflex", "retain": True, "mu": 0.92, "sigma": 6e-4},
            ("tensor", None, "signed", "random:0.4", 3, 0.92),
        ),
    ],
)
def test_what_was_not_said_is_the_method_s_default(asked, found):
    described = resolve(**asked).described()
    keys = ("granularity", "budget", "accumulate", "labels", "draws", "mu")
    assert tuple(described[key] for key in keys) == found


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"method": "memflex"}, "memflex compares with examples to keep, give --retain"),
        ({"method": "salun", "forget": False}, "salun needs examples to forget (--forget)"),
        ({"method": "path"}, "path follows the way from a base checkpoint, give --base"),
        ({"method": "salun", "base": True}, "salun does not look at a base checkpoint, leave --base out"),
        ({"method": "random", "base": True, "forget": False}, "random does not look at a base checkpoint"),
        ({"method": "fisher", "retain": True, "accumulate": "signed"}, "fisher takes squared gradients, not signed ones"),
        ({"method": "random", "accumulate": "signed"}, "random takes no gradients, not signed ones"),
        ({"method": "memflex", "retain": True, "sigma": 1e-3}, "--sigma goes with --mu and --method memflex"),
        ({"method": "salun", "mu": 0.9, "sigma": 1e-3}, "--sigma goes with --mu and --method memflex"),
        ({"method": "memflex", "retain": True, "mu": 0.9}, "--mu goes with --method wagle, or with --sigma"),
        ({"method": "memflex", "retain": True, "mu": 0.9, "sigma": 1e-3, "budget": "5%"}, "leave the budget out"),
        ({"method": "memflex", "retain": True, "mu": 0.9, "sigma": 1e-3, "per_layer_budget": True}, "leave the budget out"),
        ({"method": "memflex", "retain": True, "mu": 0.9, "sigma": 1e-3, "granularity": "element"}, "single elements have no cosine"),
        ({"method": "memflex", "retain": True, "mu": float("nan"), "sigma": 1e-3}, "mu is nan, must be a finite number"),
        ({"method": "wagle", "retain": True, "mu": 0.0}, "mu is 0.0, must be above 0"),
        ({"method": "salun", "draws": 3}, "several draws of true labels are the same"),
        ({"method": "salun", "labels": "random:0.4", "draws": 0}, "draws is 0, must be at least 1"),
        ({"method": "salun", "batch_size": 0}, "batch_size is 0, must be at least 1"),
        ({"method": "salun", "max_examples": -1}, "max_examples is -1, must be at least 1"),
        ({"method": "salun", "seed": -1}, "seed is -1"),
        ({"method": "salun", "granularity": "column"}, "granularity 'column' is none of tensor, row, head, element"),
        ({"method": "salun", "labels": "random"}, "labels 'random' are unknown"),
        ({"method": "salun", "budget": "none"}, "budget 'none' is neither"),
        ({"method": "gradcam"}, "method 'gradcam' is unknown"),
    ],
)  # fmt: skip
def test_settings_that_do_not_go_together_are_refused(asked, message):
    with pytest.raises(EditError) as caught:
        resolve(**asked)
    assert message in str(caught.value)


def test_everything_wrong_is_said_at_once():
    with pytest.raises(EditError) as caught:
        resolve(method="memflex", forget=False, batch_size=0, seed=2**32, granularity="cell")
    parts = ("--forget", "--retain", "batch_size is 0", "seed is 4294967296", "granularity 'cell'")
    assert all(part in str(caught.value) for part in parts)
