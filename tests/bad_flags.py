"""Bad command lines: what is wrong can be seen without reading a file."""

from tests.bad_inputs import ROWS, TINY, BadInput

_CUSTOM = f"--dataset custom_jsonl --data_path {ROWS}"
_LONG = "x" * 300


def _of(script: str, *cases: tuple) -> list[BadInput]:
    return [BadInput(script, *case) for case in cases]


BENCHMARK = [
    *_of(
        "benchmark",
        ("an unknown flag", "--tempreature 1", "--tempreature: no such flag"),
        ("dashes for underscores", "--prune-method base", "--prune-method"),
        ("an abbreviated flag", "--prune_m base", "--prune_m"),
        ("a stray word", "stray", "stray"),
        ("a single dash", "-sample false", "-sample"),
        ("a flag without its value", "--max_steps", "--max_steps"),
        ("a list flag without values", "--stop_words", "--stop_words"),
        ("a word for a count", "--max_steps many", "'many'"),
        ("a fraction for a count", "--num_samples 1.5", "'1.5'"),
        ("a count of five thousand digits", f"--num_samples {'9' * 5000}", "--num_samples"),
        ("a word for a number", "--temperature hot", "'hot'"),
        ("an empty number", "--top_p ''", "--top_p"),
        ("a number for true or false", "--sample 1", "'1'"),
        ("an unknown data set", "--dataset nothing", "'nothing'"),
        ("an unknown strategy", "--generation_strategy fast", "'fast'"),
        ("an unknown criterion", "--prune_method magic", "'magic'"),
        ("an unknown dtype", "--dtype int4", "'int4'"),
        ("an unknown device", "--device tpu", "'tpu'"),
        ("no steps", "--max_steps 0", "--max_steps 0"),
        ("negative steps", "--max_steps -3", "--max_steps -3"),
        ("no samples", "--num_samples 0", "--num_samples 0"),
        ("negative shots", "--n_shot -1", "--n_shot -1"),
        ("shots without a training split", "--n_shot 1", "--n_shot 1"),
        ("a temperature of zero", "--temperature 0", "--temperature 0.0"),
        ("a temperature too small", "--temperature 1e-40", "--temperature 1e-40"),
        ("an infinite temperature", "--temperature inf", "--temperature inf"),
        ("a temperature that is no number", "--temperature nan", "--temperature nan"),
        ("a top-p of zero", "--top_p 0", "--top_p 0.0"),
        ("a top-p above one", "--top_p 1.1", "--top_p 1.1"),
        ("a top-p that is no number", "--top_p nan", "--top_p nan"),
        ("a negative top-k", "--top_k -1", "--top_k -1"),
        ("n-grams of no token", "--no_repeat_ngram_size 0", "--no_repeat_ngram_size 0"),
        ("a negative token id", "--stop_token_ids 3 -7", "--stop_token_ids -7"),
        ("an empty stop word", "--stop_words a ''", "--stop_words ''"),
        ("none beside another stop word", "--stop_words none x", "--stop_words none x"),
        ("an exit layer of zero", "--exit_layer 0", "--exit_layer 0"),
        (
            "speculation without exit layer",
            "--generation_strategy self_speculative",
            "--exit_layer",
        ),
        (
            "speculation without drafts",
            "--generation_strategy self_speculative --exit_layer 2",
            "--num_speculations -1",
        ),
        ("angular pruning without n", "--prune_method angular", "needs --prune_n"),
        ("random pruning without p", "--prune_method random", "needs --dropout_threshold"),
        ("n without angular pruning", "--prune_n 2", "--prune_n 2"),
        ("p without random pruning", "--dropout_threshold 0.1", "--dropout_threshold 0.1"),
        ("no layer to remove", "--prune_method angular --prune_n 0", "--prune_n 0"),
        ("p of one", "--prune_method random --dropout_threshold 1", "--dropout_threshold 1.0"),
        ("p that is no number", "--prune_method random --dropout_threshold nan", "nan"),
        ("calibration of nothing", "--calibration_samples 0", "--calibration_samples 0"),
        ("calibration rows without need", "--calibration_path c.jsonl", "--calibration_path"),
        ("an empty model", "--model ''", "--model ''"),
        ("an empty path", "--data_path ''", "--data_path ''"),
        ("a field without name", "--prompt_field ''", "--prompt_field ''"),
        ("a field of another data set", "--prompt_field q", "--prompt_field q"),
        ("a template without its place", "--template 'Answer:'", "--template 'Answer:'"),
        ("a data set without its file", "--dataset custom_jsonl", "--data_path"),
        ("tests to run where there are none", f"{_CUSTOM} --execute_code true", "--execute_code"),
        ("a model argument without value", "--model_args dtype", "--model_args dtype"),
        ("remote code", "--model_args trust_remote_code=true", "trust_remote_code=true"),
        ("pickled weights", "--model_args use_safetensors=false", "use_safetensors=false"),
        ("a token of the hub", "--model_args token=secret", "--model_args token"),
        ("a dtype that is none", "--model_args dtype=int8", "dtype=int8"),
        ("two dtypes", "--dtype float32 --model_args dtype=float16", "dtype=float16"),
        (
            "no kernel of this name",
            f"--model {TINY} --model_args attn_implementation=magic",
            "magic",
        ),
        ("all prompts to calibrate on", "--prune_method angular --prune_n 1", "--prune_method"),
        ("a folder's name too long", f"--output_dir {_LONG}", "--output_dir xxx"),
        ("a checkpoint's name too long", f"--save_pruned {_LONG}", "--save_pruned xxx"),
        ("logs below a file", f"--output_dir {ROWS}/logs", f"--output_dir {ROWS}/logs"),
        ("logs in a file", f"--output_dir {ROWS}", f"--output_dir {ROWS}"),
        ("a checkpoint below a file", f"--save_pruned {ROWS}/x", f"--save_pruned {ROWS}/x"),
        ("a checkpoint over a folder", "--save_pruned .", "--save_pruned ."),
    ),
    BadInput(
        "benchmark", "a stop word that is no UTF-8", "--stop_words", r"\udcff", more=("\udcff",)
    ),
    BadInput(
        "benchmark", "a flag that is no UTF-8", "", r"--mod\udce9l", more=("--mod\udce9l", "x")
    ),
    BadInput("benchmark", "a null in a path", "--data_path", r"a\x00b.jsonl", more=("a\0b.jsonl",)),
    BadInput("benchmark", "a null in a folder", "--output_dir", r"a\x00b", more=("a\0b",)),
    BadInput("benchmark", "a null in a model", f"{_CUSTOM} --model", r"a\x00b", more=("a\0b",)),
    BadInput(
        "benchmark",
        "several processes that nobody launched",
        f"{_CUSTOM} --model {TINY}",
        "torchrun",
        environment={"WORLD_SIZE": "2"},
    ),
    BadInput(
        "generate",
        "several processes",
        f"--model {TINY} --prompt x",
        "--nproc_per_node 2",
        environment={"WORLD_SIZE": "2"},
    ),
]

