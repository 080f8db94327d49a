"""One run: load, prune, decode, measure, log."""

import sys
from pathlib import Path
from typing import Any

from arguments.run import MEASURED_GROUPS, RunArguments
from command_line.errors import EXIT_INTERRUPTED, FailedError
from command_line.flags import parse
from command_line.messages import shown, warn
from command_line.script import command_text, run_script
from data import get_local_prompts


def main(argv: list[str] | None = None) -> int:
    arguments = RunArguments(*parse(argv, __doc__, *MEASURED_GROUPS))
    # Read local data before importing torch, so that bad data are refused within a second.
    prompts = get_local_prompts(arguments.data, arguments.calibrating, arguments.generation.seed)

    from processes.ranks import joined
    from runs import code_execution
    from runs.definition import define_run
    from runs.experiment import perform_run

    command = command_text(argv)
    with joined().together():
        definition = define_run(arguments, prompts)
    if arguments.data.execute_code:
        warn(code_execution.warning())
    record, path = perform_run(definition, command)
    print_summary(record.to_dict(), path)
    if record.status != "complete":
        print("interrupted; the same command goes on", file=sys.stderr)
        return EXIT_INTERRUPTED
    return FailedError.exit_code if record.failed_prompts else 0


def print_summary(run: dict[str, Any], path: Path) -> None:
    """Print the run in a few lines."""
    counts = run["counts"]
    skipped, failed = counts["skipped_prompts"], counts.get("failed_prompts", 0)
    turns = counts.get("skipped_turns", 0)
    print(
        f"{run['status']}: {counts['prompts']} prompts, {counts['generated_tokens']} tokens"
        + (f"; {skipped} skipped, longer than the model's positions" if skipped else "")
        + (f"; {turns} turns skipped, longer than the model's positions" if turns else "")
        + (f"; {failed} FAILED for want of memory" if failed else "")
    )
    if "window" not in run.get("teacher_forced", {}):  # plain texts are not decoded
        print_decoding(run)
    if "teacher_forced" in run:
        print_likelihood(run["teacher_forced"])
    peak, weights = run["peak_memory_bytes"], run["model"]["weight_bytes"]
    print(
        f"memory    {shown(peak and peak / 1e9, '.2f')} GB at peak, "
        f"{weights / 1e9:.2f} GB of weights"
    )
    print(f"log       {path}")


def print_decoding(run: dict[str, Any]) -> None:
    """Print speed, drafts and the quality of the texts."""
    counts, text, batched = run["counts"], run["predicted_text"], run.get("batched")
    if batched:
        print(
            f"speed     {shown(batched['tokens_per_second'], '.1f')} tokens/s together, "
            f"{batched['batch_size']} prompts at a time, prefills included"
        )
    else:
        print(
            f"speed     {shown(run['tokens_per_second']['token_weighted'], '.1f')} tokens/s, "
            f"{shown(run['time_per_token']['mean'], '.4f')} s/token; first token after "
            f"{shown(run['prefill_seconds']['mean'], '.3f')} s"
        )
    together = run.get("throughput")
    if together and together["ranks"] > 1:
        print(
            f"together  {together['tokens_per_second']:.1f} tokens/s of {together['ranks']} "
            f"processes, in {together['seconds']:.1f} s"
        )
    if counts["drafted_tokens"]:
        speedup = run["speedup_over_full_steps"]
        length = run.get("acceptance_length") or {}  # logs of earlier releases have none
        print(
            f"drafts    {shown(run['acceptance_rate']['token_weighted'], '.1%')} of "
            f"{counts['drafted_tokens']} accepted, "
            f"{shown(length.get('token_weighted'), '.2f')} tokens per verification; "
            f"against full steps {shown(speedup['measured'], '.2f')}x, "
            f"predicted {shown(speedup['predicted'], '.2f')}x, "
            f"at most {shown(speedup['bound'], '.2f')}x"
        )
    print(
        f"quality   ROUGE-L {shown(text['rouge-l'], '.3f')}, "
        f"BLEU {shown(text['bleu_score'], '.3f')}, "
        f"exact match {shown(text['exact_match'], '.3f')}"
        + (f", numeric match {text['numeric_match']:.3f}" if "numeric_match" in text else "")
        + (f", pass@1 {text['pass@1']:.3f}" if "pass@1" in text else "")
    )


def print_likelihood(forced: dict[str, Any]) -> None:
    """Print the perplexity of given texts, and the distance from the unpruned model."""
    windows = ""
    if "window" in forced:
        windows = (
            f" (window {forced['window']}, stride {forced['stride']}, "
            f"first token {forced['first_token']})"
        )
    print(
        f"texts     perplexity {shown(forced['perplexity'], '.3f')}, "
        f"{shown(forced['bits_per_byte'], '.4f')} bits per byte of {forced['tokens']} tokens"
        + windows
    )
    print(
        f"unpruned  KL {shown(forced['kl'], '.4f')} nats per token, "
        f"top-1 agreement {shown(forced['agreement'], '.1%')}"
    )


if __name__ == "__main__":
    sys.exit(run_script(main))
