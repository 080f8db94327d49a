"""The stop rule: the end of an output, and its text before the stop."""

import pytest

from self_speculation.generator_base import Output, StopRule
from tests.conftest import END


def stop_rule(tokenizer, *words, ids=(END,)):
    return StopRule(tokenizer, set(ids), words)


def fed(tokenizer, rule, text, limit=200):
    output = Output([1], limit, rule)
    output.extend(tokenizer(text)["input_ids"])
    return output


@pytest.mark.parametrize(
    ("words", "text", "kept"),
    [
        (("END",), "one ENDtwo", "one "),
        (("\n\n",), "a\n\nb", "a"),
        (("é",), "caféé", "caf"),
        (("日本",), "in 日本 now", "in "),
        (("bcd", "cd"), "abcd", "a"),
        (("cd", "bcd"), "abcd", "a"),
        (("xyz",), "abc" * 40 + "xyz!", "abc" * 40),
    ],
)
def test_stop_words_of_several_tokens_fire(tokenizer, words, text, kept):
    rule = stop_rule(tokenizer, *words)
    output = fed(tokenizer, rule, text)
    assert output.stop_reason == "stop_word"
    assert rule.text(output.ids, output.stop_reason) == kept
    # The ids end with the token that completed the stop word.
    ended = tokenizer.decode(output.ids)
    assert any(ended.endswith(word) for word in words)
    assert not any(word in tokenizer.decode(output.ids[:-1]) for word in words)


def test_stop_words_see_the_output_alone(tokenizer):
    prompt = tokenizer("xyz")["input_ids"]
    output = Output(prompt[:2], 9, stop_rule(tokenizer, "xyz"))
    output.extend(prompt[2:])
    assert output.stop_reason is None


def test_a_stop_token_ends_the_output_and_leaves_no_text(tokenizer):
    rule = stop_rule(tokenizer, ids=(END, ord("!")))
    output = Output([1], 9, rule)
    output.extend([*tokenizer("hi")["input_ids"], END, 5])
    assert (output.ids[-1], output.stop_reason) == (END, "stop_token")
    assert rule.text(output.ids, "stop_token") == "hi"


class SpacelessAlone:
    """Decodes as Llama 2's tokenizer: the first token loses its leading space."""

    pieces = ("▁yes", "▁or", "▁no", ".")
    decoded = 0

    def decode(self, ids, **_):
        self.decoded += 1
        return "".join(self.pieces[token_id] for token_id in ids).replace("▁", " ").lstrip(" ")

    def convert_ids_to_tokens(self, token_id):
        return self.pieces[token_id]


@pytest.mark.parametrize(("word", "kept"), [("or ", "yes "), ("or", "yes "), (" or", "yes")])
def test_a_stop_word_may_end_in_the_space_before_a_word(word, kept):
    rule = StopRule(SpacelessAlone(), set(), (word,))
    output = Output([1], 9, rule)
    output.extend([0, 1, 2, 3])
    assert rule.text(output.ids, output.stop_reason) == kept


def test_tokens_that_cannot_end_a_stop_word_are_decoded_once():
    tokenizer = SpacelessAlone()
    rule = StopRule(tokenizer, set(), ("!",))
    Output([1], 200, rule).extend([0, 1, 2, 3] * 40)
    assert tokenizer.decoded == 4
