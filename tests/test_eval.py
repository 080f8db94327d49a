"""eval.py on local tasks: scores are the harness's own, and every bad input is one line."""

import json
import math
import sys

import datasets
import lm_eval
import pytest
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

import eval as script
from command_line.errors import UsageError
from command_line.script import run_script
from harness.evaluation import plain
from tests.conftest import ANGULAR, SPECULATIVE, write
from tests.ranked import scripts_in_ranks

QUESTIONS = [
    {"question": f"number {n}:", "choices": [f"item {n}", f"thing {n}", "none"], "answer": n % 3}
    for n in range(12)
]
CHOICE = """
task: local_choice
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_target: answer
doc_to_choice: choices
metric_list: [{metric: acc}]
"""
TEXT = """
task: NAME
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{choices[answer]}}"
generation_kwargs: {until: ["nowhere"], max_gen_toks: 9}
metric_list: [{metric: exact_match}]
"""
ROLLING = """
task: local_rolling
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{question}}"
metric_list: [{metric: bits_per_byte}]
"""
DEFINITIONS = {
    "choice": CHOICE,
    "text": TEXT.replace("NAME", "local_text"),
    "short": TEXT.replace("NAME", "local_short").replace("9", "4"),
    "rolling": ROLLING,
    "beams": TEXT.replace("NAME", "local_beams").replace("9", "9, num_beams: 4"),
    "unsafe": TEXT.replace("NAME", "local_unsafe") + "unsafe_code: true\n",
    "images": TEXT.replace("NAME", "local_images") + "doc_to_image: [question]\n",
    "broken": TEXT.replace("NAME", "local_broken").replace("generate_until", "dance"),
}
SCORED = ["local_choice", "local_rolling", "local_text"]


@pytest.fixture(scope="module", autouse=True)
def _caches_of_its_own(tmp_path_factory):
    folder = str(tmp_path_factory.getbasetemp() / "datasets")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
        patch.setattr(datasets.config, "DOWNLOADED_DATASETS_PATH", f"{folder}/downloads")
        yield


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """A folder of local tasks over one file of questions."""
    folder = tmp_path_factory.mktemp("tasks")
    rows = write(folder / "rows.jsonl", QUESTIONS)
    data = f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {rows}}}}}\n"
    for name, text in DEFINITIONS.items():
        (folder / f"{name}.yaml").write_text(text + data + "test_split: test\n")
    far = TEXT.replace("NAME", "local_far") + "dataset_path: nobody/nothing\ntest_split: test\n"
    (folder / "far.yaml").write_text(far)
    (folder / "group.yaml").write_text("group: local_group\ntask: [local_choice, local_text]\n")
    return folder


@pytest.fixture(scope="module")
def words(checkpoint, tasks):
    """The flags of an evaluation."""
    return ["--model", str(checkpoint), "--dtype", "float64", "--include_path", str(tasks)]


def log_in(folder):
    """The log in a folder, None without one."""
    found = list(folder.glob("*"))
    assert len(found) <= 1
    return json.loads(found[0].read_text()) if found else None


@pytest.fixture
def evaluate(words, tmp_path):
    """Runs eval.py with more flags; returns exit code and log, None without one."""

    def start(*flags, names=SCORED):
        folder = tmp_path / f"logs{len(list(tmp_path.iterdir()))}"
        where = ["--tasks", *names, "--output_dir", str(folder)]
        return run_script(script.main, [*words, *where, *flags]), log_in(folder)

    return start


@pytest.fixture(scope="module")
def whole(words, tmp_path_factory):
    """The log of the whole model on all documents."""
    folder = tmp_path_factory.mktemp("whole")
    flags = ["--tasks", *SCORED, "--output_dir", str(folder), "--log_samples", "true"]
    assert run_script(script.main, [*words, *flags]) == 0
    return log_in(folder)


def score(run):
    """Accuracy, exact match and bits per byte of a log."""
    results = run["harness"]["results"]
    return (
        results["local_choice"]["acc,none"],
        results["local_text"]["exact_match,none"],
        results["local_rolling"]["bits_per_byte,none"],
    )


def answers(samples):
    """What a model said to every document, by task."""
    return {name: [one["filtered_resps"] for one in rows] for name, rows in samples.items()}


