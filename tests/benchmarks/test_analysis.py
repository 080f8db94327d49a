"""The runs that the benchmark of the analysis makes up are what its flags say."""

import pytest

from analysis.comparison import compare
from benchmarks.analysis import AnalysisArguments, write_study
from benchmarks.made_up_runs import MadeUpRun
from tests.made_up import AUTOREGRESSIVE, SPECULATIVE, read


def test_a_study_has_the_runs_examples_and_tokens_asked_for(tmp_path):
    write_study(tmp_path, AnalysisArguments(runs=3, examples=2, tokens=5), 1, 1)
    runs = read(tmp_path)
    assert len(runs) == 3
    for run in runs:
        assert run.metrics["counts"]["passes"] == 1
        assert run.examples.output_tokens.tolist() == [5, 5]
    assert [run.num_speculations for run in runs].count(6) == 1


@pytest.mark.parametrize("decoder", [AUTOREGRESSIVE, SPECULATIVE])
def test_a_made_up_batch_logs_its_throughput_and_no_speeds(tmp_path, decoder):
    MadeUpRun(examples=5, repeats=2, identity={"batch_size": 2}, **decoder).write(tmp_path)
    (one,) = compare(read(tmp_path))
    metrics = one.run.metrics
    assert metrics["batched"]["batch_size"] == 2
    assert metrics["batched"]["tokens"] == 2 * 5 * 32
    assert metrics["batched"]["seconds"] == pytest.approx(2 * 3 * 1.1, rel=0.2)
    assert metrics["timed"]["prompts"] == 0
    assert one.run.speed is None
    assert set(metrics["step_seconds"].values()) == {None}
    assert not one.run.examples.timed.any()
