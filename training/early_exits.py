"""A Llama that learns at several depths: layers drop out, and early exits have losses of their own.

Elhoushi et al. 2024 (arXiv 2404.16710), section 4.1: all exits share the final norm and the head.

Shapes: B documents, T tokens, N learned positions, L layers, D hidden, V vocabulary.
"""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from self_speculation.sampling import seeded_generator
from training.batches import UNLEARNED, Batch


class EarlyExits(nn.Module):
    """The causal model, with hooks on its decoder layers.

    `forward` returns sums over positions, which add up over the parts of a batch.
    """

    def __init__(self, causal: Any) -> None:
        super().__init__()
        self.causal = causal  # a model of transformers, whose parts have no types
        self._states: dict[int, Tensor] = {}
        self._kept_LB: Tensor | None = None
        for index, layer in enumerate(causal.model.layers):
            layer.register_forward_hook(self._after(index))

    @property
    def num_layers(self) -> int:
        return len(self.causal.model.layers)

    def compile_layers(self) -> None:
        """Let torch compile the decoder layers in their next passes, for batches of any shape."""
        # A layer that learns and one that is measured are compiled each for itself.
        config = torch._dynamo.config
        config.recompile_limit = max(config.recompile_limit, 4 * self.num_layers)
        for layer in self.causal.model.layers:
            layer.forward = torch.compile(layer.forward, dynamic=True)

    def forward(
        self,
        batch: Batch,
        exit_layers: Iterable[int],
        kept_LB: Tensor | None = None,
        teacher: "Teacher | None" = None,
    ) -> dict[int, Tensor]:
        """Return the losses of exit layers, 1 to L, each summed over the learned positions.

        `kept_LB` says which layers run for which document; the others pass their input on. The
        loss is cross entropy, or with a teacher the divergence KL(teacher || exit), in nats.
        """
        learned_BT = batch.labels_BT != UNLEARNED
        labels_N = batch.labels_BT[learned_BT]
        target_NV = None if teacher is None else teacher.log_probabilities(batch, learned_BT)
        states = self._run(batch, kept_LB)
        losses = {}
        for exit_layer in exit_layers:
            logits_NV = self.logits(states[exit_layer][learned_BT])
            if target_NV is None:
                loss = functional.cross_entropy(logits_NV, labels_N, reduction="sum")
            else:
                loss = _divergence(target_NV, logits_NV)
            losses[exit_layer] = loss
        return losses

    def logits(self, states_ND: Tensor) -> Tensor:
        """Return an exit's logits, (N, V), in float32."""
        return self.causal.lm_head(self.causal.model.norm(states_ND)).float()

    @torch.no_grad()
    def scores(self, batch: Batch) -> Tensor:
        """Return sums over a batch for every exit layer, (3, L): loss, accepted, exact.

        Accepted are the positions at which the exit agrees with the last layer, exact the documents
        in which it predicts every learned token: greedy decoding would be an exact match.
        """
        learned_BT = batch.labels_BT != UNLEARNED
        labels_N = batch.labels_BT[learned_BT]
        row_N = learned_BT.nonzero()[:, 0]
        states = self._run(batch, None)
        losses, said, exact = [], [], []
        for exit_layer in range(1, self.num_layers + 1):
            logits_NV = self.logits(states[exit_layer][learned_BT])
            losses.append(functional.cross_entropy(logits_NV, labels_N, reduction="sum"))
            said.append(logits_NV.argmax(-1))
            wrong_B = row_N[said[-1] != labels_N].bincount(minlength=len(learned_BT))
            exact.append((wrong_B == 0).sum())
        accepted = [(one == said[-1]).sum() for one in said]
        return torch.stack([torch.stack(sums).float() for sums in (losses, accepted, exact)])

    def _run(self, batch: Batch, kept_LB: Tensor | None) -> dict[int, Tensor]:
        """Return the output of every layer, (B, T, D), by exit layer."""
        self._kept_LB, self._states = kept_LB, {}
        self.causal.model(input_ids=batch.ids_BT, position_ids=batch.positions_BT, use_cache=False)
        states, self._states = self._states, {}
        return states

    def _after(self, index: int) -> Callable[..., Tensor]:
        def hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            if self._kept_LB is not None:
                output = torch.where(self._kept_LB[index][:, None, None], output, inputs[0])
            self._states[index + 1] = output
            return output

        return hook


class Teacher:
    """The last layer of an unchanged model, whose distribution is learned.

    Inside the context of `unchanged` the model is the teacher, such as with its adapters off.
    """

    def __init__(
        self,
        exits: EarlyExits,
        unchanged: Callable[[], AbstractContextManager] = nullcontext,
    ) -> None:
        self._exits = exits
        self._unchanged = unchanged

    @torch.no_grad()
    def log_probabilities(self, batch: Batch, learned_BT: Tensor) -> Tensor:
        """Return log probabilities at the learned positions, (N, V)."""
        exits = self._exits
        learning = exits.training
        exits.eval()
        with self._unchanged():
            states = exits._run(batch, None)[exits.num_layers]
            exits.train(learning)
            return exits.logits(states[learned_BT]).log_softmax(-1)


def _divergence(target_NV: Tensor, logits_NV: Tensor) -> Tensor:
    """Return KL(target || logits), summed."""
    said_NV = logits_NV.log_softmax(-1)
    return functional.kl_div(said_NV, target_NV, reduction="sum", log_target=True)


def draw_kept(rates_L: list[float], documents: int, seed: int, step: int) -> Tensor | None:
    """Draw which layers run for which document, (L, B); return None if all layers run.

    One draw for the whole batch: the result does not depend on the number of processes.
    """
    if not any(rates_L):
        return None
    generator = seeded_generator(torch.device("cpu"), seed, f"step {step}", "layer dropout")
    draws_LB = torch.rand(len(rates_L), documents, generator=generator)
    return draws_LB >= torch.tensor(rates_L)[:, None]
