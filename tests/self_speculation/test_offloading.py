"""A model larger than its device decodes, is pruned and is saved like any other."""

import gc
import json
import weakref

import accelerate
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM

import correctness
import generate
from arguments.generation import GenerationArguments
from arguments.model import ModelArguments
from arguments.pruning import PruneArguments
from command_line.errors import UsageError
from command_line.script import run_script
from models.loading import load_model
from models.runtime import Runtime
from pruned_model import PruneModel
from pruning.plan import PrunePlan
from pruning.states import measure_states
from runs.preparation import load_pruned
from runs.reader import find_runs, read_record, read_samples
from self_speculation import offloading
from self_speculation.equality import first_difference
from self_speculation.llama_model_utils import CachedLlama
from tests.conftest import (
    ANGULAR,
    GREEDY,
    LAYERS,
    SPECULATIVE,
    SWEEP_POINTS,
    random_prompt,
    tiny_config,
)

HALF = "device_map=auto,max_memory=cpu:330KB"  # embeddings and three layers in float64
SPREAD = ["--device", "cpu", "--model_args", HALF]
ALL_ON_DISK = "device_map=auto,max_memory=cpu:100KB"
DECODERS = {
    "autoregressive": [],
    "self_speculative": [*SPECULATIVE, "--exit_layer", "3"],
    "early exit": ["--exit_layer", "3"],
}
RANDOM = ["--prune_method", "random", "--dropout_threshold", "0.4", "--prune_seed", "1"]
PLANS = {"base": [], "angular": ANGULAR, "random": RANDOM}
CPU = Runtime(torch.device("cpu"), torch.float64)


def load(folder, model_args=HALF):
    return load_model(ModelArguments(str(folder), model_args=model_args), CPU).model


def ids(samples):
    return [sample.output_ids for sample in samples]


def loading(checkpoint, model_args=""):
    return ModelArguments(str(checkpoint), model_args, dtype="float64", device="cpu")


@pytest.fixture
def tied_checkpoint(tokenizer, tmp_path):
    """The tiny Llama with tied embeddings and head."""
    torch.manual_seed(0)
    LlamaForCausalLM(tiny_config(tie_word_embeddings=True)).double().save_pretrained(
        tmp_path / "tied"
    )
    tokenizer.save_pretrained(tmp_path / "tied")
    return tmp_path / "tied"


@pytest.mark.parametrize(
    ("plan", "decoder"),
    [
        ("base", "autoregressive"),
        ("base", "self_speculative"),
        ("angular", "self_speculative"),
        ("random", "early exit"),
    ],
)
def test_outputs_do_not_depend_on_layers_on_disk(run, plan, decoder):
    flags = [*GREEDY, *PLANS[plan], *DECODERS[decoder]]
    _, whole, in_memory = run(*flags)
    code, spread, on_disk = run(*flags, *SPREAD)
    assert code == 0
    assert ids(on_disk) == ids(in_memory)
    assert spread.plan["kept_layers"] == whole.plan["kept_layers"]
    assert spread.run_id != whole.run_id


def test_the_log_says_where_the_layers_lie(run):
    kept = {"base": {"cpu": 3, "disk": 3}, "angular": {}}
    for plan, expected in kept.items():
        _, whole, _ = run(*GREEDY, *PLANS[plan])
        _, spread, _ = run(*GREEDY, *PLANS[plan], *SPREAD)
        layers = whole.plan["kept_layers"]
        expected = expected or {
            "cpu": sum(layer < 3 for layer in layers),
            "disk": sum(layer >= 3 for layer in layers),
        }
        assert whole.model["layers_on"] == {"cpu": len(layers)}
        assert spread.model["layers_on"] == expected
        assert spread.model["weight_bytes"] == whole.model["weight_bytes"]


def test_a_device_limit_is_part_of_the_run_id(run):
    _, one, _ = run(*GREEDY, *SPREAD)
    _, other, _ = run(*GREEDY, *SPREAD[:-1], HALF.replace("330", "400"))
    assert one.run_id != other.run_id
    assert one.identity["model_args"] == {"device_map": "auto", "max_memory": {"cpu": 330_000}}


