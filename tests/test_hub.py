"""Scripts read models and data sets of the hub, which a stand-in serves on loopback."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest

from prompts.dataset_table import DATASETS
from runs.reader import find_runs, read_record, read_samples
from tests.conftest import ANGULAR, GREEDY
from tests.hub_layouts import DATA_SETS, articles, converted
from tests.hub_stand_in import NO_REVISION, Hub, Refusal
from tests.script_starts import Starter

DISABLED = Refusal(403, None, (("X-Error-Message", "Access to this resource is disabled."),))
NO_HUB = Refusal(200)  # a proxy's page, say, without the headers of a hub


@pytest.fixture(scope="module")
def hub():
    with Hub() as served:
        yield served


@pytest.fixture(scope="module")
def starter(hub, tmp_path_factory):
    """Start a process that starts scripts; return it and the home of its hub client."""
    home = tmp_path_factory.mktemp("hub") / "home"
    prefixes = ("HF_", "HUGGING", "TRANSFORMERS_")
    environment = {key: os.environ[key] for key in os.environ if not key.startswith(prefixes)}
    environment |= {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1"}
    with Starter(environment | {"HF_HUB_DISABLE_XET": "1"}) as started:
        yield started, home


@pytest.fixture
def home(starter):
    """Return the home of the hub client, emptied."""
    shutil.rmtree(starter[1], ignore_errors=True)
    return starter[1]


@pytest.fixture
def start(starter, home):
    """Start a script with words; return exit code, output and messages."""
    return starter[0].run


@pytest.fixture
def benchmark(start, tmp_path):
    """Run benchmark.py in a new folder; return exit code, messages, and the run or None."""

    def run(model, dataset, *words):
        folder = tmp_path / f"logs{len(list(tmp_path.iterdir()))}"
        data = ["--dataset", *dataset, "--num_samples", "2", "--output_dir", folder]
        flags = ["--model", model, "--dtype", "float64", *GREEDY, *data]
        code, _, err = start("benchmark", *flags, *words)
        found = find_runs(folder)
        return code, err, found[0] if found else None

    return run


@pytest.fixture
def local(rows):
    """Return the flags of a data set that is not on the hub."""
    return "custom_jsonl", "--data_path", rows


def held(folder):
    """Return the contents of a folder's files by name, as a repository holds them."""
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def outputs_of(path):
    return [sample.output_ids for sample in read_samples(path)]


def only_error(code, err):
    """Return the only error line of a start that was refused."""
    assert code == 2
    (line,) = [line for line in err.splitlines() if ": error: " in line]
    assert "Traceback" not in err
    return line.partition(": error: ")[2]


def test_a_model_of_the_hub_runs_and_is_named_by_its_commit(hub, benchmark, checkpoint, local):
    tiny = hub.add("models", "someone/tiny", main=held(checkpoint))
    code, err, path = benchmark("someone/tiny", local)
    assert code == 0, err
    commit = tiny.commit(tiny.revisions["main"])
    assert read_record(path).model["fingerprint"] == f"commit {commit}"
    _, _, same = benchmark(checkpoint, local)
    assert outputs_of(path) == outputs_of(same)


def test_two_models_of_the_hub_are_not_taken_for_one_run(hub, start, checkpoint, local, tmp_path):
    files = held(checkpoint)
    config = json.loads(files["config.json"]) | {"rms_norm_eps": 0.5}
    other = files | {"config.json": json.dumps(config).encode()}
    hub.add("models", "someone/one", main=files, v2=other)
    hub.add("models", "someone/other", main=other)
    flags = ["--dtype", "float64", *GREEDY, "--dataset", *local, "--num_samples", "2"]
    logs = ["--output_dir", tmp_path / "logs"]
    for model in ("someone/one", "someone/other"):
        code, out, err = start("benchmark", "--model", model, *flags, *logs)
        assert (code, "is complete" in out) == (0, False), err
    revision = ["--model", "someone/one", "--model_args", "revision=v2"]
    assert start("benchmark", *revision, *flags, *logs)[0] == 0
    runs = [read_record(path) for path in find_runs(tmp_path / "logs")]
    assert len({run.model["fingerprint"] for run in runs}) == len({run.run_id for run in runs}) == 3


def test_files_pushed_during_a_download_are_not_mixed_in(hub, benchmark, checkpoint, local):
    files = held(checkpoint)
    moving = hub.add("models", "someone/moving", main=files)
    first = moving.commit(files)
    moving.pushed = {"config.json": {"main": {"README.md": b"gone"}, first: files}}
    code, err, path = benchmark("someone/moving", local)
    assert code == 0, err
    assert read_record(path).model["fingerprint"] == f"commit {first}"
    assert moving.revisions["main"] == {"README.md": b"gone"}