SWEEP = _of(
    "sweep",
    ("an unknown flag", "--exit_layers 2", "--exit_layers"),
    ("an exit layer, which the grid sets", "--exit_layer 2", "--exit_layer 2"),
    ("drafts, which the grid sets", "--num_speculations 2", "--num_speculations 2"),
    (
        "a strategy",
        "--generation_strategy self_speculative --exit_layer 1 --num_speculations 1",
        "--exit_layer 1",
    ),
    ("a first exit layer of zero", "--exit_layer_first 0", "--exit_layer_first 0"),
    ("no step", "--exit_layer_step 0", "--exit_layer_step 0"),
    ("a negative step", "--num_speculations_step -1", "--num_speculations_step -1"),
    ("a range that is empty", "--exit_layer_first 4 --exit_layer_last 2", "--exit_layer_last 2"),
    ("drafts of an empty range", "--num_speculations_first 9", "--num_speculations_last 6"),
    ("a criterion without its counts", "--prune_methods angular", "--prune_ns"),
    ("a criterion without its rates", "--prune_methods random", "--dropout_thresholds"),
    ("counts without their criterion", "--prune_ns 1", "--prune_ns 1"),
    ("seeds without their criterion", "--prune_seeds 1 2", "--prune_seeds 1 2"),
    ("a count that is none", "--prune_methods angular --prune_ns 0", "--prune_ns 0"),
    (
        "a rate that is none",
        "--prune_methods random --dropout_thresholds 2",
        "--dropout_thresholds 2.0",
    ),
    ("an unknown criterion", "--prune_methods magic", "'magic'"),
    ("a folder of data whose name is too long", f"--data_dir {_LONG}", "--data_dir xxx"),
    ("a folder of data that is not there", "--data_dir none", "--data_dir none"),
    ("a folder of data that is a file", f"--data_dir {ROWS}", f"--data_dir {ROWS}"),
    ("rows and a folder of rows", f"{_CUSTOM} --data_dir .", "--data_dir ."),
    (
        "one file for two data sets",
        f"--datasets human_eval top_v2 --data_path {ROWS}",
        f"--data_path {ROWS}",
    ),
    ("an unknown data set", "--datasets nothing", "'nothing'"),
    ("calibration rows without need", "--calibration_dataset human_eval", "--calibration_dataset"),
    (
        "a model with fewer layers",
        f"--model {TINY} {_CUSTOM} --exit_layer_first 6",
        "--exit_layer_first 6",
    ),
    (
        "more layers to remove than there are",
        f"--model {TINY} {_CUSTOM} --prune_methods angular --prune_ns 5 --num_samples 6 "
        "--calibration_samples 6",
        "--prune_ns 5",
    ),
)

