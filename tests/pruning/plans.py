"""Texts and plans of the tiny Llama."""

import torch

from arguments.pruning import PruneArguments
from pruned_model import make_plan
from pruning.measurements import Measurements
from tests.conftest import random_prompt

PROMPTS = [torch.tensor([random_prompt(length, seed=length)]) for length in (5, 9, 14, 9)]
TOKENS = 5 + 9 + 14 + 9


def never_called():
    raise AssertionError("this criterion needs no calibration")


def measured(model, prompts=PROMPTS, **more):
    return Measurements(model, lambda: prompts, **more)


def plan_of(model, method, count=None, prompts=PROMPTS, **flags):
    arguments = PruneArguments(prune_method=method, prune_n=count, **flags)
    return make_plan(arguments, measured(model, prompts))


def zeroed(model, layers):
    """A zeroed layer adds nothing to the residual stream."""
    for index in layers:
        model.model.layers[index].self_attn.o_proj.weight.zero_()
        model.model.layers[index].mlp.down_proj.weight.zero_()
