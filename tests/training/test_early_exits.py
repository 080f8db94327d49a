"""Losses at every exit, padding that changes nothing, dropped layers."""

import copy
from types import MethodType

import pytest
import torch
from transformers import LlamaForCausalLM

from self_speculation.llama_model_utils import early_exit_view
from tests.conftest import END, LAYERS, random_prompt, tiny_config
from training.batches import UNLEARNED, collate
from training.documents import Document
from training.early_exits import EarlyExits, Teacher, draw_kept

ALL = range(1, LAYERS + 1)


def document(length, seed=0, prompt=2):
    ids = [*random_prompt(length - 1, seed), END]
    return Document(ids, [False] * prompt + [True] * (length - prompt))


@pytest.fixture(params=["sdpa", "eager"])
def exits(model, request):
    model.set_attn_implementation(request.param)
    return EarlyExits(model)


def losses(exits, *documents, **arguments):
    found = exits(collate(documents), ALL, **arguments)
    return torch.stack([found[exit_layer] for exit_layer in ALL]).double()


def close(one, other):
    torch.testing.assert_close(one, other, rtol=0, atol=2e-4)


def test_each_exit_has_the_loss_of_a_model_that_ends_there(exits, model):
    one = document(12)
    found = losses(exits, one)
    labels = torch.tensor([one.ids]).where(torch.tensor([one.learned]), UNLEARNED)
    plain = copy.deepcopy(model)
    for layer in plain.model.layers:
        layer._forward_hooks.clear()
    for exit_layer in ALL:
        view = early_exit_view(plain, exit_layer)
        mean = view(input_ids=torch.tensor([one.ids]), labels=labels).loss
        close(found[exit_layer - 1], mean.double() * one.targets)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_compiled_layers_learn_the_same():
    """Also from batches of other shapes, one of a single document, and with a layer dropped."""
    torch.manual_seed(0)
    plain = LlamaForCausalLM(tiny_config(num_hidden_layers=2))
    compiled = EarlyExits(copy.deepcopy(plain))
    compiled.compile_layers()
    kept = torch.tensor([[True, True], [True, False]])
    batches = [([document(9, 0), document(6, 1)], kept), ([document(12, 2)], None)]
    for documents, kept_LB in batches:
        found = []
        for exits in (EarlyExits(copy.deepcopy(plain)), compiled):
            losses = exits(collate(documents), (1, 2), kept_LB)
            exits.zero_grad()
            sum(losses.values()).backward()
            gradients = [one.grad for one in exits.parameters()]
            found.append([*losses.values(), *gradients])
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    assert type(compiled.causal.model.layers[0].forward) is not MethodType


def test_padding_changes_nothing(exits):
    documents = [document(12, 0), document(5, 1), document(9, 2, prompt=0)]
    alone = sum(losses(exits, one) for one in documents)
    close(losses(exits, *documents), alone)


def test_a_dropped_layer_equals_a_removed_one(exits, model):
    """Drop a layer in the first document only; later exits follow."""
    documents = [document(8, 0), document(8, 1)]
    kept = torch.ones(LAYERS, 2, dtype=torch.bool)
    kept[3, 0] = False
    both = losses(exits, *documents, kept_LB=kept)
    without = copy.deepcopy(model)
    del without.model.layers[3]
    for layer in without.model.layers:
        layer._forward_hooks.clear()
    shorter = EarlyExits(without)(collate(documents[:1]), range(1, LAYERS))
    second = losses(exits, documents[1])
    for exit_layer in ALL:
        position = exit_layer if exit_layer < 4 else exit_layer - 1
        close(both[exit_layer - 1], shorter[position].double() + second[exit_layer - 1])


def test_the_divergence_from_itself_is_zero(exits, model):
    teacher = Teacher(EarlyExits(copy.deepcopy(model)))
    found = losses(exits, document(12), teacher=teacher)
    close(found[-1], torch.zeros((), dtype=torch.double))
    assert (found[:-1] > 0.1).all()


def test_scores_count_tokens_that_exits_agree_on(exits, model):
    """The model's own greedy output is an exact match of the last layer."""
    prompt = random_prompt(6)
    said = model.generate(
        torch.tensor([prompt]), max_new_tokens=8, do_sample=False, use_cache=False
    )
    ids = said[0].tolist()
    learned = [False] * len(prompt) + [True] * (len(ids) - len(prompt))
    wrong = [*ids[:-1], (ids[-1] + 1) % 256]
    documents = [Document(ids, learned), Document(wrong, learned)]
    loss, accepted, exact = exits.scores(collate(documents))
    assert exact[-1] == 1
    assert accepted[-1] == 2 * sum(learned)
    assert (accepted[:-1] < 2 * sum(learned)).all()
    close(loss.double(), losses(exits, *documents))


def test_dropout_follows_rates_seed_and_step():
    assert draw_kept([0.0, 0.0], 4, 0, 0) is None
    kept = draw_kept([0.0, 0.5, 1.0], 4000, 0, 0)
    shares = kept.float().mean(1)
    assert shares[0] == 1
    assert shares[2] == 0
    assert shares[1] == pytest.approx(0.5, abs=0.05)
    assert torch.equal(kept, draw_kept([0.0, 0.5, 1.0], 4000, 0, 0))
    assert not torch.equal(kept, draw_kept([0.0, 0.5, 1.0], 4000, 0, 1))
    assert not torch.equal(kept, draw_kept([0.0, 0.5, 1.0], 4000, 1, 0))