@pytest.mark.parametrize("failure", ["gone", 500])
def test_a_model_once_downloaded_runs_without_the_hub(hub, benchmark, checkpoint, local, failure):
    name = f"someone/kept-{failure}"
    kept = hub.add("models", name, main=held(checkpoint))
    _, _, first = benchmark(name, local)
    if failure == "gone":
        with hub.gone():
            code, err, second = benchmark(name, local)
    else:
        kept.refusal = Refusal(failure)
        code, err, second = benchmark(name, local)
    assert code == 0, err
    assert read_record(first).run_id == read_record(second).run_id
    assert outputs_of(first) == outputs_of(second)


def test_shards_with_an_index_are_one_model(hub, benchmark, _pristine, checkpoint, local, tmp_path):
    _pristine.save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    files = held(checkpoint) | held(tmp_path / "shards")
    del files["model.safetensors"]
    assert sum(name.endswith(".safetensors") for name in files) > 2
    hub.add("models", "someone/sharded", main=files)
    code, err, path = benchmark("someone/sharded", local)
    assert code == 0, err
    _, _, same = benchmark(checkpoint, local)
    assert outputs_of(path) == outputs_of(same)


REFUSED_MODELS = {
    "missing": (None, "is neither a folder here nor a model on the hub"),
    "gated": (
        Refusal(403, "GatedRepo"),
        "is gated; accept its licence on the hub and set HF_TOKEN",
    ),
    "disabled": (DISABLED, "is disabled on the hub"),
    "no-hub": (NO_HUB, "HF_ENDPOINT names no hub, and the local cache lacks it; name a"),
    "bad-token": (Refusal(403), "the hub answers with HTTP status 403, and the local cache lacks"),
}


@pytest.mark.parametrize("name", REFUSED_MODELS)
def test_a_model_that_the_hub_refuses_is_one_line(hub, benchmark, checkpoint, local, name):
    refusal, reason = REFUSED_MODELS[name]
    if refusal:
        hub.add("models", f"someone/{name}", main=held(checkpoint)).refusal = refusal
    code, err, _ = benchmark(f"someone/{name}", local)
    line = only_error(code, err)
    assert line.startswith(f"--model someone/{name}: {reason}")
    assert ("check HF_TOKEN" in line) == (name == "bad-token")
    assert len(err.splitlines()) == 1


def test_a_revision_that_is_not_there_is_named(hub, benchmark, checkpoint, local):
    hub.add("models", "someone/revised", main=held(checkpoint))
    code, err, _ = benchmark("someone/revised", local, "--model_args", "revision=v3")
    assert only_error(code, err) == "--model someone/revised: has no revision v3 on the hub"


@pytest.mark.parametrize(
    ("lacking", "reason"),
    [
        ("model.safetensors", "the repository holds no *.safetensors weights, the one format that"),
        ("config.json", "the repository holds no config.json"),
    ],
)
def test_a_file_that_a_repository_lacks_is_named(
    hub, benchmark, checkpoint, local, lacking, reason
):
    files = held(checkpoint) | {"pytorch_model.bin": b"pickled"}
    del files[lacking]
    hub.add("models", f"someone/no-{lacking}", main=files)
    code, err, _ = benchmark(f"someone/no-{lacking}", local)
    assert only_error(code, err).startswith(f"--model someone/no-{lacking}: {reason}")


def test_a_hub_out_of_reach_is_named_for_models_and_rows(hub, benchmark, checkpoint, local):
    with hub.gone():
        model = only_error(*benchmark("someone/never", local)[:2])
        rows = only_error(*benchmark(checkpoint, ["top_v2"])[:2])
    reason = "the hub cannot be reached, and the local cache lacks it"
    assert model.startswith(f"--model someone/never: {reason}; name a")
    assert rows.startswith(f"--dataset top_v2: {reason}; --data_path")


def whole(home):
    """Return whether every file of the cache holds all of its bytes."""
    blobs = [path for path in home.glob("hub/*/blobs/*") if path.is_file()]
    digests = {40: hashlib.sha1, 64: hashlib.sha256}
    return bool(blobs) and all(
        digests[len(path.name)](path.read_bytes()).hexdigest() == path.name for path in blobs
    )


def test_a_download_that_breaks_off_leaves_nothing_broken(hub, home, benchmark, checkpoint, local):
    broken = hub.add("models", "someone/broken", main=held(checkpoint))
    broken.breaks_in = "model.safetensors"
    code, err, _ = benchmark("someone/broken", local)
    reason = "--model someone/broken: the download broke off (RemoteProtocolError: peer closed"
    assert only_error(code, err).startswith(reason)
    assert whole(home)
    broken.breaks_in = None
    broken.asked.clear()
    code, err, path = benchmark("someone/broken", local)
    assert (code, read_record(path).status) == (0, "complete"), err
    assert "GET model.safetensors" in broken.asked
    assert "GET tokenizer.json" not in broken.asked  # which came whole the first time
    assert whole(home)


