"""No code of a checkpoint runs: the project calls nothing that could run it.

The search follows names through imports, and finds some methods on any object. It finds calls that
were forgotten, not calls that were hidden.
"""

import ast
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from arguments.model import ModelArguments
from models.loading import load_model
from models.runtime import Runtime
from tests.conftest import ROOT, rewritten

# Modules that run code while they read data.
MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "shelve", "marshal", "joblib"}
CALLS = {
    *("eval", "exec", "compile", "__import__", "runpy.run_path", "runpy.run_module"),
    *("torch.load", "torch.serialization.load", "torch.hub.load", "pandas.read_pickle"),
    *("os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"),
    *("yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load", "code.interact"),
}
# Methods that pickle the values they send, on any object.
METHODS = {
    *("broadcast_object_list", "all_gather_object", "gather_object", "scatter_object_list"),
    *("send_object_list", "recv_object_list", "gather_for_metrics_object"),
}
# The only value that a keyword may have, in any call.
KEYWORDS = {
    "trust_remote_code": False,
    "use_safetensors": True,
    "shell": False,
    "allow_pickle": False,
    "weights_only": True,
}
# Calls that are safe only with this keyword.
NEEDED = {"AutoModelForCausalLM.from_pretrained": "use_safetensors"}
ALLOWED = {
    ("runs/code_guard.py", "runpy.run_path"): "runs a completion in a fenced process, on request",
    (
        "models/embedded.py",
        "AutoModelForCausalLM.from_pretrained",
    ): "reads a GGUF file of a known hash",
}


def python_files() -> list[Path]:
    """Return the project's Python files without tests; all of them outside a checkout."""
    listed = subprocess.run(["git", "-C", ROOT, "ls-files", "*.py"], capture_output=True, text=True)
    found = [ROOT / name for name in listed.stdout.splitlines()]
    found = [path for path in found if path.exists()] or [*ROOT.glob("*.py"), *ROOT.glob("*/*.py")]
    return [path for path in found if ROOT / "tests" not in path.parents]


def forbidden(code: str) -> Iterator[str]:
    """Yield the forbidden names in some code."""
    tree = ast.parse(code)
    names = dict(_imported(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from (name for _, name in _imported(node) if name.split(".")[0] in MODULES)
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Load):
            full = _full_name(node, names)
            if full in CALLS or (full and full.split(".")[0] in MODULES):
                yield full
            if isinstance(node, ast.Attribute) and node.attr in METHODS:
                yield node.attr
            if isinstance(node, ast.Name) and full.rpartition(".")[2] in METHODS:
                yield full
        elif isinstance(node, ast.Call):
            yield from _keywords(node, names)


def _imported(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Yield names that imports define, and what they stand for."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                known = alias.name if alias.asname else alias.name.split(".")[0]
                yield alias.asname or known, known
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield alias.asname or alias.name, f"{node.module}.{alias.name}"


def _full_name(node: ast.AST, names: dict[str, str]) -> str:
    """Return a name such as torch.load, whatever its alias; empty for other expressions."""
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id).removeprefix("builtins.")
    if isinstance(node, ast.Attribute):
        owner = _full_name(node.value, names)
        return f"{owner}.{node.attr}".removeprefix("builtins.") if owner else ""
    return ""


def _keywords(call: ast.Call, names: dict[str, str]) -> Iterator[str]:
    for keyword in call.keywords:
        if keyword.arg in KEYWORDS:
            value = keyword.value
            if not isinstance(value, ast.Constant) or value.value is not KEYWORDS[keyword.arg]:
                yield f"{keyword.arg}={ast.unparse(value)}"
    full = _full_name(call.func, names)
    for name, needed in NEEDED.items():
        if full.endswith(name) and needed not in {keyword.arg for keyword in call.keywords}:
            yield name


@pytest.mark.parametrize("path", python_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_that_runs_foreign_code_is_called(path):
    found = set(forbidden(path.read_text(encoding="utf-8")))
    assert found == {name for file, name in ALLOWED if file == str(path.relative_to(ROOT))}


CAUGHT = {
    "import pickle": "pickle",
    "from pickle import loads as x": "pickle.loads",
    "def f():\n    import marshal": "marshal",
    "import torch as t\nt.load('a')": "torch.load",
    "from torch import load\nload('a')": "torch.load",
    "import torch\nread = torch.load": "torch.load",
    "import numpy\nnumpy.load('a', allow_pickle=flag)": "allow_pickle=flag",
    "eval('1')": "eval",
    "list(map(eval, texts))": "eval",
    "from builtins import exec as run\nrun('1')": "exec",
    "__import__('os')": "__import__",
    "AutoConfig.from_pretrained('a', trust_remote_code=True)": "trust_remote_code=True",
    "AutoModelForCausalLM.from_pretrained('a')": "AutoModelForCausalLM.from_pretrained",
    "import yaml\nyaml.load(text)": "yaml.load",
    "import subprocess\nsubprocess.run('ls', shell=True)": "shell=True",
    "dist.broadcast_object_list(values)": "broadcast_object_list",
    "from torch.distributed import gather_object as g\ng(a, b)": "torch.distributed.gather_object",
}


@pytest.mark.parametrize("code", CAUGHT)
def test_the_search_finds_forbidden_calls(code):
    assert CAUGHT[code] in set(forbidden(code))


@pytest.mark.parametrize(
    "code",
    [
        "model.eval()",
        "re.compile('a')",
        "torch.compile(model)",
        "json.load(file)",
        "import numpy\nnumpy.load('a', allow_pickle=False)",
        "from safetensors.torch import load_file\nload_file('a')",
        "AutoModelForCausalLM.from_pretrained('a', use_safetensors=True, trust_remote_code=False)",
        "subprocess.run(['ls'], shell=False)",
        "class Flags:\n    compile: bool = False\nflags.compile",
        "import evaluation as evaluate\nevaluate.exec_time",
    ],
)
def test_the_search_passes_safe_calls(code):
    assert set(forbidden(code)) == set()


def test_code_beside_a_supported_model_is_never_run(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint, tmp_path / "model")
    marker = tmp_path / "ran"
    (folder / "own.py").write_text(f"open({str(marker)!r}, 'w')")
    for name, classes in {
        "config.json": ("AutoConfig", "AutoModel", "AutoModelForCausalLM"),
        "tokenizer_config.json": ("AutoTokenizer",),
    }.items():
        with rewritten(folder / name) as values:
            values["auto_map"] = dict.fromkeys(classes, "own.Own")
    loaded = load_model(ModelArguments(str(folder)), Runtime(torch.device("cpu"), torch.float64))
    assert type(loaded.model).__module__.startswith("transformers.")
    assert not marker.exists()
