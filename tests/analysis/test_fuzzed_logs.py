"""Any log is read, or named as one that cannot be read; whole lines are never lost."""

import json
import operator
from functools import reduce
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.comparison import compare
from analysis.logged_runs import read_logged_runs
from analysis.older_logs import read_console, read_objects
from analysis.tables import make_tables
from benchmarks.made_up_runs import MadeUpRun, angular_plan
from runs.reader import read_record, read_samples, whole_lines
from runs.record import RUN, samples_path
from tests.analysis.test_older_logs import METRICS, four
from tests.fuzzing import FIXED, JSON

EXAMPLES = 4


@pytest.fixture
def made(tmp_path):
    """A run's file, beside its samples."""
    return MadeUpRun(
        plan=angular_plan(2), examples=EXAMPLES, tokens=8, exit_layer=8, num_speculations=3
    ).write(tmp_path)


def places(values) -> list[tuple]:
    """Return the paths to all values in some JSON."""
    found = [()]
    if isinstance(values, dict | list):
        pairs = values.items() if isinstance(values, dict) else enumerate(values)
        found += [(key, *rest) for key, held in pairs for rest in places(held)]
    return found


@st.composite
def changed(draw, text: str):
    """JSON with one or two values changed or removed."""
    values = json.loads(text)
    for _ in range(draw(st.integers(1, 2))):
        place = draw(st.sampled_from(places(values)))
        if not place:
            continue
        holder = reduce(operator.getitem, place[:-1], values)
        if draw(st.booleans()):
            holder[place[-1]] = draw(JSON)
        elif isinstance(holder, dict):
            del holder[place[-1]]
    return json.dumps(values).encode()


def damaged(text: bytes):
    """A text with bytes lost, doubled or replaced; or any other text."""

    def spliced(cut: tuple[int, int, bytes]) -> bytes:
        start, end = sorted(place % (len(text) + 1) for place in cut[:2])
        return text[:start] + cut[2] + text[end:]

    cuts = st.tuples(st.integers(0, 1 << 20), st.integers(0, 1 << 20), st.binary(max_size=4))
    return st.one_of(
        cuts.map(spliced), st.binary(max_size=64), st.text(max_size=64).map(str.encode)
    )


def reads(path) -> None:
    """Read a run's files with every reader; errors are one line."""
    for reader in (read_record, read_samples):
        try:
            reader(path)
        except ValueError as error:
            assert "\n" not in str(error).strip()
    found = read_logged_runs([path])
    assert len(found.runs) + found.unreadable + found.unfinished == 1
    make_tables(found.runs, compare(found.runs))


def test_a_log_is_read_or_named(made):
    text = made.read_bytes()

    @FIXED
    @given(damaged(text) | changed(text))
    def check(content):
        made.write_bytes(content)
        reads(made)

    check()


def test_samples_are_read_or_named(made):
    text = samples_path(made).read_bytes()
    first = text.splitlines(keepends=True)[0]

    @FIXED
    @given(damaged(text) | changed(first).map(lambda line: line + b"\n" + text[len(first) :]))
    def check(content):
        samples_path(made).write_bytes(content)
        reads(made)

    check()


def test_whole_lines_before_a_torn_one_survive(made):
    path = samples_path(made)
    text = path.read_bytes()
    samples, size = whole_lines(samples_path(made), RUN)
    assert (len(samples), size) == (EXAMPLES, len(text))

    @FIXED
    @given(st.integers(0, len(text)))
    def check(length):
        path.write_bytes(text[:length])
        kept, whole = whole_lines(samples_path(made), RUN)
        # A line that lacks only its line end is whole.
        count = text[:length].count(b"\n") + (text[length : length + 1] == b"\n")
        assert kept == samples[:count]
        assert whole == len(b"".join(text.splitlines(keepends=True)[:count])[:length])

    check()


@FIXED
@given(damaged(four().encode()) | st.lists(JSON, max_size=5).map(json.dumps).map(str.encode))
def test_an_older_log_is_read_or_a_value_error(content):
    try:
        read_objects(content.decode(errors="replace"), Path())
    except ValueError:
        return


@FIXED
@given(changed(json.dumps(METRICS)))
def test_an_older_logs_metrics_are_numbers_or_a_value_error(content):
    try:
        log = read_objects(four(metrics=json.loads(content)), Path())
    except ValueError:
        return
    assert set(map(type, log.metrics["predicted_text"].values())) <= {int, float, type(None), bool}


def test_a_console_is_read_or_a_value_error(tmp_path):
    path = tmp_path / "human_eval_results_base_0"

    @FIXED
    @given(damaged(f"[Prompt]\n{METRICS!r}\n".encode()) | changed(json.dumps(METRICS)))
    def check(content):
        path.write_bytes(content)
        try:
            read_console(path)
        except ValueError:
            return

    check()
