"""Bad input to train.py and to the tasks of eval.py."""

import json

from tests.bad_inputs import (
    CONFIG,
    ROWS,
    TERABYTE,
    TINY,
    TRAIN,
    BadInput,
    Content,
    copied,
    folder,
    link,
    pipe,
    sparse,
)
from tests.trainings import CONFIG as LLAMA

_DATA = f"--dataset custom_jsonl --data_path {ROWS} --eval_samples 2"

FLAGS = [
    ("neither model nor configuration", _DATA, "--model"),
    ("model and configuration", f"{_DATA} --model {TINY} --config c --tokenizer bpe", "--model"),
    ("a configuration without tokenizer", f"{_DATA} --config {CONFIG}", "--tokenizer"),
    ("a tokenizer without configuration", f"{_DATA} --model {TINY} --tokenizer bpe", "--tokenizer"),
    ("an empty configuration", f"{_DATA} --config '' --tokenizer bpe", "--config ''"),
    (
        "a pattern without its tokenizer",
        f"{_DATA} --model {TINY} --tokenizer_pattern x",
        "_pattern",
    ),
    ("an empty pattern", f"{TRAIN} --tokenizer_pattern ''", "--tokenizer_pattern ''"),
    ("no regular expression", f"{TRAIN} --tokenizer_pattern '('", "--tokenizer_pattern ("),
    ("a negative rank", f"{_DATA} --model {TINY} --lora_rank -1", "--lora_rank -1"),
    ("adapters from scratch", f"{TRAIN} --lora_rank 2", "--lora_rank 2"),
    ("a scale of zero", f"{_DATA} --model {TINY} --lora_alpha 0", "--lora_alpha 0.0"),
    ("a teacher without distillation", f"{TRAIN} --teacher {TINY}", f"--teacher {TINY}"),
    ("distillation without a teacher", f"{TRAIN} --distill true", "--distill true"),
    ("neither rows nor data set", f"--model {TINY}", "--data_path"),
    ("no length", f"{TRAIN} --max_length 1", "--max_length 1"),
    ("a length beyond the batch", f"{TRAIN} --batch_tokens 16", "--max_length 32"),
    ("a length beyond the positions", f"{TRAIN} --max_length 65", "--max_length 65"),
    ("negative rows to hold out", f"{TRAIN} --eval_samples -1", "--eval_samples -1"),
    ("all rows held out", f"{TRAIN} --eval_samples 99", "--eval_samples 99"),
    ("prompts to cut", f"{TRAIN} --truncate_prompt true", "--truncate_prompt true"),
    (
        "a template without data set",
        f"--model {TINY} --data_path {ROWS} --template '{{message}}'",
        "--template",
    ),
    ("a layer that is always dropped", f"{TRAIN} --max_layer_dropout 1", "--max_layer_dropout 1.0"),
    ("a rate that is no number", f"{TRAIN} --max_layer_dropout nan", "--max_layer_dropout nan"),
    ("a negative weight of exits", f"{TRAIN} --early_exit_scale -1", "--early_exit_scale -1.0"),
    ("no interval", f"{TRAIN} --rotation_interval 0", "--rotation_interval 0"),
    ("no learning rate", f"{TRAIN} --learning_rate 0", "--learning_rate 0.0"),
    ("an infinite learning rate", f"{TRAIN} --learning_rate inf", "--learning_rate inf"),
    ("a learning rate that is no number", f"{TRAIN} --muon_learning_rate nan", "nan"),
    ("negative decay", f"{TRAIN} --weight_decay -0.1", "--weight_decay -0.1"),
    ("negative steps to warm up", f"{TRAIN} --warmup_steps -1", "--warmup_steps -1"),
    ("no epoch", f"{TRAIN} --epochs 0", "--epochs 0"),
    ("no steps", f"{TRAIN} --max_steps 0", "--max_steps 0"),
    ("more epochs than can be planned", f"{TRAIN} --epochs {10**25}", f"--epochs {10**25}"),
    (
        "more parts than tokens",
        f"{TRAIN} --gradient_accumulation {10**25}",
        f"--gradient_accumulation {10**25}",
    ),
    (
        "adapters wider than the model",
        f"--model {TINY} {_DATA} --max_length 32 --mixed_precision no --lora_rank 100000000",
        "--lora_rank 100000000",
    ),
    ("a negative seed", f"{TRAIN} --seed -1", "--seed -1"),
    ("a seed of too many bits", f"{TRAIN} --seed {2**62}", f"--seed {2**62}"),
    ("no steps from line to line", f"{TRAIN} --log_steps 0", "--log_steps 0"),
    ("an unknown optimizer", f"{TRAIN} --optimizer sgd", "'sgd'"),
    ("an unknown curriculum", f"{TRAIN} --layer_dropout_curriculum x", "'x'"),
    ("an output folder that is a file", f"{TRAIN} --output_dir {ROWS}", f"--output_dir {ROWS}"),
    ("a teacher that is not there", f"{TRAIN} --distill true --teacher ./none", "--teacher ./none"),
    ("a teacher of another vocabulary", f"{TRAIN} --distill true --teacher {TINY}", "--teacher"),
    ("a tokenizer that is not there", f"{TRAIN} --tokenizer ./none", "--tokenizer ./none"),
    ("a tokenizer in a file", f"{TRAIN} --tokenizer {ROWS}", f"--tokenizer {ROWS}"),
]


