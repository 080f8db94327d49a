"""Loads a model, prunes it and makes its decoder, as the flags say. All scripts use it."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from arguments.drafting import (
    EARLY_EXIT,
    DraftArguments,
    calibrating,
    check_drafts,
    check_together,
    errors_of_drafter,
)
from arguments.generation import GenerationArguments
from arguments.model import ModelArguments
from arguments.prompts import PromptArguments
from arguments.pruning import PruneArguments
from command_line.errors import FailedError, UsageError, reject
from data import Selection, get_calibration_alone
from files.error_lines import compiler_error_line
from files.hashes import tokens_hash
from models.checkpoint import Checkpoint, find_checkpoint
from models.loading import LoadedModel, load_model
from models.quantised import check_can_be_saved
from models.runtime import Runtime, start
from processes.ranks import Ranks
from pruned_model import (
    PruneModel,
    count_parameters,
    draft_bytes_ratio,
    is_saved,
    make_plan,
    weight_bytes,
)
from pruning.measurements import Measurements
from pruning.patch import Patch, check_foldable, fit_patch, texts_fingerprint
from pruning.plan import PrunePlan, drafting_plan
from runs.calibration_texts import measurements
from runs.prompt_encoding import check_chat_template, encode, encode_all, fitted, longest_prompt
from self_speculation.batched_generator import BatchedTextGenerator
from self_speculation.batched_llama import BATCHED_ATTENTION, takes_batches
from self_speculation.draft_layers import rows_are_readable
from self_speculation.drafter import Drafting
from self_speculation.generator_base import Generation, GenerationConfig, Streamer
from self_speculation.llama_model_utils import position_limit
from self_speculation.model_protocol import ModelConfig
from self_speculation.offloading import layer_places
from self_speculation.programs import CompileError
from self_speculation.sampling import SamplingRule
from self_speculation.text_generator import TextGenerator

_LEAST_ROOM = 256  # tokens of a prompt
# The model's plan, and that of a pruned drafter.
Plans = tuple[PrunePlan, PrunePlan | None]


def decide_plans(
    pruning: PruneArguments, drafting: PruneArguments | None, measured: Measurements
) -> Plans:
    """Return the plan of the model, and of the drafter if `drafting` asks for another."""
    plan = make_plan(pruning, measured)
    if drafting is None:
        return plan, None
    with errors_of_drafter():
        return plan, make_plan(drafting, measured)


def fit_as_planned(measured: Measurements, plan: PrunePlan) -> Patch | None:
    """Return the patch of a plan, fitted to the texts that plans are measured on."""
    if plan.patch is None:
        return None
    if plan.patch_texts != texts_fingerprint(measured.prompts):
        allowed = "was begun with a patch of other calibration texts; use another --output_dir"
        raise UsageError(f"--prune_patch {plan.patch}: {plan.approach} {allowed}")
    return fit_patch(measured.model, plan.kept_layers, plan.patch, measured.prompts, measured.ranks)


def prune(
    pruning: PruneArguments,
    generation: GenerationArguments,
    loaded: LoadedModel,
    plans: Plans,
    fit: Callable[[PrunePlan], Patch | None] = lambda _: None,
    releases: bool = True,
) -> PruneModel:
    """Remove the layers, after checking that the drafter and `--save_pruned` fit the plan.

    `fit` returns a plan's patch. `releases`: free the memory of removed layers at once.
    """
    plan, draft_plan = plans
    plan.kept_exit_layer(generation.exit_layer)  # raises if no layer would draft, or none verify
    drafting = draft_plan and drafting_plan(plan, draft_plan)  # raises likewise
    if drafting:
        with errors_of_drafter():
            check_foldable(drafting)
    if pruning.save_pruned:
        is_saved(pruning.save_pruned, plan, loaded.fingerprint)  # raises for another model's folder
    draft_patch = fit(drafting) if drafting else None
    pruned = PruneModel(loaded.model, plan, fit(plan))
    pruned.prune(releases=False)
    pruned.draft_with(draft_plan, draft_patch)
    if releases:
        pruned.release()
    return pruned


def report(pruned: PruneModel) -> str:
    """Return a line about the removed layers, and another if a plan decides which layers draft."""
    lines = [pruned.report()]
    if pruned.draft_plan:
        lines.append(pruned.draft_report())
    return "\n".join(lines)


def save_as_asked(
    pruning: PruneArguments, loaded: LoadedModel, pruned: PruneModel, ranks: Ranks
) -> None:
    """Obey `--save_pruned` in the leading process, unless an earlier start has saved the model."""
    folder = pruning.save_pruned
    if folder and ranks.leads and not is_saved(folder, pruned.plan, loaded.fingerprint):
        pruned.save(loaded.tokenizer, folder, loaded.fingerprint)


def positions_for(config: ModelConfig, flags: GenerationArguments, prompt_tokens: int) -> int:
    """Return the positions that a cache needs for a prompt of this length and its output."""
    return min(prompt_tokens + flags.max_steps, position_limit(config))


def make_generator(
    flags: GenerationArguments,
    draft: DraftArguments,
    loaded: LoadedModel,
    pruned: PruneModel,
    stop_words: tuple[str, ...],
    prompt_tokens: int,
) -> TextGenerator:
    """Return the flags' decoder; its cache has room for a prompt of this length and its output."""
    config = _decoding(flags, loaded, pruned.plan, stop_words)
    if flags.speculates:
        layers = pruned.draft_layers if draft.runs_plan else None
        drafting = _drafting(draft, pruned)
        config = dataclasses.replace(config, draft_layers=layers, drafting=drafting)
    capacity = positions_for(loaded.config, flags, prompt_tokens)
    strategy = flags.generation_strategy
    with _compile_failures():
        return TextGenerator(
            loaded.model, loaded.tokenizer, strategy, config, capacity, loaded.compiled
        )


