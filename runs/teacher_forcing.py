"""Teacher-forced passes: how likely a model finds texts, and how far it is from the unpruned model.

Shapes: M models, B passages, T tokens read, N tokens predicted, D hidden, V vocabulary.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial

import torch
from torch import Tensor, nn

from arguments.generation import GenerationArguments
from arguments.run import RunArguments
from command_line.messages import warn
from models.loading import LoadedModel
from pruned_model import PruneModel
from pruning.plan import PrunePlan
from runs.fitting import within_memory
from runs.likelihood import Sums, not_finite
from runs.passages import Passage
from self_speculation.llama_model_utils import position_limit
from self_speculation.uncached_llama import UncachedLlama

Layers = list[nn.Module]


class TeacherForcing:
    """Passes over plans of a model, and over the unpruned model if this process has it.

    `pruned` holds the layers. Up to `batch_size` passages are read at a time. Where memory does not
    suffice for a batch, all later batches are half as large.
    """

    def __init__(self, arguments: RunArguments, loaded: LoadedModel, pruned: PruneModel) -> None:
        self._flags, self._batch_size = arguments.generation, arguments.measure.at_once
        self._loaded, self._pruned = loaded, pruned
        self._llama = UncachedLlama(loaded.model)
        origin = loaded.plan_of_origin
        self._compares = origin is None or origin.get("removed_layers") == []
        if not self._compares:
            warn(_no_comparison(loaded))

    def measure(self, passages: list[Passage]) -> list[Sums | None]:
        """Return the sums of each passage under the plan of `pruned`; see `measure_plans`."""
        (found,) = self.measure_plans([self._pruned.plan], passages)
        return found

    def measure_plans(
        self,
        plans: Sequence[PrunePlan],
        passages: list[Passage],
        advance: Callable[[int], None] = lambda _: None,
    ) -> list[list[Sums | None]]:
        """Return the sums of each passage under each plan; None where memory does not suffice.

        The unpruned model, and leading layers that several plans share, run once per passage. Calls
        `advance` with the number of passages after each batch. Raises `UsageError` if no plan has
        finite sums; those of one plan must not spoil those of others.
        """
        found: list[list[Sums | None]] = [[None] * len(passages) for _ in plans]
        with self._pruned.unpruned() as layers:
            depths = [_measured_depth(self._flags, plan) for plan in plans]
            models = [
                [layers[index] for index in plan.kept_layers[:depth]]
                for plan, depth in zip(plans, depths, strict=True)
            ]
            unpruned, are_finite = layers if self._compares else None, [True] * len(plans)
            for batch in self._batches(passages):
                read = self._within_memory(models, unpruned, [passages[index] for index in batch])
                for place, sums in enumerate(zip(*read, strict=True)):
                    for index, one in zip(batch, sums, strict=True):
                        found[place][index] = one
                    are_finite[place] &= all(one.is_finite for one in sums if one)
                if not any(are_finite):
                    raise not_finite(self._loaded.name)
                advance(len(batch))
        return found

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
        self, models: list[Layers], unpruned: Layers | None, passages: list[Passage]
    ) -> list[list[Sums | None]]:
        """Return the sums of each passage, one for each model."""
        sums = within_memory(partial(self._read, models, unpruned, passages))
        if sums is not None:
            return sums
        count = len(passages)
        if count > 1:
            half = (count + 1) // 2
            self._batch_size = min(self._batch_size, half)
            told = f"out of memory in a teacher-forced pass; goes on with {half}"
            warn(f"--batch_size {count}: {told}")
            parts = (passages[:half], passages[half:])
            return [one for part in parts for one in self._within_memory(models, unpruned, part)]
        if len(models) > 1:
            half = len(models) // 2
            halves = (models[:half], models[half:])
            parted = [self._within_memory(part, unpruned, passages)[0] for part in halves]
            return [[*itertools.chain.from_iterable(parted)]]
        return [[None]]

    @torch.inference_mode()
    def _read(
        self, models: list[Layers], unpruned: Layers | None, passages: list[Passage]
    ) -> list[list[Sums | None]]:
        """Return the sums of each passage, one for each model.

        A model that is not pruned agrees with itself by definition.
        """
        ids_BT, predicted_BT = self._padded(passages)
        every = [*models, unpruned] if unpruned else models
        read_ND = self._through(self._llama.embed(ids_BT[:, :-1]), every, predicted_BT)
        target_ND = read_ND.pop() if unpruned else None
        row_N, targets_N = predicted_BT.nonzero()[:, 0], ids_BT[:, 1:][predicted_BT]
        sums_MB3 = torch.zeros(
            len(models), len(passages), 3, dtype=torch.float64, device=ids_BT.device
        )
        for part in self._llama.parts(len(row_N)):
            sums_MN3 = self._sums(part, targets_N, read_ND, target_ND)
            sums_MB3.index_add_(1, row_N[part], sums_MN3)
        return [
            [
                Sums(passage.predicted, nats, kl, int(agreeing))
                if unpruned
                else Sums(passage.predicted, nats)
                for nats, kl, agreeing in of_models
            ]
            for passage, of_models in zip(passages, sums_MB3.transpose(0, 1).tolist(), strict=True)
        ]

    def _through(
        self, states_BTD: Tensor, models: list[Layers], predicted_BT: Tensor
    ) -> list[Tensor]:
        """Return the states that predict, (N, D), after the layers of each model.

        Leading layers that models have in common run once; equal models get the same tensor.
        """
        shared = _shared(models)
        states_BTD = self._llama.run(states_BTD, models[0][:shared])
        left = [layers[shared:] for layers in models]
        next_layers = [layers[0] if layers else None for layers in left]
        found: dict[int, Tensor] = {}
        for layer in dict.fromkeys(next_layers):
            places = [place for place, one in enumerate(next_layers) if one is layer]
            if layer is None:
                ended_ND = _picked(states_BTD, predicted_BT)
                found |= dict.fromkeys(places, ended_ND)
            else:
                rest = self._through(states_BTD, [left[place] for place in places], predicted_BT)
                found |= dict(zip(places, rest, strict=True))
        return [found[place] for place in range(len(models))]

    def _sums(
        self, part: slice, targets_N: Tensor, read_ND: list[Tensor], target_ND: Tensor | None
    ) -> Tensor:
        """Return the sums at each position of a part, (M, N, 3); `target_ND` is the unpruned's."""
        target = None
        if target_ND is not None:
            target = _Target(self._llama.log_probabilities(target_ND[part]))
        sums = []
        for states_ND in read_ND:
            said_NV = target.log_NV if target and states_ND is target_ND else None
            if said_NV is None:
                said_NV = self._llama.log_probabilities(states_ND[part])
            sums.append(_position_sums(targets_N[part], said_NV, target))
        return torch.stack(sums)

    def _padded(self, passages: list[Passage]) -> tuple[Tensor, Tensor]:
        """Return the tokens, (B, T + 1), and which of the T tokens read predict the next."""
        longest = max(len(one.ids) for one in passages)
        ids = [one.ids + [0] * (longest - len(one.ids)) for one in passages]
        predicts = [
            [one.first - 1 <= place < one.read for place in range(longest - 1)] for one in passages
        ]
        device = self._llama.device
        return torch.tensor(ids, device=device), torch.tensor(predicts, device=device)


