"""Logs of the older tool become runs under this tool's names; logs of forks are refused."""

import json
from pathlib import Path

import pytest

from analysis.older_logs import UnknownLogError, is_console, read_console, read_objects

METRICS = {
    "predicted_text": {
        "rouge-l": 0.124,
        "rouge-1": 0.18,
        "rouge-2": 0.085,
        "rouge-3": 0.047,
        "bleu_score": 0.0,
        "exact_match": 1698.75,
    },
    "acceptance_rate": {"mean": 0.9676491290330886},
    "total_time": {"mean": 9.281439912319183},
    "time_per_token": {"mean": 0.019168269261717795},
    "tokens_per_second": {"mean": 52.278513526916505},
}
GENERAL = {"model": "facebook/layerskip-llama2-7B", "model_args": None, "seed": 42}
DATA = {
    "dataset": "cnn_dm_summarization",
    "data_path": None,
    "num_samples": 20,
    "prune_method": "angular",
    "prune_n": 2,
    "dropout_threshold": 0.1,
}
GENERATION = {
    "max_steps": 512,
    "exit_layer": 31,
    "num_speculations": 6,
    "generation_strategy": "self_speculative",
}


def four(data=DATA, generation=GENERATION, metrics=METRICS):
    return "".join(map(json.dumps, [GENERAL, data, generation, metrics]))


def read(text):
    return read_objects(text, Path("benchmark_20250427_222420.json"))


def console(tmp_path, name, last=None, **changes):
    """Write progress bars, a prompt, a response that looks like a dict, and the metrics."""
    path = tmp_path / name
    printed = repr(METRICS | changes) if last is None else last
    lines = [
        "Loading checkpoint shards: 100%|##########| 3/3 [00:05<00:00,  1.84s/it]",
        "[Prompt]:\nArticle: ...\n[Model Response]:\n{'a': 1}\n[Acceptance Rate]: 0.48",
        "100%|##########| 20/20 [02:22<00:00,  7.14s/it]",
        printed,
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_four_objects_are_one_run_whose_exact_match_is_an_edit_distance():
    run = read(four())
    assert (run.dataset, run.method, run.param) == ("cnn_dm_summarization", "angular", "n=2")
    assert (run.strategy, run.exit_layer, run.num_speculations) == ("self_speculative", 31, 6)
    assert (run.model, run.num_samples) == ("facebook/layerskip-llama2-7B", 20)
    assert run.metrics["tokens_per_second"] == {"mean": 52.278513526916505}
    text = run.metrics["predicted_text"]
    assert text["edit_distance"] == 1698.75
    assert "exact_match" not in text


@pytest.mark.parametrize("rate", [0.0, -1.0])
def test_plain_decoding_accepted_nothing_because_it_drafted_nothing(rate):
    plain = GENERATION | {"generation_strategy": "autoregressive", "exit_layer": -1}
    run = read(four(generation=plain, metrics=METRICS | {"acceptance_rate": {"mean": rate}}))
    assert run.metrics["acceptance_rate"] == {"mean": None}
    assert (run.exit_layer, run.num_speculations) == (None, None)


@pytest.mark.parametrize(
    ("data", "method", "param"),
    [
        ({"dataset": "human_eval", "num_samples": 5}, "base", ""),  # before there was pruning
        (DATA | {"prune_method": "random", "dropout_threshold": 0.2}, "random", "p=0.2"),
    ],
)
def test_other_plans_than_angular(data, method, param):
    run = read(four(data))
    assert (run.method, run.param) == (method, param)


def test_objects_may_be_apart_and_hold_nan():
    text = four().replace("}{", "}\n {").replace("0.0,", "NaN,") + "\n"
    assert read(text).metrics["predicted_text"]["bleu_score"] is None


def changed(values, **changes):
    return {key: value for key, value in (values | changes).items() if value is not ...}


@pytest.mark.parametrize(
    ("text", "error", "reason"),
    [
        (four()[:-40], ValueError, "is cut off, or no JSON"),
        ("", UnknownLogError, "neither one object nor the four"),
        ("[1]" * 4, ValueError, "no object"),
        (four(data={"num_samples": 3}), UnknownLogError, "neither one object nor the four"),
        (four(data=DATA | {"num_samples": "20"}), ValueError, "'20', which is no number"),
        (four(data=DATA | {"prune_n": [2]}), ValueError, "which is no number"),
        (four(metrics=METRICS | {"total_time": [1.0]}), ValueError, "which is no number"),
        (four(data=DATA | {"layer_drop": 0.5}), UnknownLogError, "'layer_drop' in its data"),
        (four(data=changed(DATA, prune_method=...)), UnknownLogError, "prune_method None"),
        (four(data=DATA | {"prune_method": ""}), UnknownLogError, "prune_method ''"),
        (four(generation=GENERATION | {"drop": 3}), UnknownLogError, "'drop' in its generation"),
        (four(metrics=METRICS | {"accuracy": {}}), UnknownLogError, "'accuracy' in its metrics"),
        (
            four(metrics=METRICS | {"total_time": {"median": 0.5}}),
            UnknownLogError,
            "'median' in its total_time",
        ),
        (
            four(metrics=METRICS | {"predicted_text": {"exact_match": 0.5}}),
            UnknownLogError,
            "may be a share",
        ),
    ],
)
def test_other_texts_and_logs_of_forks_are_refused(text, error, reason):
    with pytest.raises(error, match=reason):
        read(text)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cnn_dm_lm_results_angular_n3", ("cnn_dm_lm", "angular", "n=3")),
        ("human_eval_results_base_0", ("human_eval", "base", "")),
        ("human_eval_results_base", ("human_eval", "base", "")),
        ("xsum_summarization_results_random_t0.2.txt", ("xsum_summarization", "random", "p=0.2")),
        ("xsum_results_random_t0.1", ("xsum_summarization", "random", "p=0.1")),
    ],
)
def test_the_name_of_a_console_holds_its_flags(tmp_path, name, expected):
    path = console(tmp_path, name)
    assert is_console(path)
    run = read_console(path)
    assert (run.dataset, run.method, run.param) == expected
    assert run.metrics["predicted_text"]["edit_distance"] == 1698.75
    assert run.metrics["acceptance_rate"]["mean"] == METRICS["acceptance_rate"]["mean"]
    assert run.strategy is None


