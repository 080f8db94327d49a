"""Bad checkpoints, tokenizers and templates."""

import json
import os
import struct
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tests.bad_inputs import (
    ROWS,
    RUN,
    TERABYTE,
    TINY,
    BadInput,
    configured,
    copied,
    folder,
    link,
    pipe,
    sparse,
)

_CONFIG, _WEIGHTS = "config_DOT_json", "model_DOT_safetensors"
_TEMPLATE = "prompt_template_DOT_json"


def _changed_weights(change):
    """The tiny Llama whose weights went through a function."""

    def make(path: Path) -> None:
        copied()(path)
        weights = load_file(path / "model.safetensors")
        change(weights)
        save_file(weights, path / "model.safetensors", {"format": "pt"})

    return make


def _truncated(path: Path) -> None:
    copied()(path)
    os.truncate(path / "model.safetensors", 100_000)


def _misshapen(weights: dict) -> None:
    weights["model.layers.2.mlp.up_proj.weight"] = torch.zeros(3, 5)


def _adapted(**changed) -> object:
    """An adapter's files beside the tiny Llama, of which others are changed."""
    settings = '{"base_model_name_or_path": "someone/base", "peft_type": "LORA"}'
    return copied(adapter_config_DOT_json=settings, adapter_model_DOT_safetensors=b"", **changed)


def _untied(weights: dict) -> None:
    weights["lm_head.weight"] = weights["lm_head.weight"] + 1


def _tied_by_config(path: Path) -> None:
    _changed_weights(_untied)(path)
    values = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(values | {"tie_word_embeddings": True}))


def _config(text) -> object:
    return copied(**{_CONFIG: text})


# The folder `bad`, and what the line names beside it.
FOLDERS = {
    "an empty folder": (folder, "config.json"),
    "a checkpoint without config.json": (copied(**{_CONFIG: None}), "config.json"),
    "a config.json that is a folder": (_config(folder), "config.json"),
    "a config.json that links to nothing": (_config(link("none")), "config.json"),
    "an empty config.json": (_config(""), "config.json"),
    "a truncated config.json": (_config('{"model_type": "lla'), "config.json"),
    "a config.json that is a list": (_config("[]"), "config.json"),
    "a config.json that is no UTF-8": (_config(b'{"a": "\xff"}'), "config.json"),
    "a config.json in UTF-16": (_config('{"a": 1}'.encode("utf-16")), "config.json"),
    "a name twice in config.json": (
        _config('{"model_type": "llama", "model_type": "mistral"}'),
        "model_type",
    ),
    "no number in config.json": (_config('{"rms_norm_eps": NaN}'), "NaN"),
    "a config.json of a terabyte": (_config(sparse(TERABYTE)), "config.json"),
    "a pipe for a config.json": (_config(pipe), "config.json"),
    "a config.json without model_type": (_config("{}"), ""),
    "another kind of model": (configured(model_type="gpt2"), "gpt2"),
    "a kind of model that nobody knows": (configured(model_type="magic"), ""),
    "a number for the kind of model": (configured(model_type=5), "5"),
    "the checkpoint's own code": (
        configured(model_type="own", auto_map={"AutoConfig": "own.Config"}),
        "",
    ),
    "no layers": (configured(num_hidden_layers=0), "num_hidden_layers 0"),
    "a word for the layers": (configured(num_hidden_layers="six"), "expected int, got str"),
    "null for the layers": (configured(num_hidden_layers=None), "num_hidden_layers"),
    "fewer layers than there are": (configured(num_hidden_layers=3), "6 layers"),
    "more layers than there are": (configured(num_hidden_layers=7), "lacks"),
    "a billion layers": (configured(num_hidden_layers=10**9), ""),
    "no positions": (configured(max_position_embeddings=0), "max_position_embeddings 0"),
    "heads that do not divide the width": (
        configured(num_attention_heads=5),
        "is not a multiple of the number of attention heads",
    ),
    "no heads": (configured(num_attention_heads=0), "num_attention_heads 0"),
    "another width": (configured(hidden_size=64), "[258, 32]"),
    "a negative vocabulary": (configured(vocab_size=-1), ""),
    "another vocabulary": (configured(vocab_size=99), ""),
    "an unknown activation": (configured(hidden_act="magic"), ""),
    "an unknown way of positions": (configured(rope_parameters={"rope_type": "magic"}), ""),
    "a word for a rate": (configured(rms_norm_eps="small"), ""),
    "no weights": (copied(**{_WEIGHTS: None}), "*.safetensors"),
    "pickled weights alone": (
        copied(**{_WEIGHTS: None, "pytorch_model_DOT_bin": b"\x80\x04."}),
        "*.safetensors",
    ),
    "empty weights": (copied(**{_WEIGHTS: b""}), ""),
    "three bytes of weights": (copied(**{_WEIGHTS: b"abc"}), ""),
    "truncated weights": (_truncated, ""),
    "text for weights": (copied(**{_WEIGHTS: "weights " * 99}), "model.safetensors"),
    "a header beyond the file": (
        copied(**{_WEIGHTS: struct.pack("<Q", 10_000) + b"{}"}),
        "",
    ),
    "a header of exabytes": (
        copied(**{_WEIGHTS: struct.pack("<Q", 1 << 62) + b"{}"}),
        "model.safetensors",
    ),
    "weights of a terabyte of nothing": (copied(**{_WEIGHTS: sparse(TERABYTE)}), ""),
    "weights that link to nothing": (copied(**{_WEIGHTS: link("none")}), ""),
    "a folder for weights": (copied(**{_WEIGHTS: folder}), ""),
    "a weight of another shape": (_changed_weights(_misshapen), "up_proj.weight"),
    "a weight that is missing": (
        _changed_weights(lambda weights: weights.pop("model.norm.weight")),
        "model.norm.weight",
    ),
    "biases that the config does not tell of": (
        _changed_weights(
            lambda weights: weights.update(
                {"model.layers.2.self_attn.q_proj.bias": torch.zeros(32)}
            )
        ),
        "model.layers.2.self_attn.q_proj.bias); its config.json may lack attention_bias",
    ),
    "a head of its own beside tied embeddings": (_tied_by_config, "tie_word_embeddings"),
    "attention that is left out of layers": (
        configured(drop_attn_list=[3, 4]),
        "drop_attn_list [3, 4]",
    ),
    "attention to later tokens": (configured(is_causal=False), "is_causal False"),
    "an adapter without its model": (_adapted(**{_CONFIG: None}), "someone/base"),
    "an adapter without its model's weights": (_adapted(**{_WEIGHTS: None}), "someone/base"),
    "no weight at all": (_changed_weights(lambda weights: weights.clear()), "lacks"),
    "no tokenizer": (copied(tokenizer_DOT_json=None, tokenizer_config_DOT_json=None), "tokenizer"),
    "a truncated tokenizer": (copied(tokenizer_DOT_json='{"version": "1.0"'), "its tokenizer"),
    "a tokenizer of another schema": (copied(tokenizer_DOT_json="{}"), "its tokenizer"),
    "a truncated tokenizer_config.json": (copied(tokenizer_config_DOT_json="{"), ""),
    "a file of a terabyte beside it": (copied(notes_DOT_txt=sparse(TERABYTE)), "notes.txt"),
    "a damaged prune plan": (copied(prune_plan_DOT_json="{"), "prune_plan.json"),
    "a name twice in a prune plan": (copied(prune_plan_DOT_json='{"a": 1, "a": 2}'), "a"),
    "a damaged template": (copied(**{_TEMPLATE: "{"}), "prompt_template.json"),
    "a stored template without its place": (
        copied(**{_TEMPLATE: '{"dataset": "custom_jsonl", "template": "Q:"}'}),
        "{message}",
    ),
    "a template that is a list": (copied(**{_TEMPLATE: "[]"}), "prompt_template.json"),
    "a template of a terabyte": (copied(**{_TEMPLATE: sparse(TERABYTE)}), "prompt_template.json"),
    "a name twice in a template": (
        copied(**{_TEMPLATE: '{"template": "{message}", "template": "x", "dataset": ""}'}),
        "prompt_template.json",
    ),
}

