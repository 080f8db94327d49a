"""Compiled steps of any drafter compute the same as others, with two programs more at most."""

import itertools

import pytest
import torch

from pruned_model import PruneModel
from pruning.plan import PrunePlan
from self_speculation import programs, row_kernels
from self_speculation.compiled_llama import CompiledLlama, CompiledRounds
from self_speculation.drafter import Drafting
from self_speculation.drafters import DRAFTERS
from self_speculation.generator_base import GenerationConfig
from self_speculation.llama_model_utils import CachedLlama
from self_speculation.sampling import SamplingRule
from self_speculation.text_generator import TextGenerator
from tests.conftest import LAYERS, random_prompt, row, same

CAPACITY = 96
PROMPT = random_prompt(40)
K = 3
DRAFTS = [(0, 1, 2), (0, 1, 3, 4, 5), (1, 2, 3, 4, 5), (0, 2, 4), (5,)]
MOST_SUMS = row_kernels._MOST_SUMS


@pytest.fixture(autouse=True)
def interpreted(request, small_buckets, monkeypatch):
    """Programs run their blocks by library kernels, without a compiler, except in slow tests."""
    if "slow" not in request.keywords:
        monkeypatch.setattr(row_kernels, "_MOST_SUMS", 0)
        monkeypatch.setattr(programs, "_programs", {})
        monkeypatch.setattr(programs, "_native", lambda block, *_: programs._Stateless(block))


def chosen(model, drafting):
    return tuple(model.model.layers[index] for index in drafting)


def speculator(model, tokenizer, drafting, k=K, compiled=True, **changes):
    config = GenerationConfig(
        **{"max_steps": 48, **changes}, num_speculations=k, draft_layers=chosen(model, drafting)
    )
    return TextGenerator(model, tokenizer, "self_speculative", config, CAPACITY, compiled)


@pytest.mark.parametrize(
    ("drafting", "changes"),
    [
        (DRAFTS[0], {}),
        (DRAFTS[1], {}),
        (DRAFTS[1], {"max_steps": 3}),
        (DRAFTS[2], {"sampling": SamplingRule(True, 0.8, 20, 0.95)}),
        (DRAFTS[3], {"sampling": SamplingRule(no_repeat_ngram_size=2)}),
        (DRAFTS[4], {}),
    ],
)
def test_outputs_equal_those_without_compilation(agreeable, tokenizer, drafting, changes):
    expected, found = (
        speculator(agreeable, tokenizer, drafting, compiled=compiled, **changes).generate(PROMPT)
        for compiled in (False, True)
    )
    assert found.output_ids == expected.output_ids
    assert (found.text, found.rounds) == (expected.text, expected.rounds)


DRAFTINGS = [
    (Drafting("lookup"), 5),
    (Drafting("lookup", adaptive=True, never_slower=True), 8),
    (Drafting("hybrid", "recycling", least_match=3, history=True), 5),
    (Drafting("hybrid", "early_exit", least_match=1, threshold=0.5), 6),
    (Drafting("hybrid", "early_exit", least_match=1), 1),
    (Drafting("hybrid", "pruned", least_match=1), 1),
    (Drafting("hybrid", "pruned", adaptive=True), 6),
    (Drafting("pruned", vocabulary=tuple(range(0, 258, 2)), never_slower=True), 4),
]


@pytest.mark.parametrize(("drafting", "k"), DRAFTINGS)
@pytest.mark.parametrize("sampling", [SamplingRule(), SamplingRule(True, 0.7, 20)])
def test_every_drafter_runs_compiled(agreeable, tokenizer, drafting, k, sampling, monkeypatch):
    """A round of any length has a program, with and without layers that draft."""
    layers = DRAFTERS[drafting.other or drafting.drafter].layers
    config = GenerationConfig(
        48,
        kept_exit_layer=2 if layers == "exit_layer" else None,
        num_speculations=k,
        sampling=sampling,
        draft_layers=chosen(agreeable, (0, 1, 3)) if layers == "plan" else None,
        drafting=drafting,
    )
    made = [
        TextGenerator(agreeable, tokenizer, "self_speculative", config, CAPACITY, compiled)
        for compiled in (True, False)
    ]
    passed, ordinary = [], CachedLlama._run

    def watched(engine, states, first, last, start):
        if first < last and type(engine) is CompiledLlama:
            passed.append((first, last, states.shape[1]))
        return ordinary(engine, states, first, last, start)

    monkeypatch.setattr(CachedLlama, "_run", watched)
    one, other = (decoder.generate(PROMPT, 3) for decoder in made)
    assert one.drafted_tokens
    # Except where a drafter's own layers catch up with more than a round.
    own = len(agreeable.model.layers)
    assert [rows for first, _, rows in passed if first < own or rows <= k + 2] == []
    if not (sampling.sample and layers and not drafting.differs):
        plain = GenerationConfig(48, sampling=sampling)
        alone = TextGenerator(agreeable, tokenizer, "autoregressive", plain, CAPACITY)
        assert alone.generate(PROMPT, 3).output_ids == one.output_ids == other.output_ids


