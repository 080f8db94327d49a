"""Loading: whatever is wrong with a model gets one line that names it."""

import json
import shutil

import pytest
import torch
from huggingface_hub import errors
from huggingface_hub.utils import httpx
from safetensors.torch import load_file, save_file

from arguments.model import ModelArguments
from command_line.errors import UsageError
from files.error_lines import error_line
from files.hub_reasons import Wanted, hub_reason
from models import checkpoint_files, loading
from models.loading import load_model
from models.runtime import start
from tests.loading import CPU, refusal


@pytest.fixture
def copied(checkpoint, tmp_path):
    return shutil.copytree(checkpoint, tmp_path / "model")


def test_a_checkpoint_folder_loads(checkpoint):
    loaded = load_model(ModelArguments(model=str(checkpoint)), CPU)
    assert loaded.model.dtype == torch.float64
    assert not loaded.model.training
    assert loaded.plan_of_origin is None
    assert loaded.tokenizer("ab")["input_ids"]


def test_model_args_reach_from_pretrained(checkpoint, monkeypatch):
    """They were parsed and then ignored by older tools, which loaded float16 whatever was asked."""
    arguments = ModelArguments(
        model=str(checkpoint), model_args="attn_implementation=eager,dtype=bfloat16"
    )
    loaded = load_model(arguments, start(arguments))
    assert loaded.model.config._attn_implementation == "eager"
    assert loaded.model.dtype == torch.bfloat16
    handed = {}
    ordinary = loading.AutoModelForCausalLM.from_pretrained

    def watched(source, **options):
        handed.update(options)
        return ordinary(source, **options)

    monkeypatch.setattr(loading.AutoModelForCausalLM, "from_pretrained", watched)
    placement = "device_map=auto,max_memory=cpu:1GB"
    load_model(ModelArguments(model=str(checkpoint), model_args=placement), CPU)
    assert handed["device_map"] == "auto"
    assert handed["max_memory"] == {"cpu": 10**9}
    assert handed["use_safetensors"] is True
    assert handed["trust_remote_code"] is False


def test_folders_that_are_no_checkpoint_are_refused(copied, tmp_path):
    assert refusal(tmp_path / "none") == "is no checkpoint folder"
    assert refusal("./none") == "is no checkpoint folder"
    assert refusal("~nobody-of-this-name/x").startswith("is no possible folder (")
    assert refusal("x" * 300).startswith("is n")
    assert refusal(tmp_path) == "the folder holds no config.json"
    (copied / "model.safetensors").rename(copied / "pytorch_model.bin")
    assert refusal(copied).startswith("the folder holds no *.safetensors weights")


def test_models_of_another_kind_are_refused(copied):
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(config | {"model_type": "gpt2"}))
    assert refusal(copied) == "is of type gpt2; supported are llama, mistral, qwen2, qwen3"


