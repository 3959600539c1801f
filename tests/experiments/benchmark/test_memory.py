"""The memory that autograd saves."""

import pytest
import torch
from torch import nn

from mmasr.experiments.benchmark.memory import gradient_bytes, saved_for_backward
from mmasr.experiments.benchmark.workload import Workload

X = torch.randn(4, 3, 16, 16)


# The linear layer saves its input, and the loss saves the output, four images with eight floats. Parameters
# do not count. A sigmoid saves its output, which is the same storage as the loss saves, so it counts once.
# Two sigmoids save two.
@pytest.mark.parametrize(('sigmoids', 'outputs'), [(0, 1), (1, 1), (2, 2)])
def test_every_saved_storage_counts_once(sigmoids, outputs):
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 8), *(nn.Sigmoid() for _ in range(sigmoids)))
    workload = Workload(X, model, lambda model: model(X).square().sum())
    assert saved_for_backward(model, workload) == X.nbytes + outputs * 4 * 8 * 4


def test_frozen_parameters_have_no_gradients():
    model = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2))
    model[1].requires_grad_(False)
    assert gradient_bytes(model) == 4 * (3 * 5 + 5)
