"""The results of `benchmarks.peers` as tables and a plot."""

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.results import Columns, bounded, conditions, number, table_lines

_COLOURS = {
    "this project": "#1b6ca8",
    "transformers": "#e08a1e",
    "economize": "#5a9e5a",
    "flashspec": "#8a6fae",
    "llama.cpp": "#b5484f",
}
_NOTES = {
    "llama.cpp": "llama.cpp is xllamacpp's wheel on PyPI. It uses AVX2 at most; torch uses all "
    "that the CPU has. Its prompt lookup searches for the last two tokens, and no fewer.",
}


def table(results: dict[str, Any]) -> str:
    """Return the results in Markdown, dtype by dtype."""
    lines = []
    for dtype, measured in results["dtypes"].items():
        lines += [f"## {results['model']}, {dtype}", "", *_sides(measured), ""]
        for part in (_laws, _removal, _setup, _left_out):
            found = part(measured)
            lines += [*found, ""] if found else []
        lines += [_conditions(results, measured), ""]
    return "\n".join(lines)


def _sides(measured: dict[str, Any]) -> list[str]:
    summary, bandwidth = measured["summary"], measured["bandwidth"]
    columns: Columns = {
        "side": lambda row: row["name"],
        "tokens/s": lambda row: f"{row['tokens_per_second']['median']:.1f}",
        "decoding alone": lambda row: f"{_decoding(row)['median']:.1f}",
        "of the floor": lambda row: f"{row['share_of_floor']:.0%}",
        "/ `generate`": lambda row: _ratio(row["over_generate"]),
        "decoding / `generate`": lambda row: _ratio(row["decoding_over_generate"]),
        "decoding / own autoregressive": lambda row: _ratio(
            None if row["method"] == "autoregressive" else row["decoding_over_own"]
        ),
        "accepted": lambda row: number((row["acceptance"] or {}).get("rate"), ".1%"),
        "outputs": lambda row: _verdicts(row["verdicts"]),
    }
    rows = sorted(summary["sides"], key=lambda row: -_decoding(row)["median"])
    heading, rule, *lines = table_lines(columns, rows)
    floor = number(summary["floor_tokens_per_second"], ".1f")
    present = {row["system"] for row in rows}
    return [
        heading,
        rule,
        f"| floor: the weights read once a token | | {floor} | 100% | | | | | |",
        *lines,
        "",
        "Tokens/s are of whole calls, prompt included; decoding is the same less a call for one "
        "token. Ratios of speed are paired within a turn: means over prompts of medians over "
        "repeats, with 95 % intervals over prompts. Outputs are held against this project's eager "
        "autoregressive ones; rounding alone sets some apart in half precision, where a difference "
        f"proves nothing. The floor is {bandwidth['median_gigabytes_per_second']:.1f} GB/s "
        f"(at best {bandwidth['best_gigabytes_per_second']:.1f}), measured before every call by "
        f"torch's {bandwidth['operation']} over {bandwidth['buffer_bytes'] / 1e6:.0f} MB, by "
        f"{measured['step_bytes'] / 1e6:.0f} MB of weights a step.",
        *(f"\n{note}" for system, note in _NOTES.items() if system in present),
    ]


def _decoding(row: dict[str, Any]) -> dict[str, float]:
    return row["decoding_tokens_per_second"]


def _laws(measured: dict[str, Any]) -> list[str]:
    columns: Columns = {
        "self-speculation": lambda row: row["name"],
        "k": lambda row: f"{row['law']['k']:.2f}",
        "r": lambda row: f"{row['law']['r']:.3f}",
        "c": lambda row: f"{row['law']['c']:.3f}",
        "v": lambda row: f"{row['law']['v']:.3f}",
        "predicted": lambda row: f"{row['law']['predicted']:.2f}",
        "measured": lambda row: _ratio(row["law"]["measured"]),
        "measured / predicted": lambda row: number(row["law"]["measured_over_predicted"], ".2f"),
    }
    rows = [row for row in measured["summary"]["sides"] if row["law"]]
    if not rows:
        return []
    return [
        *table_lines(columns, rows),
        "",
        "Speed-up of decoding alone over autoregressive decoding of the same kind, predicted by "
        "(k r + 1) / (k c + v): k drafted a round, r accepted / drafted, c a draft step and v a "
        "verify pass in full steps.",
    ]


