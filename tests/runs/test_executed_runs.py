"""pass@1 on its way from completions through the log into tables and plots."""

import csv
import dataclasses
import json

import pytest

import analyze_logs
from analysis.comparison import QUALITIES, SAME_DECODER, compare, quality_intervals
from analysis.plots import make_plots
from benchmarks.made_up_runs import MadeUpRun, angular_plan, random_plan
from command_line.script import run_script
from runs import scoring
from runs.metrics import summarize
from runs.reader import read_record, read_samples
from self_speculation.text_generator import TextGenerator
from tests.conftest import GREEDY, SPECULATIVE, write
from tests.made_up import AUTOREGRESSIVE, read

EXECUTED = ["--dataset", "human_eval", *GREEDY, "--execute_code", "true"]
CHECKED = {
    "task_id": "T/0",
    "prompt": "def f(x):\n",
    "canonical_solution": "    return 2 * x\n",
    "test": "def check(f):\n    assert f(2) == 4\n",
    "entry_point": "f",
}


@pytest.fixture
def problems(tmp_path):
    rows = [CHECKED | {"task_id": f"T/{n}", "prompt": f"def f(x):  # {n}\n"} for n in range(3)]
    return write(tmp_path / "problems.jsonl", rows)


@pytest.fixture
def answer(monkeypatch):
    """Sets the completions of examples by their names."""
    answers, ordinary = {}, TextGenerator.generate

    def generate(self, prompt_ids, seed=0, example_id="", *rest, **more):
        made = ordinary(self, prompt_ids, seed, example_id, *rest, **more)
        return dataclasses.replace(made, text=answers.get(example_id, made.text))

    monkeypatch.setattr(TextGenerator, "generate", generate)
    return answers.update


def test_pass_at_1_is_the_share_of_prompts_whose_tests_pass(run, problems, answer, capsys):
    answer({"T/0": "    return 2 * x", "T/1": "    return x * x", "T/2": "    return x"})
    code, record, samples = run(*EXECUTED, path=problems)
    out, err = capsys.readouterr()
    assert code == 0
    assert [sample.scores["pass@1"] for sample in samples] == [1.0, 1.0, 0.0]
    assert record.metrics["predicted_text"]["pass@1"] == pytest.approx(2 / 3)
    assert record.data["execution"]["seconds"] == 10
    assert record.data["execution"]["network"]
    assert "exact match 0.333, pass@1 0.667\n" in out
    (line,) = (line for line in err.splitlines() if line.startswith("warning: "))
    assert "code that the model writes is run on this machine" in line


def test_tests_follow_the_rows_own_prompt(run, problems, answer):
    """Neither solved examples nor a template are part of the program."""
    answer({"T/0": "    return 2 * x"})
    flags = ["--template", "Write code!\n{message}"]
    _, _, (sample,) = run(*EXECUTED, *flags, path=problems, samples="1")
    assert sample.scores["pass@1"] == 1.0


def test_nothing_is_executed_unless_it_is_asked_for(run, problems, monkeypatch, capsys):
    monkeypatch.setattr(scoring, "passes", None)
    code, record, samples = run("--dataset", "human_eval", *GREEDY, path=problems)
    out, err = capsys.readouterr()
    assert code == 0
    assert "pass@1" not in record.metrics["predicted_text"] | samples[0].scores
    assert "execution" not in record.data
    assert "tests_fingerprint" not in record.identity
    assert "pass@1" not in out
    assert "warning" not in err


def test_tests_are_part_of_the_run_id(run, problems, tmp_path):
    _, plain, _ = run("--dataset", "human_eval", *GREEDY, path=problems)
    _, executed, _ = run(*EXECUTED, path=problems)
    other = [
        json.loads(line) | {"test": "def check(f): pass"}
        for line in problems.read_text().splitlines()
    ]
    _, changed, _ = run(*EXECUTED, path=write(tmp_path / "other.jsonl", other))
    assert len({plain.run_id, executed.run_id, changed.run_id}) == 3
    fingerprint = executed.identity["tests_fingerprint"]
    assert executed.identity == plain.identity | {"tests_fingerprint": fingerprint}
    _, again, _ = run(*EXECUTED, path=problems)
    assert again.run_id == executed.run_id


