"""Laws of acceptance and of stopping, for any draft and any stop."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from self_speculation.generator_base import Output, StopRule
from self_speculation.sampling import accept, agreeing
from tests.conftest import END
from tests.fuzzing import FIXED

SIZES = {"k": st.integers(1, 5), "size": st.integers(2, 7), "seed": st.integers(0, 2**31)}


def probabilities(rows: int, size: int, draws: torch.Generator) -> torch.Tensor:
    """Return distributions, some of which exclude some tokens."""
    weights = torch.rand(rows, size, generator=draws) * (
        torch.rand(rows, size, generator=draws) < 0.7
    )
    weights[weights.sum(1) == 0] = 1
    return weights / weights.sum(1, keepdim=True)


@FIXED
@given(st.data(), st.integers(1, 6), st.integers(2, 5))
def test_greedily_the_longest_equal_prefix_is_accepted(data, k, size):
    tokens = st.integers(0, size - 1)
    drafted = data.draw(st.lists(tokens, min_size=k, max_size=k))
    verdict = data.draw(st.lists(tokens, min_size=k + 1, max_size=k + 1))
    equal = agreeing(drafted, verdict)
    assert drafted[:equal] == verdict[:equal]
    assert equal == k or drafted[equal] != verdict[equal]


@FIXED
@given(**SIZES)
def test_sampled_tokens_are_possible(k, size, seed):
    draws = torch.Generator().manual_seed(seed)
    p, q = probabilities(k + 1, size, draws), probabilities(k, size, draws)
    drafted = torch.multinomial(q, 1, generator=draws)[:, 0]
    accepted, token = accept(drafted, q, p, draws).tolist()
    assert 0 <= accepted <= k
    assert p[accepted, token] > 0
    assert all(p[place, drafted[place]] > 0 for place in range(accepted))


@FIXED
@given(**SIZES)
def test_drafts_from_the_verifiers_distribution_are_all_accepted(k, size, seed):
    draws = torch.Generator().manual_seed(seed)
    p = probabilities(k + 1, size, draws)
    drafted = torch.multinomial(p[:k], 1, generator=draws)[:, 0]
    assert accept(drafted, p[:k], p, draws)[0] == k


@FIXED
@given(**SIZES, place=st.integers(0, 4))
def test_a_draft_that_the_verifier_excludes_is_never_accepted(k, size, seed, place):
    draws = torch.Generator().manual_seed(seed)
    p, q = probabilities(k + 1, size, draws), probabilities(k, size, draws)
    drafted = torch.multinomial(q, 1, generator=draws)[:, 0]
    row = place % k
    p[row, drafted[row]] = 0
    p[row] = (
        p[row] / p[row].sum()
        if p[row].sum()
        else torch.ones(size).index_fill(0, drafted[row : row + 1], 0) / (size - 1)
    )
    accepted, token = accept(drafted, q, p, draws).tolist()
    assert accepted <= row
    assert (accepted, token) != (row, drafted[row])


WORDS = st.lists(st.text("abé\n", min_size=1, max_size=4), max_size=3).map(tuple)
# Bytes of whole letters and of parts of a letter, and the end token.
BYTES = "abc\né"
TOKENS = st.lists(st.integers(0, len(BYTES.encode())), min_size=1, max_size=24)


def grown(rule: StopRule, limit: int, rounds: list[list[int]]) -> Output:
    """Return an output that grew round by round up to its end."""
    output = Output([1], limit, rule)
    for round_ids in rounds:
        if output.stop_reason is None:
            output.extend(round_ids)
    return output


def test_an_output_stops_at_the_first_reason_however_it_grows(tokenizer):
    alphabet = [*tokenizer(BYTES)["input_ids"], END]

    @FIXED
    @given(st.data(), WORDS, TOKENS, st.integers(1, 24))
    def check(data, words, places, limit):
        ids = [alphabet[place] for place in places]
        rule = StopRule(tokenizer, {END}, words)
        alone = grown(rule, limit, [[token_id] for token_id in ids])
        cuts = sorted(data.draw(st.sets(st.integers(1, len(ids)))))
        rounds = [ids[start:end] for start, end in zip([0, *cuts], [*cuts, len(ids)], strict=True)]
        together = grown(rule, limit, rounds)
        assert (together.ids, together.stop_reason) == (alone.ids, alone.stop_reason)
        assert len(alone.ids) <= limit
        check_stop(alone, words, limit)
        if alone.stop_reason:
            text = rule.text(alone.ids, alone.stop_reason)
            assert not any(word in text for word in words)
            assert tokenizer.decode(alone.ids, skip_special_tokens=True).startswith(text)

    def check_stop(output, words, limit):
        """The last token is the first with a reason to stop, and that reason is the strongest."""
        for length in range(1, len(output.ids) + 1):
            ids = output.ids[:length]
            text = tokenizer.decode(ids, skip_special_tokens=True)
            reason = "length" if length == limit else None
            if any(word in text for word in words):
                reason = "stop_word"
            if ids[-1] == END:
                reason = "stop_token"
            assert reason == (output.stop_reason if length == len(output.ids) else None)

    check()