def test_any_number_of_processes_scores_the_same(words, tmp_path, monkeypatch):
    """With two documents, one of three processes has no text to generate."""
    flags = ["--log_samples", "true", "--limit", "2", *SPECULATIVE, "--exit_layer", "2", *ANGULAR]
    logs = []
    for ranks in (1, 2, 3):
        where = ["--tasks", *SCORED, "--output_dir", str(tmp_path / f"of {ranks}")]
        codes = scripts_in_ranks(monkeypatch, ranks, script.main, [*words, *where, *flags])
        assert codes == [0] * ranks
        logs.append(log_in(tmp_path / f"of {ranks}"))
    one, *others = logs
    for many in others:
        texts = [answers(log["harness"]["samples"])["local_text"] for log in (one, many)]
        assert texts[0] == texts[1]
        same(score(many), score(one))  # not equal, as batches differ
        assert many["plan"] == one["plan"]
        names = [[text["name"] for text in log["generation"]["samples"]] for log in (one, many)]
        assert names[0] == names[1]
        assert many["generation"]["generated_tokens"] == one["generation"]["generated_tokens"]


def test_scores_and_answers_are_those_of_the_harness(whole, checkpoint, tasks):
    reference = lm_eval.simple_evaluate(
        model=HFLM(str(checkpoint), dtype="float64", device="cpu"),
        tasks=SCORED,
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
    )
    same(score(whole), score({"harness": reference}))
    got, expected = answers(whole["harness"]["samples"]), answers(reference["samples"])
    assert got["local_text"] == [list(pair) for pair in expected["local_text"]]
    for name in ("local_choice", "local_rolling"):
        same(flat(got[name]), flat(expected[name]))
    assert len(got["local_choice"]) == 12


def same(one, other):
    assert one == pytest.approx(other, rel=1e-9)


def flat(values):
    if not isinstance(values, list | tuple):
        return [float(values == "True" if isinstance(values, str) else values)]
    return [number for value in values for number in flat(value)]


def test_self_speculation_says_what_the_whole_model_says(evaluate, whole, capsys):
    _, run = evaluate(*SPECULATIVE, "--exit_layer", "3", "--log_samples", "true")
    assert "warning: the exit layer of self-speculation only drafts" in capsys.readouterr().err
    same(score(run), score(whole))
    samples = [one["harness"]["samples"]["local_text"] for one in (run, whole)]
    assert [row["resps"] for row in samples[0]] == [row["resps"] for row in samples[1]]
    facts = run["generation"]
    assert facts["requests"] == len(facts["samples"]) == 12
    assert 0 <= facts["acceptance_rate"] <= 1
    assert facts["tokens_per_second"] > 0
    assert whole["generation"]["acceptance_rate"] is None


def test_tasks_generate_with_their_own_arguments(evaluate):
    names = ["local_text", "local_short"]
    _, run = evaluate("--log_samples", "true", "--limit", "2", names=names)
    lengths = {one["name"]: one["generated_tokens"] for one in run["generation"]["samples"]}
    assert {name[:-4]: length for name, length in lengths.items()} == {
        "local_text/0": 9,
        "local_text/1": 9,
        "local_short/0": 4,
        "local_short/1": 4,
    }


def test_the_log_tells_what_was_evaluated_with_what(evaluate, capsys):
    code, run = evaluate(*ANGULAR, "--limit", "3", "--num_fewshot", "1", names=["local_choice"])
    assert code == 0
    out = capsys.readouterr().out
    assert "angular n=2: removed 2 of 6 layers" in out
    assert "|local_choice|" in out
    assert run["run_id"] in out
    assert (run["status"], run["schema_version"]) == ("complete", 1)
    assert run["started"] <= run["ended"]
    assert run["model"]["kept_layers"] == 4
    assert run["plan"]["approach"] == "angular n=2"
    assert run["exit_layer"] == {"original": None, "kept": None}
    assert run["arguments"]["harness"]["tasks"] == ["local_choice"]
    assert run["data"]["tasks"]["local_choice"]["documents"] == 12
    assert run["data"]["calibration"]["fingerprint"]
    identity = run["identity"]
    assert identity["harness_version"] == lm_eval.__version__ == run["harness"]["lm_eval_version"]
    assert (identity["limit"], identity["num_fewshot"], identity["batch_size"]) == (3, 1, 8)
    assert run["harness"]["n-samples"]["local_choice"] == {"original": 12, "effective": 3}
    assert run["harness"]["n-shot"]["local_choice"] == 1
    assert run["generation"]["requests"] == 0
    assert run["generation"]["tokens_per_second"] is None
    assert run["runtime"]["dtype"] == "float64"
    assert "samples" not in run["harness"]
    again = evaluate(*ANGULAR, "--limit", "3", "--num_fewshot", "1", names=["local_choice"])[1]
    assert again["run_id"] == run["run_id"]


@pytest.fixture
def few_defaults(monkeypatch):
    """An index of local tasks only: the index of all tasks takes seconds to build."""

    class Local(TaskManager):
        def __init__(self, **flags):
            super().__init__(**flags | {"include_defaults": False})

    monkeypatch.setattr("harness.tasks.TaskManager", Local)


