"""Checkpoints of other projects: whatever transformers would compute differently is reported."""

import shutil
import struct
import warnings

import pytest
import torch
from transformers import LlamaForCausalLM
from transformers.utils import (
    find_adapter_config_file,
    import_utils,
    is_protobuf_available,
    is_sentencepiece_available,
)

from models import checkpoint_files, loading_errors
from models.runtime import quieten_libraries
from tests.conftest import tiny_config
from tests.loading import loaded, reconfigured, refusal, reweighed

ONES = torch.ones(4).double()
ALONE = "holds an adapter of someone/base alone; merge it into that model, and name the result"


@pytest.fixture(autouse=True)
def quiet():
    """Silence libraries like every script does: stderr then holds this project's lines only."""
    quieten_libraries()


def test_weights_that_the_model_has_no_place_for_are_refused(copied):
    """Biases of a config that says bias, not attention_bias, were left out silently."""

    def add(weights):
        weights["model.embed_positions.weight"] = ONES
        for layer in range(6):
            for part, width in {"self_attn.q_proj": 32, "mlp.up_proj": 48}.items():
                weights[f"model.layers.{layer}.{part}.bias"] = torch.ones(width).double()

    reweighed(copied, add)
    reconfigured(copied, bias=True)
    assert refusal(copied) == (
        "the checkpoint holds 13 weights that LlamaForCausalLM has no place for "
        "(model.embed_positions.weight, model.layers.0.mlp.up_proj.bias, "
        "model.layers.0.self_attn.q_proj.bias, …); its config.json may lack attention_bias; "
        "its config.json may lack mlp_bias"
    )


OLD_BUFFERS = [
    "model.layers.0.self_attn.rotary_emb.inv_freq",
    "model.layers.0.self_attn.rotary_emb.cos_cached",
    "model.layers.0.self_attn.masked_bias",
    "model.position_ids",
]


def test_buffers_of_older_releases_are_no_weights_and_a_value_head_is_named(copied, capsys):
    extra = dict.fromkeys([*OLD_BUFFERS, "v_head.summary.weight"])
    reweighed(copied, lambda weights: weights.update({key: ONES.clone() for key in extra}))
    loaded(copied)
    assert capsys.readouterr().err == (
        f"warning: {copied}: 1 weights of other heads are not used (v_head.summary.weight)\n"
    )


@pytest.mark.parametrize("differs", [False, True])
def test_a_head_that_differs_from_tied_embeddings_is_refused(copied, differs):
    """transformers 5 uses such a head, transformers 4 does not."""

    def tie(weights):
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"] + differs

    reweighed(copied, tie)
    reconfigured(copied, tie_word_embeddings=True)
    if differs:
        assert refusal(copied).startswith("its lm_head.weight differs from its embeddings")
        reconfigured(copied, tie_word_embeddings=False)
    model = loaded(copied).model
    assert torch.equal(model.lm_head.weight, model.model.embed_tokens.weight) != differs


OTHER_COMPUTATION = {
    "drop_attn_list": ([3, 4], "drop_attn_list [3, 4], and the attention of those layers would be"),
    "drop_mlp_list": ([False] * 5 + [True], "drop_mlp_list [False, False, False, False, False, Tr"),
    "is_causal": (False, "is_causal False, which is not computed for the type llama"),
    "final_logit_softcapping": (30.0, "final_logit_softcapping 30.0, which is not computed"),
    "residual_multiplier": (0.2, "residual_multiplier 0.2, which is not computed"),
    "per_layer_config": ({"1": {"intermediate_size": 24}}, "per_layer_config, which is not"),
}


@pytest.mark.parametrize("key", OTHER_COMPUTATION)
def test_a_config_that_asks_for_another_computation_is_refused(copied, key):
    value, message = OTHER_COMPUTATION[key]
    reconfigured(copied, **{key: value})
    assert refusal(copied).startswith(f"its config.json says {message}")