def test_a_download_that_breaks_off_once_goes_on_where_it_stopped(
    hub, home, benchmark, checkpoint, local
):
    shaky = hub.add("models", "someone/shaky", main=held(checkpoint))
    shaky.breaks_in, shaky.breaks = "model.safetensors", 1
    code, err, path = benchmark("someone/shaky", local)
    assert (code, read_record(path).status) == (0, "complete"), err
    assert shaky.asked.count("GET model.safetensors") == 2
    assert whole(home)


def test_a_tokenizer_that_the_hub_lacks_is_one_line(hub, start, llama_config, training_rows):
    data = ["--dataset", "custom_jsonl", "--data_path", training_rows]
    flags = ["--config", llama_config, "--tokenizer", "someone/none", "--eval_samples", "9"]
    code, _, err = start("train", *flags, *data, "--output_dir", llama_config.parent / "out")
    reason = "is neither a folder here nor a tokenizer on the hub"
    assert only_error(code, err) == f"--tokenizer someone/none: {reason}"


@pytest.mark.parametrize("dataset", DATA_SETS)
def test_a_data_set_of_the_hub_evaluates_and_calibrates(hub, benchmark, checkpoint, dataset):
    name, layout, rows = DATA_SETS[dataset]
    hub.add("datasets", name, **layout())
    code, err, path = benchmark(checkpoint, [dataset], *ANGULAR[:4], "--calibration_samples", "2")
    assert code == 0, err
    data = read_record(path).data
    assert data["evaluation"]["source"].startswith(name)
    assert (data["evaluation"]["split"], data["calibration"]["split"]) == ("test", "train")
    numbers = {"cnn_dm_lm": (4, 5), "xsum_summarization": (3, 5), "top_v2": (2, 3)}
    numbers |= {"gsm8k": (2, 4), "mbpp": (3, 3)}
    assert numbers[dataset] == (
        data["evaluation"]["available_rows"],
        data["calibration"]["available_rows"],
    )
    field = DATASETS[dataset].fields[-1]
    references = {row[field] for row in rows}
    if dataset != "cnn_dm_lm":
        assert {one.reference.strip() for one in read_samples(path)} <= references
    with hub.gone():
        code, err, again = benchmark(checkpoint, [dataset])
    assert code == 0, err
    assert read_record(again).data["evaluation"] == data["evaluation"]
    assert err.count("Using the latest cached version") == 1


REFUSED_DATA = {
    "private": (Refusal(401, "RepoNotFound"), "{} is neither a folder here nor a data set on the"),
    "gated": (Refusal(401, "GatedRepo"), "{} is gated; accept its licence on the hub and set HF_"),
    "no revision": (NO_REVISION, "{} has no revision refs/convert/parquet on the hub"),
    "no hub": (NO_HUB, "HF_ENDPOINT names no hub, and the local cache lacks it"),
    "broken hub": (
        Refusal(500),
        "the hub answers with HTTP status 500, and the local cache lacks it; try again later; ",
    ),
}


@pytest.mark.parametrize("kind", REFUSED_DATA)
def test_a_data_set_that_the_hub_refuses_is_one_line(hub, benchmark, checkpoint, kind):
    refusal, reason = REFUSED_DATA[kind]
    hub.add("datasets", "EdinburghNLP/xsum", **converted()).refusal = refusal
    code, err, _ = benchmark(checkpoint, ["xsum_summarization"])
    line = only_error(code, err)
    named = reason.format("EdinburghNLP/xsum")
    assert line.startswith(f"--dataset xsum_summarization: {named}")
    assert line.endswith("; --data_path names a file or a folder")
    assert len(err.splitlines()) == 1


def test_a_file_that_is_no_parquet_says_so(hub, benchmark, checkpoint):
    bad = articles(**{"3.0.0/test-00000-of-00001.parquet": b"<html>sign in</html>"})
    hub.add("datasets", "abisee/cnn_dailymail", main=bad)
    code, err, _ = benchmark(checkpoint, ["cnn_dm_summarization"])
    line = only_error(code, err)
    assert line.startswith("--dataset cnn_dm_summarization: abisee/cnn_dailymail 3.0.0 cannot be ")
    assert "Parquet magic bytes not found" in line


def test_rows_whose_download_breaks_off_come_at_the_next_start(hub, home, benchmark, checkpoint):
    news = hub.add("datasets", "abisee/cnn_dailymail", main=articles())
    news.breaks_in = "3.0.0/test-00000-of-00001.parquet"
    code, err, _ = benchmark(checkpoint, ["cnn_dm_summarization"])
    reason = "the download broke off (RemoteProtocolError: peer closed connection"
    assert only_error(code, err).startswith(f"--dataset cnn_dm_summarization: {reason}")
    assert whole(home)
    news.breaks_in = None
    code, err, path = benchmark(checkpoint, ["cnn_dm_summarization"])
    assert (code, read_record(path).status) == (0, "complete"), err
    assert whole(home)