def test_remote_code_is_never_run(copied):
    marker = copied / "ran"
    (copied / "evil.py").write_text(f"open({str(marker)!r}, 'w')")
    config = json.loads((copied / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config"}}
    (copied / "config.json").write_text(json.dumps(config))
    assert refusal(copied).startswith("cannot be loaded (")
    assert not marker.exists()


def test_a_broken_config_is_refused(copied):
    for text in ("{", '{"model_type": "llama", "model_type": "gpt2"}'):
        (copied / "config.json").write_text(text)
        assert refusal(copied).startswith("its config.json cannot be read (")


def test_truncated_weights_are_refused(copied):
    weights = copied / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    assert refusal(copied).startswith("cannot be loaded (SafetensorError")


def test_weights_that_are_missing_are_not_made_up(copied):
    weights = load_file(copied / "model.safetensors")
    del weights["model.layers.3.mlp.up_proj.weight"]
    save_file(weights, copied / "model.safetensors", {"format": "pt"})
    assert refusal(copied) == (
        "the checkpoint lacks 1 weights, such as model.layers.3.mlp.up_proj.weight"
    )


BAD_CONFIGS = {
    "vocab_size": (99, "cannot be loaded ("),
    "num_hidden_layers": (
        "six",
        "cannot be loaded (StrictDataclassFieldValidationError: Validation error for field "
        "'num_hidden_layers': TypeError: Field 'num_hidden_layers' expected int, got str",
    ),
    "num_attention_heads": (
        5,
        "cannot be loaded (StrictDataclassClassValidationError: Class validation error for "
        "validator 'validate_architecture': ValueError: The hidden size (32) is not a multiple of",
    ),
    "hidden_act": ("magic", "cannot be loaded ("),
    "rope_parameters": ({"rope_type": "magic", "rope_theta": 1.0}, "cannot be loaded ("),
    "max_position_embeddings": (-1, "its config.json says max_position_embeddings -1"),
}


ERRORS = {
    "a\nb": "a",
    "\n *** \n a \n": "a",
    "field 'x':\n    TypeError: no int\n\nmore": "field 'x': TypeError: no int",
    "loading:\n" + "\n".join(["reason"] * 99): "loading: " + "reason " * 55 + "…",
    "only this:": "only this:",
    "": "no reason given",
}


@pytest.mark.parametrize("kind", [httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError])
def test_a_hub_that_cannot_be_reached_is_no_download_that_broke_off(kind):
    said = hub_reason(kind("no route"), Wanted("model"))
    assert said == "the hub cannot be reached, and the local cache lacks it"


@pytest.mark.parametrize("text", ERRORS)
def test_the_line_of_an_error_gives_the_reason_that_its_first_line_announces(text):
    assert error_line(ValueError(text)) == f"ValueError: {ERRORS[text]}"


@pytest.mark.parametrize("key", BAD_CONFIGS)
def test_configs_that_cannot_be_are_refused(copied, key):
    value, message = BAD_CONFIGS[key]
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(config | {key: value}))
    assert refusal(copied).startswith(message)


@pytest.mark.parametrize("layers", [0, 3])
def test_layers_are_not_left_out_silently(copied, layers):
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(config | {"num_hidden_layers": layers}))
    expected = "the checkpoint holds 6 layers" if layers else "its config.json says num_hidden"
    assert refusal(copied).startswith(expected)


def test_a_damaged_plan_of_origin_is_refused(copied):
    (copied / "prune_plan.json").write_text("{")
    assert refusal(copied).startswith("its prune_plan.json cannot be read (")


def test_a_home_folder_is_found(copied, monkeypatch):
    monkeypatch.setenv("HOME", str(copied.parent))
    loaded = load_model(ModelArguments(model=f"~/{copied.name}"), CPU)
    assert loaded.fingerprint.startswith("files ")


def test_unknown_attention_kernels_are_refused(checkpoint):
    with pytest.raises(UsageError, match="attn_implementation=magic: must be one of sdpa, eager"):
        load_model(
            ModelArguments(model=str(checkpoint), model_args="attn_implementation=magic"), CPU
        )


def test_a_kernel_that_is_not_installed_is_refused(checkpoint):
    message = refusal(checkpoint, model_args="attn_implementation=flash_attention_2")
    assert message.startswith("cannot be loaded (")


def _http(kind):
    # The constructor wants a response of whichever HTTP library this release of the hub's uses.
    return kind.__new__(kind, "long\nmessage")


HUB_FAILURES = {
    "gated": (lambda: _http(errors.GatedRepoError), "is gated; accept its licence"),
    "missing": (lambda: _http(errors.RepositoryNotFoundError), "is neither a folder here nor a"),
    "no revision": (lambda: _http(errors.RevisionNotFoundError), "has no revision main"),
    "unreachable": (
        lambda: errors.LocalEntryNotFoundError("no connection"),
        "the hub cannot be reached, and the local cache lacks it; name a checkpoint folder",
    ),
    "offline": (lambda: errors.OfflineModeIsEnabled("off"), "is not in the local cache"),
    "bad name": (lambda: errors.HFValidationError("bad"), "is neither a folder here nor a valid"),
}


@pytest.mark.parametrize("kind", HUB_FAILURES)
def test_hub_failures_are_told_apart(kind, monkeypatch):
    make, expected = HUB_FAILURES[kind]

    def fail(*_, **__):
        raise OSError("We could not\nload it") from make()

    monkeypatch.setattr(checkpoint_files, "cached_file", fail)
    assert refusal("somebody/model").startswith(expected)


def test_the_fingerprint_follows_the_files(copied):
    def fingerprint():
        return load_model(ModelArguments(model=str(copied)), CPU).fingerprint

    first = fingerprint()
    assert fingerprint() == first
    weights = load_file(copied / "model.safetensors")
    weights["model.norm.weight"][0] += 1
    save_file(weights, copied / "model.safetensors", {"format": "pt"})
    second = fingerprint()
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
    assert len({first, second, fingerprint()}) == 3