def _config(**changes) -> str:
    return json.dumps(LLAMA | changes)


CONFIGS: dict[str, tuple[Content, str]] = {
    "a configuration that links to nothing": (link("none"), ""),
    "a configuration without a byte": ("", ""),
    "a truncated configuration": (_config()[:-9], ""),
    "a list for a configuration": ("[]", ""),
    "a configuration in UTF-16": (_config().encode("utf-16"), ""),
    "a name twice in a configuration": ('{"vocab_size": 300, ' + _config()[1:], "vocab_size"),
    "no number in a configuration": (_config(rms_norm_eps=float("nan")), "NaN"),
    "a configuration of a terabyte": (sparse(TERABYTE), "16 MiB"),
    "a pipe for a configuration": (pipe, ""),
    "a folder without configuration": (folder, ""),
    "a configuration of another kind": (_config(model_type="gpt2"), "gpt2"),
    "a list for the kind of model": (_config(model_type=["llama"]), ""),
    "a configuration without layers": (_config(num_hidden_layers=0), "num_hidden_layers 0"),
    "a configuration of a billion layers": (_config(num_hidden_layers=10**9), "num_hidden_layers"),
    "half a layer": (_config(num_hidden_layers=1.5), "1.5"),
    "a word for the vocabulary": (_config(vocab_size="many"), ""),
    "a vocabulary without room for bytes": (_config(vocab_size=256), "256"),
    "heads that do not divide the width": (
        _config(num_attention_heads=3),
        "is not a multiple of the number of attention heads",
    ),
    "a configuration of layers without attention": (_config(drop_attn_list=[1]), "drop_attn_list"),
    "a width that no memory holds": (_config(hidden_size=1 << 40), ""),
    "an activation that nobody knows": (_config(hidden_act="magic"), "magic"),
}

_TURNS = '{"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}\n'
ROW_FILES: dict[str, tuple[Content, str]] = {
    "rows without a text": ('{"a": "b"}\n', "line 1"),
    "a blank text": ('{"text": " "}\n', "line 1"),
    "a number for a text": ('{"text": 5}\n', "line 1"),
    "messages without an answer": (_TURNS, "line 1"),
    "messages that are no list": ('{"messages": "hello"}\n', "line 1"),
    "texts and messages": (
        '{"text": "a"}\n' + _TURNS.replace('"user", "content": "b"', '"assistant", "content": "b"'),
        "messages",
    ),
    "half a character": ('{"text": "\\udfff"}\n', "line 1"),
    "a text that is cut off": ('{"text": "a', "line 1"),
    "a terabyte of texts": (sparse(TERABYTE), "line 1"),
}

