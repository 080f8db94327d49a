"""Each row of a table names its run, so that no two rows can be taken for each other."""

from analysis.comparison import compare
from analysis.tables import make_tables
from benchmarks.made_up_runs import MadeUpRun, random_plan
from tests.made_up import AUTOREGRESSIVE, read

NAMES = ("approach", "param", "strategy", "prompts", "batch")


def written(folder, *batches):
    """Return the tables of two random plans, decoded by these counts of prompts and batches."""
    for seed in (1, 2):
        for examples, batch_size in batches:
            identity = {"batch_size": batch_size}
            run = MadeUpRun(plan=random_plan(0.2, seed), examples=examples, identity=identity)
            run.exit_layer, run.num_speculations = AUTOREGRESSIVE.values()
            run.write(folder)
    runs = read(folder)
    return {table.name: table for table in make_tables(runs, compare(runs))}


def test_batched_runs_stand_first_and_are_told_from_single_ones(tmp_path):
    tables = written(tmp_path, (4, 1), (8, 8))
    for name in ("metrics", "timing", "comparison", "seeds"):
        table = tables[f"summary_{name}"]
        named = [tuple(table.columns[key](row) for key in NAMES) for row in table.rows]
        assert len(set(named)) == len(named) == (2 if name == "seeds" else 4)
        assert [one[-2:] for one in named[:2]] == [("8", "8"), ("4", "1")]


def test_runs_alike_in_prompts_and_batch_need_no_such_columns(tmp_path):
    tables = written(tmp_path, (4, 8))
    for name in ("timing", "comparison", "seeds"):
        assert not {"prompts", "batch"} & set(tables[f"summary_{name}"].columns)
