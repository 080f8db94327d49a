"""Training that goes on with a model: in full, by adapters, from a teacher."""

import json
import math
import shutil
from functools import partial

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from tests.conftest import END, LAYERS, tiny_config, write
from tests.trainings import equal, kill, lines, starts, weights, write_config


def test_adapters_alone_learn_and_are_merged_also_after_kills(train_further, checkpoint, capsys):
    flags = ["--lora_rank", "2", "--learning_rate", "0.01"]
    code, whole = train_further(*flags, folder="whole")
    assert code == 0
    assert f"{LAYERS} layers, 5,568 parameters learn" in capsys.readouterr().out
    before, after = load_file(checkpoint / "model.safetensors"), weights(whole)
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name].float(), after[name])}
    assert changed
    assert all("proj" in name for name in changed)
    for step in (1, 5):
        kill(train_further, step, *flags, folder="killed")
    _, killed = train_further(*flags, folder="killed")
    assert starts(killed) == [0, 3]
    assert equal(weights(killed), after)


def test_distillation_teaches_early_exits_what_the_last_layer_says(train_further):
    flags = ["--distill", "true", "--learning_rate", "0.01", "--max_steps", "40"]
    weights_flags = ["--early_exit_weights", "uniform", "--early_exit_curriculum", "none"]
    _, out = train_further(*flags, *weights_flags, "--max_layer_dropout", "0")
    steps = lines(out, "step")
    assert steps[0]["loss"][str(LAYERS)] == pytest.approx(0, abs=1e-4)
    assert steps[-1]["loss"]["3"] < 0.8 * steps[0]["loss"]["3"]


def test_a_model_learns_from_another_teacher(train_further, checkpoint, capsys):
    _, other = train_further("--learning_rate", "0.01", folder="other")
    distill = ["--distill", "true", "--teacher"]
    code, out = train_further(*distill, str(other / "checkpoint"))
    assert code == 0
    assert lines(out, "step")[0]["loss"][str(LAYERS)] > 0.01
    assert train_further(*distill, str(checkpoint))[0] == 2
    assert "holds a training whose teacher is files" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("vocabulary", "reason"),
    [
        (300, "its vocab_size is 258, not 300"),
        (258, "its tokens are not those of the model that learns"),
    ],
)
def test_a_teacher_of_other_tokens_is_refused(
    train_anew, checkpoint, tmp_path, vocabulary, reason, capsys
):
    write_config(tmp_path, vocab_size=vocabulary)
    assert train_anew("--distill", "true", "--teacher", str(checkpoint))[0] == 2
    assert f"--teacher {checkpoint}: {reason}" in capsys.readouterr().err


def test_a_missing_teacher_is_refused_by_its_flag(train_anew, tmp_path, capsys):
    assert train_anew("--distill", "true", "--teacher", str(tmp_path / "none"))[0] == 2
    assert f"--teacher {tmp_path}/none: is no checkpoint folder" in capsys.readouterr().err


def test_a_model_keeps_its_template_and_its_plan(train_further, train_anew, checkpoint):
    _, first = train_anew()
    model = first / "checkpoint"
    (model / "prune_plan.json").write_text('{"method": "angular"}')
    code, out = train_further("--save_dtype", "bfloat16", folder="further", model=model)
    assert code == 0
    (begun,) = lines(out, "start")
    assert begun["arguments"]["data"]["template"] == r"{message}:\n"
    for name in ("prompt_template.json", "prune_plan.json"):
        kept, before = ((folder / name).read_text() for folder in (out / "checkpoint", model))
        assert json.loads(kept) == json.loads(before)
    assert weights(out)["model.norm.weight"].dtype == torch.bfloat16


def test_a_model_with_settings_of_sampling_can_be_saved(train_further, checkpoint, tmp_path):
    """transformers refuses to save such a generation configuration once it was changed."""
    folder = tmp_path / "warm"
    shutil.copytree(checkpoint, folder)
    (folder / "generation_config.json").write_text('{"temperature": 0.9}')
    code, out = train_further(model=folder)
    assert code == 0
    saved = json.loads((out / "checkpoint" / "generation_config.json").read_text())
    assert saved["eos_token_id"] == END


def test_a_tokenizer_larger_than_the_model_is_refused(train_further, checkpoint, tmp_path, capsys):
    folder = tmp_path / "narrow"
    shutil.copytree(checkpoint, folder)
    narrow = LlamaForCausalLM(tiny_config(vocab_size=50, eos_token_id=None, pad_token_id=None))
    narrow.save_pretrained(folder)
    assert train_further(model=folder)[0] == 2
    assert "its tokenizer makes token 256, the model's vocab_size is 50" in capsys.readouterr().err


def test_texts_without_anything_to_learn_are_refused(train_further, tmp_path, capsys):
    path = write(tmp_path / "empty.jsonl", [{"prompt": "", "response": ""} for _ in range(9)])
    assert train_further("--data_path", str(path), "--eval_samples", "0")[0] == 2
    assert "holds nothing to learn" in capsys.readouterr().err


def test_adapters_switched_off_are_the_teacher(train_further):
    _, out = train_further("--distill", "true", "--lora_rank", "2", "--max_layer_dropout", "0")
    first, last = lines(out, "step")[0], lines(out, "step")[-1]
    assert first["loss"][str(LAYERS)] == pytest.approx(0, abs=1e-4)
    assert last["loss"][str(LAYERS)] > 0


def test_without_a_compiler_training_goes_on_without(train_further, monkeypatch, capsys):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert train_further("--compile", "true")[0] == 0
    line = "--compile true: no compiler 'no-such-compiler' was found; training goes on without"
    assert line in capsys.readouterr().err


def test_a_compiler_that_fails_is_one_line(train_further, monkeypatch, capsys):
    def failing(graph, inputs):
        raise OSError("no room for the code\nand more")

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=failing))
    assert train_further("--compile", "true")[0] == 1
    last = capsys.readouterr().err.strip().splitlines()[-1]
    reason = "BackendCompilerFailed: backend='failing' raised: OSError: no room for the code"
    assert f"error: --compile true: {reason}" in last
    assert last.endswith("; --compile false trains without")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_compiled_layers_change_a_training_by_rounding_alone(train_further):
    _, plain = train_further(folder="plain")
    assert train_further("--compile", "true", folder="compiled")[0] == 0
    losses = [
        [line["loss"][str(LAYERS)] for line in lines(place, "step")]
        for place in (plain, plain.with_name("compiled"))
    ]
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)


def test_batches_learn_in_bfloat16(train_further):
    _, out = train_further("--mixed_precision", "bf16")
    assert all(math.isfinite(line["loss"][str(LAYERS)]) for line in lines(out, "step"))
