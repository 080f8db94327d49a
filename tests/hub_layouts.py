"""Small data sets in the layouts that known data sets have on the hub."""

import io

import pyarrow
from pyarrow import parquet

ARTICLES = [{"article": f"storm {n} at sea", "highlights": f"storm {n}"} for n in range(9)]
BODIES = [{"document": f"flood {n} in town", "summary": f"flood {n}"} for n in range(9)]
UTTERANCES = [
    {"utterance": f"wake me at {n}", "semantic_parse": f"[IN:WAKE {n} ]"} for n in "123456"
]

QUESTIONS = [{"question": f"How many are {n}?", "answer": f"#### {n}"} for n in "123456"]
TASKS = [
    {
        "task_id": n,
        "text": f"Return {n}.",
        "code": f"def f(): return {n}",
        "test_list": [f"assert f() == {n}"],
        "test_setup_code": "",
        "challenge_test_list": [],
    }
    for n in range(1, 9)
]


def rows_file(rows):
    file = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    return file.getvalue()


def articles(**changes):
    """Return files in CNN/DailyMail's layout: a folder of shards per configuration in the card."""
    named = "".join(
        f"- config_name: {name}\n  data_files:\n"
        f"  - split: train\n    path: {name}/train-*\n  - split: test\n    path: {name}/test-*\n"
        for name in ("1.0.0", "3.0.0")
    )
    files = {"README.md": f"---\nconfigs:\n{named}---\n".encode()}
    for name, rows in (("1.0.0", ARTICLES[:1] * 9), ("3.0.0", ARTICLES)):
        files[f"{name}/test-00000-of-00001.parquet"] = rows_file(rows[:4])
        files[f"{name}/train-00000-of-00002.parquet"] = rows_file(rows[4:6])
        files[f"{name}/train-00001-of-00002.parquet"] = rows_file(rows[6:])
    return files | changes


def utterances():
    """Return files in TOPv2's layout: shards with a hash, in a folder that the card omits."""
    shards = {"train": UTTERANCES[:3], "eval": UTTERANCES[3:4], "test": UTTERANCES[4:]}
    named = {
        f"data/{name}-00000-of-00001-0123456789abcdef.parquet": shards[name] for name in shards
    }
    return {"README.md": b"# TOPv2\n"} | {path: rows_file(rows) for path, rows in named.items()}


def converted():
    """Return revisions in XSum's layout: a loading script, and Parquet that the hub made."""
    main = {"README.md": b"# XSum\n", "xsum.py": b"raise SystemExit\n"}
    parts = {"train": BODIES[:5], "validation": BODIES[5:6], "test": BODIES[6:]}
    files = {f"default/{name}/0000.parquet": rows_file(parts[name]) for name in parts}
    return {"main": main, "refs/convert/parquet": files}


def questions():
    """Return files in GSM8K's layout: a file per split in a folder for each configuration."""
    return configured(
        ("main", {"train": QUESTIONS[:4], "test": QUESTIONS[4:]}),
        ("socratic", {"train": QUESTIONS[:1], "test": QUESTIONS[:1]}),
    )


def tasks():
    """Return files in MBPP's layout: four splits, and a second configuration of other fields."""
    full = {"prompt": TASKS[:1], "test": TASKS[1:4], "validation": TASKS[4:5], "train": TASKS[5:]}
    sanitized = [{"task_id": 1, "prompt": "Return 1.", "code": "", "test_list": ["True"]}]
    return configured(("full", full), ("sanitized", dict.fromkeys(full, sanitized)))


def configured(*configurations):
    """Return files of several configurations, which the card names."""
    files, named = {}, ""
    for name, splits in configurations:
        named += f"- config_name: {name}\n  data_files:\n"
        for split, rows in splits.items():
            named += f"  - split: {split}\n    path: {name}/{split}-*\n"
            files[f"{name}/{split}-00000-of-00001.parquet"] = rows_file(rows)
    return files | {"README.md": f"---\nconfigs:\n{named}---\n".encode()}


DATA_SETS = {
    "cnn_dm_lm": ("abisee/cnn_dailymail", lambda: {"main": articles()}, ARTICLES),
    "xsum_summarization": ("EdinburghNLP/xsum", converted, BODIES),
    "top_v2": ("WillHeld/top_v2", lambda: {"main": utterances()}, UTTERANCES),
    "gsm8k": ("openai/gsm8k", lambda: {"main": questions()}, QUESTIONS),
    "mbpp": ("google-research-datasets/mbpp", lambda: {"main": tasks()}, TASKS),
}
