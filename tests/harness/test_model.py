"""Log-likelihoods equal those of the harness's own model; texts are the strategy's."""

import dataclasses

import pytest
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from arguments.generation import GenerationArguments
from arguments.model import ModelArguments
from arguments.pruning import PruneArguments
from command_line.errors import UsageError
from harness.model import HarnessModel, summarize_requests, unique_names
from harness.requests import decoding_of
from processes.ranks import ALONE
from runs.preparation import load_pruned

PAIRS = [("number one", " is a"), ("number", " two"), ("number", "!"), ("", "nothing before")]
CONTEXTS = ["number one:", "two", "and a third one, which is longer than the others:"]
GREEDY = GenerationArguments(sample=False, max_steps=24)
SPECULATIVE = dataclasses.replace(
    GREEDY, generation_strategy="self_speculative", exit_layer=3, num_speculations=3
)
EARLY = dataclasses.replace(GREEDY, exit_layer=3)


@pytest.fixture
def make(checkpoint):
    """The harness model that flags describe."""

    def make(flags=GREEDY, batch_size=3, **pruning):
        model = ModelArguments(str(checkpoint), dtype="float64")
        with ALONE.together():  # an earlier test may have left an interrupted section
            prepared = load_pruned(model, PruneArguments(**pruning), generation=flags)
        return HarnessModel(prepared, flags, batch_size)

    return make


@pytest.fixture(scope="module")
def reference(checkpoint):
    return HFLM(str(checkpoint), dtype="float64", device="cpu")


def likelihoods(requests=PAIRS):
    return [
        Instance("loglikelihood", {}, pair, 0, ("task", number, 1))
        for number, pair in enumerate(requests)
    ]


def texts(contexts=CONTEXTS, task="task", **arguments):
    return [
        Instance("generate_until", {}, (context, arguments), 0, (task, number, 1))
        for number, context in enumerate(contexts)
    ]


def rolling():
    long = "a text that is longer than all positions of the model, " * 6
    return [
        Instance("loglikelihood_rolling", {}, (text,), 0, ("task", 0, 1))
        for text in ("a short text", long)
    ]


def scores(model):
    pairs = model.loglikelihood(likelihoods(), disable_tqdm=True)
    return [score for score, _ in pairs] + model.loglikelihood_rolling(rolling(), True)


def same(one, other):
    assert one == pytest.approx(other, rel=1e-9)


def test_likelihoods_are_those_of_the_harness(make, reference):
    same(scores(make()), scores(reference))


def test_likelihoods_of_a_pruned_model_are_those_of_its_checkpoint(make, reference, tmp_path):
    folder = str(tmp_path / "pruned")
    pruned = scores(make(prune_method="random", dropout_threshold=0.4, save_pruned=folder))
    same(pruned, scores(HFLM(folder, dtype="float64", device="cpu")))
    assert pruned != pytest.approx(scores(reference), rel=1e-3)


def test_an_exit_layer_changes_likelihoods_if_it_decodes_but_not_if_it_drafts(make):
    whole = scores(make())
    assert scores(make(EARLY)) != pytest.approx(whole, rel=1e-3)
    same(scores(make(SPECULATIVE)), whole)


@pytest.mark.parametrize("flags", [GREEDY, SPECULATIVE])
def test_texts_are_those_of_the_harness(make, reference, flags):
    model = make(flags)
    (free,) = reference.generate_until(texts(CONTEXTS[:1], until=[], max_gen_toks=24), True)
    for until in ([], free[5], ["nowhere", free[9:11]]):
        requests = texts(until=until, max_gen_toks=24)
        assert model.generate_until(requests, True) == reference.generate_until(requests, True)


@pytest.mark.parametrize("flags", [GREEDY, EARLY])
@pytest.mark.parametrize("asked", [{}, {"do_sample": True, "temperature": 1.0}])
def test_texts_do_not_depend_on_the_batch(make, flags, asked):
    requests = texts(["a", *CONTEXTS, "seven", *CONTEXTS], until=["q"], max_gen_toks=16, **asked)
    alone, together = make(flags, batch_size=1), make(flags, batch_size=2)
    assert together.generate_until(requests, True) == alone.generate_until(requests, True)
    counts = [
        [{key: one[key] for key in ("name", "generated_tokens")} for one in model.generated]
        for model in (alone, together)
    ]
    assert counts[0] == counts[1]
    facts = summarize_requests(together.generated)
    assert 0 < facts["tokens_per_second"] < 1e9