@pytest.mark.parametrize("folder", ["checkpoint", "tied_checkpoint"])
@pytest.mark.parametrize("placement", [HALF, ALL_ON_DISK])
def test_embeddings_and_head_may_lie_on_disk_too(folder, placement, request):
    checkpoint = request.getfixturevalue(folder)
    plain = GenerationArguments(max_steps=16, sample=False)
    drafting = GenerationArguments("self_speculative", 16, 3, 3, sample=False)
    sampling = GenerationArguments("self_speculative", 16, 3, 3, temperature=1.0)
    plan = PruneArguments(prune_method="random", dropout_threshold=0.3, prune_seed=1)
    whole, spread = (load_pruned(loading(checkpoint, args), plan) for args in ("", placement))
    assert spread.loaded.model.get_input_embeddings().weight.is_meta == (placement == ALL_ON_DISK)
    for flags in (plain, drafting, sampling):
        one, other = (each.generate("number 1:", flags) for each in (whole, spread))
        assert one.output_ids == other.output_ids


@pytest.mark.parametrize("placement", [HALF, ALL_ON_DISK])
def test_distances_and_gaps_are_those_of_the_model_in_memory(checkpoint, placement):
    prompts = [torch.tensor([random_prompt(length)]) for length in (5, 9)]
    whole, spread = load(checkpoint, ""), load(checkpoint, placement)
    one, other = (measure_states(model, prompts) for model in (whole, spread))
    for name in ("distances", "influences"):
        pair = getattr(one, name), getattr(other, name)
        torch.testing.assert_close(*pair, rtol=0, atol=1e-12, equal_nan=True)
    gaps = [first_difference(model, [1, 2], [3, 4], [3, 5]).logit_gap for model in (whole, spread)]
    assert gaps[0] == pytest.approx(gaps[1], abs=1e-9)


@pytest.mark.parametrize(("placement", "shard"), [(HALF, "90KB"), (ALL_ON_DISK, "2GB")])
def test_a_model_saved_pruned_while_on_disk_reloads_equal(
    checkpoint, tokenizer, tmp_path, monkeypatch, placement, shard
):
    monkeypatch.setattr(offloading, "_SHARD", shard)
    whole, spread = load(checkpoint, ""), load(checkpoint, placement)
    for model in (whole, spread):
        surgery = PruneModel(model, PrunePlan("test", LAYERS, (0, 1, 4, 5)))
        surgery.prune()
    surgery.save(tokenizer, tmp_path / "saved")
    assert (len(list((tmp_path / "saved").glob("*.safetensors"))) > 1) == (shard == "90KB")
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert saved.config.num_hidden_layers == 4
    for name, weight in whole.state_dict().items():
        assert torch.equal(saved.state_dict()[name], weight), name
    prompt_1T = torch.tensor([random_prompt(12)])
    after = [CachedLlama(model, 16).forward(prompt_1T) for model in (saved, spread)]
    torch.testing.assert_close(*after, rtol=0, atol=1e-12)


def test_a_run_saves_the_model_that_it_decoded(run, checkpoint, tmp_path):
    folder = tmp_path / "pruned"
    _, _, in_memory = run(*GREEDY, *ANGULAR)
    code, _, on_disk = run(*GREEDY, *ANGULAR, *SPREAD, "--save_pruned", str(folder))
    assert code == 0
    _, again, reloaded = run(*GREEDY, "--model", str(folder))
    assert ids(in_memory) == ids(on_disk) == ids(reloaded)
    assert again.model["original_layers"] == LAYERS - 2


def weights_on_host(model):
    """Dispatch the model as if its layers' weights waited on the host for a device."""
    state = model.state_dict()
    places = {"model.embed_tokens": "cpu", "model.norm": "cpu", "lm_head": "cpu"}
    places |= {"model.rotary_emb": "cpu"}
    places |= {f"model.layers.{index}": "disk" for index in range(LAYERS)}
    accelerate.dispatch_model(model, places, "cpu", state_dict=state, offload_index={})
    return weakref.ref(state["model.layers.2.mlp.up_proj.weight"])


def test_removed_layers_leave_the_host(model):
    """accelerate keeps all waiting weights in one table, which every layer holds."""
    expected = CachedLlama(model, 8)
    prompt_1T = torch.tensor([random_prompt(6)])
    expected = expected.forward(prompt_1T, depth=2)
    waiting = weights_on_host(model)
    surgery = PruneModel(model, PrunePlan("test", LAYERS, (0, 1, 3, 4, 5)))
    with surgery.for_a_while():
        gc.collect()
        assert waiting() is not None
    assert torch.equal(CachedLlama(model, 8).forward(prompt_1T, depth=2), expected)
    surgery.prune()
    gc.collect()
    assert waiting() is None
    table = model.model.layers[0].mlp.up_proj._hf_hook.weights_map.dataset
    assert not any(key.startswith("model.layers.2.") for key in table)
    assert any(key.startswith("model.layers.3.") for key in table)
    assert torch.equal(CachedLlama(model, 8).forward(prompt_1T, depth=2), expected)


