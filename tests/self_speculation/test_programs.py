"""Programs are built once, found again by their key, and fail in one line."""

import pytest
import torch

from self_speculation import programs, row_kernels
from self_speculation.compiled_llama import CompiledLlama
from self_speculation.programs import CompileError, program_of
from tests.conftest import same, tiny_config

pytestmark = pytest.mark.usefixtures("small_buckets")
CAPACITY = 96


def test_all_layers_share_one_program(model):
    layers = [row_kernels.LayerBlock(layer) for layer in model.model.layers]
    assert len({programs._signature(layer) for layer in layers}) == 1


def test_less_room_needs_no_other_program(model, monkeypatch):
    keys = []
    monkeypatch.setattr(programs, "_programs", {})
    monkeypatch.setattr(programs, "_native", lambda block, _, key: keys.append(key) or eager(block))
    CompiledLlama(model, CAPACITY)
    monkeypatch.setattr(programs, "_native", lambda *_: pytest.fail("a program was built"))
    CompiledLlama(model, 32)
    assert len(keys) == 4  # two buckets of a layer, the layer of a prompt, and the head


def test_a_program_is_made_for_the_strides_of_its_inputs(monkeypatch):
    """A part of a batch's cache is not dense; a clone of it would be."""
    view = torch.arange(24.0).reshape(4, 3, 2)[:, :2]
    traced = []
    monkeypatch.setattr(torch.export, "export", lambda _, given, **__: traced.extend(given[1]))
    programs._exported(torch.nn.Identity(), [view])
    assert (traced[0].stride(), view.clone().stride()) == ((6, 2, 1), (4, 2, 1))
    assert torch.equal(traced[0], view)


def eager(block):
    return programs._Stateless(block)


def test_a_missing_program_is_not_called_outdated(tmp_path, caplog):
    with pytest.raises(FileNotFoundError):
        programs._load(tmp_path / "missing.pt2")
    assert "outdated" not in caplog.text


def test_a_damaged_program_is_built_again_and_then_loaded(model, monkeypatch, tmp_path):
    monkeypatch.setattr(programs, "cache_folder", lambda: tmp_path)
    block = row_kernels.HeadBlock(model.model.norm, model.lm_head)
    states = torch.ones(1, 1, 32, dtype=torch.float64)
    (tmp_path / "compiled").mkdir()
    key = programs._key(block, [states], model.config)
    (tmp_path / "compiled" / f"{key}.pt2").write_bytes(b"not a program")
    for _ in range(2):
        monkeypatch.setattr(programs, "_programs", {})
        program = program_of(block, [states], model.config)
        logits_1V = program(programs.tensors_of(block), [states])
        same(logits_1V, model.lm_head(model.model.norm(states))[0])
        monkeypatch.setattr(programs, "_build", lambda *_: pytest.fail("a program was built"))


def test_a_program_belongs_to_its_shapes_and_its_machine(model, monkeypatch):
    block = row_kernels.LayerBlock(model.model.layers[0])
    states = torch.zeros(1, 1, 32, dtype=torch.float64)

    def key(config=model.config, states=states):
        return programs._key(block, [states], config)

    keys = [key(), key(states=states.expand(1, 2, 32)), key(states=states.float())]
    keys.append(key(tiny_config(hidden_act="gelu")))
    monkeypatch.setattr(programs, "_processor", lambda: "another")
    keys.append(key())
    assert len(set(keys)) == 5
    other_depth = tiny_config(num_hidden_layers=2)
    assert key(other_depth) == key(tiny_config())


def test_an_unwritable_folder_is_an_error_of_one_line(model, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(programs, "_programs", {})
    monkeypatch.setattr(programs, "cache_folder", lambda: tmp_path / "file")
    with pytest.raises(CompileError, match=r"^NotADirectoryError: .*$"):
        CompiledLlama(model, CAPACITY)


def test_a_first_call_that_fails_is_an_error_of_one_line(model, monkeypatch):
    """On CUDA the compiler runs in the first call."""

    def build(*_):
        def program(tensors, inputs):
            raise RuntimeError("no room on the device\nand more")

        return program

    monkeypatch.setattr(programs, "_programs", {})
    monkeypatch.setattr(programs, "_native", build)
    with pytest.raises(CompileError, match=r"^RuntimeError: no room on the device$"):
        CompiledLlama(model, CAPACITY)