CORRECTNESS = _of(
    "correctness",
    ("plain decoding", "--generation_strategy autoregressive", "--generation_strategy"),
    ("no exit layer", f"{_CUSTOM}", "--exit_layer -1"),
    ("too few draws", "--exit_layer 2 --num_speculations 2 --num_draws 10", "--num_draws 10"),
    ("a word for draws", "--num_draws x", "'x'"),
    (
        "code to execute",
        "--exit_layer 2 --num_speculations 2 --execute_code true",
        "--execute_code true",
    ),
    (
        "an exit layer beyond the model",
        f"{_CUSTOM} --model {TINY} --exit_layer 6 --num_speculations 2",
        "--exit_layer 6",
    ),
    ("an unknown flag", "--draws 100", "--draws"),
)

GENERATE = [
    *_of(
        "generate",
        ("an unknown flag", "--promt hello", "--promt"),
        ("an empty prompt", "--prompt ''", "--prompt ''"),
        ("an unknown streamer", "--prompt a --streamer fancy", "'fancy'"),
        ("a data set", "--dataset human_eval", "--dataset"),
        ("a file for a checkpoint", f"--prompt a --model {ROWS}", f"--model {ROWS}"),
        (
            "an exit layer beyond the model",
            f"--prompt a --model {TINY} --exit_layer 6",
            "--exit_layer 6",
        ),
        (
            "a token that the model lacks",
            f"--prompt a --model {TINY} --stop_token_ids 258",
            "--stop_token_ids 258",
        ),
        (
            "a chat without template",
            f"--prompt a --model {TINY} --apply_chat_template true",
            "--apply_chat_template true",
        ),
        ("a prompt beyond the positions", f"--prompt {'a' * 257} --model {TINY}", "--prompt"),
        (
            "all layers but one to remove",
            f"--prompt a --model {TINY} --prune_method angular --prune_n 5",
            "--prune_n 5",
        ),
        (
            "a plan that keeps no layer",
            f"--prompt a --model {TINY} --prune_method random --dropout_threshold 0.999999",
            "--dropout_threshold",
        ),
    ),
    BadInput("generate", "nothing piped in", "", "--prompt"),
    BadInput("generate", "blanks piped in", "", "--prompt", piped=b" \n\t\n"),
    BadInput("generate", "latin-1 piped in", "", "--prompt", piped="wölf".encode("latin-1")),
    BadInput("generate", "UTF-16 piped in", "", "--prompt", piped="wolf".encode("utf-16")),
    BadInput("generate", "a prompt that is no UTF-8", "--prompt", r"a\udcff", more=("a\udcff",)),
]

