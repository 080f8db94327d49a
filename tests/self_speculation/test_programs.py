"""Programs are made once, found again by what they depend on, and fail in one line."""

import pytest
import torch

from self_speculation import compiled_llama, programs
from self_speculation.compiled_llama import CompiledLlama
from self_speculation.llama_model_utils import CachedLlama
from self_speculation.programs import CompileError, program_of
from tests.conftest import random_prompt, row, same, tiny_config

pytestmark = pytest.mark.usefixtures("small_buckets")
CAPACITY = 96


def test_all_layers_share_one_program(model):
    layers = [compiled_llama.LayerBlock(layer) for layer in model.model.layers]
    assert len({programs._signature(layer) for layer in layers}) == 1


def test_programs_are_found_again(model, monkeypatch):
    """By a later start, and by one with room for less."""
    CompiledLlama(model, CAPACITY)
    monkeypatch.setattr(programs, "_programs", {})
    monkeypatch.setattr(programs, "_build", lambda *_: pytest.fail("a program was built"))
    CompiledLlama(model, 32)
    engine = CompiledLlama(model, CAPACITY)
    expected = CachedLlama(model, CAPACITY)
    for one in (engine, expected):
        one.forward(row(random_prompt(40)))
    same(engine.forward(row([5])), expected.forward(row([5])))


@pytest.fixture
def head(model, monkeypatch, tmp_path):
    """A block without a program, and inputs of it."""
    monkeypatch.setattr(programs, "_programs", {})
    monkeypatch.setattr(programs, "cache_folder", lambda: tmp_path)
    block = compiled_llama.HeadBlock(model.model.norm, model.lm_head)
    return block, torch.ones(1, 1, 32, dtype=torch.float64)


def test_a_program_that_is_missing_is_not_called_outdated(model, head, caplog):
    block, states = head
    program_of(block, [states], model.config)
    assert "outdated" not in caplog.text


@pytest.mark.parametrize("content", [b"", b"not a program"])
def test_a_program_that_cannot_be_read_is_built_again(model, head, monkeypatch, tmp_path, content):
    block, states = head
    folder = tmp_path / "compiled"
    folder.mkdir()
    (folder / f"{programs._key(block, [states], model.config)}.pt2").write_bytes(content)
    for _ in range(2):
        monkeypatch.setattr(programs, "_programs", {})
        program = program_of(block, [states], model.config)
        logits_1V = program(programs.tensors_of(block), [states])
        same(logits_1V, model.lm_head(model.model.norm(states))[0])
        monkeypatch.setattr(programs, "_build", lambda *_: pytest.fail("a program was built"))


def test_a_program_belongs_to_its_shapes_and_its_machine(model, monkeypatch):
    block = compiled_llama.LayerBlock(model.model.layers[0])
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


def test_a_folder_that_cannot_be_written_is_told_in_one_line(model, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(programs, "_programs", {})
    monkeypatch.setattr(programs, "cache_folder", lambda: tmp_path / "file")
    with pytest.raises(CompileError, match=r"^NotADirectoryError: .*$"):
        CompiledLlama(model, CAPACITY)


def test_what_breaks_in_a_first_call_is_told_in_one_line(model, monkeypatch):
    """On CUDA the compiler starts there."""

    def build(*_):
        def program(tensors, inputs):
            raise RuntimeError("no room on the device\nand more")

        return program

    monkeypatch.setattr(programs, "_programs", {})
    monkeypatch.setattr(programs, "_native", build)
    with pytest.raises(CompileError, match=r"^RuntimeError: no room on the device$"):
        CompiledLlama(model, CAPACITY)
