"""Any layers draft for any model: outputs stay the model's, and shared layers run once."""

import copy
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaForCausalLM

from pruned_model import PruneModel
from pruning.plan import PrunePlan
from self_speculation.draft_layers import Backlog, count_shared
from self_speculation.generator_base import GenerationConfig, Streamer
from self_speculation.llama_model_utils import CachedLlama
from self_speculation.sampling import SamplingRule
from self_speculation.text_generator import TextGenerator
from tests.conftest import LAYERS, random_prompt, row, tiny_config
from tests.fuzzing import FIXED
from tests.self_speculation.conftest import is_freed_at_once

CAPACITY = 96
PROMPT = random_prompt(20)
WHOLE = tuple(range(LAYERS))
# Indices of the verifier's layers that draft.
DRAFTS = {
    "leading only": (0, 1, 2),
    "all but one": (0, 1, 3, 4, 5),
    "without the first": (1, 2, 3, 4, 5),
    "alternating": (0, 2, 4),
    "only the last": (5,),
}


def faint(model, index):
    """Make a layer nearly idle."""
    layer = model.model.layers[index]
    layer.self_attn.o_proj.weight *= 1e-4
    layer.mlp.down_proj.weight *= 1e-4


def chosen(model, drafting):
    return tuple(model.model.layers[index] for index in drafting)


def generator_of(model, tokenizer, layers, k=4, **changes):
    config = GenerationConfig(
        **{"max_steps": 32, **changes}, num_speculations=k, draft_layers=layers
    )
    return TextGenerator(model, tokenizer, "self_speculative", config, CAPACITY)


def plain(model, tokenizer, prompt=PROMPT, **changes):
    config = GenerationConfig(**{"max_steps": 32, **changes})
    return TextGenerator(model, tokenizer, "autoregressive", config, CAPACITY).generate(prompt)


def without(model, drafting):
    """Return a plain model of some of the layers, for transformers' own passes."""
    smaller = copy.deepcopy(model)
    PruneModel(smaller, PrunePlan("test", len(model.model.layers), drafting)).prune()
    return smaller


@pytest.mark.parametrize("kind", ["model", "agreeable"])
@pytest.mark.parametrize("kept", [WHOLE, (0, 1, 4, 5), (1, 2, 5)])
def test_outputs_equal_autoregressive_ones(kind, kept, request, tokenizer):
    model = request.getfixturevalue(kind)
    PruneModel(model, PrunePlan("test", LAYERS, kept)).prune()
    expected = plain(model, tokenizer)
    accepted = 0
    for name, drafting in DRAFTS.items():
        present = [layer for layer in drafting if layer < len(kept)]
        for k in (1, 4):
            found = generator_of(model, tokenizer, chosen(model, present), k).generate(PROMPT)
            assert found.output_ids == expected.output_ids, (name, k)
            assert (found.text, found.stop_reason) == (expected.text, expected.stop_reason)
            accepted += found.accepted_tokens
    if kind == "agreeable":
        assert accepted > 0


@pytest.mark.parametrize("k", [1, 4])
def test_leading_layers_draft_as_an_early_exit(agreeable, tokenizer, k):
    config = GenerationConfig(32, 3, k)
    early = TextGenerator(agreeable, tokenizer, "self_speculative", config, CAPACITY)
    same = generator_of(agreeable, tokenizer, chosen(agreeable, (0, 1, 2)), k)
    one, other = early.generate(PROMPT), same.generate(PROMPT)
    assert (one.output_ids, one.rounds) == (other.output_ids, other.rounds)
    assert one.accepted_tokens > 0
    assert not same.engine._draft_cache._buffers


class Passes:
    """Records the sequence and the logits of every draft pass."""

    def __init__(self, generator, monkeypatch):
        self.drafts = []
        strategy, engine = generator.strategy, generator.engine
        ordinary_round, ordinary_draft = strategy.round, engine.draft

        def round_of(output):
            self._tokens = output.tokens[:-1]
            return ordinary_round(output)

        def draft(ids_1T):
            self._tokens = self._tokens + ids_1T[0].tolist()
            logits_1V = ordinary_draft(ids_1T)
            self.drafts.append((self._tokens, logits_1V))
            return logits_1V

        monkeypatch.setattr(strategy, "round", round_of)
        monkeypatch.setattr(engine, "draft", draft)


@pytest.mark.parametrize("drafting", DRAFTS.values(), ids=DRAFTS)
def test_drafts_are_those_of_a_model_of_these_layers(agreeable, tokenizer, drafting, monkeypatch):
    """They would differ if the drafter missed a token or saw one twice or out of place."""
    smaller = without(agreeable, drafting)
    generator = generator_of(agreeable, tokenizer, chosen(agreeable, drafting))
    generator.generate(random_prompt(30, seed=4))  # leaves nothing behind
    passes = Passes(generator, monkeypatch)
    made = generator.generate(PROMPT)
    assert len(passes.drafts) == made.drafted_tokens > 8
    for tokens, logits_1V in passes.drafts:
        expected_1V = smaller(input_ids=row(tokens), use_cache=False).logits[0, -1:]
        torch.testing.assert_close(logits_1V, expected_1V, rtol=0, atol=1e-10)
    if len(drafting) == LAYERS - 1 and 0 in drafting:
        # Both ends of a round occurred: all drafts accepted, and some rejected.
        assert {drafted == accepted for drafted, accepted in made.rounds} == {True, False}


