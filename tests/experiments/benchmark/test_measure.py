"""The cost of networks that are measured together."""

import pytest
import torch
import torchvision
from mmengine.analysis import FlopAnalyzer

from mmasr.experiments.benchmark.measure import measure, multiply_adds
from mmasr.experiments.benchmark.variants import attention_variants
from mmasr.experiments.benchmark.workload import image_workload


def test_multiply_adds_agree_with_mmengine():
    x = torch.randn(1, 3, 64, 64)
    for name, model in attention_variants(torchvision.models.resnet18(), ['SE', 'ECA']).items():
        counter = FlopAnalyzer(model.eval(), (x,)).unsupported_ops_warnings(False)
        # mmengine also counts pooling, which is a percent at this size.
        assert multiply_adds(model, image_workload(x)) == pytest.approx(counter.total(), rel=0.02), name


def test_identical_networks_cost_the_same():
    torch.manual_seed(0)
    models = {name: torchvision.models.resnet18() for name in ('plain', 'twin')}
    plain, twin = measure(models, image_workload(torch.randn(2, 3, 64, 64)), rounds=3)
    assert plain.inference_ratio == plain.training_ratio == [1, 1, 1]
    for _, middle, _ in (twin.inference_ratio, twin.training_ratio):
        assert 0.5 < middle < 2  # a wide range, because other work on the machine may disturb the measurement
    assert (twin.parameters, twin.multiply_adds, twin.training_bytes) == (
        plain.parameters,
        plain.multiply_adds,
        plain.training_bytes,
    )
