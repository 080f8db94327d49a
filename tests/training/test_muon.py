"""Muon's iteration in float32 does what torch's does in bfloat16."""

import pytest
import torch
from torch import nn
from torch.optim import Muon

from training import optimizers
from training.muon import Float32Muon, multiplies_bfloat16


def trained(kind, shape, steps=4):
    torch.manual_seed(0)
    matrix = nn.Parameter(torch.randn(shape))
    muon = kind([matrix], lr=0.02, weight_decay=0.1)
    for _ in range(steps):
        muon.zero_grad()
        loss = muon.step(lambda: (matrix * torch.randn(shape)).sum().backward() or 1.0)
    assert loss == 1.0
    return matrix.detach(), muon.state_dict()


@pytest.mark.parametrize("shape", [(64, 32), (32, 64), (48, 48)])
def test_weights_follow_those_of_torch(shape):
    (found, state), (expected, expected_state) = trained(Float32Muon, shape), trained(Muon, shape)
    start = trained(Muon, shape, steps=1)[0]
    assert (found - expected).abs().max() < 0.02 * (start - expected).abs().max()
    assert state["param_groups"] == expected_state["param_groups"]
    torch.testing.assert_close(state["state"][0], expected_state["state"][0])


@pytest.mark.parametrize(("is_fast", "kind"), [(True, Muon), (False, Float32Muon)])
def test_processors_without_bfloat16_iterate_in_float32(model, monkeypatch, is_fast, kind):
    monkeypatch.setattr(optimizers, "multiplies_bfloat16", lambda device: is_fast)
    flags = optimizers.OptimizationArguments(optimizer="muon")
    muon, _ = optimizers.make_muon(model.float().requires_grad_(True), flags)
    assert type(muon) is kind


def test_other_devices_count_as_fast():
    assert multiplies_bfloat16(torch.device("cuda"))
    assert isinstance(multiplies_bfloat16(torch.device("cpu")), bool)