def test_long_prompts_keep_their_tails(make, reference):
    model, requests = make(), texts(["x" * 300, "y" * 10], until=[], max_gen_toks=20)
    assert model.generate_until(requests[:1], True) == reference.generate_until(requests[:1], True)
    (first,) = model.generated
    assert (first["prompt_tokens"], first["cut_tokens"]) == (256 - 20, 64)
    together = model.generate_until(requests, True)
    assert together[1:] == reference.generate_until(requests[1:], True)


def test_every_request_has_its_own_arguments(make):
    model = make()
    (free,) = model.generate_until(texts(CONTEXTS[:1], until=[]), True)
    mixed = [
        *texts(CONTEXTS[:1], until=[], max_gen_toks=5),
        *texts(CONTEXTS[:1], until=[free[8]]),
        *texts(CONTEXTS[:1], until=[], max_new_tokens=7),
    ]
    got = model.generate_until(mixed, True)
    assert got[1] == free[: free.index(free[8])]
    assert [one["generated_tokens"] for one in model.generated] == [24, 5, len(got[1]) + 1, 7]


def test_draws_depend_on_a_request_and_not_on_its_place(make):
    sampled = {"until": [], "do_sample": True, "temperature": 1.0, "max_gen_toks": 12}
    requests = texts(**sampled)
    forward = make().generate_until(requests, True)
    assert make().generate_until(requests[::-1], True) == forward[::-1]
    repeated = make().generate_until([requests[0]] * 3, True)
    assert repeated[0] == forward[0]
    assert len(set(repeated)) == 3
    other = dataclasses.replace(GREEDY, seed=7)
    assert make(other).generate_until(requests, True) != forward


def test_names_tell_requests_apart():
    first, second = texts(CONTEXTS[:2])
    names = unique_names([first, first, second])
    assert names == ["task/0/0/0", "task/0/0/1", "task/1/0/0"]


def test_counts_and_seconds_of_texts_are_summed_up(make):
    empty = summarize_requests([])
    assert empty["tokens_per_second"] is empty["acceptance_rate"] is None
    model = make(SPECULATIVE)
    model.generate_until(texts(until=[], max_gen_toks=10), True)
    facts = summarize_requests(model.generated)
    assert (facts["requests"], facts["generated_tokens"]) == (3, 30)
    assert facts["tokens_per_second"] == pytest.approx(27 / facts["decode_seconds"])
    assert facts["acceptance_rate"] == facts["accepted_tokens"] / facts["drafted_tokens"]
    assert facts["cut_prompts"] == 0


def test_a_task_that_leaves_no_room_for_prompts_is_refused(make):
    with pytest.raises(UsageError, match="--tasks long: asks for 256 tokens, which leaves none"):
        make().generate_until(texts(task="long", until=[], max_gen_toks=256), True)


@pytest.mark.parametrize(
    ("asked", "changes"),
    [
        ({}, {}),
        ({"do_sample": False, "temperature": 0.7}, {"sample": False}),
        ({"temperature": 0.7}, {"sample": True, "temperature": 0.7}),
        ({"temperature": 0}, {"sample": False}),
        ({"do_sample": True, "top_p": "0.95"}, {"sample": True, "top_p": 0.95}),
        ({"max_tokens": 9, "num_beams": 1, "top_k": None}, {"max_steps": 9}),
        ({"no_repeat_ngram_size": 0, "repetition_penalty": 1.0}, {}),
    ],
)
def test_arguments_of_a_task_replace_the_flags(asked, changes):
    flags, words = decoding_of(GREEDY, {"until": ["\n", ""]} | asked, "task")
    assert flags == dataclasses.replace(GREEDY, **changes)
    assert words == ("\n",)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"num_beams": 4}, "num_beams 4: only 1 is supported"),
        ({"penalty_alpha": 0.6}, "penalty_alpha 0.6: unknown"),
        ({"do_sample": True, "top_p": 1.5}, "--top_p 1.5: must be in"),
        ({"max_gen_toks": "many"}, "invalid literal for int"),
        ({"max_gen_toks": 0}, "--max_steps 0: must be at least 1"),
        ({"until": [1]}, "until 1: must be texts"),
    ],
)
def test_unsupported_arguments_of_a_task_are_refused(asked, message):
    with pytest.raises(UsageError, match="--tasks strange: its generation arguments") as caught:
        decoding_of(GREEDY, asked, "strange")
    assert message in str(caught.value)
