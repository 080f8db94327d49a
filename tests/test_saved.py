"""Checkpoints as they are written: read back and compared, and the same model to transformers 4."""

import json
import subprocess
import venv

import pytest
import torch
from conftest import GREEDY, row, tiny_config
from safetensors.torch import load_file, save_file
from spaced_tokenizers import spaced_tokenizer
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from bounded_files import read_settings
from models import saved

OLDER = "transformers==4.57.6"
ROPES = {
    "none": {"rope_type": "default", "rope_theta": 500000.0},
    "linear": {"rope_type": "linear", "rope_theta": 500000.0, "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "yarn": {
        "rope_type": "yarn",
        "rope_theta": 500000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 64,
    },
}
TYPES = {"mistral": MistralConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}
TEXT = "def f(x):\n    return x  # é"
PROBE = list(range(40))
# What transformers 4 makes of a folder: logits of the probe, ids of the text.
READER = f"""
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
for folder in sys.argv[1:]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = AutoTokenizer.from_pretrained(folder)({TEXT!r})["input_ids"]
    logits = model(torch.tensor([{PROBE}])).logits[0, -1].tolist()
    print(json.dumps([logits, ids]))
"""


def written(folder, tokenizer, kind="llama", rope="none"):
    """A model and its folder, as `write_checkpoint` leaves it."""
    values = tiny_config(rope_parameters=ROPES[rope], vocab_size=len(tokenizer)).to_dict()
    for name in ("model_type", "architectures"):
        values.pop(name)
    config = tiny_config(**values) if kind == "llama" else TYPES[kind](**values | {"head_dim": 8})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    saved.write_checkpoint(model, tokenizer, folder)
    return model


@pytest.mark.parametrize("rope", ROPES)
@pytest.mark.parametrize("kind", ["llama", *TYPES])
def test_a_written_configuration_holds_the_keys_of_both_major_versions(
    tmp_path, tokenizer, kind, rope
):
    model = written(tmp_path / "model", tokenizer, kind, rope)
    values = read_settings(tmp_path / "model" / "config.json")
    scaling = {name: value for name, value in ROPES[rope].items() if name != "rope_theta"}
    assert values["rope_theta"] == 500000.0
    assert values["rope_scaling"] == (None if rope == "none" else scaling)
    assert values["torch_dtype"] == values["dtype"] == "float32"
    again = AutoConfig.from_pretrained(tmp_path / "model")
    assert again.rope_parameters == model.config.rope_parameters
    names = read_settings(tmp_path / "model" / "tokenizer_config.json")
    assert names["tokenizer_class"] == "PreTrainedTokenizerFast"
    same = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    assert torch.equal(same(row(PROBE)).logits, model(row(PROBE)).logits)


def test_a_model_of_a_legacy_configuration_saved_pruned_keeps_its_rotary_scaling(
    run, checkpoint, tokenizer, tmp_path
):
    written(tmp_path / "legacy", tokenizer, rope="llama3")
    path = tmp_path / "legacy" / "config.json"
    values = read_settings(path)
    del values["rope_parameters"]
    path.write_text(json.dumps(values))
    pruned = ["--prune_method", "random", "--dropout_threshold", "0.4", *GREEDY]
    folder = tmp_path / "pruned"
    flags = ["--model", str(tmp_path / "legacy"), "--save_pruned", str(folder)]
    assert run(*pruned, *flags)[0] == 0
    found = read_settings(folder / "config.json")
    assert found["rope_theta"] == found["rope_parameters"]["rope_theta"] == 500000.0
    assert found["rope_scaling"]["rope_type"] == "llama3"
    assert found["num_hidden_layers"] < 6


def flipped(weights):
    weights["model.norm.weight"] = weights["model.norm.weight"].clone()
    weights["model.norm.weight"][3] *= 1 + 1e-7


def dropped(weights):
    del weights["model.layers.1.mlp.up_proj.weight"]


def rounded(weights):
    weights["lm_head.weight"] = weights["lm_head.weight"].float()


DAMAGE = {
    flipped: "model.norm.weight",
    dropped: "model.layers.1.mlp.up_proj.weight, which is missing",
    rounded: "lm_head.weight",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_weights_that_read_otherwise_than_written_leave_no_checkpoint(
    run, tmp_path, monkeypatch, capsys, damage
):
    ordinary = saved.save_weights

    def save(model, folder):
        ordinary(model, folder)
        weights = load_file(folder / "model.safetensors")
        damage(weights)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    monkeypatch.setattr(saved, "save_weights", save)
    assert run(*GREEDY, "--save_pruned", str(tmp_path / "out"))[0] == 2
    said = capsys.readouterr().err.splitlines()[-1]
    reads = f"cannot be written (what was written reads otherwise: {DAMAGE[damage]})"
    assert said.endswith(f"--save_pruned {tmp_path / 'out'}: {reads}")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("file", "change", "what"),
    [
        ("config.json", {"rms_norm_eps": 0.5}, "config.json's rms_norm_eps"),
        ("generation_config.json", {"eos_token_id": 7}, "generation_config.json's eos_token_id"),
        ("tokenizer_config.json", {"eos_token": "a"}, "the special tokens"),
    ],
)
def test_settings_that_read_otherwise_than_written_are_named(
    tmp_path, tokenizer, monkeypatch, file, change, what
):
    ordinary = saved._add_older_keys

    def add(folder):
        ordinary(folder)
        (folder / file).write_text(json.dumps(read_settings(folder / file) | change))

    monkeypatch.setattr(saved, "_add_older_keys", add)
    with pytest.raises(saved.DifferentError, match=f"reads otherwise: {what}"):
        written(tmp_path / "model", tokenizer)


def test_a_trained_checkpoint_holds_the_keys_of_both_major_versions(train_anew):
    code, out = train_anew()
    assert code == 0
    values = read_settings(out / "checkpoint" / "config.json")
    assert values["rope_theta"] == values["rope_parameters"]["rope_theta"]


@pytest.fixture(scope="module")
def older_python(tmp_path_factory):
    """An environment with the last release of transformers 4."""
    folder = tmp_path_factory.mktemp("older")
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    install = [
        python,
        "-m",
        "pip",
        "install",
        "--quiet",
        f"torch=={torch.__version__.split('+')[0]}",
    ]
    done = subprocess.run([*install, OLDER], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"{OLDER} cannot be installed: {done.stderr.strip().splitlines()[-1]}")
    return python


@pytest.mark.slow
def test_transformers_4_reads_the_same_model_and_tokenizer(tmp_path, tokenizer, older_python):
    made = {}
    for kind in ("llama", *TYPES):
        for rope in ROPES:
            folder = tmp_path / f"{kind}-{rope}"
            made[folder] = written(folder, tokenizer, kind, rope)
    spaced = tmp_path / "spaced"
    made[spaced] = written(spaced, spaced_tokenizer())
    done = subprocess.run(
        [older_python, "-c", READER, *made], capture_output=True, text=True, check=True
    )
    for (folder, model), line in zip(made.items(), done.stdout.splitlines(), strict=True):
        logits, ids = json.loads(line)
        expected = model(row(PROBE)).logits[0, -1]
        assert torch.allclose(torch.tensor(logits), expected, rtol=0, atol=1e-5), folder.name
        assert ids == AutoTokenizer.from_pretrained(folder)(TEXT)["input_ids"], folder.name
