"""One training: batches in, steps taken, what held-out rows say, states kept, a checkpoint out."""

import hashlib
import math
import signal
import time
from array import array
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NoReturn

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from command_line.errors import FailedError
from command_line.messages import shown
from training.arguments import TrainingArguments
from training.documents import UNLEARNED, Batch, BatchPlan, Document, Sequences, collate
from training.early_exits import EarlyExits, draw_kept
from training.layerskip_recipe import Moment
from training.learner import Learner
from training.log import TrainingLog, shown_exits
from training.optimizers import OPTIMIZERS, learning, set_learning_rates, warm_up_and_cosine
from training.state import Progress, TrainingState

# What these name is compared by its contents: documents, models, a tokenizer's tokens.
_COMPARED_BY_CONTENTS = (
    *("data_path", "eval_path", "num_samples"),
    *("config", "tokenizer", "model", "teacher", "device"),
)


def start_accelerator(device: str, mixed_precision: str) -> Accelerator:
    """The processes of torchrun, each on a device of its own."""
    return Accelerator(cpu=device == "cpu", mixed_precision=mixed_precision)


class Training:
    """A training between two of its steps.

    Results depend neither on the number of processes nor on breaks, rounding aside: batches and
    random draws are functions of seed and step.
    """

    def __init__(
        self,
        arguments: TrainingArguments,
        learner: Learner,
        documents: list[Document],
        held_out: list[Document],
        accelerator: Accelerator,
    ) -> None:
        self._flags = arguments
        self._learner = learner
        self._documents = documents
        self._held_out = held_out
        self._accelerator = accelerator
        flags = arguments.optimization
        self._plan = BatchPlan(
            list(map(len, documents)),
            flags.batch_tokens,
            arguments.data.max_length,
            flags.batching,
            flags.seed,
        )
        self.total_steps = flags.max_steps or self._plan.steps(flags.epochs)
        self._optimizers = OPTIMIZERS[flags.optimizer](learner.model, flags)
        self._exits = accelerator.prepare(learner.exits)
        self.folder = Path(arguments.log.output_dir)
        self.state = TrainingState(self.folder, learner.model, self._optimizers)
        self.configuration = configuration(arguments, learner, documents, held_out) | {
            "device": accelerator.device.type
        }
        self.progress = Progress(self.configuration)
        self._interrupted = False

    def resume(self) -> None:
        """Goes on from the newest state that an earlier start left, if any did."""
        newest = self.state.newest()
        if newest is not None:
            self.progress = self.state.load(newest, self.configuration)

    def run(self, log: TrainingLog) -> bool:
        """Takes all steps that are left; False where it was interrupted after one of them.

        Raises `FailedError` where the loss is no number any more.
        """
        window = Window(self.progress)
        flags, first_step = self._flags.log, self.progress.step
        if not first_step:
            self._evaluate(log)
        bar = tqdm(
            total=self.total_steps,
            initial=first_step,
            unit="step",
            disable=not self._accelerator.is_main_process,
        )
        with bar, self._stopped_by_signals():
            for sequences in self._plan.walk(first_step, self.total_steps):
                self._step(sequences, window)
                step, last = self.progress.step, self.progress.step == self.total_steps
                bar.update()
                if step % flags.log_steps == 0 or last:
                    line = window.line(self._accelerator, self.progress)
                    log.add("step", step=step, **line)
                    bar.set_postfix_str(_postfix(line, self._learner.exits.num_layers))
                if step % flags.eval_steps == 0 or last:
                    self._evaluate(log)
                if step % flags.state_steps == 0 or last or self._interrupted:
                    self._save(log)
                if self._interrupted:
                    return False
        return True

    def _step(self, sequences: Sequences, window: "Window") -> None:
        """One update: losses of the exits whose turn it is, on this process's share of a batch."""
        started = time.perf_counter()
        flags, number = self._flags.optimization, self.progress.step
        moment = Moment(number, self.total_steps)
        recipe, layers = self._flags.recipe.recipe, self._learner.exits.num_layers
        weights = recipe.exit_weights(layers, moment)
        rates = recipe.dropout_rates(layers, moment.progress)
        kept_LB = draw_kept(rates, len(sequences), flags.seed, number)
        targets = sum(self._documents[index].targets for row in sequences for index in row)
        torch.manual_seed(flags.seed + number)  # of dropout in attention, if there is any
        set_learning_rates(
            self._optimizers, warm_up_and_cosine(number, self.total_steps, flags.warmup_steps)
        )
        sums = self._gradients(sequences, kept_LB, weights, targets)
        norm = torch.nn.utils.clip_grad_norm_(
            learning(self._learner.model).values(), flags.max_gradient_norm
        )
        if not torch.isfinite(norm):
            if self._accelerator.is_main_process:
                self.state.disprove()
            self._fail(f"loss or gradient of step {number + 1}")
        if self._accelerator.is_main_process:
            self.state.prove()
        for optimizer in self._optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.progress.step += 1
        self.progress.tokens += sum(len(self._documents[i]) for row in sequences for i in row)
        self.progress.seconds += time.perf_counter() - started
        window.add(sums, targets, norm)

    def _gradients(
        self,
        sequences: Sequences,
        kept_LB: Tensor | None,
        weights: dict[int, float],
        targets: int,
    ) -> dict[int, Tensor]:
        """Adds up the gradients of the mean loss; returns this process's sums of it by exit."""
        accelerator, parts = self._accelerator, self._flags.optimization.gradient_accumulation
        shares = accelerator.num_processes * parts
        sums: dict[int, Tensor] = defaultdict(lambda: torch.zeros((), device=accelerator.device))
        for part in range(parts):
            rows = range(accelerator.process_index * parts + part, len(sequences), shares)
            if not rows and part + 1 < parts:
                continue  # the last part is where processes wait for each other
            batch = self._batch([sequences[row] for row in rows] or sequences[:1], bool(rows))
            kept = None
            if kept_LB is not None:
                kept = kept_LB[:, list(rows) or [0]].to(accelerator.device)
            waits = part + 1 < parts
            with accelerator.no_sync(self._exits) if waits else nullcontext():
                losses = self._exits(batch, weights, kept, self._learner.teacher)
                loss = sum(weights[exit_layer] * one for exit_layer, one in losses.items())
                # Distributed gradients are means over processes.
                accelerator.backward(loss * accelerator.num_processes / targets)
            for exit_layer, one in losses.items():
                sums[exit_layer] += one.detach()
        return sums

    def _batch(self, sequences: Sequences, counts: bool) -> Batch:
        """Sequences on this process's device; without labels where they do not count.

        A process without a share of a small batch must compute something all the same, as the
        others wait for its gradients.
        """
        batch = collate(self._documents, sequences)
        if not counts:
            batch.labels_BT.fill_(UNLEARNED)
        return batch.to(self._accelerator.device)

    def _evaluate(self, log: TrainingLog) -> None:
        """What every exit says of held-out rows."""
        if not self._held_out:
            return
        values = evaluate(self._learner.exits, self._held_out, self._accelerator, self._flags)
        if not all(map(math.isfinite, values["loss"])):
            self._fail(f"loss on held-out rows after step {self.progress.step}")
        log.add("eval", step=self.progress.step, tokens=self.progress.tokens, **values)
        if self._accelerator.is_main_process:
            tqdm.write(f"step {self.progress.step}: {held_out_line(values)}")

    def _save(self, log: TrainingLog) -> None:
        """Keeps a state. A disk that is full is said once, and the state before stays."""
        if not self._accelerator.is_main_process:
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
        flags = self._flags.optimization
        rates = f"--learning_rate {flags.learning_rate:g}"
        if flags.optimizer == "muon":
            rates += f", --muon_learning_rate {flags.muon_learning_rate:g}"
        raise FailedError(
            f"{rates}: {what} is not finite; training stops, {left} in {self.folder}. The same "
            "flags would come to the same end: lower the rate, in another --output_dir"
        )

    @contextmanager
    def _stopped_by_signals(self) -> Iterator[None]:
        """Lets Ctrl-C and SIGTERM end training after the step that it is at.

        Several processes would not stop after the same one; they are ended at once.
        """
        if self._accelerator.num_processes > 1:
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
    """What the steps since the last line of the log added up to."""

    def __init__(self, progress: Progress) -> None:
        self._begin(progress)

    def add(self, sums: dict[int, Tensor], targets: int, norm: Tensor) -> None:
        """One step: its losses by exit, of how many tokens, and its gradient's norm."""
        for exit_layer, loss in sums.items():
            self._loss[exit_layer] += loss
            self._targets[exit_layer] += targets
        self._norm = norm

    def line(self, accelerator: Accelerator, progress: Progress) -> dict[str, Any]:
        """Means over the window, which begins anew. Losses are in nats a learned token."""
        exits = sorted(self._loss)
        totals = accelerator.reduce(torch.stack([self._loss[one] for one in exits]), "sum")
        counts = [self._targets[one] for one in exits]
        means = (float(total) / count for total, count in zip(totals, counts, strict=True))
        seconds = progress.seconds - self._seconds
        line = {
            "tokens": progress.tokens,
            "seconds": round(progress.seconds, 3),
            "tokens_per_second": round((progress.tokens - self._tokens) / seconds, 1),
            "loss": {str(exit_layer): mean for exit_layer, mean in zip(exits, means, strict=True)},
            "gradient_norm": float(self._norm),
        }
        self._begin(progress)
        return line

    def _begin(self, progress: Progress) -> None:
        self._tokens, self._seconds = progress.tokens, progress.seconds
        self._loss: dict[int, Any] = defaultdict(float)
        self._targets: dict[int, int] = defaultdict(int)
        self._norm: Tensor | None = None


