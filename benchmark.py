"""One run: load, prune, decode, measure, log."""

import shlex
import sys
from pathlib import Path
from typing import Any

from arguments import (
    DataArguments,
    GenerationArguments,
    LogArguments,
    ModelArguments,
    PruneArguments,
)
from command_line import EXIT_INTERRUPTED, parse, run_script
from data import get_local_prompts, get_prompts


def main(argv: list[str] | None = None) -> int:
    groups = (ModelArguments, DataArguments, PruneArguments, GenerationArguments, LogArguments)
    parsed = parse(argv, __doc__, *groups)
    _, data, pruning, generation, _ = parsed
    # What needs neither torch nor a download comes first, so that it is refused within a second.
    prompts = get_local_prompts(data, pruning, generation.seed)

    import experiment
    import runtime as machine

    arguments = experiment.CellArguments(*parsed)
    runtime = machine.start(arguments.model)
    checkpoint = machine.find_checkpoint(arguments.model)
    experiment.check_chat_template(data, checkpoint)
    evaluated, calibration = prompts or get_prompts(data, pruning, generation.seed)
    loaded = machine.load_model(arguments.model, runtime, checkpoint)
    pruned = experiment.prune(arguments, loaded, calibration)
    plan = pruned.plan
    encoded = experiment.encode_examples(arguments, evaluated, loaded)
    generator = experiment.make_generator(arguments, loaded, plan, encoded)
    command = shlex.join([sys.argv[0], *(sys.argv[1:] if argv is None else argv)])
    if arguments.prune.save_pruned:
        pruned.save(loaded.tokenizer, arguments.prune.save_pruned)
    where = experiment.Provenance(runtime, loaded, evaluated, calibration, command)
    record = experiment.make_record(arguments, where, plan)
    writer = experiment.measure(arguments, runtime, generator, encoded, record)
    print_summary(writer.record.to_dict(), writer.path)
    return 0 if writer.record.status == "complete" else EXIT_INTERRUPTED


def print_summary(run: dict[str, Any], path: Path) -> None:
    """The run in a few lines."""
    counts, text = run["counts"], run["predicted_text"]
    skipped = counts["skipped_prompts"]
    print(
        f"{run['status']}: {counts['prompts']} prompts, {counts['generated_tokens']} tokens"
        + (f"; {skipped} skipped, longer than the model's positions" if skipped else "")
    )
    print(
        f"speed     {_shown(run['tokens_per_second']['token_weighted'], '.1f')} tokens/s, "
        f"{_shown(run['time_per_token']['mean'], '.4f')} s/token after a prefill of "
        f"{_shown(run['prefill_seconds']['mean'], '.3f')} s"
    )
    if counts["drafted_tokens"]:
        speedup = run["speedup_over_full_steps"]
        print(
            f"drafts    {_shown(run['acceptance_rate']['token_weighted'], '.1%')} of "
            f"{counts['drafted_tokens']} accepted; against full steps "
            f"{_shown(speedup['measured'], '.2f')}x, "
            f"predicted {_shown(speedup['predicted'], '.2f')}x"
        )
    print(
        f"quality   ROUGE-L {_shown(text['rouge-l'], '.3f')}, "
        f"BLEU {_shown(text['bleu_score'], '.3f')}, "
        f"exact match {_shown(text['exact_match'], '.3f')}"
    )
    print(
        f"memory    {run['peak_memory_bytes'] / 1e9:.2f} GB at peak, "
        f"{run['model']['weight_bytes'] / 1e9:.2f} GB of weights"
    )
    print(f"log       {path}")


def _shown(value: float | None, form: str) -> str:
    return "none" if value is None else format(value, form)


if __name__ == "__main__":
    sys.exit(run_script(main))