@pytest.mark.parametrize(
    "name", ["human_eval_results", "results_base", "x_results_angular_nA", "x_results_base_0.png"]
)
def test_other_names_are_no_consoles(tmp_path, name):
    assert not is_console(tmp_path / name)


def test_nan_is_missing(tmp_path):
    path = console(tmp_path, "xsum_results_base", acceptance_rate={"mean": float("nan")})
    assert "nan" in path.read_text()
    assert read_console(path).metrics["acceptance_rate"] == {"mean": None}


def test_printed_code_is_not_run(tmp_path):
    stolen = tmp_path / "stolen"
    code = f"{{'predicted_text': open({str(stolen)!r}, 'w')}}"
    path = console(tmp_path, "xsum_results_base", last=code)
    with pytest.raises(ValueError, match="ends without printed metrics"):
        read_console(path)
    assert not stolen.exists()


@pytest.mark.parametrize("last", ["Traceback", "{'predicted_text': {'rouge-l'", "{" * 5000 + "}"])
def test_a_console_that_was_cut_off_is_refused(tmp_path, last):
    path = console(tmp_path, "xsum_results_base", last=last)
    with pytest.raises(ValueError, match="broken off, or the file cut"):
        read_console(path)


def test_lines_may_follow_the_metrics(tmp_path):
    path = console(tmp_path, "xsum_results_base")
    path.write_text(path.read_text() + "[rank0]: destroy_process_group() was not called\n")
    assert read_console(path).metrics["total_time"] == METRICS["total_time"]


def test_a_console_of_another_fork_is_not_interpreted(tmp_path):
    path = console(tmp_path, "xsum_results_base_0", accuracy={"mean": 0.5})
    with pytest.raises(UnknownLogError, match="'accuracy' in its metrics"):
        read_console(path)
