"""llama.cpp as a peer: its models, the settings of its server, and its answers."""

import sys
from enum import Enum
from types import SimpleNamespace

import pytest
import torch
from gguf import GGUFReader
from transformers import LlamaForCausalLM

from benchmarks.peer_engines import OURS, Setting, Side, build
from benchmarks.turns import Turns
from tests.conftest import random_prompt, tiny_config

STEPS = 12
PLAIN = Side("llama.cpp")
LOOKUP = Side("llama.cpp", "prompt lookup", drafts=4)


@pytest.fixture
def setting(model, tokenizer):
    prompts = [random_prompt(20), random_prompt(8, seed=1) * 4]
    return Setting.endless(model.float(), tokenizer, capacity=32 + STEPS, prompts=prompts)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"attention_bias": True}, "no place for the tensor model.layers.0.self_attn.q_proj.bias"),
        ({"hidden_act": "gelu"}, "for hidden_act gelu, only silu"),
        (
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
            "for rope_type linear, only default",
        ),
    ],
)
def test_a_model_that_a_file_does_not_describe_is_left_out(
    changes, reason, tokenizer, stand_in, capsys
):
    model = LlamaForCausalLM(tiny_config(**changes))
    turns = Turns(Setting.endless(model, tokenizer, 40, [random_prompt(8)]))
    for side in (PLAIN, LOOKUP):
        turns.prepare(side, random_prompt(8), STEPS)
        assert reason in turns.left_out[side.name]
    assert turns.engines == {}
    assert stand_in.servers == []


def test_float64_and_another_device_are_left_out(model, tokenizer, stand_in, capsys):
    turns = Turns(Setting.endless(model, tokenizer, 40, [random_prompt(8)]))
    turns.prepare(PLAIN, random_prompt(8), STEPS)
    assert "llama.cpp has no weights in torch.float64" in turns.left_out[PLAIN.name]
    elsewhere = SimpleNamespace(model=model.float().to("meta"))
    with pytest.raises(RuntimeError, match="on the CPU only"):
        build(PLAIN, elsewhere)


class Names(Enum):
    """Constants of the stand-in for xllamacpp."""

    LLAMA_LOAD_MODE_MMAP = 1
    GGML_TYPE_F32 = 2
    COMMON_SPECULATIVE_TYPE_NGRAM_SIMPLE = 3


@pytest.fixture
def stand_in(monkeypatch):
    """Put a module in xllamacpp's place, whose servers count up from the last token."""
    servers = []

    def params():
        parts = ("model", "cpuparams", "cpuparams_batch")
        speculative = SimpleNamespace(
            types=[], ngram_simple=SimpleNamespace(), draft=SimpleNamespace()
        )
        return SimpleNamespace(speculative=speculative, **{of: SimpleNamespace() for of in parts})

    class Server:
        def __init__(self, given):
            self.given, self.requests = given, []
            self.tensors = len(GGUFReader(given.model.path).tensors)
            self.timings = {"predicted_ms": 500.0}
            servers.append(self)

        def handle_completions(self, request):
            self.requests.append(request)
            prompt, steps = request["prompt"], request["n_predict"]
            if len(prompt) + steps > self.given.n_ctx:
                return {"error": {"code": 400, "message": "no room"}}
            ids = [prompt[-1] + step + 1 for step in range(steps)]
            return {"__verbose": {"tokens": ids}, "timings": self.timings}

    kinds = ("llama_load_mode", "ggml_type", "common_speculative_type")
    package = SimpleNamespace(CommonParams=params, Server=Server, **dict.fromkeys(kinds, Names))
    monkeypatch.setitem(sys.modules, "xllamacpp", package)
    return SimpleNamespace(servers=servers)


def test_plain_decoding_asks_for_greedy_ids_of_a_new_prompt(setting, stand_in):
    made = build(PLAIN, setting).decode([7, 8], STEPS)
    assert made.output_ids == list(range(9, 9 + STEPS))
    assert (made.decode_seconds, made.rounds, made.drafted) == (0.5, None, None)
    (server,) = stand_in.servers
    assert server.given.speculative.types == []
    assert server.given.n_ctx > setting.capacity
    assert server.given.cpuparams.n_threads == torch.get_num_threads()
    assert server.given.cpuparams_batch.n_threads == torch.get_num_threads()
    assert server.given.cache_type_k == server.given.cache_type_v == Names.GGML_TYPE_F32
    (request,) = server.requests
    assert (request["temperature"], request["top_k"], request["cache_prompt"]) == (0, 1, False)


def test_prompt_lookup_reports_its_drafts(setting, stand_in):
    engine = build(LOOKUP, setting)
    (server,) = stand_in.servers
    speculative = server.given.speculative
    assert speculative.types == [Names.COMMON_SPECULATIVE_TYPE_NGRAM_SIMPLE]
    assert (speculative.ngram_simple.size_n, speculative.ngram_simple.size_m) == (2, 4)
    server.timings |= {"draft_n": 12, "draft_n_accepted": 5}
    made = engine.decode([7], STEPS)
    assert (made.rounds, made.drafted, made.accepted) == (STEPS - 5, 12, 5)
    server.timings = {"predicted_ms": 1.0}
    made = engine.decode([7], STEPS)
    assert (made.rounds, made.drafted, made.accepted) == (STEPS, 0, 0)


def test_a_single_drafted_token_is_looked_up_by_a_single_token(setting, stand_in):
    build(Side("llama.cpp", "prompt lookup", drafts=1), setting)
    assert stand_in.servers[0].given.speculative.ngram_simple.size_n == 1


def test_an_error_of_the_server_is_raised(setting, stand_in):
    with pytest.raises(RuntimeError, match="no room"):
        build(PLAIN, setting).decode([1] * 60, STEPS)


def test_both_sides_read_one_file_which_goes_with_the_setting(model, tokenizer, stand_in):
    setting = Setting.endless(model.float(), tokenizer, 40, [random_prompt(8)])
    for side in (PLAIN, LOOKUP):
        build(side, setting)
    (path,) = {server.given.model.path for server in stand_in.servers}
    file = setting.gguf_file()
    assert str(file) == path
    assert file.exists()
    del setting
    assert not file.parent.exists()


@pytest.mark.parametrize("cyclic", [False, True])
def test_llama_cpp_decodes_what_plain_decoding_does(setting, cyclic):
    pytest.importorskip("xllamacpp")
    if cyclic:  # each token depends on the one before it only
        for layer in setting.model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    setting.capacity, steps = 256, 96
    engines = {side: build(side, setting) for side in (Side(OURS), PLAIN, LOOKUP)}
    for ids in setting.prompts * 2:
        ours, plain, lookup = (engine.decode(ids, steps) for engine in engines.values())
        assert ours.output_ids == plain.output_ids == lookup.output_ids
        assert plain.decode_seconds > 0
        assert lookup.rounds == steps - lookup.accepted
        assert lookup.drafted >= lookup.accepted
        assert lookup.accepted > (steps // 2 if cyclic else -1)
