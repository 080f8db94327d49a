"""Bad files of rows, for every script that reads some."""

import gzip
import io
import json
import struct

import pyarrow
from pyarrow import parquet

from tests.bad_inputs import (
    TERABYTE,
    TINY,
    BadInput,
    Content,
    folder,
    link,
    listening,
    long_line,
    pipe,
    sparse,
)

_ROW = '{"prompt": "a", "response": "b"}\n'
_HEADER = "prompt,response\n"
_PACKED = gzip.compress(_ROW.encode() * 50)


def _table(**columns: list) -> bytes:
    file = io.BytesIO()
    parquet.write_table(pyarrow.table(columns), file)
    return file.getvalue()


def _stream(length: int) -> bytes:
    """A stream of one row, whose text of 77 letters is said to have another length."""
    table = pyarrow.table({"prompt": ["a" * 77], "response": ["b"]})
    sink = pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    offsets, changed = (struct.pack("<2i", 0, end) for end in (77, length))
    head, _, rest = sink.getvalue().to_pybytes().rpartition(offsets)  # what is before has lengths
    return head + changed + rest


_TABLE = _table(prompt=["a"] * 50, response=["b"] * 50)

# What the line tells beside the file's name, which it must tell always.
FILES: dict[str, tuple[str, Content, str]] = {
    "an empty file": ("a.jsonl", "", "holds no examples"),
    "blank lines alone": ("a.jsonl", "\n \r\n\t\n", "holds no examples"),
    "a truncated row": ("a.jsonl", _ROW + _ROW[:20], "line 2"),
    "a row in quotes of Python": ("a.jsonl", "{'prompt': 'a'}\n", "line 1"),
    "a comma too many": ("a.jsonl", '{"prompt": "a", "response": "b",}\n', "line 1"),
    "two rows in a line": ("a.jsonl", _ROW.strip() + _ROW, "line 1"),
    "a list for a row": ("a.jsonl", _ROW + '["a", "b"]\n', "line 2"),
    "an array of texts": ("a.json", '["a", "b"]\n', "row 1"),
    "an array that is cut off": ("a.json", f"[{_ROW}, {_ROW[:20]}", "is not JSON"),
    "an array of a terabyte": ("a.json", sparse(TERABYTE, b"["), "256 MiB"),
    "an array of rows without the field": ("a.json", '[{"prompt": "a"}]', "row 1"),
    "a row over several lines": ("a.json", json.dumps(json.loads(_ROW), indent=1), "line 1"),
    "null for a row": ("a.jsonl", _ROW + "null\n", "line 2"),
    "a field twice": ("a.jsonl", '{"prompt": "a", "prompt": "c", "response": "b"}\n', "prompt"),
    "a field twice further in": ("a.jsonl", '{"x": {"y": 1, "y": 2}}\n', "y"),
    "not a number": ("a.jsonl", _ROW + '{"prompt": "a", "response": "b", "x": NaN}\n', "NaN"),
    "infinity": ("a.jsonl", '{"prompt": "a", "response": "b", "x": -Infinity}\n', "-Infinity"),
    "a number out of range": ("a.jsonl", '{"x": 1e999}\n', "1e999"),
    "five thousand digits": ("a.jsonl", f'{{"x": {"1" * 5000}}}\n', "line 1"),
    "lists a hundred thousand deep": ("a.jsonl", "[" * 100_000, "too deeply"),
    "a row without the field": ("a.jsonl", '{"prompt": "a", "answer": "b"}\n', "'response'"),
    "null for a text": ("a.jsonl", '{"prompt": null, "response": "b"}\n', "'prompt'"),
    "a number for a text": ("a.jsonl", '{"prompt": "a", "response": 3}\n', "'response'"),
    "an empty prompt": ("a.jsonl", _ROW + '{"prompt": "", "response": "b"}\n', "line 2"),
    "half a character": ("a.jsonl", '{"prompt": "\\ud800", "response": "b"}\n', "line 1"),
    "latin-1": ("a.jsonl", '{"prompt": "wölf", "response": "b"}\n'.encode("latin-1"), "byte 13"),
    "UTF-16": ("a.jsonl", _ROW.encode("utf-16"), "byte 0"),
    "UTF-16 without its mark": ("a.jsonl", _ROW.encode("utf-16-le"), "line 1"),
    "UTF-32": ("a.jsonl", _ROW.encode("utf-32"), "byte 0"),
    "bytes that are no UTF-8 in the second row": ("a.jsonl", _ROW.encode() + b'{"\xff', "byte 35"),
    "a byte order mark twice": ("a.jsonl", "\ufeff\ufeff" + _ROW, "line 1"),
    "a picture": ("a.jsonl", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "byte 0"),
    "a terabyte of nothing": ("a.jsonl", sparse(TERABYTE), "line 1"),
    "a terabyte of nothing after a row": ("a.jsonl", sparse(TERABYTE, _ROW.encode()), "line 2"),
    "a line that is too long": ("a.jsonl", long_line(_ROW), "line 2"),
    "rows that link to nothing": ("a.jsonl", link("none.jsonl"), "No such file"),
    "rows that link to themselves": ("a.jsonl", link("a.jsonl"), "symbolic links"),
    "a pipe that nobody writes to": ("a.jsonl", pipe, "holds no examples"),
    "a socket": ("a.jsonl", listening, "cannot be read"),
    "the memory of a process": ("a.jsonl", link("/proc/self/mem"), "cannot be read"),
    "a device without end": ("a.jsonl", link("/dev/zero"), "line 1"),
    "a folder under the name of a file": ("a.jsonl", folder, "holds no test file"),
    "another suffix": ("a.txt", _ROW, "must end in"),
    "no suffix": ("a", _ROW, "must end in"),
    "blanks in the name": ("my rows.jsonl", "{", "line 1"),
    "other letters in the name": ("zwölf 日本.jsonl", "{", "line 1"),
    "a quote in the name": ("it's.jsonl", "{", "line 1"),
    "no gzip": ("a.jsonl.gz", _ROW, "gzip"),
    "a truncated gzip": ("a.jsonl.gz", _PACKED[:-9], "gzip"),
    "a gzip of which bytes were lost": ("a.jsonl.gz", _PACKED[:12] + b"\xff\xff" * 9, "gzip"),
    "an empty gzip": ("a.jsonl.gz", b"", "holds no examples"),
    "a packed file of rows without fields": ("a.csv.gz", gzip.compress(b"a\n1\n"), "'prompt'"),
    "a packed line that is too long": (
        "a.jsonl.gz",
        lambda path: path.write_bytes(gzip.compress(bytes(65 << 20), 1)),
        "line 1",
    ),
    "an empty table": ("a.csv", "", "holds no examples"),
    "a header alone": ("a.csv", _HEADER, "holds no examples"),
    "a value too few": ("a.csv", _HEADER + "a,b\nc\n", "line 3"),
    "a value too many": ("a.csv", _HEADER + "a,b,c\n", "line 2"),
    "a value without a name": ("a.csv", "prompt,response,,\na,b,,c\n", "column 4"),
    "a column twice": ("a.csv", "prompt,prompt\na,b\n", "prompt"),
    "a quote that is not closed": ("a.csv", _HEADER + 'a,"b\n', "line"),
    "text after a quote": ("a.csv", _HEADER + 'a,"b"c\n', "line 2"),
    "semicolons": ("a.csv", "prompt;response\na;b\n", "'prompt'"),
    "latin-1 in a table": ("a.csv", (_HEADER + "ä,b\n").encode("latin-1"), "byte 16"),
    "a terabyte of nothing as a table": ("a.csv", sparse(TERABYTE, _HEADER.encode()), "line 2"),
    "text under the name of Parquet": ("a.parquet", _HEADER, "Parquet"),
    "an empty Parquet file": ("a.parquet", b"", "Parquet"),
    "a truncated Parquet file": ("a.parquet", _TABLE[:-20], "Parquet"),
    "a Parquet file of which bytes were lost": (
        "a.parquet",
        _TABLE[:4] + bytes(40) + _TABLE[44:],
        "Parquet",
    ),
    "a Parquet file of a terabyte": ("a.parquet", sparse(TERABYTE, b"PAR1"), "Parquet"),
    "a Parquet file without rows": ("a.parquet", _table(prompt=[], response=[]), "no examples"),
    "a Parquet file of numbers": ("a.parquet", _table(prompt=[1], response=[2]), "'prompt'"),
    "a pipe under the name of Parquet": ("a.parquet", pipe, "Parquet"),
    "text under the name of Arrow": ("a.arrow", _HEADER, "Arrow"),
    "an Arrow file of a terabyte": ("a.arrow", sparse(TERABYTE), "Arrow"),
    "an Arrow file whose text ends before it begins": ("a.arrow", _stream(length=-1), "Arrow"),
    "a pipe under the name of Arrow": ("a.arrow", pipe, "Arrow"),
}


