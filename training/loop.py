"""The steps of one training: batches in, updates made, states and log lines out."""

import math
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from command_line.errors import FailedError
from command_line.messages import shown
from training.arguments import TrainingArguments
from training.batches import UNLEARNED, Batch, BatchPlan, collate
from training.configuration import configuration
from training.documents import Document
from training.early_exits import draw_kept
from training.held_out import evaluate, held_out_line
from training.layerskip_recipe import Moment
from training.learner import Learner
from training.log import TrainingLog, shown_exits
from training.optimizers import OPTIMIZERS, learning, set_learning_rates, warm_up_and_cosine
from training.state import Progress, TrainingState


class Update(NamedTuple):
    """One step: this process's loss sums by exit layer, all learned tokens, the gradient's norm."""

    losses: dict[int, Tensor]
    targets: int
    norm: Tensor


class Training:
    """A training, with its progress and its saved states.

    Batches and random draws follow from seed and step. Rounding aside, results depend neither on
    the number of processes nor on interruptions.
    """

    def __init__(
        self,
        arguments: TrainingArguments,
        learner: Learner,
        documents: list[Document],
        held_out: list[Document],
        accelerator: Accelerator,
    ) -> None:
        self.arguments = arguments
        self.learner = learner
        self.documents = documents
        self.held_out = held_out
        self.accelerator = accelerator
        flags = arguments.optimization
        self._plan = BatchPlan(list(map(len, documents)), flags.batch_tokens, flags.seed)
        self.total_steps = flags.max_steps or self._plan.steps(flags.epochs)
        self._optimizers = OPTIMIZERS[flags.optimizer](learner.model, flags)
        self._exits = accelerator.prepare(learner.exits)
        self.folder = Path(arguments.log.output_dir)
        self.configuration = configuration(
            arguments, [*documents, *held_out], learner.fingerprints, accelerator.device.type
        )
        self.state = TrainingState(self.folder, self.configuration, learner.model, self._optimizers)
        self.progress = Progress()
        self._interrupted = False

    def resume(self) -> None:
        """Go on from the newest state, if an earlier start left one."""
        newest = self.state.newest()
        if newest is not None:
            self.progress = self.state.load(newest)

    def run(self, log: TrainingLog) -> bool:
        """Take all steps that are left; return False after an interruption.

        Raise `FailedError` if the loss is not finite.
        """
        window = Window(self.progress)
        flags, first_step = self.arguments.log, self.progress.step
        if not first_step:
            self._evaluate(log)
        bar = tqdm(
            total=self.total_steps,
            initial=first_step,
            unit="step",
            disable=not self.accelerator.is_main_process,
        )
        with bar, self._stopped_by_signals():
            for indices in self._plan.walk(first_step, self.total_steps):
                update = self._step([self.documents[index] for index in indices])
                window.add(update)
                interrupted = self._interrupted
                bar.update()
                if self._is_due(flags.log_steps):
                    line = window.line(self.accelerator, self.progress, update.norm)
                    log.add("step", step=self.progress.step, **line)
                    bar.set_postfix_str(_postfix(line, self.learner.exits.num_layers))
                    window = Window(self.progress)
                if self._is_due(flags.eval_steps):
                    self._evaluate(log)
                if self._is_due(flags.state_steps) or interrupted:
                    self._save(log)
                if interrupted:
                    return False
        return True

    def _is_due(self, interval: int) -> bool:
        """Return whether the newest step is the last, or one of every `interval` steps."""
        return self.progress.step % interval == 0 or self.progress.step == self.total_steps

    def _step(self, documents: list[Document]) -> Update:
        """Update the weights once, by this process's share of a batch and the due exits' losses."""
        started = time.perf_counter()
        flags, number = self.arguments.optimization, self.progress.step
        moment = Moment(number, self.total_steps)
        recipe, layers = self.arguments.recipe, self.learner.exits.num_layers
        weights = recipe.exit_weights(layers, moment)
        rates = recipe.dropout_rates(layers, moment.progress)
        kept_LB = draw_kept(rates, len(documents), flags.seed, number)
        targets = sum(document.targets for document in documents)
        torch.manual_seed(flags.seed + number)  # dropout in attention, if a model has it
        set_learning_rates(
            self._optimizers, warm_up_and_cosine(number, self.total_steps, flags.warmup_steps)
        )
        sums = self._gradients(documents, kept_LB, weights, targets)
        norm = torch.nn.utils.clip_grad_norm_(
            learning(self.learner.model).values(), flags.max_gradient_norm
        )
        self._check_finite(norm)
        for optimizer in self._optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.progress.step += 1
        self.progress.tokens += sum(map(len, documents))
        self.progress.seconds += time.perf_counter() - started
        return Update(sums, targets, norm)

    def _check_finite(self, norm: Tensor) -> None:
        """Keep the newest state if the gradient of its weights is finite; else remove it."""
        is_finite = bool(torch.isfinite(norm))
        if self.accelerator.is_main_process:
            (self.state.prove if is_finite else self.state.disprove)()
        if not is_finite:
            self._fail(f"loss or gradient of step {self.progress.step + 1}")

    def _gradients(
        self,
        documents: list[Document],
        kept_LB: Tensor | None,
        weights: dict[int, float],
        targets: int,
    ) -> dict[int, Tensor]:
        """Add up the gradients of the mean loss; return this process's loss sums by exit."""
        accelerator, parts = self.accelerator, self.arguments.optimization.gradient_accumulation
        shares = accelerator.num_processes * parts
        sums: dict[int, Tensor] = defaultdict(lambda: torch.zeros((), device=accelerator.device))
        for part in range(parts):
            is_last = part + 1 == parts  # in which processes wait for each other
            rows = range(accelerator.process_index * parts + part, len(documents), shares)
            if not rows and not is_last:
                continue
            batch = self._batch([documents[row] for row in rows] or documents[:1], bool(rows))
            kept = None
            if kept_LB is not None:
                kept = kept_LB[:, list(rows) or [0]].to(accelerator.device)
            with nullcontext() if is_last else accelerator.no_sync(self._exits):
                losses = self._exits(batch, weights, kept, self.learner.teacher)
                loss = sum(weights[exit_layer] * one for exit_layer, one in losses.items())
                # Distributed gradients are means over processes.
                accelerator.backward(loss * accelerator.num_processes / targets)
            for exit_layer, one in losses.items():
                sums[exit_layer] += one.detach()
        return sums

    def _batch(self, documents: list[Document], counts: bool) -> Batch:
        """Return documents on this process's device; without labels if they do not count.

        A process without a share of a small batch must still compute something, as the others wait
        for its gradients.
        """
        batch = collate(documents)
        if not counts:
            batch.labels_BT.fill_(UNLEARNED)
        return batch.to(self.accelerator.device)

    def _evaluate(self, log: TrainingLog) -> None:
        """Measure every exit layer on held-out rows, if there are any."""
        if not self.held_out:
            return
        flags, step = self.arguments.optimization, self.progress.step
        values = evaluate(self.learner.exits, self.held_out, self.accelerator, flags)
        if not all(map(math.isfinite, values["loss"])):
            self._fail(f"loss on held-out rows after step {step}")
        log.add("eval", step=step, tokens=self.progress.tokens, **values)
        if self.accelerator.is_main_process:
            tqdm.write(f"step {step}: {held_out_line(values)}")

    def _save(self, log: TrainingLog) -> None:
        """Save a state. If the disk is full, warn, and leave the state before it."""
        if not self.accelerator.is_main_process:
            return
        try:
            self.state.save(self.progress)
        except OSError as error:
            kept = self.state.newest()
            tqdm.write(
                f"warning: --output_dir {self.folder}: the state of step {self.progress.step} is "
                f"not saved ({error}); " + (f"{kept.name} stays" if kept else "there is none yet")
            )
        log.plot()

    def _fail(self, what: str) -> NoReturn:
        kept = self.state.newest()
        left = f"{kept.name} is kept" if kept else "no state was saved before"
        flags = self.arguments.optimization
        rates = f"--learning_rate {flags.learning_rate:g}"
        if flags.optimizer == "muon":
            rates += f", --muon_learning_rate {flags.muon_learning_rate:g}"
        raise FailedError(
            f"{rates}: {what} is not finite; training stops, {left} in {self.folder}. The same "
            "flags would fail again: lower the rate, in another --output_dir"
        )

    @contextmanager
    def _stopped_by_signals(self) -> Iterator[None]:
        """Let Ctrl-C and SIGTERM end training after the current step.

        Several processes would stop after different steps, so that a signal ends them at once.
        """
        if self.accelerator.num_processes > 1:
            yield
            return

        def stop(*_: object) -> None:
            self._interrupted = True

        earlier = {
            number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield
        finally:
            for number, handler in earlier.items():
                signal.signal(number, handler)


class Window:
    """Sums over the steps since the log's last line `step`."""

    def __init__(self, before: Progress) -> None:
        self._tokens, self._seconds = before.tokens, before.seconds
        self._losses: dict[int, Tensor] = {}
        self._targets: Counter[int] = Counter()

    def add(self, update: Update) -> None:
        """Add a step."""
        for exit_layer, loss in update.losses.items():
            self._losses[exit_layer] = self._losses.get(exit_layer, 0) + loss
            self._targets[exit_layer] += update.targets

    def line(self, accelerator: Accelerator, now: Progress, norm: Tensor) -> dict[str, Any]:
        """Return the line's values; losses are means in nats per learned token."""
        exits = sorted(self._losses)
        totals = accelerator.reduce(torch.stack([self._losses[one] for one in exits]), "sum")
        return {
            "tokens": now.tokens,
            "seconds": round(now.seconds, 3),
            "tokens_per_second": round(
                (now.tokens - self._tokens) / (now.seconds - self._seconds), 1
            ),
            "loss": {
                str(exit_layer): float(total) / self._targets[exit_layer]
                for exit_layer, total in zip(exits, totals, strict=True)
            },
            "gradient_norm": float(norm),
        }


def _postfix(line: dict[str, Any], layers: int) -> str:
    losses = " ".join(
        f"{one}:{line['loss'][str(one)]:.3f}"
        for one in shown_exits(layers)
        if str(one) in line["loss"]
    )
    return f"loss {losses}; {shown(line['tokens_per_second'], '.0f')} tokens/s"
