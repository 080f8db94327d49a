"""Muon of many matrices does what torch's does, one by one and in bfloat16."""

import pytest
import torch
from torch import nn
from torch.optim import Muon

from training import muon
from training.muon import BatchedMuon, multiplies_bfloat16

SHAPES = [(64, 32), (32, 64), (48, 48), (32, 64), (64, 32), (64, 32)]


def trained(kind, steps=4, **settings):
    torch.manual_seed(0)
    matrices = [nn.Parameter(torch.randn(shape)) for shape in SHAPES]
    unused = nn.Parameter(torch.ones(8, 8))
    optimizer = kind([*matrices, unused], lr=0.02, weight_decay=0.1, **settings)

    def closure():
        optimizer.zero_grad()
        sum((one * torch.randn(one.shape)).sum() for one in matrices).backward()
        return 1.0

    for _ in range(steps):
        assert optimizer.step(closure) == 1.0
    assert (unused == 1).all()  # without a gradient
    return [matrix.detach() for matrix in matrices], optimizer.state_dict()


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("most_elements", [10**9, 64 * 32 * 2, 1])
@pytest.mark.parametrize("is_fast", [True, False])
def test_weights_and_states_follow_those_of_torch(monkeypatch, is_fast, most_elements, nesterov):
    monkeypatch.setattr(muon, "multiplies_bfloat16", lambda device: is_fast)
    monkeypatch.setattr(muon, "_MOST_ELEMENTS", most_elements)
    found, state = trained(BatchedMuon, nesterov=nesterov)
    expected, expected_state = trained(Muon, nesterov=nesterov)
    start, _ = trained(Muon, steps=1, nesterov=nesterov)
    for one, other, before in zip(found, expected, start, strict=True):
        assert (one - other).abs().max() < 0.02 * (before - other).abs().max()
    assert state["param_groups"] == expected_state["param_groups"]
    for index, own in expected_state["state"].items():
        torch.testing.assert_close(state["state"][index], own)
    assert len(state["state"]) == len(expected_state["state"]) == len(SHAPES)


def test_other_devices_count_as_fast():
    assert multiplies_bfloat16(torch.device("cuda"))
    assert isinstance(multiplies_bfloat16(torch.device("cpu")), bool)


def test_another_scale_of_the_learning_rate_is_refused():
    with pytest.raises(ValueError, match="match_rms_adamw"):
        trained(BatchedMuon, adjust_lr_fn="match_rms_adamw")
