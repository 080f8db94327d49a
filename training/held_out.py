"""Measures every exit layer on held-out rows."""

import torch
from accelerate import Accelerator

from training.arguments import OptimizationArguments
from training.batches import collate
from training.documents import Document
from training.early_exits import EarlyExits
from training.log import shown_exits


def evaluate(
    exits: EarlyExits,
    documents: list[Document],
    accelerator: Accelerator,
    flags: OptimizationArguments,
) -> dict[str, list[float]]:
    """Return loss, acceptance and exact matches of exit layers 1 to L, teacher-forced and greedy.

    `acceptance` is the share of learned tokens at which an exit agrees with the last layer.
    """
    order = sorted(range(len(documents)), key=lambda index: len(documents[index]))
    parts = flags.gradient_accumulation * accelerator.num_processes
    width = max(flags.batch_tokens // parts // len(documents[order[-1]]), 1)
    batches = [order[start : start + width] for start in range(0, len(order), width)]
    sums_3L = torch.zeros(3, exits.num_layers, device=accelerator.device)
    exits.eval()
    for indices in batches[accelerator.process_index :: accelerator.num_processes]:
        batch = collate([documents[index] for index in indices]).to(accelerator.device)
        with accelerator.autocast():
            sums_3L += exits.scores(batch)
    exits.train()
    loss, accepted, exact = accelerator.reduce(sums_3L, "sum").tolist()
    targets = sum(document.targets for document in documents)
    return {
        "loss": [value / targets for value in loss],
        "acceptance": [value / targets for value in accepted],
        "exact_match": [value / len(documents) for value in exact],
    }


def held_out_line(values: dict[str, list[float]]) -> str:
    """Return the evaluation in one line."""
    exits = shown_exits(len(values["loss"]))[:-1]
    drafts = " ".join(f"{one}:{values['acceptance'][one - 1]:.1%}" for one in exits)
    return (
        f"held out: loss {values['loss'][-1]:.4f}, exact match {values['exact_match'][-1]:.1%}, "
        f"acceptance by exit layer {drafts}"
    )
