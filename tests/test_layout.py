"""The house's order: imports point one way, importing does nothing, files stay small."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HOUSE = (".", "analysis", "files", "models", "prompts", "self_speculation")
# Each module may import those before it, and none after it.
ORDER = [
    "timing",
    "files",
    "files.error_lines",
    "files.hub_reasons",
    "bounded_files",
    "command_line",
    "log_files",
    "heartbeat",
    "ranks",
    "progress",
    "checkpoint_folders",
    "prompts.row_formats",
    "rows",
    "dataset_table",
    "placement_arguments",
    "arguments",
    "data",
    "user_cache",
    "weight_layout",
    "offloading",
    "models",
    "models.saved",
    "models.quantised",
    "embedded_model",
    "synthetic_model",
    "self_speculation.output_text",
    "self_speculation.sampling",
    "self_speculation.llama_model_utils",
    "self_speculation.row_kernels",
    "self_speculation.programs",
    "self_speculation.compiled_llama",
    "self_speculation.equality",
    "self_speculation.generator_base",
    "self_speculation.law",
    "self_speculation.speculative_streamer",
    "self_speculation.autoregressive_generator",
    "self_speculation.self_speculation_generator",
    "self_speculation",
    "self_speculation.text_generator",
    "models.tokens",
    "models.generation_settings",
    "models.checkpoint_files",
    "models.configurations",
    "models.loaded_weights",
    "models.loading_errors",
    "compilation",
    "runtime",
    "model_loading",
    "prompt_encoding",
    "pruned_model",
    "prepared_model",
    "generate",
    "run_log",
    "run_writer",
    "metrics",
    "code_guard",
    "code_execution",
    "cell",
    "fitting",
    "experiment",
    "benchmark",
    "check_log",
    "lossless",
    "correctness",
    "cell_status",
    "older_logs",
    "analysis",
    "analysis.logged_examples",
    "logged_runs",
    "intervals",
    "comparison",
    "tables",
    "figures",
    "plots",
    "analyze_logs",
    "heat_maps",
    "sweep_grid",
    "sweep_runs",
    "sweep",
    "harness_arguments",
    "harness_requests",
    "harness_tasks",
    "harness_model",
    "harness_run",
    "eval",
    "layerskip_recipe",
    "training_arguments",
    "training_text",
    "training_documents",
    "early_exits",
    "learner",
    "optimizers",
    "training_state",
    "training_log",
    "training",
    "training_run",
    "train",
]
SCRIPTS = {
    "benchmark",
    "code_guard",
    "correctness",
    "generate",
    "cell_status",
    "analyze_logs",
    "sweep",
    "eval",
    "train",
}


def path_of(module: str) -> Path:
    path = ROOT / Path(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module)
    return found


def test_the_order_names_every_module():
    files = [path for folder in HOUSE for path in (ROOT / folder).glob("*.py")]
    assert sorted(files) == sorted(map(path_of, ORDER))


@pytest.mark.parametrize("module", ORDER)
def test_imports_point_one_way(module):
    later = set(ORDER[ORDER.index(module) :])
    assert not imports_of(path_of(module)) & (later | SCRIPTS)


def test_importing_every_module_does_nothing(tmp_path):
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import {', '.join(ORDER)}"
    done = subprocess.run(
        [sys.executable, "-B", "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


def test_files_stay_small():
    files = [
        path for folder in (*HOUSE, "benchmarks", "tests") for path in (ROOT / folder).glob("*.py")
    ]
    assert [path.name for path in files if len(path.read_text().splitlines()) > 400] == []