def test_both_decoders_are_judged_alike(run, problems, answer):
    answer({"T/1": "    return x + 2"})
    flags = [*EXECUTED, *SPECULATIVE, "--exit_layer", "5"]
    _, record, samples = run(*flags, path=problems)
    assert [sample.scores["pass@1"] for sample in samples] == [0.0, 1.0, 0.0]
    assert record.metrics["predicted_text"]["pass@1"] == pytest.approx(1 / 3)


def test_an_interrupted_run_goes_on_with_its_scores(run, problems, answer, stop_at):
    """Executed completions are not executed again."""
    answer({"T/0": "    return 2 * x"})
    resume = stop_at(2, KeyboardInterrupt)
    folder = ["--output_dir", str(problems.parent / "same")]
    assert run(*EXECUTED, *folder, path=problems)[0] == 130
    resume()
    answer({"T/0": "    return None", "T/2": "    return 4"})
    assert run(*EXECUTED, *folder, path=problems)[0] == 0
    (path,) = (problems.parent / "same").glob("*.json")
    assert [sample.scores["pass@1"] for sample in read_samples(path)] == [1.0, 0.0, 1.0]
    assert read_record(path).metrics["predicted_text"]["pass@1"] == pytest.approx(2 / 3)


TASK = {
    "task_id": 11,
    "text": "Write a function to double.",
    "code": "def f(x): return 2 * x",
    "test_list": ["assert f(2) == two * 2", "assert f(0) == 0"],
    "test_setup_code": "two = 2",
}


def test_a_task_in_words_is_no_part_of_the_program(run, tmp_path, answer):
    path = write(tmp_path / "tasks.jsonl", [TASK | {"task_id": n} for n in (11, 12, 13)])
    fenced = "Here it is:\n```python\ndef f(x):\n    return x + x\n```\nIt doubles."
    answer({"11": TASK["code"], "12": fenced, "13": "def f(x): return x"})
    code, record, samples = run(*EXECUTED, "--dataset", "mbpp", path=path)
    assert code == 0
    assert [sample.scores["pass@1"] for sample in samples] == [1.0, 1.0, 0.0]
    assert record.identity["tests_fingerprint"]
    assert samples[0].scores["exact_match"] == 1


def test_prompts_that_are_not_read_are_not_executed(run, tmp_path):
    rows = [CHECKED | {"prompt": "#" * 300}, CHECKED | {"task_id": "T/1"}]
    _, record, samples = run(*EXECUTED, path=write(tmp_path / "long.jsonl", rows))
    assert samples[0].scores == {}
    assert record.metrics["predicted_text"]["pass@1"] == 0
    assert "pass@1" not in summarize(samples[:1])["predicted_text"]


@pytest.mark.parametrize("dataset", ["custom_jsonl", "top_v2"])
def test_data_sets_without_tests_are_refused(run, dataset, capsys):
    assert run(*EXECUTED, "--dataset", dataset)[:2] == (2, None)
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert f"--execute_code true: --dataset {dataset} has no tests; human_eval, mbpp have" in err


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("test", None, "line 1 has no text field 'test' to execute"),
        ("entry_point", 3, "line 1 has no text field 'entry_point' to execute"),
        ("test", "\ud800", "line 1 holds half a character"),
    ],
)
def test_rows_whose_tests_cannot_be_run_are_refused(run, tmp_path, field, value, message, capsys):
    path = write(tmp_path / "rows.jsonl", [CHECKED | {field: value}])
    assert run(*EXECUTED, path=path)[:2] == (2, None)
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert message in err
    assert run("--dataset", "human_eval", *GREEDY, path=path)[0] == 0


@dataclasses.dataclass
class Executed(MadeUpRun):
    """A made-up run in which `passing` examples pass."""

    passing: int = 0

    def _samples(self, draws):
        for sample in super()._samples(draws):
            sample.scores["pass@1"] = float(sample.index < self.passing)
            yield sample


