"""A saved checkpoint reads back as the model in memory, here and in transformers 4."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from command_line.errors import UsageError
from files.reading import read_settings
from models import embedded, saved
from models.saved import DifferentError, write_checkpoint
from pruned_model import PruneModel
from pruning.plan import PrunePlan
from tests.conftest import ANGULAR, GREEDY, LAYERS, tiny_config
from tests.loading import reconfigured, reweighed

THETA = 500000.0
SCALINGS = {
    "none": None,
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    "linear": {"type": "linear", "factor": 2.0},
}
KINDS = ("llama", "mistral", "qwen2", "qwen3")
IDS = torch.arange(200)[None]
TEXT = "Hi <extra>\n  def é"
# Run by transformers 4; compares the logits of each folder with those expected.
READER = """
import json, sys, pathlib, torch, transformers
from safetensors.torch import load_file
assert transformers.__version__.startswith("4.57."), transformers.__version__
ids, text = torch.arange(200)[None], sys.argv[2]
found = {}
for folder in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, torch_dtype="auto").eval()
    expected = load_file(folder / "expected.safetensors_")["logits"]
    with torch.no_grad():
        gap = float((model(ids).logits.double() - expected.double()).abs().max())
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    found[folder.name] = [gap, str(model.dtype), tokenizer(text)["input_ids"],
                          tokenizer.chat_template]
