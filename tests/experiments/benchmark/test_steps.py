"""Training steps and inferences."""

import pytest
import torch
from torch import nn

from mmasr.experiments.benchmark.steps import inference_step, training_step
from mmasr.experiments.benchmark.workload import image_workload

X = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_a_training_step_computes_gradients_but_does_not_change_parameters():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    before = model[0].weight.clone()
    step = training_step(model, image_workload(X))
    step()
    first = model[0].weight.grad.clone()
    step()
    assert first.abs().sum() > 0
    torch.testing.assert_close(model[0].weight.grad, first)  # gradients of several steps do not add up
    assert torch.equal(model[0].weight, before)
    assert model[1].running_mean.abs().sum() > 0


def test_an_inference_runs_in_eval_mode_without_gradients():
    seen = []
    model = nn.Conv2d(3, 4, 3)
    model.register_forward_hook(lambda module, args, out: seen.append((module.training, out.requires_grad)))
    inference_step(model, image_workload(X))()
    assert seen == [(False, False)]


@pytest.mark.parametrize('amp', [False, True])
def test_mixed_precision_on_a_cpu_is_bfloat16(amp):
    seen = []
    model = nn.Conv2d(3, 4, 3)
    model.register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    training_step(model, image_workload(X), amp)()
    inference_step(model, image_workload(X), amp)()
    assert seen == [torch.bfloat16 if amp else torch.float32] * 2
