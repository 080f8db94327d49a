"""The results of `benchmarks.decoding` as a table and a plot."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.results import conditions


def table(results: dict[str, Any]) -> str:
    """Return the results in Markdown."""
    generate = results["against_transformers"]["speedup_over_generate"]
    calibration_cost = results["calibration"]["seconds_over_bare_forward"]
    states = results["calibration"]["bytes_of_states_held_a_prompt"]
    lines = [
        "| measured | result |",
        "|---|---|",
        "| autoregressive against transformers' `generate`, the same weights | "
        f"{generate['median']:.2f}x (quartiles {generate['lower_quartile']:.2f} "
        f"to {generate['upper_quartile']:.2f}) |",
        *_self_speculation(results),
        *_removal(results),
        f"| calibration against a bare forward pass | {calibration_cost['median']:.2f}x, "
        f"{states / 1e3:.0f} kB of states held a prompt |",
        *map(_equality, results["equality"]),
        "",
        conditions(results, results["runtime"], "human_eval, greedy"),
    ]
    return "\n".join(lines) + "\n"


def _self_speculation(results: dict[str, Any]) -> list[str]:
    return [
        f"| self-speculative against autoregressive, exit layer {row['exit_layer']}, "
        f"k {results['num_speculations']}{', sampled' * row['sample']} | "
        f"{row['measured_speedup']:.2f}x, predicted {row['predicted_speedup']:.2f}x; "
        f"{row['acceptance']:.1%} accepted; "
        f"round {row['round_overhead']:.1%} above its passes |"
        for row in results["self_speculation"]
    ]


def _removal(results: dict[str, Any]) -> list[str]:
    whole, *pruned = results["removal"]["rows"]
    return [
        f"| {row['layers_removed']} of {results['layers']} layers removed | step "
        f"{row['step_seconds'] / whole['step_seconds']:.2f} of the whole model's, "
        f"{row['share_of_ideal_time_saved']:.0%} of the ideal saving; weights "
        f"{row['weight_bytes'] / 1e9:.2f} of {whole['weight_bytes'] / 1e9:.2f} GB |"
        for row in pruned
    ]


def _equality(row: dict[str, Any]) -> str:
    different = f", {row['different']} different" if "different" in row else ""
    return (
        f"| greedy outputs of both decoders, {row['plan']} | {row['equal']} equal, "
        f"{row['tie']} tied, {row['wrong']} wrong{different}; "
        f"{row['tokens']} tokens |"
    )


def plot(results: dict[str, Any], path: Path) -> None:
    """Plot step time by layers removed, and speed-up by exit layer."""
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    rows, layers = results["removal"]["rows"], results["layers"]
    removed = [row["layers_removed"] for row in rows]
    left.plot(removed, [1e3 * row["step_seconds"] for row in rows], "ko-", label="measured")
    start_ms, head_ms = 1e3 * rows[0]["step_seconds"], 1e3 * results["removal"]["head_seconds"]
    ideal = [start_ms - (start_ms - head_ms) * count / layers for count in removed]
    left.plot(removed, ideal, "--", color="0.6", label="ideal")
    left.set(xlabel=f"layers removed of {layers}", ylabel="time per token (ms)", ylim=(0, None))
    left.set_title("Removed layers cost nothing")
    left.legend(frameon=False)

    rows = [row for row in results["self_speculation"] if not row["sample"]]
    exits = [row["exit_layer"] for row in rows]
    right.plot(exits, [r["measured_speedup"] for r in rows], "ko-", label="measured speed-up")
    right.plot(exits, [r["predicted_speedup"] for r in rows], "^--", color="0.5", label="predicted")
    right.plot(exits, [r["acceptance"] for r in rows], "s:", color="0.3", label="acceptance rate")
    right.axhline(1, color="0.8", linewidth=1)
    right.set(xlabel=f"exit layer of {layers}", ylabel="ratio", ylim=(0, 1.1), xticks=exits)
    right.set_title(f"Self-speculation, k = {results['num_speculations']}")
    right.legend(frameon=False, loc="center", bbox_to_anchor=(0.5, 0.7))
    figure.savefig(path, dpi=130)
