"""The time that a sweep says is left."""

from types import SimpleNamespace

import pytest

from arguments.run import MEASURED_GROUPS, RunArguments
from command_line.flags import parse
from runs import sweep_states
from runs.loop import Turn
from runs.sweep_states import Pace, Visit
from tests.conftest import common_flags


@pytest.fixture
def visit(checkpoint, rows, tmp_path):
    def make(left, *flags):
        words = [*common_flags(checkpoint, rows, tmp_path), *flags]
        run = SimpleNamespace(arguments=RunArguments(*parse(words, "", *MEASURED_GROUPS)))
        return Visit(0, run, Turn(), left)

    return make


@pytest.fixture
def told(monkeypatch, capsys):
    """Perform visits that take so many seconds; return what is printed before each."""

    def perform(visits, seconds, failing=()):
        now = [0.0]
        monkeypatch.setattr(sweep_states.time, "monotonic", lambda: now[0])
        pace, lines = Pace(len(visits), visits), []
        for place, (one, duration) in enumerate(zip(visits, seconds, strict=True)):
            pace.begin(one)
            now[0] += duration
            pace.end(one, succeeded=place not in failing)
            lines.append(capsys.readouterr().out.strip().partition("; ")[2])
        return lines

    return perform


BATCHES = "--batch_size", "5", "--generation_strategy", "autoregressive"
SINGLE = "--generation_strategy", "autoregressive"
SPECULATIVE = (
    *("--generation_strategy", "self_speculative"),
    *("--exit_layer", "2", "--num_speculations", "3"),
)


def test_every_kind_of_run_has_its_own_pace(visit, told):
    batches, single, drafts = visit(100, *BATCHES), visit(10, *SINGLE), visit(10, *SPECULATIVE)
    assert told([batches, single, drafts] * 2, [600, 1200, 2400, 600, 1200, 2400]) == [
        "240 prompts left",
        # 100 in batches and 40 alone, all at the only pace that is known: 6 s.
        "140 prompts left, about 0:14 h",
        # 100 at 6 s, 10 at 120 s; 20 drafted ones at the pace of prompts decoded alone.
        "130 prompts left, about 1:10 h",
        "120 prompts left, about 1:10 h",
        "20 prompts left, about 1:00 h",
        "10 prompts left, about 0:40 h",
    ]


def test_a_first_visit_which_may_prepare_others_counts_until_the_second(visit, told):
    lines = told([visit(10, *SINGLE) for _ in range(4)], [6000, 60, 180, 60])
    assert lines[1:] == [
        "30 prompts left, about 5:00 h",
        "20 prompts left, about 0:02 h",
        "10 prompts left, about 0:03 h",
    ]


def test_prompts_weigh_alike_and_failed_visits_nothing(visit, told):
    """The rest of an interrupted run is a small visit, and a run that fails is a quick one."""
    visits = [visit(left, *SINGLE) for left in (60, 60, 1, 99, 60, 60)]
    assert told(visits, [0, 60, 120, 99, 0, 60], failing=(0, 4)) == [
        "340 prompts left",
        "280 prompts left",
        "220 prompts left, about 0:04 h",
        "219 prompts left, about 0:04 h",
        "120 prompts left, about 0:02 h",
        "60 prompts left, about 0:01 h",
    ]


def test_another_data_set_goes_at_the_decoders_pace_until_its_own_is_known(visit, told):
    other = "--dataset", "human_eval"
    visits = [visit(10, *SINGLE), visit(10, *BATCHES), visit(60, *SINGLE, *other)]
    lines = told([*visits, visit(10, *SINGLE, *other)], [600, 60, 60, 10])
    assert lines[2:] == ["70 prompts left, about 1:10 h", "10 prompts left, about 0:00 h"]


def test_prompts_of_runs_that_are_left_out_are_left_no_more(visit, capsys):
    one = visit(10, *SINGLE)
    pace = Pace(2, [one, one])
    pace.skip(one)
    pace.begin(one)
    assert "; 10 prompts left\n" in capsys.readouterr().out
