"""Quantised checkpoints are dequantised, run, pruned and saved as ordinary ones, or refused."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from command_line.errors import UsageError
from files.reading import read_settings
from models.quantised import check_can_be_saved
from tests.conftest import ANGULAR, GREEDY, tiny_config
from tests.loading import reconfigured, reweighed

BLOCK = 16
UP = "model.layers.2.mlp.up_proj"
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [BLOCK, BLOCK]}


def quantised(weight, block=BLOCK):
    """Return fp8 values, a scale for each block, and the float32 weights that both stand for."""
    rows, columns = (size // block for size in weight.shape)
    blocks = weight.float().reshape(rows, block, columns, block)
    scales = blocks.abs().amax((1, 3)) / 448
    wide = scales[:, None, :, None]
    values = (blocks / wide).to(torch.float8_e4m3fn)
    meant = (values.float() * wide).reshape(weight.shape)
    return values.reshape(weight.shape), scales, meant


@pytest.fixture
def fp8(tokenizer, tmp_path):
    """A bfloat16 Llama with fp8 projections, and the same dequantised by hand in float32."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(tiny_config()).bfloat16()
    folders = tmp_path / "fp8", tmp_path / "plain"
    for folder in folders:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    stored, plain = {}, {}
    for name, weight in load_file(folders[0] / "model.safetensors").items():
        stored[name], plain[name] = weight, weight.float()
        if "proj" in name:
            stored[name], stored[f"{name}_scale_inv"], plain[name] = quantised(weight)
    for folder, weights in zip(folders, (stored, plain), strict=True):
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    reconfigured(folders[0], quantization_config=FP8)
    return folders


def on_disk_in(folder):
    placed = f"device_map=auto,max_memory=cpu:50KB,offload_folder={folder}"
    return ["--device", "cpu", "--model_args", placed]


def ids(samples):
    return [sample.output_ids for sample in samples]


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_fp8_decodes_like_the_same_weights_dequantised_by_hand(run, fp8, dtype):
    flags = [*GREEDY, "--dtype", dtype]
    code, record, found = run(*flags, "--model", str(fp8[0]))
    assert code == 0
    assert ids(found) == ids(run(*flags, "--model", str(fp8[1]))[2])
    assert record.runtime["dtype"] == dtype


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_fp8_saved_pruned_is_an_ordinary_checkpoint(run, fp8, tmp_path, dtype):
    flags = [*GREEDY, "--dtype", dtype]
    folder = tmp_path / "pruned"
    saving = [*ANGULAR, "--save_pruned", str(folder)]
    code, _, before = run(*flags, *saving, "--model", str(fp8[0]))
    assert code == 0
    stored = load_file(folder / "model.safetensors")
    assert {str(weight.dtype) for weight in stored.values()} == {f"torch.{dtype}"}
    assert not [name for name in stored if "scale" in name]
    assert "quantization_config" not in read_settings(folder / "config.json")
    assert ids(run(*flags, "--model", str(folder))[2]) == ids(before)
    assert ids(run(*flags, *ANGULAR, "--model", str(fp8[1]))[2]) == ids(before)


def test_fp8_is_trained_further_and_saved_as_an_ordinary_checkpoint(train_further, fp8):
    code, out = train_further("--max_steps", "2", "--warmup_steps", "1", model=fp8[0])
    assert code == 0
    stored = load_file(out / "checkpoint" / "model.safetensors")
    assert not [name for name in stored if "scale" in name]
    assert {weight.dtype for weight in stored.values()} <= {torch.float32, torch.bfloat16}
    assert "quantization_config" not in read_settings(out / "checkpoint" / "config.json")


