import numpy as np
import pytest

from editkit.arithmetic.draws import key_of
from editkit.errors import EditError
from editkit.localization.labels import parse_labels, randomized
from editkit.training.encoding import IGNORED, Tokens

PROMPT, ANSWER = list(range(100, 110)), list(range(200, 240))
ROW = Tokens(PROMPT + ANSWER, [IGNORED] * len(PROMPT) + ANSWER)
VOCABULARY = 1000


def drawn(fraction, count, row=ROW):
    return [randomized(row, fraction, VOCABULARY, key_of(0, f"{index}")) for index in range(count)]


def test_the_share_of_replaced_tokens_is_the_one_asked_for():
    """Of 400 x 40 draws with p = 0.4, the standard deviation of the share is 0.0039; 1 in 1000 draws the same token again."""
    found = np.mean([[new != old for new, old in zip(one.ids[10:], ANSWER, strict=True)] for one in drawn(0.4, 400)])
    assert found == pytest.approx(0.4 * 0.999, abs=4 * 0.0039)


def test_only_the_answer_changes_and_labels_are_the_new_tokens():
    for one in drawn(1.0, 20):
        assert one.ids[:10] == PROMPT and one.labels[:10] == [IGNORED] * 10 and one.ids[10:] == one.labels[10:]
    assert ROW.ids == PROMPT + ANSWER, "the example itself changed"


def test_replacements_are_uniform_over_the_vocabulary():
    tokens = np.array([one.ids[10:] for one in drawn(1.0, 400)]).reshape(-1)
    assert tokens.min() >= 0 and tokens.max() < VOCABULARY
    counts = np.histogram(tokens, 20, (0, VOCABULARY))[0]
    assert ((counts - 800) ** 2 / 800).sum() < 43.8  # chi-squared of 19 degrees, one in a thousand


def test_at_least_one_token_is_replaced():
    short = Tokens([1, 2, 7], [IGNORED, IGNORED, 7])
    assert all(one.ids != short.ids for one in drawn(0.01, 50, short))


def test_tokens_outside_of_the_loss_stay_also_between_answers():
    row = Tokens([1, 2, 3, 4, 5], [IGNORED, 2, IGNORED, 4, IGNORED])
    for one in drawn(1.0, 10, row):
        assert one.ids[::2] == [1, 3, 5] and one.labels[::2] == [IGNORED] * 3 and one.ids[1::2] == one.labels[1::2]


def test_the_same_key_draws_the_same():
    assert drawn(0.4, 5) == drawn(0.4, 5) and len({tuple(one.ids) for one in drawn(0.4, 5)}) == 5


@pytest.mark.parametrize(("said", "share"), [("true", None), ("random:0.4", 0.4), ("random:1", 1.0)])
def test_labels_are_true_or_a_random_share(said, share):
    assert parse_labels(said) == share


@pytest.mark.parametrize(
    "said", ["random", "random:", "random:0", "random:1.5", "random:-1", "random:nan", "false:0.4", "True", ""]
)
def test_other_labels_are_refused(said):
    with pytest.raises(EditError, match="say true, or random:SHARE"):
        parse_labels(said)