def test_groups_are_evaluated_as_groups(evaluate, few_defaults):
    _, run = evaluate("--limit", "2", names=["local_group"])
    assert set(run["data"]["tasks"]) == {"local_choice", "local_text"}
    assert set(run["harness"]["results"]) == {"local_group", "local_choice", "local_text"}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["local_chioce"], "--tasks local_chioce: no such task; did you mean local_choice"),
        (["xyzzyx"], "--tasks xyzzyx: none of the 10 tasks known; --include_path adds"),
        (["local_choice", "local_far"], "--tasks local_far: its data cannot be loaded (Conn"),
        (["local_beams"], "--tasks local_beams: its generation arguments are not "),
        (["local_unsafe"], "--tasks local_unsafe: runs code that the model writes; --confirm"),
        (["local_images"], "--tasks local_images: shows images or sounds"),
        (["local_broken"], "--tasks local_broken: cannot be loaded ("),
        (["local_choice", "local_group"], "--tasks local_choice local_group: Duplicate task"),
        (
            ["local_choice", "--num_fewshot", "13"],
            "--num_fewshot 13: task local_choice has 12 solved examples",
        ),
    ],
)
def test_a_task_that_cannot_be_evaluated_is_one_line(
    evaluate, few_defaults, monkeypatch, capsys, names, message
):
    monkeypatch.setattr("harness.evaluation.load_pruned", None)  # no weights are read
    assert evaluate(names=names) == (2, None)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"{sys.argv[0].rpartition('/')[2]}: error: {message}")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--limit", "0"], "--limit 0: must be 1 to "),
        (["--include_path", "nowhere"], "--include_path nowhere: is no folder"),
        (["--template", "{message}"], "--template '{message}': tasks make their own prompts"),
        (["--stop_words", "x"], "--stop_words 'x': tasks decide"),
        (
            ["--generation_strategy", "self_speculative", "--num_speculations", "2"],
            "--exit_layer -1: --generation_strategy",
        ),
    ],
)
def test_bad_flags_are_refused_before_the_harness_is_looked_for(
    evaluate, monkeypatch, capsys, flags, message
):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    assert evaluate(*flags) == (2, None)
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_a_definition_that_cannot_be_read_is_named(evaluate, few_defaults, tmp_path, capsys):
    """The harness skips such files silently, and calls their tasks unknown."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "sound.yaml").write_text("task: sound\ndoc_to_text: !function helpers.text\n")
    path = folder / "encoding.yaml"
    path.write_bytes(b"task: m\xff\n")
    assert evaluate("--include_path", str(folder), names=["mine"]) == (2, None)
    err = capsys.readouterr().err
    assert f"--tasks mine: no such task; {path} cannot be read (" in err
    assert err.count("\n") == 1


def test_a_fixed_number_of_solved_examples_stays_with_a_warning(evaluate, tasks, tmp_path, capsys):
    folder = tmp_path / "fixed"
    folder.mkdir()
    text = (tasks / "choice.yaml").read_text().replace("local_choice", "fixed")
    (folder / "fixed.yaml").write_text(f"{text}num_fewshot: 0\n")
    flags = ["--include_path", str(folder), "--num_fewshot", "2", "--limit", "1"]
    code, run = evaluate(*flags, names=["fixed"])
    assert (code, run["harness"]["n-shot"]["fixed"]) == (0, 0)
    assert "--num_fewshot 2: task fixed has 0 fixed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "status"),
    [
        (TypeError("no\nanswer"), 1, "failed"),
        (UsageError("too long"), 2, "failed"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_what_was_generated_survives_a_task_that_breaks_down(
    evaluate, monkeypatch, capsys, error, code, status
):
    ordinary = lm_eval.simple_evaluate

    def broken(**flags):
        ordinary(**flags)
        raise error

    monkeypatch.setattr(lm_eval, "simple_evaluate", broken)
    found, run = evaluate("--limit", "2", "--log_samples", "true", names=["local_text"])
    assert (found, run["status"]) == (code, status)
    assert [one["generated_tokens"] for one in run["generation"]["samples"]] == [9, 9]
    assert type(error).__name__ in run.get("error", "KeyboardInterrupt")
    line = capsys.readouterr().err.splitlines()[-1]
    if code == 1:
        assert "--tasks local_text: failed (TypeError: no); " in line


def test_no_task_named_is_refused(capsys):
    assert run_script(script.main, []) == 2
    assert "--tasks: must name at least one task" in capsys.readouterr().err


def test_a_missing_harness_says_how_to_install_it(evaluate, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    assert evaluate() == (2, None)
    err = capsys.readouterr().err
    assert "lm-evaluation-harness is not installed; pip install -r requirements-eval.txt" in err


def test_numbers_that_are_not_finite_become_null():
    assert plain({"a": [math.nan, 1.5], "b": {1}}) == {"a": [None, 1.5], "b": [1]}
