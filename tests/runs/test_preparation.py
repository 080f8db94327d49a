"""A prepared model answers prompts with any flags, and keeps its decoder while it suffices."""

import re

import pytest

from arguments.drafting import EARLY_EXIT
from arguments.generation import GenerationArguments
from arguments.model import ModelArguments
from arguments.prompts import PromptArguments
from arguments.pruning import PruneArguments
from command_line.errors import UsageError
from runs import preparation
from runs.preparation import load_pruned, make_generator
from self_speculation.text_generator import WARM_UP_STEPS
from tests.conftest import ROOT

README = ROOT / "README.md"
GREEDY = GenerationArguments(max_steps=12, sample=False)


@pytest.fixture
def load(checkpoint):
    def start(generation=None, prompting=None, **pruning):
        model = ModelArguments(str(checkpoint), dtype="float64")
        return load_pruned(model, PruneArguments(**pruning), prompting, generation)

    return start


def test_the_readmes_ten_lines_work(checkpoint, capsys):
    (code,) = re.findall(r"```python\n(from arguments.*?)```", README.read_text(), re.DOTALL)
    assert len(code.strip().splitlines()) <= 13
    for name, tiny in (("smollm2-135m", str(checkpoint)), ("exit_layer=24", "exit_layer=3")):
        assert name in code
        code = code.replace(name, tiny)
    names = {}
    exec(compile(code, str(README), "exec"), names)
    assert names["pruned"].plan.approach == "angular n=4"
    assert len(capsys.readouterr().out.splitlines()) >= 2
    assert names["made"].rounds


def test_decoders_are_kept_while_they_suffice(load, monkeypatch):
    monkeypatch.setattr(preparation, "_LEAST_ROOM", 8)
    pruned = load()
    first = pruned.generator(GREEDY, 8)
    assert pruned.generator(GREEDY, 4) is first
    longer = pruned.generator(GREEDY, 9)
    assert (longer is not first, longer.engine.capacity) == (True, 16 + GREEDY.max_steps)
    assert pruned.generator(GREEDY, 16) is longer
    changed = GenerationArguments(max_steps=6, sample=False)
    assert pruned.generator(changed, 4) is not longer
    ids = pruned.encode("ab", GREEDY.max_steps)
    assert pruned.generate("ab", GREEDY).output_ids == first.generate(ids).output_ids


@pytest.mark.parametrize("strategy", ["autoregressive", "self_speculative"])
def test_a_warm_up_changes_no_token(load, strategy):
    flags = GenerationArguments(strategy, max_steps=12, exit_layer=3, num_speculations=2)
    warm = load(generation=flags)
    made = warm.generate("ab", flags, "1")
    ids = warm.encode("ab", 12)
    decoder = make_generator(flags, EARLY_EXIT, warm.loaded, warm.pruned, (), len(ids))
    cold = decoder.generate(ids, flags.seed, "1")
    assert (made.output_ids, made.rounds) == (cold.output_ids, cold.rounds)


def test_a_model_that_ends_at_once_is_warmed_up_all_the_same(load):
    """Without that, the first output with more than one token would be cold."""
    flags = GenerationArguments("self_speculative", exit_layer=3, num_speculations=2, sample=False)
    pruned = load(generation=flags)
    first = pruned.generate("ab", flags).output_ids[0]
    flags.stop_token_ids = [first]
    decoder = pruned.generator(flags, 2)
    ids = pruned.encode("ab", flags.max_steps)
    assert decoder.generate(ids).output_ids == [first]
    assert len(decoder.warm_up(ids).output_ids) == WARM_UP_STEPS
    assert decoder.generate(ids).output_ids == [first]


def test_flags_that_change_after_use_make_a_new_decoder(load):
    pruned, flags = load(), GenerationArguments(max_steps=12, sample=False)
    assert len(pruned.generate("ab", flags).output_ids) == 12
    flags.max_steps = 5
    assert len(pruned.generate("ab", flags).output_ids) == 5


def test_a_template_goes_around_the_prompt(load):
    plain = load().generate("[ab]", GREEDY).output_ids
    framed = load(prompting=PromptArguments(template="[{message}]")).generate("ab", GREEDY)
    assert framed.output_ids == plain


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prune_method": "angular"}, "--prune_method angular: needs --prune_n"),
        ({"prompting": PromptArguments(template="x")}, "--template 'x': must hold {message}"),
        ({"prompting": PromptArguments(apply_chat_template=True)}, "has no template"),
        ({"generation": GenerationArguments(exit_layer=6)}, "--exit_layer 6: must be 1 to 5"),
        (
            {"generation": GenerationArguments("self_speculative", num_speculations=2)},
            "--exit_layer -1: ",
        ),
    ],
)
def test_flags_that_cannot_work_are_refused_in_python_too(load, changes, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        load(**changes)


def test_a_pruned_model_is_saved_once(load, tmp_path):
    folder = tmp_path / "pruned"
    plan = {"prune_method": "random", "dropout_threshold": 0.3, "save_pruned": str(folder)}
    saved = load(**plan).generate("ab", GREEDY).output_ids
    load(**plan)
    again = load_pruned(ModelArguments(str(folder), dtype="float64"), PruneArguments())
    assert again.generate("ab", GREEDY).output_ids == saved
    with pytest.raises(UsageError, match="exists already"):
        load(**plan, prune_seed=1)