NAMES = {
    "a folder that is not there": ("./none", {}),
    "a file for a checkpoint": (ROWS, {}),
    "a name of three parts": ("a/b/c", {}),
    "a user that is not there": ("~nobody-of-this-name/x", {}),
    "a name that is too long": ("x" * 300, {}),
    "a link to nothing": ("./bad", {"bad": link("none")}),
    "a link in a circle": ("./bad", {"bad": link("bad")}),
    "a shape that nobody knows": ("synthetic:gpt", {}),
    "an acceptance above one": ("synthetic:llama2-7b:1.5", {}),
    "a word for an acceptance": ("synthetic:llama2-7b:often", {}),
    "a checkpoint with a blank in its name that lacks its weights": (
        "'my model'",
        {"my model": copied(**{_WEIGHTS: None})},
    ),
}


def _refused(script: str, wrong: str, flags: str, model: str, names: str, files: dict) -> BadInput:
    shown = model.strip("'")
    return BadInput(script, wrong, f"{flags} {model}", names or f"--model {shown}: ", files)


CHECKPOINTS = [
    *(
        BadInput("benchmark", wrong, f"{RUN} bad", "--model bad: ", {"bad": content}, tells=tells)
        for wrong, (content, tells) in FOLDERS.items()
    ),
    *(
        _refused("benchmark", wrong, RUN, model, "", files)
        for wrong, (model, files) in NAMES.items()
    ),
    *(
        BadInput(
            script,
            "pickled weights alone",
            f"{flags} --model bad",
            "--model bad: ",
            {"bad": FOLDERS["pickled weights alone"][0]},
        )
        for script, flags in {
            "sweep": f"--dataset custom_jsonl --data_path {ROWS}",
            "correctness": f"--dataset custom_jsonl --data_path {ROWS} --exit_layer 2 "
            "--num_speculations 2",
            "generate": "--prompt a",
            "train": f"--dataset custom_jsonl --data_path {ROWS} --eval_samples 2",
        }.items()
    ),
    *(
        BadInput("benchmark", wrong, f"{RUN} {TINY} {flags}", names)
        for wrong, flags, names in [
            ("a device map that is none", "--model_args device_map=magic", "--model_args"),
            (
                "a memory that is none",
                "--model_args device_map=auto,max_memory=cpu:much",
                "max_mem",
            ),
            ("a memory without a device map", "--model_args max_memory=cpu:1GB", "max_memory"),
            ("a CUDA device that is not here", "--model_args device_map=cuda:99", "cuda:99"),
            ("an exit layer beyond the model", "--exit_layer 6", "--exit_layer 6"),
            (
                "more layers to remove than there are",
                "--prune_method angular --prune_n 5 --num_samples 6 --calibration_samples 6",
                "--prune_n 5",
            ),
            (
                "a kernel that is not installed",
                "--model_args attn_implementation=flash_attention_2",
                "--model",
            ),
            (
                "synthetic weights' arguments",
                "--model_args revision=x --model synthetic:llama2-7b",
                "revision=x",
            ),
            ("a token that the model lacks", "--stop_token_ids 258", "--stop_token_ids 258"),
            ("a chat without template", "--apply_chat_template true", "--apply_chat_template"),
        ]
    ),
]
