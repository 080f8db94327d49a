"""--compile true from the command line: the same tokens and another run, or a line why not."""

import pytest
import torch

from arguments.model import ModelArguments
from command_line.errors import FailedError
from models import compilation, runtime
from models.loading import load_model
from models.runtime import start
from self_speculation import compiled_blocks, programs
from tests.conftest import GREEDY, SPECULATIVE

SHORT = [*SPECULATIVE, "--exit_layer", "2", *GREEDY, "--stop_words", "none"]


@pytest.fixture(params=["blocks", pytest.param("compiled", marks=pytest.mark.slow)])
def programs_of_blocks(request, small_buckets, monkeypatch):
    """Programs from the compiler, or the blocks themselves, which need none."""
    if request.param == "blocks":
        monkeypatch.setattr(
            compiled_blocks, "program_of", lambda block, *_: lambda _, given: block(*given)
        )


def test_a_compiled_run_says_the_same_and_is_another_run(run, programs_of_blocks):
    _, plain, expected = run(*SHORT)
    code, compiled, found = run(*SHORT, "--compile", "true")
    assert code == 0
    assert [one.output_ids for one in found] == [one.output_ids for one in expected]
    assert (plain.identity["compile"], compiled.identity["compile"]) == (False, True)
    assert plain.run_id != compiled.run_id
    assert plain.runtime["compile_seconds"] is None
    assert compiled.runtime["compile_seconds"] > 0


OBSTACLES = {
    "device_map=auto": "a model that device_map places is not compiled",
    "attn_implementation=flash_attention_2": "attn_implementation=flash_attention_2 is not",
}


@pytest.mark.parametrize("model_args", OBSTACLES)
def test_obstacles_are_known_before_weights_are_read(model_args):
    arguments = ModelArguments(compile=True, model_args=model_args)
    assert OBSTACLES[model_args] in compilation.compile_obstacle(arguments, torch.device("cpu"))
    assert not start(arguments).compiled


@pytest.mark.parametrize("compiler", ["", "no-such-compiler"])
def test_without_a_compiler_a_run_goes_on_without(checkpoint, capsys, monkeypatch, compiler):
    monkeypatch.setenv("CXX", compiler)
    arguments = ModelArguments(model=str(checkpoint), compile=True)
    loaded = load_model(arguments, start(arguments))
    assert not loaded.compiled
    line = f"warning: --compile true: no compiler '{compiler}' was found; "
    assert capsys.readouterr().err.startswith(line)


@pytest.mark.parametrize(
    ("missing", "obstacle"),
    [("gcc", "no compiler 'gcc' or 'clang' was found"), ("triton", "the package triton is not")],
)
def test_a_compiler_for_cuda_needs_gcc_and_triton(monkeypatch, missing, obstacle):
    found = {"gcc": True, "triton": True} | {missing: None}
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(compilation.shutil, "which", found.get)
    monkeypatch.setattr(compilation.importlib.util, "find_spec", found.get)
    arguments, cuda = ModelArguments(compile=True), torch.device("cuda")
    assert obstacle in compilation.compile_obstacle(arguments, cuda)
    found[missing] = True
    assert compilation.compile_obstacle(arguments, cuda) is None


def test_measurements_of_compiled_decoding_do_not_go_on_without(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(FailedError, match="and no compiler 'no-such-compiler' was found"):
        runtime.start_compiled(ModelArguments())


def test_a_compiler_that_fails_is_one_line(run, small_buckets, capsys, monkeypatch):
    def fail(*_):
        raise OSError("cc1plus: no space left\nand more")

    monkeypatch.setattr(programs, "_programs", {})
    monkeypatch.setattr(programs, "_build", fail)
    monkeypatch.setattr(programs, "_sources", lambda _: "of which nothing was compiled yet")
    code, record, _ = run(*SHORT, "--compile", "true")
    assert (code, record) == (1, None)
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert "--compile true: OSError: cc1plus: no space left; --compile false" in last
