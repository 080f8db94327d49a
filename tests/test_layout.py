"""Packages import only packages of lower rows, importing does nothing, and files stay small."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

# A file imports from rows below its own, and from its own package or script.
ROWS = [
    {"self_speculation", "command_line"},
    {"files"},
    {"processes", "prompts"},
    {"arguments"},
    {"data", "models"},
    {"pruning"},
    {"pruned_model"},
    {"runs"},
    {"analysis", "harness"},
    {"training"},
    {"benchmark", "generate", "correctness", "sweep", "eval", "train", "analyze_logs"},
    {"benchmarks"},
]
ROW_OF = {room: row for row, rooms in enumerate(ROWS) for room in rooms}
PRODUCT = [
    path
    for room in sorted(ROW_OF)
    for path in (sorted((ROOT / room).glob("*.py")) or [ROOT / f"{room}.py"])
]


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def imports_of(path: Path) -> set[str]:
    """Return the project's modules that a file imports, in functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {node.module} | (inner & set(MODULES))
    return {name for name in found if name.partition(".")[0] in ROW_OF}


MODULES = {module_of(path): path for path in PRODUCT}


def test_every_python_file_has_a_row():
    files = {path.stem for path in ROOT.glob("*.py")}
    folders = {path.parent.name for path in ROOT.glob("*/*.py")} - {"tests"}
    assert files | folders == set(ROW_OF)


def test_the_readmes_map_shows_the_rows():
    shown = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Map")[2]
    for row, rooms in enumerate(ROWS):
        (line,) = re.findall(rf"^ ?{row}  .*(?:\n    self_spec.*)?", shown, re.MULTILINE)
        assert {room for room in ROW_OF if re.search(rf"\b{room}(/|\.py)", line)} == rooms


@pytest.mark.parametrize("path", PRODUCT, ids=module_of)
def test_imports_point_downwards(path):
    room = module_of(path).partition(".")[0]
    rooms = {name.partition(".")[0] for name in imports_of(path)} - {room}
    assert {name for name in rooms if ROW_OF[name] >= ROW_OF[room]} == set()


def test_the_engine_imports_no_other_package():
    engine = [path for name, path in MODULES.items() if name.startswith("self_speculation")]
    imported = set().union(*map(imports_of, engine))
    assert {name for name in imported if not name.startswith("self_speculation")} == set()


def test_no_package_imports_in_a_circle():
    imports = {name: imports_of(path) & set(MODULES) - {name} for name, path in MODULES.items()}
    while leaves := {name for name, others in imports.items() if not others & set(imports)}:
        imports = {name: others for name, others in imports.items() if name not in leaves}
    assert imports == {}


def test_importing_every_module_does_nothing(tmp_path):
    modules = [name for name in MODULES if not name.startswith("benchmarks.")]
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import {', '.join(modules)}"
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
    files = [*PRODUCT, *(ROOT / "tests").rglob("*.py")]
    assert [path.name for path in files if len(path.read_text().splitlines()) > 400] == []