def _quoted(name: str) -> str:
    return f'"{name}"' if set(name) & set(" '") else name


def _of_file(wrong: str) -> BadInput:
    name, content, tells = FILES[wrong]
    flags = f"--dataset custom_jsonl --data_path {_quoted(name)}"
    return BadInput(
        "benchmark", wrong, flags, f"--data_path {name}: ", {name: content}, tells=tells
    )


_CHAT = '{"data": [{"role": "USER", "message": "a"}, {"role": "PARSER"}]}\n'
_CALIBRATES = "--prune_method angular --prune_n 1 --dataset custom_jsonl"

OTHERS = [
    *(
        BadInput("benchmark", wrong, flags, names, files)
        for wrong, flags, names, files in [
            ("a file that is not there", "--data_path none.jsonl", "--data_path none.jsonl", {}),
            (
                "rows of a user that is not there",
                "--data_path ~nobody-of-this-name/a.jsonl",
                "--data_path ~nobody-of-this-name/a.jsonl",
                {},
            ),
            (
                "rows of another data set",
                "--dataset top_v2 --data_path rows.jsonl",
                "utterance",
                {},
            ),
            (
                "tests that a row lacks",
                "--execute_code true --data_path h.jsonl",
                "'test'",
                {"h.jsonl": '{"prompt": "a", "canonical_solution": "b"}\n'},
            ),
            (
                "names that stand twice",
                "--data_path h.jsonl",
                "'t'",
                {"h.jsonl": '{"task_id": "t", "prompt": "a", "canonical_solution": "b"}\n' * 2},
            ),
            (
                "a turn without its message",
                "--dataset chat_format --data_path c.jsonl",
                "turn 2",
                {"c.jsonl": _CHAT},
            ),
            (
                "turns that are no list",
                "--dataset chat_format --data_path c.jsonl",
                "'data'",
                {"c.jsonl": '{"data": "hello"}\n'},
            ),
            (
                "a chat without an answer",
                "--dataset chat_format --data_path c.jsonl",
                "--data_path c.jsonl",
                {"c.jsonl": '{"data": [{"role": "USER", "message": "a"}]}\n'},
            ),
            (
                "a folder of rows without any",
                "--dataset custom_jsonl --data_path d",
                "--data_path d",
                {"d": folder},
            ),
            (
                "a folder of both kinds of test files",
                "--dataset custom_jsonl --data_path d",
                "test.csv, test.jsonl",
                {"d/test.csv": _HEADER + "a,b\n", "d/test.jsonl": _ROW},
            ),
            (
                "a shard that is missing",
                "--dataset custom_jsonl --data_path d",
                "test-00000-of-00002.jsonl",
                {"d/test-00000-of-00002.jsonl": _ROW},
            ),
            (
                "folders of several configurations",
                "--dataset custom_jsonl --data_path d",
                "name one: de, en",
                {"d/de/test.jsonl": _ROW, "d/en/test/0000.parquet": _TABLE},
            ),
            (
                "a saved split that names files elsewhere",
                "--dataset custom_jsonl --data_path d",
                "d/state.json",
                {
                    "d/dataset_info.json": "{}",
                    "d/state.json": '{"_data_files": [{"filename": "../a.arrow"}]}',
                },
            ),
            (
                "a folder in place of a test file",
                "--dataset custom_jsonl --data_path d",
                "test.jsonl",
                {"d/test.jsonl": folder},
            ),
            (
                "a bad file in a folder",
                "--dataset custom_jsonl --data_path d",
                "test.jsonl line 1",
                {"d/test.jsonl": "{"},
            ),
            (
                "a bad training file for shots",
                "--dataset custom_jsonl --data_path d --n_shot 1",
                "train.csv",
                {"d/test.jsonl": _ROW, "d/train.csv": "a,b\n1\n"},
            ),
            (
                "more shots than rows",
                "--dataset custom_jsonl --data_path d --n_shot 2",
                "--n_shot 2",
                {"d/test.jsonl": _ROW, "d/train.jsonl": '{"prompt": "c", "response": "d"}\n'},
            ),
            (
                "a field that rows lack under its other name",
                "--dataset custom_jsonl --data_path rows.jsonl --prompt_field question",
                "'question'",
                {},
            ),
            (
                "calibration rows that are no JSON",
                f"{_CALIBRATES} --data_path rows.jsonl --calibration_path c.jsonl",
                "--calibration_path c.jsonl",
                {"c.jsonl": "{"},
            ),
            (
                "calibration rows that are evaluated",
                f"{_CALIBRATES} --data_path rows.jsonl --calibration_path rows.jsonl",
                "--prune_method angular",
                {},
            ),
            (
                "every prompt beyond the positions",
                f"--dataset custom_jsonl --data_path a.jsonl --model {TINY}",
                "--dataset custom_jsonl",
                {"a.jsonl": json.dumps({"prompt": "a" * 300, "response": ""}) + "\n"},
            ),
        ]
    ),
    BadInput(
        "sweep",
        "a bad file in the folder of data",
        "--datasets custom_jsonl --data_dir .",
        "custom_jsonl.jsonl",
        {"custom_jsonl.jsonl": "{"},
    ),
    BadInput(
        "sweep",
        "a data set that the folder of data lacks",
        "--datasets custom_jsonl --data_dir .",
        "--data_dir .",
    ),
    BadInput(
        "correctness",
        "rows that are no JSON",
        "--dataset custom_jsonl --data_path a.jsonl --exit_layer 2 --num_speculations 2",
        "--data_path a.jsonl",
        {"a.jsonl": "{"},
    ),
    BadInput(
        "generate",
        "calibration rows that are not there",
        "--prompt a --prune_method angular --prune_n 1 --calibration_path none.csv",
        "--calibration_path none.csv",
    ),
    BadInput(
        "benchmarks.early_exit",
        "a terabyte of nothing",
        "--dataset custom_jsonl --data_path a.jsonl",
        "--data_path a.jsonl",
        {"a.jsonl": sparse(TERABYTE)},
    ),
]

ROW_FILES = [*map(_of_file, FILES), *OTHERS]