def passes(engine, ids):
    engine.reset()
    yield engine.prefill(row(ids[:57]))
    for position in (57, 58, 59):
        yield engine.draft(row(ids[position : position + 1]))
    yield engine.verify(row(ids[60:61]), count=4)  # the drafter lacks the last token
    yield engine.draft(row(ids[61:62]))
    yield engine.draft(row(ids[62:63]))
    yield engine.verify(row(ids[63:64]), count=3)  # padded
    engine.rollback(62)
    yield engine.draft(row(ids[62:63]))
    yield engine.verify(row(ids[63:66]), count=3)  # the drafter lacks several
    yield engine.draft(row(ids[66:67]))
    yield engine.verify(row(ids[67:73]), count=6)  # more than was compiled for
    engine.rollback(70)
    yield engine.draft(row(ids[70:71]))
    engine.rollback(70)
    yield engine.forward(row(ids[70:71]))


def check_every_pass(model, drafting):
    layers = chosen(model, drafting)
    engines = [
        CachedLlama(model, CAPACITY, layers),
        CompiledLlama(model, CAPACITY, CompiledRounds(None, (K,)), layers),
    ]
    ids = random_prompt(90, seed=3)
    for logits in zip(*(list(passes(engine, ids)) for engine in engines), strict=True):
        same(*logits)


@pytest.mark.parametrize("drafting", DRAFTS)
@pytest.mark.parametrize("most_sums", [0, MOST_SUMS])
def test_every_pass_computes_what_the_plain_engine_does(model, drafting, most_sums, monkeypatch):
    monkeypatch.setattr(row_kernels, "_MOST_SUMS", most_sums)
    check_every_pass(model, drafting)


@pytest.mark.slow
def test_compiled_passes_compute_what_the_plain_engine_does(model):
    check_every_pass(model, (0, 1, 3, 5))


@pytest.mark.parametrize("drafting", DRAFTS)
def test_the_prompt_and_every_step_run_compiled(agreeable, tokenizer, drafting, monkeypatch):
    generator = speculator(agreeable, tokenizer, drafting)
    before = generator.engine.compilations
    passed = []
    for name in ("_run", "_logits"):
        ordinary = getattr(CachedLlama, name)

        def watched(engine, states, *others, ordinary=ordinary):
            if others[:2] != (0, 0):  # no layer is shared
                passed.append(states.shape[1])
            return ordinary(engine, states, *others)

        monkeypatch.setattr(CachedLlama, name, watched)
    made = generator.generate(PROMPT)
    generator.time_full_step(1)
    assert made.rounds
    assert passed == []
    assert generator.engine.compilations == before


def built(model, drafting=None, exit_layer=None, k=K):
    """Return how many programs and steps an engine makes, and the rows of layers' programs."""
    rows = []

    def native(block, inputs, _):
        if isinstance(block, row_kernels.LayerBlock):
            rows.append(inputs[0].shape[1])
        return programs._Stateless(block)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(programs, "_programs", {})
        patch.setattr(programs, "_native", native)
        layers = None if drafting is None else chosen(model, drafting)
        engine = CompiledLlama(model, CAPACITY, CompiledRounds(exit_layer, (k,)), layers)
        return engine.compilations, sorted(set(rows))


def test_a_drafter_needs_programs_of_two_rows_and_no_others(model):
    early, rows = built(model, exit_layer=2)
    assert rows == [1, K + 1]
    assert built(model, (0, 1)) == (early, rows)
    many, more_rows = built(model, (0, 1, 3, 4, 5))
    assert more_rows == [1, 2, K + 1]
    buckets, steps = 2, 3  # one or two tokens of the drafter's own layers; a step without a draft
    assert many == early + buckets * (1 + steps)
    assert built(model, (0, 2), k=1)[1] == [1, 2]


@torch.inference_mode()
def test_values_of_an_overflowed_draft_are_not_attended_to(model):
    layers = chosen(model, (0, 2, 4))
    engine = CompiledLlama(model, 60, CompiledRounds(None, (K,)), layers)
    (bucket,) = engine._buckets
    engine.prefill(row(PROMPT))
    for place in (2, 4):
        for buffer in engine._draft_cache.layer(place, bucket):
            buffer.fill_(torch.nan)
    engine.reset()
    plain = CachedLlama(model, CAPACITY, layers)
    for one in (engine, plain):
        one.prefill(row(PROMPT))
    same(engine.draft(row([5])), plain.draft(row([5])))


@pytest.mark.slow
def test_every_drafter_and_draft_length(agreeable, tokenizer):
    PruneModel(agreeable, PrunePlan("test", LAYERS, (0, 1, 3, 5))).prune()
    config = GenerationConfig(48)
    plain = TextGenerator(agreeable, tokenizer, "autoregressive", config, CAPACITY)
    expected = plain.generate(PROMPT).output_ids
    sizes = range(1, 4)
    drafters = [one for size in sizes for one in itertools.combinations(range(4), size)]
    for drafting, k in itertools.product(drafters, (1, 3, 6)):
        found = speculator(agreeable, tokenizer, drafting, k).generate(PROMPT)
        assert found.output_ids == expected, (drafting, k)