def _drafting(draft: DraftArguments, pruned: PruneModel) -> Drafting:
    return Drafting(
        drafter=draft.drafter,
        other=draft.hybrid_drafter,
        least_match=draft.least_match,
        history=draft.lookup_history,
        vocabulary=pruned.draft_vocabulary,
        threshold=draft.draft_threshold,
        adaptive=draft.draft_stop == "adaptive",
        never_slower=draft.never_slower,
    )


def draft_vocabulary(
    draft: DraftArguments, loaded: LoadedModel, measured: Measurements
) -> tuple[int, ...] | None:
    """Return the tokens of `--draft_vocab`, in ascending order; None without the flag.

    They are the most frequent tokens of the calibration texts, and the lowest ids where the texts
    have fewer different ones: tokenizers number frequent tokens first.
    """
    if draft.draft_vocab is None:
        return None
    check_draft_vocabulary(draft, loaded)
    counts = Counter(token for text in measured.prompts for token in text[0].tolist())
    order = sorted(range(loaded.config.vocab_size), key=lambda token: (-counts[token], token))
    return tuple(sorted(order[: draft.draft_vocab]))


def check_draft_vocabulary(draft: DraftArguments, loaded: LoadedModel) -> None:
    """Refuse more tokens than the model has, and a head whose rows cannot be chosen."""
    size, head = loaded.config.vocab_size, loaded.model.lm_head
    if draft.draft_vocab is None:
        return
    if draft.draft_vocab > size:
        reject("draft_vocab", draft.draft_vocab, f"must be at most {size}, the model's vocabulary")
    if not rows_are_readable(head):
        allowed = "needs a head whose rows can be read: none that is quantised or offloaded"
        reject("draft_vocab", draft.draft_vocab, allowed)


