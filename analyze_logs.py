"""Tabulates the runs below some folders."""

import json
import sys
from pathlib import Path
from typing import Any

import pandas

from command_line import OneLineParser, UsageError, run_script
from run_log import RunRecord, find_runs, read_record

# What the two decoders of one plan may differ in and still be compared.
_DECODER_FLAGS = ("generation_strategy", "exit_layer", "num_speculations")


def main(argv: list[str] | None = None) -> int:
    parser = OneLineParser(description=__doc__)
    parser.add_argument("log_dirs", nargs="*", default=["logs"], help="folders (default: logs)")
    folders = [Path(name) for name in parser.parse_args(argv).log_dirs]
    for folder in folders:
        if not folder.is_dir():
            raise UsageError(f"log_dirs {folder}: is no folder")
    paths = list(dict.fromkeys(path for folder in folders for path in find_runs(folder)))
    runs, unreadable = _read(paths)
    for line in unreadable:
        print(f"warning: {line}", file=sys.stderr)
    if not runs:
        named = " ".join(map(str, folders))
        raise UsageError(f"log_dirs {named}: {len(paths)} run logs found, none of them readable")
    baselines = _baselines(runs)
    rows = pandas.DataFrame([_row(run, baselines) for run in runs])
    print(rows.to_markdown(index=False, disable_numparse=True))
    return 0


def _read(paths: list[Path]) -> tuple[list[RunRecord], list[str]]:
    runs, unreadable = [], []
    for path in paths:
        try:
            run = read_record(path)
            _row(run, _baselines([run]))  # a run that makes no row is left out too
            runs.append(run)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            unreadable.append(f"{path.name} is left out ({type(error).__name__}: {error})")
    return runs, unreadable


def _row(run: RunRecord, baselines: dict[str, RunRecord]) -> dict[str, str]:
    generation, metrics = run.identity["generation"], run.metrics
    speculative = generation["generation_strategy"] == "self_speculative"
    exit_layer = run.exit_layer["original"]
    shots = len(_at(run.data, "evaluation", "shots") or [])
    return {
        "data": run.identity["dataset"] + (f", {shots} shots" if shots else ""),
        "approach": run.plan["approach"],
        "layers": f"{run.model['kept_layers']}/{run.model['original_layers']}",
        "strategy": generation["generation_strategy"]
        + (f" E={exit_layer}" if exit_layer else "")
        + (f" k={generation['num_speculations']}" if speculative else ""),
        "prompts": _shown(_at(metrics, "counts", "prompts"), "d"),
        "tokens/s": _shown(_at(metrics, "tokens_per_second", "token_weighted"), ".1f"),
        "spec. / autoregr.": _shown(_speedup(run, baselines), ".2f"),
        "predicted": _shown(_at(metrics, "speedup_over_full_steps", "predicted"), ".2f"),
        "acceptance": _shown(_at(metrics, "acceptance_rate", "token_weighted"), ".3f"),
        "ROUGE-L": _shown(_at(metrics, "predicted_text", "rouge-l"), ".3f"),
        "exact match": _shown(_at(metrics, "predicted_text", "exact_match"), ".3f"),
        "weights GB": _shown(run.model["weight_bytes"] / 1e9, ".2f"),
        "status": run.status,
    }


def _baselines(runs: list[RunRecord]) -> dict[str, RunRecord]:
    """The newest complete run of whole-model autoregressive decoding, by what it compares with."""
    found = {}
    for run in runs:
        plain = run.identity["generation"]
        decoder = (plain["generation_strategy"], plain["exit_layer"])
        if run.status == "complete" and decoder == ("autoregressive", -1):
            found[_compared(run)] = run
    return found


def _speedup(run: RunRecord, baselines: dict[str, RunRecord]) -> float | None:
    """Speculative / autoregressive decoding of the same plan, by time per token.

    None for a run that drafts nothing, and where no run differs in its decoder alone.
    """
    baseline = baselines.get(_compared(run))
    if run.identity["generation"]["generation_strategy"] != "self_speculative" or not baseline:
        return None
    rates = [_at(r.metrics, "tokens_per_second", "token_weighted") for r in (run, baseline)]
    return rates[0] / rates[1] if all(rates) else None


def _compared(run: RunRecord) -> str:
    generation = run.identity["generation"]
    same = {key: value for key, value in generation.items() if key not in _DECODER_FLAGS}
    identity = run.identity | {"generation": same, "threads": run.runtime["threads"]}
    return json.dumps(identity, sort_keys=True)


def _at(values: dict[str, Any], *keys: str) -> Any:
    for key in keys:
        values = (values or {}).get(key)
    return values


def _shown(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


if __name__ == "__main__":
    sys.exit(run_script(main))