def test_removed_layers_are_not_read(checkpoint, monkeypatch):
    model = load(checkpoint)
    PruneModel(model, PrunePlan("test", LAYERS, (0, 1, 2, 5))).prune()
    table = type(model.model.layers[3].mlp.up_proj._hf_hook.weights_map.dataset)
    read, ordinary = [], table.__getitem__
    monkeypatch.setattr(
        table, "__getitem__", lambda self, key: read.append(key) or ordinary(self, key)
    )
    CachedLlama(model, 8).forward(torch.tensor([random_prompt(6)]))
    layers = {key.split(".")[2] for key in read if key.startswith("model.layers.")}
    assert layers == {"5"}  # 3 and 4 were removed, the others lie in memory


def test_a_sweep_on_disk_equals_a_sweep_in_memory(run_sweep):
    found = []
    for folder, flags in (("memory", []), ("disk", SPREAD)):
        plan = ["--prune_methods", "angular", "--prune_ns", "2", "--calibration_samples", "4"]
        code, logs = run_sweep(*plan, *flags, folder=folder)
        assert code == 0
        made = {}
        for path in find_runs(logs):
            generation = read_record(path).arguments["generation"]
            point = (generation["exit_layer"], generation["num_speculations"])
            made[point] = ids(read_samples(path))
        found.append(made)
    assert len(found[0]) == len(SWEEP_POINTS)
    assert found[0] == found[1]


def test_both_decoders_are_equal_on_disk(checkpoint, rows, tmp_path):
    flags = ["--model", str(checkpoint), "--dtype", "float64", "--dataset", "custom_jsonl"]
    flags += ["--data_path", str(rows), "--num_samples", "2", "--max_steps", "12"]
    flags += ["--exit_layer", "3", "--num_speculations", "3", "--output_dir", str(tmp_path)]
    assert run_script(correctness.main, [*flags, *ANGULAR, *SPREAD]) == 0
    log = json.loads(next(tmp_path.glob("correctness_*.json")).read_text())
    assert log["summary"]["verdicts"] == {"equal": 2}


def test_prompts_in_a_terminal_are_answered_from_disk(checkpoint, capsys):
    flags = ["--model", str(checkpoint), "--dtype", "float64", "--max_steps", "12"]
    flags += ["--sample", "false", "--prompt", "number 1:"]
    answers = []
    for placement in ([], SPREAD):
        assert run_script(generate.main, [*flags, *placement]) == 0
        shown = capsys.readouterr()
        assert "warning" not in shown.err.lower()
        answers.append(shown.out)
    assert answers[0] == answers[1]


@pytest.mark.parametrize("decoder", ["plain", "early"])
@pytest.mark.parametrize("placement", [HALF, ALL_ON_DISK])
def test_the_harness_scores_a_model_on_disk(checkpoint, decoder, placement):
    pytest.importorskip("lm_eval")
    from harness.model import HarnessModel
    from tests.harness.test_model import EARLY, texts
    from tests.harness.test_model import GREEDY as PLAIN
    from tests.harness.test_model import scores as scores_of

    flags = EARLY if decoder == "early" else PLAIN
    plan = PruneArguments(prune_method="random", dropout_threshold=0.3, prune_seed=1)
    models = [
        HarnessModel(load_pruned(loading(checkpoint, args), plan, generation=flags), flags, 3)
        for args in ("", placement)
    ]
    assert scores_of(models[0]) == pytest.approx(scores_of(models[1]), rel=1e-9)
    one, other = (each.generate_until(texts(until=["!"]), True) for each in models)
    assert one == other


def test_the_offload_folder_is_made(checkpoint, tmp_path):
    folder = tmp_path / "new" / "folder"
    load(checkpoint, f"{HALF},offload_folder={folder}")
    assert folder.is_dir()


@pytest.mark.parametrize("placement", ["device_map=cuda:99", "device_map=auto,max_memory=99:1GB"])
def test_missing_devices_are_refused(checkpoint, placement):
    with pytest.raises(UsageError, match="--model_args cuda:99: torch sees . CUDA devices here"):
        load(checkpoint, placement)


def test_a_model_on_another_device_than_logged_is_refused(checkpoint):
    elsewhere = Runtime(torch.device("cuda"), torch.float64)
    arguments = ModelArguments(str(checkpoint), model_args="device_map=cpu")
    with pytest.raises(UsageError, match="device_map=cpu: the model begins on cpu; it needs --dev"):
        load_model(arguments, elsewhere)