EVAL = _of(
    "eval",
    ("no task", "", "--tasks"),
    ("an empty task", "--tasks ''", "--tasks ''"),
    ("a folder of tasks whose name is too long", f"--tasks a --include_path {_LONG}", "_path xxx"),
    ("a folder of tasks that is not there", "--tasks a --include_path none", "--include_path none"),
    ("a file for a folder of tasks", f"--tasks a --include_path {ROWS}", "--include_path"),
    ("negative shots", "--tasks a --num_fewshot -1", "--num_fewshot -1"),
    ("no documents", "--tasks a --limit 0", "--limit 0"),
    ("more documents than can be counted", f"--tasks a --limit {10**25}", f"--limit {10**25}"),
    ("a negative seed", "--tasks a --seed -1", "--seed -1"),
    ("a seed of too many bits", f"--tasks a --seed {2**32}", f"--seed {2**32}"),
    ("a share of documents", "--tasks a --limit 0.5", "'0.5'"),
    ("no batch", "--tasks a --batch_size 0", "--batch_size 0"),
    ("a batch of any size", "--tasks a --batch_size auto", "'auto'"),
    ("a template", "--tasks a --template 'Q: {message}'", "--template"),
    ("stop words", "--tasks a --stop_words x", "--stop_words 'x'"),
    ("prompts to cut", "--tasks a --truncate_prompt true", "--truncate_prompt true"),
    ("an unknown flag", "--tasks a --num_fewshots 1", "--num_fewshots"),
)

ANALYZE = _of(
    "analyze_logs",
    ("a folder that is not there", "none", "none"),
    ("a file for a folder", ROWS, ROWS),
    ("a name too long", _LONG, "xxx"),
    ("no default folder", "", "logs"),
    ("an unknown format", "--format html", "'html'"),
    ("an unknown quality", "--quality taste", "'taste'"),
    ("an unknown flag", "--no_plot", "--no_plot"),
    ("an output folder that is a file", f". --output_dir {ROWS}", f"--output_dir {ROWS}"),
    ("an output folder below a file", f". --output_dir {ROWS}/x", f"--output_dir {ROWS}/x"),
    ("a folder without logs", ".", "log_dirs ."),
)

BENCHMARKS = [
    *_of(
        "benchmarks.analysis",
        ("too few runs", "--runs 1", "--runs 1"),
        ("a word for a count", "--tokens x", "'x'"),
    ),
    *_of(
        "benchmarks.decoding",
        ("no prompt", "--num_prompts 0", "--num_prompts 0"),
        ("no whole model to compare with", "--removed 6", "--removed"),
        ("compilation", "--compile true", "--compile true"),
    ),
    *_of(
        "benchmarks.peers",
        ("an unknown dtype", "--dtypes float33", "float33"),
        ("no drafts", "--num_speculations 0", "--num_speculations 0"),
        ("compilation", "--compile true", "--compile true"),
    ),
    *_of(
        "benchmarks.early_exit",
        ("no exit layer", "--exit_layers 0", "--exit_layers"),
        (
            "an exit layer beyond the model",
            f"--model {TINY} {_CUSTOM} --exit_layers 6",
            "--exit_layers",
        ),
        ("rows that are not there", "--dataset custom_jsonl --data_path none.jsonl", "none.jsonl"),
    ),
    *_of(
        "benchmarks.round_profile",
        ("no round", "--rounds 0", "--rounds 0"),
        ("a model that is not there", "--model ./none", "--model ./none"),
    ),
]

FLAGS = [*BENCHMARK, *SWEEP, *CORRECTNESS, *GENERATE, *EVAL, *ANALYZE, *BENCHMARKS]
