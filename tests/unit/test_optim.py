"""The learning rate is a function of progress, decay spares biases and norms, the average is the formula's."""

import copy
from itertools import pairwise

import pytest
import torch
from laws import objective
from torch import nn

from medmtl.balance.static import Uncertainty
from medmtl.engine.optim import OptimConfig, average, set_rate


def test_the_rate_rises_linearly_falls_as_a_cosine_and_never_jumps():
    config = OptimConfig(warmup=0.25, final=0.1)
    assert [config.rate(p) for p in (0.125, 0.25, 0.625, 1.0, 1.5)] == pytest.approx([0.5, 1, 0.55, 0.1, 0.1])
    assert 0 < config.rate(0) < 0.01
    steps = [config.rate(i / 1000) for i in range(1001)]
    assert max(abs(a - b) for a, b in pairwise(steps)) < 0.006
    assert steps[250:] == sorted(steps[250:], reverse=True)
    assert OptimConfig(warmup=0, final=1).rate(0) == OptimConfig(warmup=0, final=1).rate(1) == 1


def test_decay_spares_vectors_and_the_balancer_and_heads_have_their_own_rate():
    config = OptimConfig(learning_rate=0.1, head_multiplier=3, weight_decay=0.5)
    whole = objective(balancer=Uncertainty(3))
    optimizer = config.build(whole.model.encoder, list(whole.model.heads.values()), whole.balancer)
    names = {id(p): name for name, p in whole.named_parameters()}
    found = {names[id(p)]: group for group in optimizer.param_groups for p in group["params"]}
    assert set(found) == set(names.values())  # every parameter, once
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(names)
    for name, parameter in whole.named_parameters():
        decays = parameter.ndim > 1
        assert found[name]["weight_decay"] == (0.5 if decays else 0.0), name
        assert found[name]["initial_lr"] == pytest.approx(0.1 if name.startswith("model.encoder") else 0.3), name
    assert set_rate(optimizer, 0.5) == pytest.approx(0.05)
    assert sorted({round(group["lr"], 6) for group in optimizer.param_groups}) == [0.05, 0.15]


def test_what_is_frozen_is_not_optimised():
    whole = objective()
    whole.model.encoder.first.requires_grad_(False)
    optimizer = OptimConfig().build(whole.model.encoder, list(whole.model.heads.values()), whole.balancer)
    frozen = {id(p) for p in whole.model.encoder.first.parameters()}
    assert not frozen & {id(p) for group in optimizer.param_groups for p in group["params"]}


def test_the_average_is_exponential_in_weights_and_buffers():
    model = nn.BatchNorm1d(2)
    moving = average(model, 0.75)
    expected = None
    for step in range(4):
        with torch.no_grad():
            model.weight.fill_(float(step))
            model.running_mean.fill_(float(10 * step))
        moving.update_parameters(model)
        expected = float(step) if expected is None else 0.75 * expected + 0.25 * step
        assert moving.module.weight.tolist() == pytest.approx([expected] * 2)
        assert moving.module.running_mean.tolist() == pytest.approx([10 * expected] * 2)
    assert average(model, None) is None
    restored = average(nn.BatchNorm1d(2), 0.75)
    restored.load_state_dict(copy.deepcopy(moving.state_dict()))
    moving.update_parameters(model)
    restored.update_parameters(model)
    assert torch.equal(moving.module.weight, restored.module.weight)