print(json.dumps(found))
"""


def legacy(folder, kind, scaling):
    """Return a model from a config.json as transformers 4 wrote it."""
    values = tiny_config(vocab_size=300).to_diff_dict()
    values.pop("rope_parameters", None)
    values.pop("dtype", None)
    values |= {"model_type": kind, "rope_theta": THETA, "rope_scaling": scaling}
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(values | {"torch_dtype": "float32"}))
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)).eval()


def named(tokenizer):
    """Return the tokenizer with a special token and a template, which the versions write apart."""
    tokenizer = type(tokenizer)(
        tokenizer_object=tokenizer.backend_tokenizer,
        eos_token="<end>",
        extra_special_tokens=["<extra>"],
    )
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    return tokenizer


def pruned(model):
    surgery = PruneModel(model, PrunePlan("test", LAYERS, (0, 1, 4, 5)))
    surgery.prune()
    return surgery


@torch.no_grad()
def logits(model):
    return model(IDS).logits


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("kind", KINDS)
def test_positions_and_tokenizer_are_written_for_both_major_versions(
    kind, scaling, tokenizer, tmp_path
):
    model, tokenizer = legacy(tmp_path / "legacy", kind, SCALINGS[scaling]), named(tokenizer)
    pruned(model).save(tokenizer, tmp_path / "saved")
    values = read_settings(tmp_path / "saved" / "config.json")
    assert values["rope_theta"] == values["rope_parameters"]["rope_theta"] == THETA
    older = values["rope_scaling"] or {"rope_type": "default"}
    assert older | {"rope_theta": THETA} == values["rope_parameters"]
    assert values["torch_dtype"] == values["dtype"] == "float32"
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved").eval()
    assert torch.equal(logits(again), logits(model))
    assert again.config.rope_parameters == model.config.rope_parameters
    values = read_settings(tmp_path / "saved" / "tokenizer_config.json")
    assert values["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert values["additional_special_tokens"] == ["<extra>"]
    assert "extra_special_tokens" not in values
    again = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert again(TEXT)["input_ids"] == tokenizer(TEXT)["input_ids"]
    assert again.extra_special_tokens == ["<extra>"]
    assert again.chat_template == tokenizer.chat_template


def test_a_tokenizer_that_reads_otherwise_is_refused_before_training(
    train_anew, llama_config, capsys
):
    """transformers gives every qwen2 the pre-tokenizer of Qwen2, whatever tokenizer.json says."""
    reconfigured(llama_config.parent, model_type="qwen2")
    code, out = train_anew()
    assert code == 2
    err = capsys.readouterr().err.strip().splitlines()[-1]
    assert "--tokenizer bpe: cannot be that of a qwen2 in transformers" in err
    assert not (out / "checkpoint").exists()


NORM = "model.norm.weight"


def turn_a_bit(weights):
    weights[NORM].view(torch.uint8).view(-1)[0] ^= 1


def to_float32(weights):
    weights[NORM] = weights[NORM].float()


def reset(name, **values):
    return lambda folder: reconfigured(folder, name, **values)


DAMAGES = {
    "a bit of a weight": (lambda folder: reweighed(folder, turn_a_bit), NORM),
    "a weight is missing": (lambda folder: reweighed(folder, lambda held: held.pop(NORM)), NORM),
    "a weight of another dtype": (lambda folder: reweighed(folder, to_float32), NORM),
    "another setting": (reset("config.json", rms_norm_eps=0.5), "config.json's rms_norm_eps"),
    "another end": (reset("generation_config.json", eos_token_id=7), "generation_config.json's"),
    "other tokens": (
        reset("tokenizer.json", normalizer={"type": "Lowercase"}),
        "the tokenizer's ids",
    ),
}


@pytest.fixture(params=DAMAGES)
def damaged(request, monkeypatch):
    """Change something after it was written; return the reason that the error gives."""
    ordinary = saved._add_older_keys
    change, reason = DAMAGES[request.param]

    def write(folder):
        ordinary(folder)
        change(folder)

    monkeypatch.setattr(saved, "_add_older_keys", write)
    return reason


def test_a_checkpoint_that_reads_otherwise_is_not_kept(model, tokenizer, tmp_path, damaged):
    target = tmp_path / "deep" / "saved"
    with pytest.raises(UsageError, match=f"reads otherwise: {damaged}"):
        pruned(model).save(tokenizer, str(target))
    assert list(target.parent.iterdir()) == []


def test_a_trained_checkpoint_that_reads_otherwise_is_written_again(
    train_anew, monkeypatch, capsys
):
    ordinary = saved._add_older_keys
    monkeypatch.setattr(saved, "check_tokenizer", lambda *_: None)
    monkeypatch.setattr("training.from_scratch.check_tokenizer", lambda *_: None)

    def damage(folder):
        ordinary(folder)
        reweighed(folder, turn_a_bit)

    monkeypatch.setattr(saved, "_add_older_keys", damage)
    brief = ["--max_steps", "2", "--warmup_steps", "1"]
    code, out = train_anew(*brief)
    assert code == 1
    assert "reads otherwise: model.norm.weight" in capsys.readouterr().err
    assert not (out / "checkpoint").exists()
    monkeypatch.setattr(saved, "_add_older_keys", ordinary)
    assert train_anew(*brief)[0] == 0
    values = read_settings(out / "checkpoint" / "config.json")
    assert values["rope_theta"] == values["rope_parameters"]["rope_theta"]
    assert values["rope_scaling"] is None
    assert values["torch_dtype"] == values["dtype"]
    tokens = read_settings(out / "checkpoint" / "tokenizer_config.json")
    assert tokens["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_a_damaged_conversion_is_no_embedded_model(tmp_path, monkeypatch, model, tokenizer):
    def convert(gguf, folder):
        write_checkpoint(model, tokenizer, folder, portable=False)

    def differ(*_):
        raise DifferentError("what was written reads otherwise: lm_head.weight")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(embedded, "_installed_gguf", lambda: tmp_path / "model.gguf")
    monkeypatch.setattr(embedded, "_check", lambda gguf: None)
    monkeypatch.setattr(embedded, "_convert", convert)
    monkeypatch.setattr(saved, "_compare_weights", differ)
    with pytest.raises(UsageError, match=r"lm_head\.weight"):
        embedded.embedded_checkpoint()
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.suffix == ".safetensors"]


def test_weights_are_compared_bit_by_bit(model, tokenizer, tmp_path):
    model.lm_head.weight[0, 0] = float("nan")  # compares equal
    write_checkpoint(model, tokenizer, tmp_path / "saved")
    model.lm_head.weight[-1, -1] += 1
    with pytest.raises(DifferentError, match=r"lm_head\.weight"):
        saved._compare_weights(model, tmp_path / "saved")


def test_a_head_that_is_the_embeddings_need_not_be_stored(tokenizer, tmp_path):
    model = LlamaForCausalLM(tiny_config(tie_word_embeddings=True))
    write_checkpoint(model, tokenizer, tmp_path / "saved")
    assert "lm_head.weight" not in load_file(tmp_path / "saved" / "model.safetensors")


@pytest.fixture(scope="module")
def older_python(tmp_path_factory):
    """An interpreter with transformers 4.57 in a separate environment."""
    folder = tmp_path_factory.mktemp("older")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    wanted = [f"torch=={torch.__version__.partition('+')[0]}", "transformers==4.57.*", "numpy"]
    command = [python, "-m", "pip", "install", "--quiet", *wanted]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["pip says nothing"]
        pytest.skip(f"transformers 4.57 cannot be installed: {lines[-1]}")
    return python


@pytest.mark.slow
def test_transformers_4_reads_what_is_saved(
    older_python, tokenizer, train_anew, run, checkpoint, tmp_path
):
    tokenizer, folders = named(tokenizer), tmp_path / "folders"
    for kind in KINDS:
        for name, scaling in SCALINGS.items():
            model = legacy(tmp_path / "legacy" / f"{kind}-{name}", kind, scaling)
            target = folders / f"{kind}-{name}"
            pruned(model).save(tokenizer, target)
    code, out = train_anew()
    assert code == 0
    (out / "checkpoint").rename(folders / "trained")
    assert run(*GREEDY, *ANGULAR, "--save_pruned", str(folders / "run"))[0] == 0
    expected = {}
    for folder in folders.iterdir():
        again = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
        tokens = AutoTokenizer.from_pretrained(folder)
        # Not *.safetensors, which would be taken for weights.
        save_file({"logits": logits(again).contiguous()}, folder / "expected.safetensors_")
        said = [str(again.dtype), tokens(TEXT)["input_ids"], tokens.chat_template]
        expected[folder.name] = said
    script = tmp_path / "reader.py"
    script.write_text(READER)
    done = subprocess.run(
        [older_python, script, folders, TEXT], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert {name: rest for name, (_, *rest) in found.items()} == expected
    assert {name: gap for name, (gap, *_) in found.items() if gap > 1e-5} == {}