@pytest.fixture
def analyze(tmp_path, capsys):
    """Analyses the runs; returns the lines of the output, the notes, and the folder."""

    def start(*flags):
        folder = tmp_path / "out"
        line = [str(tmp_path / "logs"), "--output_dir", str(folder), *flags]
        assert run_script(analyze_logs.main, line) == 0
        out, err = capsys.readouterr()
        return out, err.splitlines(), folder

    return start


def test_tables_show_it_and_its_change(tmp_path, analyze):
    logs = tmp_path / "logs"
    Executed(passing=10, **AUTOREGRESSIVE).write(logs)
    Executed(plan=angular_plan(2), passing=6, **AUTOREGRESSIVE).write(logs)
    for seed, passing in ((1, 2), (2, 4)):
        Executed(plan=random_plan(0.2, seed), passing=passing, **AUTOREGRESSIVE).write(logs)
    out, notes, folder = analyze("--no_plots")
    assert notes == []
    heads = [line for line in out.splitlines() if line.startswith("| dataset")]
    assert ["pass@1" in head for head in heads] == [True, False, True, True, True, False]
    with (folder / "summary_metrics.csv").open() as file:
        found = {row["approach"]: row["predicted_text_pass@1"] for row in csv.DictReader(file)}
    assert (float(found["base"]), float(found["angular"])) == (0.5, 0.3)
    with (folder / "summary_comparison.csv").open() as file:
        (pruned,) = (row for row in csv.DictReader(file) if row["approach"] == "angular")
    assert float(pruned["change_pass@1"]) == pytest.approx(-0.2)
    assert "| -0.200 [-0.386, +0.023] " in out
    assert "| 0.150 ± 0.071 " in out


def test_tables_of_runs_without_it_have_no_such_column(tmp_path, analyze):
    for plan in (angular_plan(2), MadeUpRun().plan):
        MadeUpRun(plan=plan).write(tmp_path / "logs")
    out, _, _ = analyze("--no_plots")
    assert "pass@1" not in out


def test_a_run_that_executed_is_compared_in_speed_with_one_that_did_not(tmp_path):
    MadeUpRun(**AUTOREGRESSIVE).write(tmp_path)
    Executed(plan=angular_plan(2), **AUTOREGRESSIVE).write(tmp_path)
    pruned = next(one for one in compare(read(tmp_path)) if one.run.method == "angular")
    assert pruned.speedups[SAME_DECODER]
    assert set(pruned.quality_changes) == set(QUALITIES) - {
        "pass@1",
        "numeric_match",
        "nats_per_token",
    }
    assert quality_intervals(pruned.run)["pass@1"].value == 0


def test_plots_of_it_leave_out_runs_without_it(tmp_path, monkeypatch):
    drawn = {}

    def keep(figure, path):
        drawn[path.name] = figure

    monkeypatch.setattr("analysis.plots.save_figure", keep)
    Executed(passing=10, **AUTOREGRESSIVE).write(tmp_path)
    Executed(plan=angular_plan(2), passing=5, **AUTOREGRESSIVE).write(tmp_path)
    MadeUpRun(plan=angular_plan(3), **AUTOREGRESSIVE).write(tmp_path)
    notes = make_plots(read(tmp_path), "pass@1", tmp_path)
    assert notes == ["1 of 3 runs have no pass@1; plots of quality leave such runs out"]
    figure = drawn["quality_by_layers_removed"]
    heights = [one.lines[0].get_ydata()[0] for one in figure.axes[0].containers]
    assert heights == [0.5, 0.25]
    figure = drawn["speed_and_quality"]
    keys = [text.get_text() for text in figure.legends[0].get_texts()]
    marks = ["lossless: no layer removed", "Pareto front of speed and quality"]
    assert keys[2:] == ["base", "angular n=2", *marks]


def test_plots_of_it_without_any_such_run_are_one_line(tmp_path, analyze):
    MadeUpRun().write(tmp_path / "logs")
    _, notes, folder = analyze("--quality", "pass@1")
    assert notes == ["note: no run has pass@1; plots of quality leave such runs out"]
    assert not list(folder.glob("*.png"))
