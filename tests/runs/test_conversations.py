"""Later turns follow the model's own answers, and records hold the sums over turns."""

import shutil

import pytest

import analyze_logs
from arguments.run import RUN_GROUPS, RunArguments
from command_line.flags import parse
from command_line.script import run_script
from runs import experiment
from runs.conversations import Answer, Conversation
from runs.definition import define_run
from runs.encoding import encode_examples
from self_speculation.generator_base import Generation
from self_speculation.text_generator import TextGenerator
from self_speculation.timing import StepTime
from tests.conftest import GREEDY, SPECULATIVE, write

SPOKEN = [
    {"question_id": 81, "category": "writing", "turns": ["Write.", "Again."]},
    {"question_id": 82, "category": "qa", "turns": ["Who?"]},
]
FLAGS = ["--dataset", "spec_bench", *GREEDY]


@pytest.fixture
def spoken(tmp_path):
    return write(tmp_path / "spoken.jsonl", SPOKEN)


def answer(run, tmp_path, prompt, *flags):
    """Return the sample of a single prompt."""
    path = write(tmp_path / "single.jsonl", [{"prompt": prompt, "response": ""}])
    (sample,) = run(*GREEDY, *flags, path=path)[2]
    return sample


def test_a_later_turn_follows_the_models_own_answer(run, spoken, tmp_path):
    code, record, (two, one) = run(*FLAGS, path=spoken)
    assert code == 0
    first = answer(run, tmp_path, "Write.")
    second = answer(run, tmp_path, f"Write.{first.prediction}\n\nAgain.")
    assert two.output_ids == first.output_ids + second.output_ids
    assert two.prediction == f"{first.prediction}\n\n{second.prediction}"
    assert [turn["prompt_tokens"] for turn in two.turns] == [
        first.prompt_tokens,
        second.prompt_tokens,
    ]
    assert two.copied_tokens == first.copied_tokens + second.copied_tokens
    assert one.output_ids == answer(run, tmp_path, "Who?").output_ids
    assert one.turns == []
    counts = record.metrics["counts"]
    assert (counts["prompts"], counts["turns"], counts["skipped_turns"]) == (2, 2, 0)


@pytest.mark.parametrize("flags", [[], [*SPECULATIVE, "--exit_layer", "3"]])
def test_a_record_holds_the_sums_over_its_turns(run, spoken, flags):
    _, record, (two, one) = run(*FLAGS, *flags, path=spoken)
    for name in ("prompt_tokens", "prefill_seconds", "decode_seconds"):
        assert getattr(two, name) == pytest.approx(sum(turn[name] for turn in two.turns))
    generated = [turn["generated_tokens"] for turn in two.turns]
    assert sum(generated) == len(two.output_ids)
    assert two.decoded_tokens == len(two.output_ids) - 2
    assert one.decoded_tokens == len(one.output_ids) - 1
    assert two.drafted_tokens == sum(turn["drafted"] for turn in two.turns)
    assert two.accepted_tokens == sum(turn["accepted"] for turn in two.turns)
    assert two.stop_reason == two.turns[-1]["stop_reason"]
    if flags:
        assert two.full_step["calls"] == 2 * one.full_step["calls"]
        assert record.metrics["speedup_over_full_steps"]["measured"]
    else:
        assert two.steps["full"]["calls"] == two.decoded_tokens


def test_both_decoders_hold_the_same_conversation(run, spoken):
    """Float64: a first answer that differed would change the second prompt."""
    _, _, plain = run(*FLAGS, path=spoken)
    _, _, drafted = run(*FLAGS, *SPECULATIVE, "--exit_layer", "3", path=spoken)
    assert [one.output_ids for one in plain] == [one.output_ids for one in drafted]
    assert drafted[0].drafted_tokens


def test_turns_are_drawn_with_names_of_their_own(run, spoken, monkeypatch):
    names, ordinary = [], TextGenerator.generate

    def watched(self, prompt_ids, seed=0, name="", *rest, **more):
        names.append(name)
        return ordinary(self, prompt_ids, seed, name, *rest, **more)

    monkeypatch.setattr(TextGenerator, "generate", watched)
    _, _, samples = run("--dataset", "spec_bench", "--max_steps", "8", path=spoken)
    assert names[1:] == ["81", "81 turn 2", "82"]  # after the warm-up
    _, _, again = run("--dataset", "spec_bench", "--max_steps", "8", path=spoken)
    assert [one.output_ids for one in again] == [one.output_ids for one in samples]