# Settings on the hub of models that are computed correctly.
ORDINARY = {
    "_name_or_path": "/data/llama",
    "architectures": ["LlamaForCausalLM"],
    "drop_attn_list": [],
    "drop_mlp_list": [False] * 6,
    "is_causal": True,
    "residual_multiplier": 1.0,
    "final_logit_softcapping": 0.0,
    "logits_scaling": None,
    "pretraining_tp": 2,
    "torch_dtype": "float32",
    "transformers.js_config": {"dtype": "q4"},
    "transformers_version": "4.31.0",
    "unsloth_version": "2024.9",
    "unsloth_fixed": True,
    "use_cache": False,
    "auto_map": {"AutoTokenizer": ["tokenization_own.OwnTokenizer", None]},
}


@pytest.mark.parametrize("more", [{}, {"drop_attn_list": [None] * 6, "drop_mlp_list": None}])
def test_an_ordinary_config_is_taken_without_a_word(copied, capsys, more):
    reconfigured(copied, **ORDINARY | more)
    loaded(copied)
    assert capsys.readouterr().err == ""


def test_a_config_that_names_other_code_is_warned_of(copied, capsys):
    named = {
        "AutoModelForCausalLM": "modeling_own.OwnForCausalLM",
        "AutoTokenizer": ["own.T", None],
    }
    reconfigured(copied, auto_map=named)
    loaded(copied)
    assert capsys.readouterr().err == (
        f"warning: {copied}: its config.json names code of its own "
        "(AutoModelForCausalLM: modeling_own.OwnForCausalLM), which is never run; transformers' "
        "own class for llama computes\n"
    )


@pytest.fixture
def adapted(copied, model):
    """Put an adapter that changes every output beside the tiny Llama."""
    from peft import LoraConfig, get_peft_model

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        wrapped = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))
    for name, weight in wrapped.named_parameters():
        if "lora_B" in name:
            weight.data.fill_(1.0)
    wrapped.peft_config["default"].base_model_name_or_path = "someone/base"
    wrapped.save_pretrained(copied, save_embedding_layers=False)
    return copied


def logits(model):
    return model(torch.arange(8)[None]).logits


def obeys(adapted):
    """Return whether transformers can ignore an adapter in a folder, as from 5.23 on."""
    return find_adapter_config_file(str(adapted), subfolder="elsewhere") is None


def test_a_release_that_would_apply_an_adapter_twice_is_refused(adapted, monkeypatch):
    monkeypatch.setattr(
        checkpoint_files,
        "find_adapter_config_file",
        lambda source, **_: str(adapted / "adapter_config.json"),
    )
    said = refusal(adapted)
    assert "holds an adapter_config.json, and transformers " in said
    assert said.endswith(" would apply it to the weights beside it; move it elsewhere")


def test_an_adapter_beside_merged_weights_is_not_applied_again(adapted, checkpoint, capsys):
    if not obeys(adapted):
        pytest.skip("this release of transformers would apply it, and is refused")
    plain = loaded(checkpoint)
    assert capsys.readouterr().err == ""
    found = loaded(adapted)
    assert torch.equal(logits(found.model), logits(plain.model))
    assert not hasattr(found.model, "peft_config")
    assert found.fingerprint == plain.fingerprint
    assert capsys.readouterr().err == (
        f"warning: {adapted}: the adapter of its adapter_config.json is left aside, "
        "its own weights are used\n"
    )


COMMIT = "0" * 40


@pytest.fixture
def in_the_cache(tmp_path):
    """Return a function that puts a folder into a cache of the hub, and returns the flags."""

    def put(folder, name, *lacking):
        cached = tmp_path / "cache" / f"models--{name.replace('/', '--')}"
        shutil.copytree(folder, cached / "snapshots" / COMMIT)
        for file in lacking:  # the hub said that these do not exist
            (cached / "snapshots" / COMMIT / file).unlink(missing_ok=True)
            (cached / ".no_exist" / COMMIT).mkdir(parents=True, exist_ok=True)
            (cached / ".no_exist" / COMMIT / file).touch()
        return f"cache_dir={tmp_path / 'cache'},revision={COMMIT}"

    return put


