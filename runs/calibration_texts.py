"""The texts that plans are measured on: prompts, or prompts with the model's own continuations."""

from collections.abc import Callable, Collection
from functools import partial

import torch
from torch import Tensor

from arguments.pruning import CalibrationArguments
from command_line.errors import reject
from models.loading import LoadedModel
from processes.ranks import ALONE, Ranks
from pruning.measurements import Measurements
from self_speculation.batched_generator import BatchedTextGenerator
from self_speculation.batched_llama import takes_batches
from self_speculation.generator_base import GenerationConfig
from self_speculation.llama_model_utils import position_limit
from self_speculation.text_generator import TextGenerator

_DEFAULT_STEPS = 128
_BATCH_SIZE = 8


def measurements(
    flags: CalibrationArguments,
    loaded: LoadedModel,
    calibration_ids: list[list[int]] | None,
    ranks: Ranks = ALONE,
    needed: Collection[str] = (),
) -> Measurements:
    """Return what criteria measure of the loaded model, which must be whole when they ask.

    `needed` names the criteria that will. Long prompts calibrate with their tail; `generated` texts
    leave room for the continuation. Raises `UsageError` for continuations that leave no room.
    """
    limit, generated = position_limit(loaded.config), flags.calibration_text == "generated"
    steps = (flags.calibration_steps or _DEFAULT_STEPS) if generated else 0
    if steps >= limit:
        reject("calibration_steps", steps, f"must be below the model's {limit} positions")

    def prompts() -> list[Tensor]:
        return [torch.tensor([ids[-(limit - steps) :]]) for ids in calibration_ids or []]

    continued = partial(_continued, loaded, steps, ranks) if generated else None
    return Measurements(loaded.model, prompts, ranks, needed, continued)


def _continued(
    loaded: LoadedModel, steps: int, ranks: Ranks, prompts: list[Tensor]
) -> list[Tensor]:
    """Return prompts with the model's greedy continuations, in the order of the prompts.

    A continuation has up to `steps` tokens, and ends with the model's end token if it comes. Each
    process continues its share of the batches, which do not depend on the number of processes.
    """
    ids = [prompt[0].tolist() for prompt in prompts]
    order = sorted(range(len(ids)), key=lambda index: -len(ids[index]))
    batches = [order[first : first + _BATCH_SIZE] for first in range(0, len(order), _BATCH_SIZE)]
    generate = _generator(loaded, steps, max(map(len, ids)) + steps)
    share = [generate([ids[index] for index in batch]) for batch in ranks.share(batches)]
    texts = [text for batch in ranks.in_order(ranks.exchange(share)) for text in batch]
    found = dict(zip(order, texts, strict=True))
    return [torch.tensor([found[index]]) for index in range(len(ids))]


def _generator(
    loaded: LoadedModel, steps: int, capacity: int
) -> Callable[[list[list[int]]], list[list[int]]]:
    """Return a function that continues the prompts of a batch.

    Steps are not compiled: that would take longer than so few tokens.
    """
    model, tokenizer, config = loaded.model, loaded.tokenizer, GenerationConfig(max_steps=steps)
    if takes_batches(model):
        many = BatchedTextGenerator(model, tokenizer, config, capacity, _BATCH_SIZE)

        def together(prompts: list[list[int]]) -> list[list[int]]:
            made = many.generate(prompts)
            return [ids + one.output_ids for ids, one in zip(prompts, made, strict=True)]

        return together
    single = TextGenerator(model, tokenizer, "autoregressive", config, capacity)
    return lambda prompts: [ids + single.generate(ids).output_ids for ids in prompts]
