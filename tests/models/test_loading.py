"""Loading: one line names whatever is wrong with a model."""

import pytest
import torch
from huggingface_hub import errors

from arguments.model import ModelArguments
from command_line.errors import UsageError
from models import checkpoint_files, loading
from models.loading import load_model
from models.runtime import start
from tests.loading import loaded, reconfigured, refusal, reweighed


def test_a_checkpoint_folder_loads(checkpoint):
    found = loaded(checkpoint)
    assert found.model.dtype == torch.float64
    assert not found.model.training
    assert found.plan_of_origin is None
    assert found.tokenizer("ab")["input_ids"]


def test_model_args_reach_from_pretrained(checkpoint, monkeypatch):
    """Older tools parsed and ignored them, and loaded float16 whatever was asked for."""
    arguments = ModelArguments(
        model=str(checkpoint), model_args="attn_implementation=eager,dtype=bfloat16"
    )
    found = load_model(arguments, start(arguments))
    assert found.config._attn_implementation == "eager"
    assert found.model.dtype == torch.bfloat16
    handed = {}
    ordinary = loading.AutoModelForCausalLM.from_pretrained

    def watched(source, **options):
        handed.update(options)
        return ordinary(source, **options)

    monkeypatch.setattr(loading.AutoModelForCausalLM, "from_pretrained", watched)
    loaded(checkpoint, model_args="device_map=auto,max_memory=cpu:1GB")
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


def test_remote_code_is_never_run(copied):
    marker = copied / "ran"
    (copied / "evil.py").write_text(f"open({str(marker)!r}, 'w')")
    reconfigured(copied, model_type="evil", auto_map={"AutoConfig": "evil.Config"})
    assert refusal(copied).startswith("cannot be loaded (")
    assert not marker.exists()


@pytest.mark.parametrize("text", ["{", '{"model_type": "llama", "model_type": "gpt2"}'])
@pytest.mark.parametrize("name", ["config.json", "prune_plan.json"])
def test_broken_settings_are_refused(copied, name, text):
    (copied / name).write_text(text)
    assert refusal(copied).startswith(f"its {name} cannot be read (")


def test_truncated_weights_are_refused(copied):
    weights = copied / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    assert refusal(copied).startswith("cannot be loaded (SafetensorError")


def test_weights_that_are_missing_are_not_made_up(copied):
    key = "model.layers.3.mlp.up_proj.weight"
    reweighed(copied, lambda weights: weights.pop(key))
    assert refusal(copied) == f"the checkpoint lacks 1 weights, such as {key}"


BAD_CONFIGS = {
    "model_type": ("gpt2", "is of type gpt2; supported are llama, mistral, qwen2, qwen3"),
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
    "rope_parameters": ({"rope_type": "magic", "rope_theta": 1.0}, "cannot be loaded ("),
    "max_position_embeddings": (-1, "its config.json says max_position_embeddings -1"),
}


@pytest.mark.parametrize("key", BAD_CONFIGS)
def test_configs_that_cannot_be_are_refused(copied, key):
    value, message = BAD_CONFIGS[key]
    reconfigured(copied, **{key: value})
    assert refusal(copied).startswith(message)


@pytest.mark.parametrize("layers", [0, 3])
def test_layers_are_not_left_out_silently(copied, layers):
    reconfigured(copied, num_hidden_layers=layers)
    expected = "the checkpoint holds 6 layers" if layers else "its config.json says num_hidden"
    assert refusal(copied).startswith(expected)


def test_a_home_folder_is_found(copied, monkeypatch):
    monkeypatch.setenv("HOME", str(copied.parent))
    assert loaded(f"~/{copied.name}").fingerprint.startswith("files ")


def test_attention_kernels_that_cannot_run_are_refused(checkpoint):
    with pytest.raises(UsageError, match="attn_implementation=magic: must be one of sdpa, eager"):
        loaded(checkpoint, model_args="attn_implementation=magic")
    message = refusal(checkpoint, model_args="attn_implementation=flash_attention_2")
    assert message.startswith("cannot be loaded (")


def _http(kind):
    # The constructor wants a response of the HTTP library that this release of the hub uses.
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
    def shift(weights):
        weights["model.norm.weight"][0] += 1

    found = [loaded(copied).fingerprint, loaded(copied).fingerprint]
    assert found[0] == found[1]
    reweighed(copied, shift)
    found.append(loaded(copied).fingerprint)
    reconfigured(copied, rms_norm_eps=1e-3)
    found.append(loaded(copied).fingerprint)
    assert len(set(found)) == 3
