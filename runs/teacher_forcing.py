"""Teacher-forced passes: how likely a model finds texts, and how far it is from the unpruned model.

Shapes: B passages, T tokens read, N tokens predicted, D hidden, V vocabulary.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from arguments.run import RunArguments
from command_line.errors import UsageError
from command_line.messages import warn
from models.loading import LoadedModel
from pruned_model import PruneModel
from runs.fitting import within_memory
from runs.likelihood import Sums
from runs.passages import Passage
from self_speculation.llama_model_utils import position_limit
from self_speculation.model_protocol import decoder_of
from self_speculation.uncached_llama import UncachedLlama

_HEAD_ELEMENTS = 1 << 24  # logits that are held at a time, of each of the two models


class TeacherForcing:
    """Passes over a pruned model, and over the unpruned model if this process has it.

    Up to `batch_size` passages are read at a time. Where memory does not suffice for a batch, all
    later batches are half as large.
    """

    def __init__(self, arguments: RunArguments, loaded: LoadedModel, pruned: PruneModel) -> None:
        self._batch_size = arguments.measure.at_once
        self._loaded, self._pruned = loaded, pruned
        self._llama = UncachedLlama(loaded.model)
        self._depth = _measured_depth(arguments, pruned)
        origin = loaded.plan_of_origin
        self._compares = origin is None or origin.get("removed_layers") == []
        if not self._compares:
            warn(_no_comparison(loaded))

    def measure(
        self, passages: list[Passage], advance: Callable[[int], None] = lambda _: None
    ) -> list[Sums | None]:
        """Return the sums of each passage; None where memory suffices for none but shorter ones.

        Calls `advance` with the number of passages after each batch. Raises `UsageError` if a
        log-likelihood is not finite.
        """
        found: list[Sums | None] = [None] * len(passages)
        with self._layers() as (measured, unpruned):
            work = partial(self._read, measured, unpruned)
            for batch in self._batches(passages):
                sums = self._within_memory(work, [passages[index] for index in batch])
                for index, one in zip(batch, sums, strict=True):
                    found[index] = one
                advance(len(batch))
        return found

    @contextmanager
    def _layers(self) -> Iterator[tuple[list[nn.Module], list[nn.Module] | None]]:
        """Yield the layers to measure, and those of the unpruned model if it is to be compared."""
        measured = list(decoder_of(self._loaded.model).layers)[: self._depth]
        if not self._compares:
            yield measured, None
            return
        with self._pruned.unpruned() as layers:
            yield measured, layers

    def _batches(self, passages: list[Passage]) -> Iterator[list[int]]:
        """Yield the passages' indices, the longest first, so that lack of memory shows early.

        LongRoPE has factors for short and for long sequences: a batch holds only one kind.
        """
        lengths = [passage.read for passage in passages]
        order = sorted(range(len(passages)), key=lambda index: -lengths[index])
        limit = partial(position_limit, self._loaded.config)
        for _, alike in itertools.groupby(order, key=lambda index: limit(lengths[index])):
            left = list(alike)
            while left:
                count = self._batch_size
                yield left[:count]
                left = left[count:]

    def _within_memory(
        self, work: Callable[[list[Passage]], list[Sums]], passages: list[Passage]
    ) -> list[Sums | None]:
        sums = within_memory(partial(work, passages))
        if sums is not None:
            return [*sums]
        count = len(passages)
        if count == 1:
            return [None]
        half = (count + 1) // 2
        self._batch_size = min(self._batch_size, half)
        warn(f"--batch_size {count}: out of memory in a teacher-forced pass; goes on with {half}")
        parts = (passages[:half], passages[half:])
        return [one for part in parts for one in self._within_memory(work, part)]

    @torch.inference_mode()
    def _read(
        self, measured: list[nn.Module], unpruned: list[nn.Module] | None, passages: list[Passage]
    ) -> list[Sums]:
        """Return the passages' sums; leading layers that both models share run once.

        A model that is not pruned agrees with itself by definition.
        """
        llama, ids_BT, predicted_BT = self._llama, *self._padded(passages)
        shared = _shared(measured, unpruned) if unpruned else 0
        is_pruned = unpruned is not None and not shared == len(measured) == len(unpruned)
        states_BTD = llama.run(llama.embed(ids_BT[:, :-1]), measured[:shared])
        read_ND = [_picked(llama.run(states_BTD, measured[shared:]), predicted_BT)]
        if is_pruned and unpruned:
            read_ND.append(_picked(llama.run(states_BTD, unpruned[shared:]), predicted_BT))
        del states_BTD
        row_N, targets_N = predicted_BT.nonzero()[:, 0], ids_BT[:, 1:][predicted_BT]
        sums_B3 = torch.zeros(len(passages), 3, dtype=torch.float64, device=ids_BT.device)
        size = max(1, _HEAD_ELEMENTS // self._loaded.config.vocab_size)
        places = [row_N, targets_N, *read_ND]
        for rows, targets, *states in zip(*(one.split(size) for one in places), strict=True):
            sums_B3.index_add_(0, rows, self._sums(targets, *states))
        found = [
            Sums(one.predicted, nats, kl, int(agreeing) if is_pruned else one.predicted)
            for one, (nats, kl, agreeing) in zip(passages, sums_B3.tolist(), strict=True)
        ]
        self._check_finite(found)
        return found if unpruned else [Sums(one.tokens, one.nats) for one in found]

    def _sums(self, targets_N: Tensor, states_ND: Tensor, *unpruned_ND: Tensor) -> Tensor:
        """Return nats, KL in nats and agreement at each position, float64 (N, 3).

        The last two are 0 without the unpruned model's states.
        """
        said_NV = self._llama.log_probabilities(states_ND)
        nats_N = -said_NV.gather(1, targets_N[:, None])[:, 0]
        found_3N = [nats_N, torch.zeros_like(nats_N), torch.zeros_like(nats_N)]
        for one_ND in unpruned_ND:
            target_NV = self._llama.log_probabilities(one_ND)
            found_3N[2] = (target_NV.argmax(-1) == said_NV.argmax(-1)).to(nats_N.dtype)
            difference_NV = said_NV.neg_().add_(target_NV)
            found_3N[1] = target_NV.exp_().mul_(difference_NV).sum(-1)
        return torch.stack(found_3N, 1).double()

    def _padded(self, passages: list[Passage]) -> tuple[Tensor, Tensor]:
        """Return the tokens, (B, T + 1), and which of the T tokens read predict the next."""
        longest = max(len(one.ids) for one in passages)
        ids = [one.ids + [0] * (longest - len(one.ids)) for one in passages]
        predicts = [
            [one.first - 1 <= place < one.read for place in range(longest - 1)] for one in passages
        ]
        device = self._llama.device
        return torch.tensor(ids, device=device), torch.tensor(predicts, device=device)

    def _check_finite(self, found: list[Sums]) -> None:
        if not all(math.isfinite(one.nats + (one.kl_nats or 0)) for one in found):
            name = self._loaded.name
            raise UsageError(f"--model {name}: log-likelihoods are not finite; try another --dtype")


def _measured_depth(arguments: RunArguments, pruned: PruneModel) -> int | None:
    """Return how many kept layers decide the output: early-exit inference is another model."""
    flags = arguments.generation
    if flags.generation_strategy == "self_speculative":
        return None
    return pruned.plan.kept_exit_layer(flags.exit_layer)


def _picked(states_BTD: Tensor, predicted_BT: Tensor) -> Tensor:
    """Return the states that predict, (N, D), on their own device."""
    return states_BTD[predicted_BT.to(states_BTD.device)]


def _shared(measured: list[nn.Module], unpruned: list[nn.Module]) -> int:
    """Return how many leading layers both models have in common."""
    pairs = zip(measured, unpruned, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] is pair[1], pairs))


def _no_comparison(loaded: LoadedModel) -> str:
    origin = loaded.plan_of_origin or {}
    names = {"prune_method": "method", "prune_n": "prune_n", "prune_seed": "prune_seed"}
    names["dropout_threshold"] = "dropout_threshold"
    known = {flag: origin.get(key) for flag, key in names.items()}
    flags = " ".join(f"--{flag} {value}" for flag, value in known.items() if value is not None)
    return (
        f"--model {loaded.name}: was saved pruned, so that KL divergence and agreement with its "
        f"unpruned model are not measured; --model ORIGINAL {' '.join(flags.split())} measures them"
    )
