"""Links of README, docs and results lead somewhere, and their flags exist."""

import dataclasses
import re
import typing

import pytest

import analyze_logs
import correctness
import generate
import train
from arguments.run import MEASURED_GROUPS
from harness.arguments import EvaluationArguments
from runs.sweep_grid import SweepArguments
from tests.conftest import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
RESULTS = sorted((ROOT / "results").glob("*.md"))
# Flags of other programs: torchrun, sbatch, make's pip, the benchmarks.
FOREIGN = {"nproc_per_node", "nodes", "help", "dry-run", "repeats", "dtypes", "processes"}


def known_flags() -> set[str]:
    """Return the flags of all scripts."""
    nested = [SweepArguments, EvaluationArguments]
    groups = [
        *MEASURED_GROUPS,
        *train.GROUPS,
        *(group for one in nested for group in typing.get_type_hints(one).values()),
        generate.AnswerArguments,
        correctness.CorrectnessArguments,
    ]
    names = {item.name for group in groups for item in dataclasses.fields(group)}
    return names | set(vars(analyze_logs._parse([str(ROOT)])))


@pytest.mark.parametrize("page", [*PAGES, *RESULTS], ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8"))
    local = [link for link in links if "://" not in link]
    assert [link for link in local if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_flags_exist(page):
    named = re.findall(r"(?<![\w-])--([a-z][a-z_-]+)", page.read_text(encoding="utf-8"))
    endings = {"exit_layer_first/last/step": "exit_layer_first"}
    assert {endings.get(name, name) for name in named} <= known_flags() | FOREIGN


def test_every_page_is_reached_from_the_readme():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    pages = [f"docs/{page.name}" for page in PAGES[1:]] + [f"results/{p.name}" for p in RESULTS]
    assert [page for page in pages if f"]({page})" not in text] == []
    assert len(text.splitlines()) <= 170