def _removal(measured: dict[str, Any]) -> list[str]:
    columns: Columns = {
        f"layers removed of {measured['layers']}": lambda row: row["layers_removed"],
        "decoder": lambda row: "compiled" if row["compiled"] else "eager",
        "time of a token, of the whole model's": lambda row: _ratio(row["time_of_whole"]),
        "by bytes of weights": lambda row: f"{row['ideal']:.2f}",
        "measured / ideal": lambda row: number(row["measured_over_ideal"], ".2f"),
    }
    rows = measured["summary"]["removal"]
    return table_lines(columns, rows) if rows else []


def _setup(measured: dict[str, Any]) -> list[str]:
    columns: Columns = {
        "compiled side": lambda row: row["name"],
        "until its first output (s)": lambda row: f"{row['seconds']:.1f}",
        "of that, compiling (s)": lambda row: number(row["compile_seconds"], ".1f"),
    }
    compiled = [side["name"] for side in measured["sides"] if side["compiled"]]
    setup = measured["setup"]
    rows = [setup[name] | {"name": name} for name in compiled if name in setup]
    if not rows:
        return []
    return [
        *table_lines(columns, rows),
        "",
        "What an earlier start compiled is found again, by this project and by torch.",
    ]


def _left_out(measured: dict[str, Any]) -> list[str]:
    return [f"- Left out: {name} ({reason})" for name, reason in measured["left_out"].items()]


def _conditions(results: dict[str, Any], measured: dict[str, Any]) -> str:
    arguments = results["arguments"]
    what = (
        f"{arguments['num_prompts']} prompts of {results['data']} x {arguments['repeats']}, "
        f"{arguments['max_steps']} tokens each (no end token), greedy, batch 1"
    )
    return conditions(results, measured["runtime"], what, results["packages"])


def _verdicts(counts: dict[str, int]) -> str:
    """Return counts such as '6 equal of 6', or '4 equal, 2 tied of 6'."""
    known = {"equal": "equal", "tie": "tied", "wrong": "wrong", "different": "different"}
    found = [f"{counts[key]} {word}" for key, word in known.items() if counts.get(key)]
    return f"{', '.join(found)} of {sum(counts.values())}" if found else "-"


def _ratio(found: dict[str, Any] | None) -> str:
    return bounded([found[key] for key in ("value", "low", "high")] if found else None)


def plot(results: dict[str, Any], path: Path) -> None:
    """Plot the decoding speed of each side, a panel per dtype, with the floor as a line."""
    dtypes = results["dtypes"]
    most = max(len(measured["summary"]["sides"]) for measured in dtypes.values())
    size = (1 + 6.5 * len(dtypes), 1.6 + 0.24 * most)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(1, len(dtypes), squeeze=False)
    for axes, (dtype, measured) in zip(panels[0], dtypes.items(), strict=True):
        _panel(axes, measured)
        axes.set_title(f"{results['model']}, {dtype}, {measured['runtime']['device']}")
    figure.savefig(path, dpi=130)


def _panel(axes: Axes, measured: dict[str, Any]) -> None:
    """Draw the fastest on top; whiskers span the quartiles of the turns."""
    summary = measured["summary"]
    rows = sorted(summary["sides"], key=lambda row: _decoding(row)["median"])
    for height, row in enumerate(rows):
        rate = _decoding(row)
        whiskers = [
            [rate["median"] - rate["lower_quartile"]],
            [rate["upper_quartile"] - rate["median"]],
        ]
        axes.barh(
            height,
            rate["median"],
            xerr=whiskers,
            color=_COLOURS[row["system"]],
            hatch="//" if row["compiled"] else None,
            edgecolor="white",
            error_kw={"elinewidth": 1, "ecolor": "0.2"},
        )
    floor = summary["floor_tokens_per_second"]
    axes.axvline(floor, color="0.2", linestyle="--", label="floor: the weights read once a token")
    whole = [row["tokens_per_second"]["median"] for row in rows]
    axes.plot(whole, range(len(rows)), "D", color="0.2", markersize=3, label="whole call")
    right = max([floor, *(_decoding(row)["upper_quartile"] for row in rows)])
    axes.set_yticks(range(len(rows)), [row["name"] for row in rows], fontsize=8)
    axes.set(xlabel="tokens per second after the first", xlim=(0, 1.05 * right))
    axes.set_ylim(-0.7, len(rows) - 0.3)
    axes.legend(loc="lower right", fontsize=8, edgecolor="white", framealpha=0.9)
    axes.spines[["top", "right"]].set_visible(False)