def make_batched_generator(
    flags: GenerationArguments,
    loaded: LoadedModel,
    plan: PrunePlan,
    stop_words: tuple[str, ...],
    prompt_tokens: int,
    batch_size: int,
) -> BatchedTextGenerator:
    """Return an autoregressive decoder of `batch_size` prompts of this length at a time.

    Raises `UsageError` for a model that does not take batches.
    """
    check_batches(batch_size, loaded)
    config = _decoding(flags, loaded, plan, stop_words)
    capacity = positions_for(loaded.config, flags, prompt_tokens)
    with _compile_failures():
        return BatchedTextGenerator(
            loaded.model, loaded.tokenizer, config, capacity, batch_size, loaded.compiled
        )


def check_batches(batch_size: int, loaded: LoadedModel) -> None:
    """Refuse batches of a model that does not take them."""
    if batch_size > 1 and not takes_batches(loaded.model):
        kernels = " or ".join(BATCHED_ATTENTION)
        allowed = f"needs attn_implementation {kernels}, not {loaded.config._attn_implementation}"
        reject("batch_size", batch_size, allowed)


def _decoding(
    flags: GenerationArguments, loaded: LoadedModel, plan: PrunePlan, stop_words: tuple[str, ...]
) -> GenerationConfig:
    check_stop_token_ids(flags, loaded.config.vocab_size)
    return GenerationConfig(
        max_steps=flags.max_steps,
        kept_exit_layer=plan.kept_exit_layer(flags.exit_layer),
        num_speculations=flags.num_speculations,
        sampling=SamplingRule(
            flags.sample,
            flags.temperature,
            flags.top_k,
            flags.top_p,
            flags.no_repeat_ngram_size,
        ),
        stop_words=stop_words,
        stop_token_ids=tuple(flags.stop_token_ids),
    )


@contextmanager
def _compile_failures() -> Iterator[None]:
    try:
        yield
    except CompileError as error:
        reason = compiler_error_line(error.__cause__ or error)
        raise FailedError(f"--compile true: {reason}; --compile false decodes without") from error


def check_stop_token_ids(flags: GenerationArguments, vocabulary: int) -> None:
    """Refuse a token id that ends the output and that the model does not have."""
    if max(flags.stop_token_ids, default=0) >= vocabulary:
        reject("stop_token_ids", max(flags.stop_token_ids), f"must be below {vocabulary}")


def model_facts(loaded: LoadedModel, pruned: PruneModel) -> dict[str, Any]:
    """Return what a log says of the pruned model."""
    plan, layers, vocabulary = pruned.plan, pruned.draft_layers, pruned.draft_vocabulary
    facts: dict[str, Any] = {}
    if layers is not None:
        facts["draft_bytes_ratio"] = draft_bytes_ratio(loaded.model, layers, vocabulary)
    if vocabulary is not None:
        facts["draft_vocabulary_fingerprint"] = tokens_hash([list(vocabulary)])
    return facts | {
        "name": loaded.name,
        "fingerprint": loaded.fingerprint,
        "parameters": count_parameters(loaded.model),
        "weight_bytes": weight_bytes(loaded.model),
        "kept_layers": len(plan.kept_layers),
        "layers_on": layer_places(loaded.model, plan.kept_layers),
        "original_layers": plan.original_layers,
        "plan_of_origin": loaded.plan_of_origin,
    }


def exit_layer_facts(flags: GenerationArguments, plan: PrunePlan) -> dict[str, int | None]:
    """Return the exit layer, counted in layers of the original model and in kept layers."""
    kept = plan.kept_exit_layer(flags.exit_layer)
    return {"original": None if kept is None else flags.exit_layer, "kept": kept}


