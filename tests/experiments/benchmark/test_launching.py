"""The CPU time of narrow networks."""

import pytest
import torch
import torchvision

from mmasr.core.sites import find_sites
from mmasr.experiments.benchmark.launching import PHASES, measure_launching, narrow
from mmasr.experiments.benchmark.tables import launching_tables
from mmasr.experiments.benchmark.workload import image_workload

X = torch.randn(1, 3, 64, 64)


@pytest.mark.parametrize('name', ['resnet50', 'resnext50_32x4d', 'shufflenet_v2_x1_0', 'mobilenet_v2'])
def test_a_narrow_network_has_the_same_layers_and_sites(name):
    wide, made = (torchvision.models.get_model(name, weights=None) for _ in range(2))
    narrow(made, X)
    made.train()(X).sum().backward()
    assert list(made.state_dict()) == list(wide.state_dict())
    assert find_sites(made) == find_sites(wide)
    sizes = [sum(parameter.numel() for parameter in model.parameters()) for model in (made, wide)]
    assert 60 * sizes[0] < sizes[1]
    for layer, original in zip(made.modules(), wide.modules(), strict=True):
        assert not layer._forward_pre_hooks
        if isinstance(layer, torch.nn.Conv2d) and original.groups == original.in_channels:
            assert layer.groups == layer.in_channels


def test_identical_networks_cost_the_same():
    models = {name: narrow(torchvision.models.resnet18(), X) for name in ('plain', 'twin')}
    plain, twin = costs = measure_launching(models, image_workload(X), rounds=5)
    assert plain.training_ratio == plain.training_wall_ratio == plain.inference_ratio == [1, 1, 1]
    assert list(plain.phases) == list(PHASES)
    assert len(plain.inference) == len(plain.phases['forward']) == 5
    for _, middle, _ in (twin.training_ratio, twin.inference_ratio):
        assert 0.5 < middle < 2  # a wide range, because other work on the machine may disturb the measurement
    training, inference = launching_tables(costs).split('\n\n')
    assert '| optimizer, ms | wall clock ÷ plain |' in training
    assert inference.count('1.000 (1.00-1.00)') == 1
