"""An output's text is the text of prompt and output together, without the prompt's text."""

import io
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lm_eval.api.instance import Instance
from transformers import AutoTokenizer, LlamaForCausalLM

import generate
from arguments.generation import GenerationArguments
from arguments.model import ModelArguments
from arguments.pruning import PruneArguments
from command_line.script import run_script
from harness.model import HarnessModel
from models.tokens import continuation_ids, text_ids
from runs.preparation import load_pruned
from self_speculation.generator_base import GenerationConfig, StopRule
from self_speculation.output_text import OutputText
from self_speculation.speculative_streamer import StandardStreamer
from self_speculation.text_generator import TextGenerator
from tests.conftest import tiny_config, write
from tests.spaced_tokenizers import spaced_tokenizer
from training.documents import encode_texts
from training.texts import Answer

KINDS = ("llama", "mistral", "legacy")
TOKENIZERS = {kind: spaced_tokenizer(kind) for kind in KINDS}
CODE = {
    "add": "    return a + b",
    "twice": "    b = a * 2\n    return b",
}
TESTS = {
    "add": "def check(f):\n    assert f(1, 2) == 3\n",
    "twice": "def check(f):\n    assert f(2, 0) == 4\n",
}
TEXTS = st.text(st.sampled_from("ab (:\n日é\u2581"), max_size=12)


@pytest.fixture(params=KINDS)
def spaced(request):
    return TOKENIZERS[request.param]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_text_is_that_of_prompt_and_output_without_the_prompts(kind, data):
    tokenizer = TOKENIZERS[kind]
    prompt_ids = text_ids(tokenizer, data.draw(TEXTS))
    ids = data.draw(st.lists(st.integers(0, len(tokenizer) - 1), max_size=8))
    prompt, both = (
        tokenizer.decode(x, skip_special_tokens=True) for x in (prompt_ids, [*prompt_ids, *ids])
    )
    text = OutputText(tokenizer, prompt_ids)(ids)
    assert text.count("\ufffd") <= len(ids)
    if both.startswith(prompt) and not both.endswith("\ufffd"):
        assert text == both[len(prompt) :]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_encoded_answers_decode_to_themselves_after_the_prompt(kind, data):
    tokenizer = TOKENIZERS[kind]
    prompt, answer = data.draw(TEXTS.filter(bool)), data.draw(TEXTS)
    answer = answer.replace("\u2581", "_")  # It cannot be distinguished from a space.
    ids = text_ids(tokenizer, prompt)
    assert OutputText(tokenizer, ids)(continuation_ids(tokenizer, prompt, ids, answer)) == answer


def test_a_long_prompt_of_split_characters_keeps_the_first_character_of_the_output(spaced):
    """The prompt's last tokens are bytes; a few of them are no text."""
    prompt_ids = spaced("日" * 20)["input_ids"]
    ids = spaced("日")["input_ids"][-3:]  # its bytes
    assert OutputText(spaced, prompt_ids)(ids) == "日"


def bytes_of(tokenizer, text):
    """Return the tokens of the text's bytes."""
    return tokenizer.convert_tokens_to_ids([f"<0x{byte:02X}>" for byte in text.encode()])


def test_an_output_cut_inside_a_character_keeps_the_characters_before_it(spaced):
    ids = bytes_of(spaced, "龘龘龘龘")
    for prompt in ("a", "a\n", "日", "日\n\n"):
        output_text = OutputText(spaced, text_ids(spaced, prompt))
        assert output_text(ids) == "龘龘龘龘"
        assert output_text(ids[:-1]) == output_text(ids[:-2]) == "龘龘龘\ufffd"
        assert output_text([*ids[:-1], 0]) == "龘龘龘\ufffd"  # A special token does not end a run.


def test_bytes_of_an_output_that_are_no_text_do_not_change_the_prompts(spaced):
    for prompt in ("a\n", "日", "日\n\n"):
        ids = [*bytes_of(spaced, "b"), *bytes_of(spaced, "日")[2:]]
        assert OutputText(spaced, text_ids(spaced, prompt))(ids) == "\ufffd\ufffd"


@pytest.mark.parametrize("word", ["\n", "\n\n", "日"])
@pytest.mark.parametrize("count", [1, 2, 5, 13])
def test_a_stop_word_after_a_run_of_bytes_stops(spaced, word, count):
    """The run may be longer than the tail that is searched first."""
    rule = StopRule(spaced, set(), (word,)).after(text_ids(spaced, "a:"))
    ids = bytes_of(spaced, "鬱" * count)
    found = [rule.reason(ids[:end]) for end in range(1, len(ids) + 1)]
    assert found == [None] * len(ids)
    ids += bytes_of(spaced, word)
    assert rule.reason(ids) == "stop_word"
    assert rule.text(ids, "stop_word") == "鬱" * count


@settings(max_examples=300, deadline=None)
@given(
    data=st.data(),
    kind=st.sampled_from(KINDS),
    prompt=st.sampled_from(["a", "a\n", "日"]),
)
def test_settled_text_is_the_beginning_of_every_later_text(data, kind, prompt):
    tokenizer = TOKENIZERS[kind]
    tokens = st.sampled_from([0, *bytes_of(tokenizer, "é\n b"), *tokenizer("a (")["input_ids"]])
    ids = data.draw(st.lists(tokens, min_size=1, max_size=10))
    rule = StopRule(tokenizer, set(), ()).after(text_ids(tokenizer, prompt))
    whole = rule.text(ids, "length")
    for count in range(1, len(ids) + 1):
        assert whole.startswith(rule.settled(ids[:count]))