@dataclass
class PreparedModel:
    """A pruned model that answers prompts with any flags of decoding.

    `draft` says what drafts. `calibration` and `calibration_ids` are the examples that decided the
    plans, and their tokens; None for plans that measure nothing.
    """

    loaded: LoadedModel
    pruned: PruneModel
    prompting: PromptArguments
    checkpoint: Checkpoint
    runtime: Runtime
    draft: DraftArguments = EARLY_EXIT
    calibration: Selection | None = None
    calibration_ids: list[list[int]] | None = None
    _latest: tuple[GenerationArguments, TextGenerator] | None = field(default=None, init=False)

    @property
    def plan(self) -> PrunePlan:
        return self.pruned.plan

    def encode(self, prompt: str, max_steps: int) -> list[int]:
        """Return the tokens of a prompt, inside the template if there is one.

        Raises `UsageError` for a prompt that exceeds the model's positions.
        """
        limit = position_limit(self.loaded.config)
        longest = longest_prompt(self.prompting, max_steps, limit)
        ids = encode(self.prompting, self.loaded, self.prompting.filled_template(prompt))
        fitting = fitted(self.prompting, ids, longest)
        if fitting is None:
            allowed = f"the model has {limit} positions; --truncate_prompt true keeps the tail"
            reject("prompt", f"of {len(ids)} tokens", allowed)
        return fitting

    def generator(self, flags: GenerationArguments, prompt_tokens: int) -> TextGenerator:
        """Return a warm decoder with room for such a prompt: the latest one if it suffices."""
        flags.check()
        check_drafts(flags, self.draft)
        needed = positions_for(self.loaded.config, flags, prompt_tokens)
        if self._latest:
            known, latest = self._latest
            if known == flags and latest.engine.capacity >= needed:
                return latest
            del latest
        self._latest = None  # frees its cache before the next is allocated
        words = flags.chosen_stop_words() or ()
        # Rounded up, so that the growing prompts of a conversation seldom need a new cache.
        room = max(_LEAST_ROOM, 1 << (prompt_tokens - 1).bit_length())
        made = make_generator(flags, self.draft, self.loaded, self.pruned, words, room)
        made.warm_up()
        self._latest = dataclasses.replace(flags), made
        return made

    def generate(
        self,
        prompt: str,
        flags: GenerationArguments,
        name: str = "",
        streamer: Streamer | None = None,
    ) -> Generation:
        """Answer a prompt. The same `--seed` and name draw the same tokens."""
        ids = self.encode(prompt, flags.max_steps)
        return self.generator(flags, len(ids)).generate(ids, flags.seed, name, streamer=streamer)


def load_pruned(
    model: ModelArguments,
    pruning: PruneArguments,
    prompting: PromptArguments | None = None,
    generation: GenerationArguments | None = None,
    parallel: bool = False,
    draft: DraftArguments = EARLY_EXIT,
) -> PreparedModel:
    """Load a model and remove the layers that the flags say, for scripts that evaluate nothing.

    `parallel`: torchrun may have started several processes; each loads and prunes the model.
    Raises `UsageError` for flags that the model does not allow, and for an exit layer or a drafter
    that the plan does not allow.
    """
    prompting, generation = prompting or PromptArguments(), generation or GenerationArguments()
    for flags in (model, pruning, prompting, generation, draft):
        flags.check()
    check_together(pruning, generation, draft)
    calibration = get_calibration_alone(prompting, calibrating(pruning, draft))
    runtime, checkpoint = start(model, parallel), find_checkpoint(model)
    check_can_be_saved("save_pruned", pruning.save_pruned, checkpoint.name, checkpoint.config)
    check_chat_template(prompting, checkpoint)
    check_stop_token_ids(generation, checkpoint.config.vocab_size)
    loaded = load_model(model, runtime, checkpoint)
    ids = None if calibration is None else encode_all(prompting, checkpoint, calibration)
    drafting = draft.pruning(pruning)
    measured = measurements(calibrating(pruning, draft), loaded, ids, runtime.ranks)
    plans = decide_plans(pruning, drafting, measured)
    vocabulary = draft_vocabulary(draft, loaded, measured)
    pruned = prune(pruning, generation, loaded, plans, partial(fit_as_planned, measured))
    pruned.draft_vocabulary = vocabulary
    save_as_asked(pruning, loaded, pruned, runtime.ranks)
    return PreparedModel(loaded, pruned, prompting, checkpoint, runtime, draft, calibration, ids)
