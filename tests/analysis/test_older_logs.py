"""Logs of the older tool, written as it writes them, are read for what they are."""

import json

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


def console(tmp_path, name, last=None, **changes):
    """Progress bars, a prompt, a response that looks like a dict, and the printed metrics."""
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


def test_four_objects_are_one_run():
    log = read_objects(four())
    assert (log.dataset, log.method, log.prune_n) == ("cnn_dm_summarization", "angular", 2)
    assert log.dropout_threshold is None  # a default of the other method
    assert (log.generation_strategy, log.exit_layer, log.num_speculations) == (
        "self_speculative",
        31,
        6,
    )
    assert log.model == "facebook/layerskip-llama2-7B"
    assert log.num_samples == 20
    assert log.metrics["tokens_per_second"] == {"mean": 52.278513526916505}


def test_its_exact_match_is_a_mean_edit_distance():
    text = read_objects(four()).metrics["predicted_text"]
    assert text["edit_distance"] == 1698.75
    assert "exact_match" not in text


def test_plain_decoding_accepted_nothing_because_it_drafted_nothing():
    plain = GENERATION | {"generation_strategy": "autoregressive", "exit_layer": -1}
    for rate in (0.0, -1.0):
        metrics = METRICS | {"acceptance_rate": {"mean": rate}}
        log = read_objects(four(generation=plain, metrics=metrics))
        assert log.metrics["acceptance_rate"] == {"mean": None}
        assert (log.exit_layer, log.num_speculations) == (None, None)


def test_logs_before_pruning_are_of_the_whole_model():
    data = {"dataset": "human_eval", "num_samples": 5}
    log = read_objects(four(data))
    assert (log.method, log.prune_n, log.dropout_threshold) == ("base", None, None)
    random = DATA | {"prune_method": "random", "dropout_threshold": 0.2}
    log = read_objects(four(random))
    assert (log.method, log.prune_n, log.dropout_threshold) == ("random", None, 0.2)


def test_objects_may_stand_apart_and_hold_nan():
    text = four().replace("}{", "}\n {").replace("0.0,", "NaN,") + "\n"
    assert read_objects(text).metrics["predicted_text"]["bleu_score"] is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (four()[:-40], "is cut off, or no JSON"),
        ("".join(map(json.dumps, [GENERAL, DATA])), "neither one object nor the four"),
        (json.dumps(METRICS), "neither one object nor the four"),
        ("", "neither one object nor the four"),
        ("[1]" * 4, "no object"),
        (four(data={"num_samples": 3}), "neither one object nor the four"),
        (four(data=DATA | {"num_samples": "20"}), "'20', which is no number"),
        (four(metrics=METRICS | {"total_time": {"mean": "9"}}), "'9', which is no number"),
        (four(metrics=METRICS | {"total_time": [1.0]}), "which is no number"),
    ],
)
def test_other_texts_are_refused(text, reason):
    with pytest.raises(ValueError, match=reason):
        read_objects(text)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cnn_dm_lm_results_angular_n3", ("cnn_dm_lm", "angular", 3, None)),
        ("human_eval_results_base_0", ("human_eval", "base", None, None)),
        ("human_eval_results_base", ("human_eval", "base", None, None)),
        ("xsum_results_random_t0.1", ("xsum_summarization", "random", None, 0.1)),
        ("xsum_summarization_results_random_t0.2.txt", ("xsum_summarization", "random", None, 0.2)),
    ],
)
def test_a_consoles_name_tells_its_flags(tmp_path, name, expected):
    path = console(tmp_path, name)
    assert is_console(path)
    log = read_console(path)
    assert (log.dataset, log.method, log.prune_n, log.dropout_threshold) == expected
    assert log.metrics["predicted_text"]["edit_distance"] == 1698.75
    assert log.metrics["acceptance_rate"]["mean"] == METRICS["acceptance_rate"]["mean"]
    assert log.generation_strategy is None


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


def test_metrics_count_though_lines_follow_them(tmp_path):
    path = console(tmp_path, "xsum_results_base")
    path.write_text(path.read_text() + "[rank0]: destroy_process_group() was not called\n")
    assert read_console(path).metrics["total_time"] == METRICS["total_time"]


def changed(values, **changes):
    return {key: value for key, value in (values | changes).items() if value is not ...}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (four(data=DATA | {"layer_drop": 0.5}), "'layer_drop' in its data"),
        (four(data=changed(DATA, prune_method=...)), "prune_method None"),
        (four(data=DATA | {"prune_method": "magnitude"}), "prune_method 'magnitude'"),
        (four(data=DATA | {"prune_method": ""}), "prune_method ''"),
        (four(generation=GENERATION | {"drop_layers": [3]}), "'drop_layers' in its generation"),
        (four(metrics=METRICS | {"accuracy": {"mean": 0.5}}), "'accuracy' in its metrics"),
        (four(metrics=METRICS | {"predicted_text": {"accuracy": 0.5}}), "in its predicted_text"),
        (four(metrics=METRICS | {"total_time": {"median": 0.5}}), "'median' in its total_time"),
        (four(metrics=METRICS | {"predicted_text": {"exact_match": 0.5}}), "may be a share"),
    ],
)
def test_what_another_fork_logs_is_not_interpreted(text, reason):
    with pytest.raises(UnknownLogError, match=reason):
        read_objects(text)


def test_a_console_of_another_fork_is_not_interpreted(tmp_path):
    path = console(tmp_path, "xsum_results_base_0", accuracy={"mean": 0.5})
    with pytest.raises(UnknownLogError, match="'accuracy' in its metrics"):
        read_console(path)