def test_stop_words_that_begin_with_a_space_stop(spaced):
    prompt_ids = text_ids(spaced, "a:")
    ids = continuation_ids(spaced, "a:", prompt_ids, " END")
    rule = StopRule(spaced, set(), (" END",)).after(prompt_ids)
    assert rule.reason(ids) == "stop_word"
    assert rule.text(ids, "stop_word") == rule.settled(ids) == ""


def learned(folder, tokenizer):
    """Save a checkpoint that has learned the encoded answers by heart."""
    torch.manual_seed(0)
    config = tiny_config(
        vocab_size=len(tokenizer), num_hidden_layers=2, initializer_range=0.05, eos_token_id=2
    )
    model = LlamaForCausalLM(config)
    answers = [Answer(prompt_of(name), body) for name, body in CODE.items()]
    documents = encode_texts(answers, tokenizer, False, 100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        for document in documents:
            ids_1T = torch.tensor([document.ids])
            labels_1T = ids_1T.where(torch.tensor([document.learned]), -100)
            model(input_ids=ids_1T, labels=labels_1T).loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def prompt_of(name):
    return f"def {name}(a, b):\n"


@pytest.fixture(scope="module")
def by_heart(tmp_path_factory):
    return learned(tmp_path_factory.mktemp("by_heart") / "model", TOKENIZERS["llama"])


def test_indented_code_is_executed_with_all_of_its_indentation(run, by_heart, tmp_path):
    rows = [
        {
            "task_id": name,
            "prompt": prompt_of(name),
            "canonical_solution": body,
            "test": TESTS[name],
            "entry_point": name,
        }
        for name, body in CODE.items()
    ]
    path = write(tmp_path / "problems.jsonl", rows)
    flags = ["--model", str(by_heart), "--dataset", "human_eval", "--execute_code", "true"]
    code, _, samples = run(*flags, "--sample", "false", "--max_steps", "40", path=path, samples="")
    assert code == 0
    assert [sample.prediction for sample in samples] == list(CODE.values())
    assert [sample.scores["exact_match"] for sample in samples] == [1, 1]
    assert [sample.scores["pass@1"] for sample in samples] == [1, 1]


@pytest.mark.parametrize("streamer", ["none", "speculative"])
def test_streamers_show_the_space_that_an_answer_begins_with(by_heart, monkeypatch, streamer):
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", newline="")
    monkeypatch.setattr(sys, "stdout", out)
    asked = ["--prompt", prompt_of("add"), "--max_steps", "40", "--streamer", streamer]
    speculative = ["--generation_strategy", "self_speculative", "--exit_layer", "1"]
    flags = ["--model", str(by_heart), "--sample", "false", "--num_speculations", "3"]
    assert run_script(generate.main, [*flags, *asked, *speculative]) == 0
    out.flush()
    assert out.buffer.getvalue().decode() == f"{CODE['add']}\n"


def test_the_harness_gets_the_space_that_an_answer_begins_with(by_heart):
    flags = GenerationArguments(sample=False, max_steps=40)
    prepared = load_pruned(ModelArguments(str(by_heart)), PruneArguments(), generation=flags)
    request = Instance(
        "generate_until", {}, (prompt_of("add"), {"until": ["\n\n"]}), 0, ("task", 0, 1)
    )
    (text,) = HarnessModel(prepared, flags, 1).generate_until([request], disable_tqdm=True)
    assert text == CODE["add"]


def test_solved_examples_come_before_an_answer_with_its_indentation(run, by_heart, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    row = {"prompt": prompt_of("add"), "response": CODE["add"]}
    write(folder / "train.jsonl", [row | {"prompt": "def other(a, b):\n"}])
    write(folder / "test.jsonl", [row])
    flags = ["--model", str(by_heart), "--sample", "false", "--max_steps", "12", "--n_shot", "1"]
    _, _, (sample,) = run(*flags, path=folder, samples="")
    tokenizer = AutoTokenizer.from_pretrained(by_heart)
    prompt = f"def other(a, b):\n{CODE['add']}\n\n{row['prompt']}"
    assert sample.prompt_tokens == len(text_ids(tokenizer, prompt))
    joint = tokenizer.decode([*text_ids(tokenizer, prompt), *sample.output_ids], True)
    assert joint.startswith(prompt)
    assert sample.prediction == joint[len(prompt) :]


@pytest.mark.parametrize("stop", [(), (" b",), ("a", " f")])
def test_streamed_text_is_the_text_of_the_output(spaced, stop):
    """A model that learned nothing yields arbitrary tokens."""
    torch.manual_seed(1)
    model = LlamaForCausalLM(tiny_config(vocab_size=len(spaced), num_hidden_layers=2)).eval()
    config = GenerationConfig(max_steps=24, stop_words=stop)
    generator = TextGenerator(model, spaced, "autoregressive", config, 64)
    for seed in range(6):
        out = io.StringIO()
        prompt_ids = spaced(f"ask {seed}:")["input_ids"]
        made = generator.generate(prompt_ids, seed, streamer=StandardStreamer(out))
        assert out.getvalue().removesuffix("\n") == made.text.removesuffix("\n")


def test_a_difference_that_correctness_reports_keeps_its_space(spaced):
    prompt_ids = text_ids(spaced, "a")
    ids = [*continuation_ids(spaced, "a", prompt_ids, " yes"), 2]
    assert OutputText(spaced, prompt_ids, special=True)(ids) == " yes</s>"
    assert OutputText(spaced, prompt_ids)(ids) == " yes"