_STATE = "out/state-00000001/progress.json"
FOLDERS: dict[str, dict[str, Content]] = {
    "a state that is cut off": {_STATE: "{"},
    "a state of something else": {_STATE: "[]"},
    "a state of a terabyte": {_STATE: sparse(TERABYTE)},
    "a state with a name twice": {_STATE: '{"step": 1, "step": 2, "configuration": {}}'},
    "a state of other settings": {_STATE: '{"step": 1, "configuration": {}}'},
    "a number for a state's settings": {_STATE: '{"step": 1, "configuration": 5}'},
    "a state without its file": {"out/state-00000001": folder},
    "another's file under the log's name": {"out/training.jsonl": "dear diary\n"},
    "another's JSON under the log's name": {"out/training.jsonl": "[1]\n"},
    "a picture under the log's name": {"out/training.jsonl": b"\x89PNG\r\n\x1a\n"},
    "a folder under the log's name": {"out/training.jsonl": folder},
    "a terabyte under the log's name": {"out/training.jsonl": sparse(TERABYTE)},
    "another's checkpoint": {"out/checkpoint/config.json": "{}"},
    "an end that is cut off": {"out/checkpoint/training.json": "{"},
    "a list for an end": {"out/checkpoint/training.json": "[]"},
    "a number for an end's settings": {"out/checkpoint/training.json": '{"configuration": 5}'},
    "the end of another training": {"out/checkpoint/training.json": '{"configuration": {}}'},
}

_TASK = (
    "task: mine\ndataset_path: json\ndataset_kwargs: {data_files: d.json}\ntest_split: train\n"
    'output_type: multiple_choice\ndoc_to_text: "{{a}}"\ndoc_to_target: 0\ndoc_to_choice: [a, b]\n'
)
TASKS: dict[str, dict[str, Content]] = {
    "a task whose data are not there": {"tasks/mine.yaml": _TASK},
    "a task of an unknown kind": {
        "tasks/mine.yaml": _TASK.replace("multiple_choice", "dance"),
        "d.json": '{"a": "b"}\n',
    },
    "a task whose data are cut off": {"tasks/mine.yaml": _TASK, "d.json": '{"a": '},
}

TRAININGS = [
    *(BadInput("train", wrong, flags, names) for wrong, flags, names in FLAGS),
    *(
        BadInput(
            "train",
            wrong,
            TRAIN,
            f"--config {CONFIG}: ",
            {CONFIG: content},
            tells=tells,
        )
        for wrong, (content, tells) in CONFIGS.items()
    ),
    *(
        BadInput(
            "train",
            wrong,
            f"--model {TINY} --data_path t.jsonl",
            "--data_path t.jsonl: ",
            {"t.jsonl": content},
            tells=tells,
        )
        for wrong, (content, tells) in ROW_FILES.items()
    ),
    *(
        BadInput("train", wrong, f"{TRAIN} --output_dir out", "--output_dir out", files)
        for wrong, files in FOLDERS.items()
    ),
    BadInput(
        "train",
        "held-out rows that are no JSON",
        f"{TRAIN} --eval_path e.jsonl",
        "--eval_path e.jsonl",
        {"e.jsonl": "{"},
    ),
    BadInput(
        "train",
        "a tokenizer's folder that is damaged",
        f"{TRAIN} --tokenizer bad",
        "--tokenizer bad",
        {"bad": copied(tokenizer_DOT_json="{")},
    ),
    BadInput(
        "train",
        "a damaged prune plan",
        f"--model bad {_DATA} --max_length 32 --mixed_precision no",
        "--model bad: its prune_plan.json",
        {"bad": copied(prune_plan_DOT_json="{")},
    ),
    BadInput(
        "train",
        "a scale that leaves no number before the first step",
        f"--model {TINY} {_DATA} --max_length 32 --mixed_precision no --lora_rank 2 "
        "--lora_alpha 1e308 --max_steps 1 --output_dir out",
        "step 0",
        code=1,
        leaves=True,
    ),
    BadInput(
        "train",
        "a loss that is no number",
        f"{TRAIN} --learning_rate 1e38 --max_steps 8 --output_dir out",
        "loss",
        code=1,
        leaves=True,
    ),
    *(
        BadInput("eval", wrong, f"--model {TINY} --tasks mine --include_path tasks", "mine", files)
        for wrong, files in TASKS.items()
    ),
]