@pytest.mark.parametrize("drafting", [(0, 1, 3, 4, 5), (0, 2, 4), (1, 2)])
def test_shared_layers_run_once_per_token(agreeable, tokenizer, drafting):
    """The drafter's own layers run once for its tokens and once for the verifier's."""
    seen = Counter()
    for index, layer in enumerate(agreeable.model.layers):

        def count(_, inputs, index=index):
            seen[index] += inputs[0].shape[1]

        layer.register_forward_pre_hook(count)
    layers = chosen(agreeable, drafting)
    made = generator_of(agreeable, tokenizer, layers).generate(PROMPT)
    full = made.steps["full"].calls if "full" in made.steps else 0
    verified = len(PROMPT) + full + sum(drafted + 1 for drafted, _ in made.rounds)
    whole = sum(drafted == accepted for drafted, accepted in made.rounds[:-1])
    drafted = len(PROMPT) + made.drafted_tokens + whole
    shared = count_shared(list(agreeable.model.layers), layers)
    own = {index for index in drafting if index >= shared}
    assert seen == {i: verified + (drafted if i in own else 0) for i in range(LAYERS)}
    assert own


def test_drafts_without_a_nearly_idle_layer_are_almost_always_accepted(model, tokenizer):
    faint(model, 3)
    drafting = tuple(layer for layer in WHOLE if layer != 3)
    made = generator_of(model, tokenizer, chosen(model, drafting), max_steps=64).generate(PROMPT)
    assert made.output_ids == plain(model, tokenizer, max_steps=64).output_ids
    assert made.accepted_tokens / made.drafted_tokens > 0.95


def test_drafts_by_random_weights_are_almost_never_accepted(model, tokenizer):
    torch.manual_seed(7)
    other = LlamaForCausalLM(tiny_config(num_hidden_layers=3)).double().eval()
    layers = tuple(other.model.layers)
    made = generator_of(model, tokenizer, layers, max_steps=64).generate(PROMPT)
    assert made.output_ids == plain(model, tokenizer, max_steps=64).output_ids
    assert made.accepted_tokens / made.drafted_tokens < 0.1


@pytest.mark.parametrize(
    "changes",
    [
        {"sampling": SamplingRule(no_repeat_ngram_size=2)},
        {"max_steps": 1},
        {"max_steps": 2},
        {"max_steps": 6},
    ],
)
def test_rules_and_ends_hold_for_any_drafter(agreeable, tokenizer, changes):
    expected = plain(agreeable, tokenizer, **changes)
    for drafting in DRAFTS.values():
        layers = chosen(agreeable, drafting)
        found = generator_of(agreeable, tokenizer, layers, **changes).generate(PROMPT)
        assert (found.output_ids, found.stop_reason) == (expected.output_ids, "length")


def test_stops_end_outputs_of_any_drafter(agreeable, tokenizer):
    free = plain(agreeable, tokenizer)
    word = free.text[len(free.text) // 2 :][:2]
    layers = chosen(agreeable, DRAFTS["all but one"])
    first, later = free.output_ids[0], free.output_ids[9]
    for changes in ({"stop_words": (word,)}, *({"stop_token_ids": (i,)} for i in (first, later))):
        expected = plain(agreeable, tokenizer, **changes)
        found = generator_of(agreeable, tokenizer, layers, **changes).generate(PROMPT)
        assert (found.output_ids, found.text) == (expected.output_ids, expected.text)
        assert found.stop_reason == expected.stop_reason != "length"


def test_no_output_exceeds_the_capacity(agreeable, tokenizer):
    prompt = random_prompt(CAPACITY - 3)
    layers = chosen(agreeable, DRAFTS["without the first"])
    found = generator_of(agreeable, tokenizer, layers, k=6).generate(prompt)
    assert found.output_ids == plain(agreeable, tokenizer, prompt).output_ids
    assert len(found.output_ids) == 4


class Shown(Streamer):
    """Keeps what a streamer receives."""

    shows_drafts = True

    def __init__(self):
        self.drafts, self.outputs = [], []

    def draft(self, output_ids):
        self.drafts.append(list(output_ids))

    def show(self, output_ids):
        self.outputs.append(list(output_ids))


def test_streamers_see_every_draft_and_the_output(agreeable, tokenizer):
    shown = Shown()
    generator = generator_of(agreeable, tokenizer, chosen(agreeable, DRAFTS["alternating"]))
    made = generator.generate(PROMPT, streamer=shown)
    assert len(shown.drafts) == len(made.rounds)
    assert shown.outputs[-1] == made.output_ids


def test_one_generator_decodes_prompts_in_any_order(agreeable, tokenizer):
    layers = chosen(agreeable, DRAFTS["all but one"])
    generator = generator_of(agreeable, tokenizer, layers)
    prompts = [random_prompt(length, seed=length) for length in (1, 33, 7)]
    found = []
    for prompt in [*prompts, *reversed(prompts)]:
        found.append(generator.generate(prompt))
        if found[-1].rounds:
            generator.time_full_step(prompt[-1])
    for prompt, one, other in zip(prompts, found[:3], reversed(found[3:]), strict=True):
        assert one.output_ids == plain(agreeable, tokenizer, prompt).output_ids
        assert (one.output_ids, one.rounds) == (other.output_ids, other.rounds)


def test_a_full_step_spares_the_drafter_which_then_refuses_to_draft(model):
    """Full steps are the yardstick of speed, so that they must do nothing else."""
    seen = []
    for layer in model.model.layers:
        layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[1]))
    engine = CachedLlama(model, 32, chosen(model, (0, 2)))
    engine.prefill(row(PROMPT))
    seen.clear()
    engine.forward(row([1]))
    assert seen == [1] * LAYERS
    with pytest.raises(AssertionError, match="tokens 20 to 21 are missing"):
        engine.draft(row([2]))