CHAT = (
    "{% for turn in messages %}<{{ turn.role }}>{{ turn.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
ONE_TURN = "{% if messages | length > 1 %}{{ raise_exception('one turn') }}{% endif %}"


@pytest.fixture
def chatting(checkpoint, tmp_path):
    def make(template):
        folder = shutil.copytree(checkpoint, tmp_path / "chat")
        (folder / "chat_template.jinja").write_text(template)
        return ["--model", str(folder), "--apply_chat_template", "true"]

    return make


def test_the_chat_template_gets_all_earlier_messages(run, spoken, chatting, tmp_path):
    flags = chatting(CHAT)
    _, _, (two, _) = run(*FLAGS, *flags, path=spoken)
    said = answer(run, tmp_path, "Write.", *flags).prediction
    prompts = ["<user>Write.<assistant>", f"<user>Write.<assistant>{said}<user>Again.<assistant>"]
    assert [turn["prompt_tokens"] for turn in two.turns] == [len(p.encode()) for p in prompts]


def test_a_template_for_one_turn_only_is_refused_before_weights_are_read(
    run, spoken, chatting, monkeypatch, capsys
):
    monkeypatch.setattr(experiment, "load_model", None)
    assert run(*FLAGS, *chatting(ONE_TURN + CHAT), path=spoken, samples="2")[:2] == (2, None)
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "refuses the chat (one turn)" in err


LONG = [SPOKEN[0] | {"turns": ["Write.", "x" * 250, "More."]}, SPOKEN[1]]


def test_a_turn_beyond_the_models_positions_ends_the_conversation(run, tmp_path, capsys):
    path = write(tmp_path / "long.jsonl", LONG)
    code, record, (long, _) = run(*FLAGS, path=path)
    assert (code, long.status) == (0, "done")
    assert [turn["stop_reason"] for turn in long.turns[1:]] == ["prompt_too_long"] * 2
    assert [turn["generated_tokens"] for turn in long.turns] == [len(long.output_ids), 0, 0]
    assert long.turns[1]["prompt_tokens"] > 256
    assert long.turns[2]["prompt_tokens"] is long.turns[2]["decode_seconds"] is None
    assert long.decoded_tokens == len(long.output_ids) - 1
    counts = record.metrics["counts"]
    assert (counts["turns"], counts["skipped_turns"], counts["skipped_prompts"]) == (3, 2, 0)
    assert "; 2 turns skipped, longer than the model's positions" in capsys.readouterr().out


def test_truncation_keeps_the_tail_of_a_conversation(run, tmp_path):
    path = write(tmp_path / "long.jsonl", LONG)
    _, record, (long, _) = run(*FLAGS, "--truncate_prompt", "true", path=path)
    assert [turn["prompt_tokens"] for turn in long.turns[1:]] == [241, 241]
    assert record.metrics["counts"]["skipped_turns"] == 0
    assert all(turn["generated_tokens"] for turn in long.turns)


def test_conversations_have_categories_and_no_scores(run, spoken, tmp_path, capsys):
    for flags in ([], ["--prune_method", "random", "--dropout_threshold", "0.3"]):
        assert run(*FLAGS, *flags, "--output_dir", str(tmp_path / "both"), path=spoken)[0] == 0
    _, record, samples = run(*FLAGS, path=spoken)
    assert [(one.category, one.scores) for one in samples] == [("writing", {}), ("qa", {})]
    assert set(record.metrics["predicted_text"].values()) == {None}
    assert "ROUGE-L none" in capsys.readouterr().out
    line = [str(tmp_path / "both"), "--output_dir", str(tmp_path / "tables")]
    assert run_script(analyze_logs.main, line) == 0
    out, err = capsys.readouterr()
    assert "no run has rouge-l" in err
    assert "pruned / base" in out


@pytest.fixture
def conversations(checkpoint, tmp_path):
    """Return conversations of a run that is not run."""
    rows = [{"turns": [f"{n} one", f"{n} two", f"{n} three"][:n]} for n in (1, 2, 3)]
    path = write(tmp_path / "rows.jsonl", rows)
    words = ["--model", str(checkpoint), "--data_path", str(path), "--random_shuffle", "false"]
    arguments = RunArguments(*parse([*words, *FLAGS], "", *RUN_GROUPS))
    definition = define_run(arguments, None)
    return [Conversation(definition, item) for item in encode_examples(definition)]


def made_up(request, tokenizer):
    """Return an answer that names its prompt's last word."""
    text = f" [{tokenizer.decode(request.prompt_ids).split()[-1]}]"
    ids = tokenizer(text)["input_ids"]
    steps = {"full": StepTime(len(ids) - 1, 1.0)}
    made = Generation(ids, text, "length", len(request.prompt_ids), 0.5, 1.0, steps)
    return Answer(request, made)


def test_conversations_may_advance_side_by_side(conversations, tokenizer):
    """As a batch advances them: in lockstep, each until its last turn."""
    prompts = []
    while open_ones := [one for one in conversations if one.request]:
        prompts.append([tokenizer.decode(one.request.prompt_ids) for one in open_ones])
        for one in open_ones:
            one.receive(made_up(one.request, tokenizer))
    assert prompts == [
        ["1 one", "2 one", "3 one"],
        ["2 one [one]\n\n2 two", "3 one [one]\n\n3 two"],
        ["3 one [one]\n\n3 two [two]\n\n3 three"],
    ]
    values = [one.values() for one in conversations]
    assert [one["prediction"] for one in values] == [
        " [one]",
        " [one]\n\n [two]",
        " [one]\n\n [two]\n\n [three]",
    ]
    assert [one["prefill_seconds"] for one in values] == [0.5, 1.0, 1.5]
    assert [len(one["turns"]) for one in values] == [0, 2, 3]
    assert values[2]["steps"] == {"full": {"calls": 5 + 5 + 7, "seconds": 3.0}}


def test_a_conversation_without_an_answer_is_not_finished(conversations, tokenizer):
    one, _, three = conversations
    three.receive(made_up(three.request, tokenizer))
    three.receive(None)
    one.receive(made_up(one.request, tokenizer))
    assert (three.request, three.is_answered) == (None, False)
    assert (one.request, one.is_answered) == (None, True)
