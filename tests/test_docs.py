"""Links of README, docs and results lead somewhere, and their flags exist."""

import dataclasses
import re
import sys
import types
import typing

import pytest

import analyze_logs
import correctness
import generate
import train
from arguments.run import MEASURED_GROUPS
from harness.arguments import EvaluationArguments
from runs.sweep_grid import SweepArguments
from self_speculation import drafters
from self_speculation.drafter import Drafting
from self_speculation.generator_base import GenerationConfig
from self_speculation.text_generator import TextGenerator
from tests.conftest import ROOT, random_prompt

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


def test_the_drafter_of_the_docs_drafts(model, tokenizer, monkeypatch):
    """It is one class and one entry; the other code block of that section is the entry."""
    page = (ROOT / "docs" / "decoding.md").read_text(encoding="utf-8")
    source, entry = re.findall(r"```python\n(.+?)```", page.partition("## Add a drafter")[2], re.S)
    module = types.ModuleType("self_speculation.echo_drafter")
    exec(source, vars(module))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for name, made in eval(f"{{{entry}}}", vars(drafters)).items():
        monkeypatch.setitem(drafters.DRAFTERS, name, made)
    model.lm_head.weight[7] *= 100  # a model that repeats itself
    config = GenerationConfig(24, num_speculations=3, drafting=Drafting("echo"))
    plain, echo = (
        TextGenerator(model, tokenizer, strategy, config, 64).generate(random_prompt(9))
        for strategy in ("autoregressive", "self_speculative")
    )
    assert echo.output_ids == plain.output_ids
    assert echo.accepted_tokens > 0
    assert set(echo.drafters) == {"echo"}


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
