"""Windows predict each token once; bytes are those of the tokens that are predicted."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arguments.measuring import MeasureArguments
from arguments.model import ModelArguments
from command_line.errors import UsageError
from models.checkpoint import find_checkpoint
from runs.passages import Passage, plain_text, reference_text, windows

SKIP = MeasureArguments(window=8, first_token="skip")


@given(st.integers(0, 60), st.integers(1, 12), st.data())
def test_windows_predict_every_token_but_the_first_once(count, window, data):
    stride = data.draw(st.integers(1, window))
    found, start, predicted = windows(list(range(count)), window, stride), 0, []
    for number, passage in enumerate(found):
        assert passage.ids[0] == start  # tokens are their own positions
        assert 1 <= passage.read <= window
        assert passage.predicted >= 1
        if number:
            assert passage.predicted <= stride
            assert passage.first == window - stride + 1
        predicted += passage.ids[passage.first :]
        start += stride
    assert predicted == list(range(1, count))


def test_windows_of_a_text_in_two_strides():
    ids = list(range(8))
    assert windows(ids, 4, 4) == [Passage([0, 1, 2, 3, 4], 1), Passage([4, 5, 6, 7], 1)]
    assert windows(ids, 4, 2) == [
        Passage([0, 1, 2, 3, 4], 1),
        Passage([2, 3, 4, 5, 6], 3),
        Passage([4, 5, 6, 7], 3),
    ]


def text_bytes(tokenizer, text, measure=SKIP):
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return plain_text(measure, tokenizer, text, ids).text_bytes


def test_skipping_the_first_token_skips_its_bytes(tokenizer):
    assert text_bytes(tokenizer, "abc") == 2
    assert text_bytes(tokenizer, "aß") == 2
    # The first of two bytes: what follows still writes this character.
    assert text_bytes(tokenizer, "ßab") == 4


def test_a_single_token_leaves_nothing_to_predict(tokenizer):
    assert plain_text(SKIP, tokenizer, "a", tokenizer("a")["input_ids"]) is None


@pytest.fixture
def named(checkpoint):
    return find_checkpoint(ModelArguments(str(checkpoint)))


def test_a_reference_follows_the_prompt_and_is_cut_at_the_positions(named, tokenizer):
    prompt = tokenizer("ab")["input_ids"]
    text = reference_text(named, "ab", prompt, "é!", prompt)
    assert text.passages == [Passage([*prompt, *tokenizer("é!")["input_ids"]], 2)]
    assert (text.text_bytes, text.is_cut) == (3, False)
    long = tokenizer("x" * 250)["input_ids"]
    cut = reference_text(named, "x" * 250, long, "y" * 20, long)
    (passage,) = cut.passages
    assert passage.read == 256 == named.config.max_position_embeddings
    assert (passage.predicted, cut.text_bytes, cut.is_cut) == (7, 7, True)


def test_an_empty_reference_has_nothing_to_predict(named, tokenizer):
    prompt = tokenizer("ab")["input_ids"]
    assert reference_text(named, "ab", prompt, "", prompt) is None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"window": 8, "stride": 9}, "--stride 9: must be at most --window 8"),
        ({"window": 1}, "--window 1: must be at least 2"),
        ({"stride": 0}, "--stride 0: must be at least 1"),
    ],
)
def test_impossible_windows_are_refused(flags, message):
    with pytest.raises(UsageError, match=message):
        MeasureArguments(**flags).check()