def evaluate(
    exits: EarlyExits,
    documents: list[Document],
    accelerator: Accelerator,
    flags: TrainingArguments,
) -> dict[str, list[float]]:
    """Loss, acceptance and exact matches of exit layers 1 to L, teacher-forced and greedy.

    `acceptance` is the share of learned tokens at which an exit says what the last layer says.
    """
    order = sorted(range(len(documents)), key=lambda index: len(documents[index]))
    parts = flags.optimization.gradient_accumulation * accelerator.num_processes
    width = max(flags.optimization.batch_tokens // parts // len(documents[order[-1]]), 1)
    batches = [order[start : start + width] for start in range(0, len(order), width)]
    sums: dict[str, Tensor] = {}
    exits.eval()
    for indices in batches[accelerator.process_index :: accelerator.num_processes]:
        batch = collate(documents, [(index,) for index in indices]).to(accelerator.device)
        with accelerator.autocast():
            for name, values in exits.scores(batch).items():
                sums[name] = sums.get(name, 0) + values
    exits.train()
    empty = torch.zeros(exits.num_layers, device=accelerator.device)
    totals = {
        name: accelerator.reduce(sums.get(name, empty), "sum").tolist()
        for name in ("loss", "accepted", "exact")
    }
    targets = sum(document.targets for document in documents)
    return {
        "loss": [value / targets for value in totals["loss"]],
        "acceptance": [value / targets for value in totals["accepted"]],
        "exact_match": [value / len(documents) for value in totals["exact"]],
    }


def held_out_line(values: dict[str, list[float]]) -> str:
    """The evaluation in one line."""
    exits = shown_exits(len(values["loss"]))[:-1]
    drafts = " ".join(f"{one}:{values['acceptance'][one - 1]:.1%}" for one in exits)
    return (
        f"held out: loss {values['loss'][-1]:.4f}, exact match {values['exact_match'][-1]:.1%}, "
        f"acceptance by exit layer {drafts}"
    )


def _postfix(line: dict[str, Any], layers: int) -> str:
    losses = " ".join(
        f"{one}:{line['loss'][str(one)]:.3f}"
        for one in shown_exits(layers)
        if str(one) in line["loss"]
    )
    return f"loss {losses}; {shown(line['tokens_per_second'], '.0f')} tokens/s"


def configuration(
    arguments: TrainingArguments,
    learner: Learner,
    documents: list[Document],
    held_out: list[Document],
) -> dict[str, Any]:
    """All that decides what is learned; data and model by their contents."""
    groups = (arguments.learner, arguments.data, arguments.recipe, arguments.optimization)
    flags = {name: value for group in groups for name, value in vars(group).items()}
    decisive = {
        f"--{name}": value for name, value in flags.items() if name not in _COMPARED_BY_CONTENTS
    }
    digest = hashlib.sha256()
    for document in [*documents, *held_out]:
        digest.update(array("q", document.ids).tobytes() + bytes(document.learned) + b"|")
    return decisive | learner.fingerprints | {"data": digest.hexdigest()[:16]}