def test_fp8_on_disk_runs_and_is_saved_in_the_dtype_of_its_other_weights(
    run, fp8, tmp_path, capsys
):
    spread = on_disk_in(tmp_path / "offloaded")
    flags = [*GREEDY, "--dtype", "bfloat16", "--model", str(fp8[0])]
    folder = tmp_path / "pruned"
    code, record, on_disk = run(*flags, *ANGULAR, *spread, "--save_pruned", str(folder))
    assert code == 0
    assert record.model["layers_on"].get("disk")
    assert ids(on_disk) == ids(run(*flags, *ANGULAR)[2])
    stored = load_file(folder / "model.safetensors")
    assert {weight.dtype for weight in stored.values()} == {torch.bfloat16}

    flags = [*GREEDY, "--dtype", "float32", "--model", str(fp8[0])]
    code, _, on_disk = run(*flags, *on_disk_in(tmp_path / "other"))
    if code == 0:  # transformers 5.17 offloads them in the dtype of the run
        assert ids(on_disk) == ids(run(*flags)[2])
    else:
        assert (code, "needs --dtype bfloat16" in capsys.readouterr().err) == (2, True)


@pytest.mark.parametrize(
    ("lost", "changes", "reason"),
    [
        (["weight_scale_inv"], {}, f"its {UP}.weight is fp8, and its scales are missing"),
        (["weight", "weight_scale_inv"], {}, "lacks 1 weights"),
        ([], {"weight_block_size": [32, 32]}, "is not made of whole blocks of [32, 32]"),
        ([], {"quant_method": "fp9"}, "its quant_method fp9 must be one of "),
    ],
)
def test_fp8_that_transformers_would_read_wrongly_is_refused(
    run, fp8, capsys, lost, changes, reason
):
    def lose(weights):
        for end in lost:
            del weights[f"{UP}.{end}"]

    reweighed(fp8[0], lose)
    reconfigured(fp8[0], quantization_config=FP8 | changes)
    assert run(*GREEDY, "--model", str(fp8[0]))[0] == 2
    assert reason in capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("settings", "method", "package"),
    [
        ({"quant_method": "gptq", "bits": 4}, "gptq", "pip install optimum gptqmodel"),
        ({"load_in_4bit": True}, "bitsandbytes", "pip install bitsandbytes"),
        ({"load_in_8bit": True}, "bitsandbytes", "pip install bitsandbytes"),
    ],
)
def test_a_method_whose_package_is_absent_is_named_in_one_line(
    run, fp8, capsys, monkeypatch, settings, method, package
):
    monkeypatch.setattr("models.quantised.find_spec", lambda module: None)
    reconfigured(fp8[0], quantization_config=settings)
    assert run(*GREEDY, "--model", str(fp8[0]))[0] == 2
    err = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"quantised by {method}, which needs" in err
    assert package in err


@pytest.mark.parametrize("flags", ["benchmark", "train"])
def test_what_stays_quantised_is_not_saved_and_nothing_is_computed(
    run, train_further, fp8, tmp_path, monkeypatch, capsys, flags
):
    monkeypatch.setattr("models.quantised.find_spec", lambda module: True)
    monkeypatch.setattr("models.loading.AutoModelForCausalLM", None)  # no weights are read
    reconfigured(fp8[0], quantization_config={"quant_method": "awq", "bits": 4})
    if flags == "train":
        assert train_further(model=fp8[0])[0] == 2
    else:
        saving = ["--save_pruned", str(tmp_path / "pruned")]
        assert run(*GREEDY, *ANGULAR, *saving, "--model", str(fp8[0]))[0] == 2
    err = capsys.readouterr().err.strip().splitlines()[-1]
    assert "stays quantised by awq and cannot be saved as an ordinary checkpoint" in err


def test_what_is_dequantised_or_never_was_quantised_may_be_saved():
    for config in (tiny_config(), tiny_config(quantization_config=FP8)):
        check_can_be_saved("save_pruned", "folder", "it", config)
    awq = tiny_config(quantization_config={"quant_method": "awq"})
    check_can_be_saved("save_pruned", None, "it", awq)
    with pytest.raises(UsageError, match="--save_pruned folder: it stays quantised by awq"):
        check_can_be_saved("save_pruned", "folder", "it", awq)