@pytest.mark.parametrize("lacking", ["model.safetensors", "config.json"])
def test_an_adapter_alone_is_named_in_a_folder_and_a_repository(adapted, in_the_cache, lacking):
    (adapted / lacking).unlink()
    assert refusal(adapted) == ALONE
    if lacking == "config.json" and not obeys(adapted):
        pytest.skip("this release of transformers takes what the hub lacks for an unreachable hub")
    flags = in_the_cache(adapted, "someone/adapter", lacking, "model.safetensors.index.json")
    assert refusal("someone/adapter", model_args=flags) == ALONE


def test_an_adapter_in_a_repository_of_merged_weights_is_not_applied(
    adapted, checkpoint, in_the_cache, capsys
):
    """transformers would fetch the adapter's base, and ignore the repository's weights."""
    flag = in_the_cache(adapted, "someone/merged")
    found = loaded("someone/merged", model_args=flag).model
    plain = loaded(checkpoint).model
    assert torch.equal(logits(found), logits(plain))
    assert capsys.readouterr().err.startswith("warning: someone/merged: the adapter of its adapter")


def piece(text, kind):
    """Return an entry of a SentencePiece model: field 1 of the file with text, score and kind."""
    body = bytes([10, len(text.encode())]) + text.encode() + b"\x15" + struct.pack("<f", 0.0)
    body += bytes([0x18, kind])
    return bytes([10, len(body)]) + body


def sentencepiece_model():
    """Return a byte-level BPE model of SentencePiece without merges."""
    normal, unknown, control, byte = 1, 2, 3, 6
    special = piece("<unk>", unknown) + piece("<s>", control) + piece("</s>", control)
    pieces = special + b"".join(piece(f"<0x{n:02X}>", byte) for n in range(256))
    pieces += b"".join(piece(letter, normal) for letter in "▁abc")
    trained = bytes([0x18, 2, 0x98, 0x02, 1])  # trainer_spec: model_type BPE, byte_fallback
    return pieces + bytes([0x12, len(trained)]) + trained


@pytest.fixture
def with_pieces(copied):
    """A checkpoint with a SentencePiece model as its only tokenizer file."""
    LlamaForCausalLM(tiny_config(vocab_size=263)).double().save_pretrained(copied)
    (copied / "tokenizer.json").unlink()
    (copied / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    (copied / "tokenizer.model").write_bytes(sentencepiece_model())
    return copied


needs_packages = pytest.mark.skipif(
    not (is_sentencepiece_available() and is_protobuf_available()),
    reason="reads SentencePiece with packages that are not installed",
)


@needs_packages
def test_a_tokenizer_model_alone_is_read_and_a_damaged_one_named(with_pieces):
    tokenizer = loaded(with_pieces).tokenizer
    assert tokenizer.decode(tokenizer("cab é").input_ids, skip_special_tokens=True) == "cab é"
    (with_pieces / "tokenizer.model").write_bytes(b"no pieces")
    assert refusal(with_pieces) == "its tokenizer.model is no SentencePiece model that can be read"


@pytest.mark.parametrize("lacking", ["sentencepiece", "protobuf"])
def test_a_tokenizer_model_alone_names_the_packages_that_it_needs(
    with_pieces, monkeypatch, lacking
):
    """transformers would say that it needs tiktoken."""
    absent = (lambda: False, "{0} lacks " + lacking)
    monkeypatch.setitem(import_utils.BACKENDS_MAPPING, lacking, absent)
    monkeypatch.setattr(loading_errors, f"is_{lacking}_available", lambda: False)
    assert refusal(with_pieces) == (
        "its tokenizer.model needs the packages sentencepiece and protobuf, of requirements.txt"
    )