def test_prefill_and_forward_agree_without_draft_layers(model):
    one, other = CachedLlama(model, 32), CachedLlama(model, 32)
    assert torch.equal(one.prefill(row(PROMPT)), other.forward(row(PROMPT)))
    assert one.length == other.length == len(PROMPT)


def test_two_layers_of_one_place_in_the_cache_are_refused(model):
    other = copy.deepcopy(model)
    with pytest.raises(AssertionError, match="one place in a cache"):
        CachedLlama(model, 32, (other.model.layers[1], model.model.layers[1]))


def test_caches_are_allocated_once_and_only_for_layers_that_need_them(agreeable, tokenizer):
    generator = generator_of(agreeable, tokenizer, chosen(agreeable, (0, 1, 3, 5)))
    engine = generator.engine

    def buffers():
        caches = {"model": engine._cache, "draft": engine._draft_cache}
        return {
            name: {layer: keys.data_ptr() for layer, (keys, _) in cache._buffers.items()}
            for name, cache in caches.items()
        }

    generator.generate(PROMPT)
    before = buffers()
    assert before["model"].keys() == set(WHOLE)
    assert before["draft"].keys() == {3, 5}
    generator.generate(random_prompt(40))
    assert buffers() == before


def test_an_engine_with_a_drafter_is_freed_without_garbage_collection(model):
    assert is_freed_at_once(lambda: CachedLlama(model, 32, chosen(model, (0, 2))))


def test_a_drafter_is_not_a_part_of_plain_decoding(model, tokenizer):
    config = GenerationConfig(8, draft_layers=chosen(model, (1,)))
    generator = TextGenerator(model, tokenizer, "autoregressive", config, CAPACITY)
    found = generator.generate(PROMPT).output_ids
    assert found == plain(model, tokenizer, max_steps=8).output_ids
    assert not generator.engine._draft_cache._buffers


@FIXED
@given(st.data())
def test_a_backlog_holds_exactly_the_tokens_that_were_not_seen(data):
    """A model of it: the list of all positions, of which a part was seen."""
    backlog, tokens, seen, taken = Backlog(), [], 0, []
    for _ in range(data.draw(st.integers(1, 12))):
        action = data.draw(st.sampled_from(["add", "take", "cut"]))
        if action == "add":
            start = data.draw(st.integers(0, len(tokens)))
            known = tokens[start:]
            new = data.draw(st.lists(st.integers(0, 99), max_size=4))
            backlog.add(torch.tensor([known + new]).view(1, -1, 1), start)
            tokens += new
        elif action == "take" and len(tokens) > seen:
            taken = tokens[seen:]
            assert backlog.take().flatten().tolist() == taken
            seen = len(tokens)
        elif action == "cut":
            tokens = tokens[: data.draw(st.integers(0, len(tokens)))]
            seen = min(seen, len(tokens))
            backlog.cut(len(tokens))
        assert (backlog.seen, backlog.length) == (seen, len(tokens))


def test_any_layers_draft_without_changing_the_output(agreeable, tokenizer):
    torch.manual_seed(3)
    other = LlamaForCausalLM(tiny_config()).double().eval()
    expected = {}

    @FIXED
    @given(
        st.sets(st.integers(0, LAYERS - 1)),
        st.sets(st.integers(0, LAYERS - 1), max_size=2),
        st.integers(1, 7),
        st.integers(1, 8),
        st.integers(1, 9),
    )
    def check(own, foreign, k, steps, length):
        prompt = random_prompt(length, seed=length)
        layers = [
            (other if index in foreign else agreeable).model.layers[index]
            for index in sorted(own | foreign)
        ]
        found = generator_of(agreeable, tokenizer, tuple(layers), k, max_steps=steps)
        if length not in expected:
            expected[length] = plain(agreeable, tokenizer, prompt, max_steps=8).output_ids
        assert found.generate(prompt).output_ids == expected[length][:steps]

    check()