class _Target:
    """The unpruned model's distributions, with which those of several models are compared.

    `probabilities`, (N, V), and `likeliest` tokens, (N,), are made at first use: base needs none.
    """

    def __init__(self, log_NV: Tensor) -> None:
        self.log_NV = log_NV

    @cached_property
    def probabilities(self) -> Tensor:
        return self.log_NV.exp()

    @cached_property
    def likeliest(self) -> Tensor:
        return self.log_NV.argmax(-1)


def _position_sums(targets_N: Tensor, said_NV: Tensor, target: _Target | None) -> Tensor:
    """Return nats, KL in nats and agreement at each position, float64 (N, 3).

    Without the unpruned model's distributions the last two are 0.
    """
    nats_N = -said_NV.gather(1, targets_N[:, None])[:, 0]
    kl_N, agreeing_N = torch.zeros_like(nats_N), torch.zeros_like(nats_N)
    if target and target.log_NV is said_NV:
        agreeing_N += 1
    elif target:
        agreeing_N = (target.likeliest == said_NV.argmax(-1)).to(nats_N.dtype)
        kl_N = said_NV.neg_().add_(target.log_NV).mul_(target.probabilities).sum(-1)
    return torch.stack([nats_N, kl_N, agreeing_N], 1).double()


def _measured_depth(flags: GenerationArguments, plan: PrunePlan) -> int | None:
    """Return how many kept layers decide the output: early-exit inference is another model."""
    if flags.generation_strategy == "self_speculative":
        return None
    return plan.kept_exit_layer(flags.exit_layer)


def _picked(states_BTD: Tensor, predicted_BT: Tensor) -> Tensor:
    """Return the states that predict, (N, D), on their own device."""
    return states_BTD[predicted_BT.to(states_BTD.device)]


def _shared(models: list[Layers]) -> int:
    """Return how many leading layers all models have in common."""
    levels = zip(*models, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda level: len({*level}) == 1, levels))


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
