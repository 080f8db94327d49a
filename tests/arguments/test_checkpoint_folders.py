"""A checkpoint's own template goes around prompts of the data set of its training."""

import json
import shutil

import pytest

import generate
from arguments.checkpoint_folders import PROMPT_FILE, stored_template
from arguments.generation import GenerationArguments
from arguments.model import ModelArguments
from arguments.prompts import DataArguments
from arguments.pruning import PruneArguments
from arguments.run import LogArguments, RunArguments
from command_line.errors import UsageError
from command_line.script import run_script
from tests.conftest import write


@pytest.fixture
def trained(checkpoint, tmp_path):
    """A checkpoint that was trained on custom_jsonl in a template."""
    folder = shutil.copytree(checkpoint, tmp_path / "trained")
    stored = {"dataset": "custom_jsonl", "template": r"<{message}>\n"}
    (folder / PROMPT_FILE).write_text(json.dumps(stored))
    return folder


def filled(model, **data):
    data = DataArguments(**{"dataset": "custom_jsonl", "data_path": "x"} | data)
    groups = ModelArguments(model=str(model)), data, PruneArguments(), GenerationArguments()
    return RunArguments(*groups, LogArguments()).data.filled_template("hi")


def test_the_stored_template_is_used_with_its_data_set_and_without_a_flag(trained, checkpoint):
    assert filled(trained) == "<hi>\n"
    assert filled(trained, dataset="top_v2") == "hi"
    assert filled(checkpoint) == "hi"
    assert filled("no/such/folder") == "hi"
    assert filled(trained, template="{message}!") == "hi!"
    assert filled(trained, template="{message}") == "hi"


def test_a_typed_prompt_gets_the_template_too(trained, capfd):
    def tokens(*flags):
        common = ["--sample", "false", "--max_steps", "2", "--prompt", "hi"]
        assert run_script(generate.main, ["--model", str(trained), *common, *flags]) == 0
        return capfd.readouterr().err.rpartition("the prompt's ")[2].partition(" ")[0]

    assert tokens() == str(len("<hi>\n"))
    assert tokens("--template", "{message}") == str(len("hi"))


def test_a_benchmark_logs_the_template(run, trained, tmp_path):
    path = write(tmp_path / "few.jsonl", [{"prompt": "ab", "response": "c"}])
    code, log, samples = run(
        *["--model", str(trained), "--sample", "false", "--max_steps", "2"], samples=None, path=path
    )
    assert code == 0
    assert log.arguments["data"]["template"] == r"<{message}>\n"
    assert samples[0].prompt_tokens == len("<ab>\n")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "cannot be read"),
        ('{"template": "{message}"}', "cannot be read"),
        ('{"template": "x", "dataset": "top_v2"}', "must hold {message}"),
        ('{"template": 3, "dataset": "top_v2"}', "must hold {message}"),
    ],
)
def test_a_damaged_template_is_refused(tmp_path, text, reason):
    (tmp_path / PROMPT_FILE).write_text(text)
    with pytest.raises(UsageError, match=f"--model {tmp_path}: .*{PROMPT_FILE} .*{reason}"):
        stored_template(str(tmp_path))
