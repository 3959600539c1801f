"""The workloads of networks."""

import pytest
import torch
from helpers import SHAPES_CONFIG
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import nn

from mmasr.deploy.deployed_config import deployed_config
from mmasr.errors import InputError
from mmasr.experiments.benchmark.workload import check_runs, image_workload, openmmlab_workload


def test_a_detector_predicts_and_has_all_its_losses():
    init_default_scope('mmdet')
    model = MODELS.build(deployed_config(Config.fromfile(SHAPES_CONFIG)).model)
    workload = openmmlab_workload(model, torch.randn(2, 3, 128, 128))
    model.eval()
    with torch.no_grad():
        assert len(workload.predict(model)) == 2
    model.train()
    loss = workload.loss(model)
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)


def test_a_network_that_does_not_run_is_rejected():
    workload = image_workload(torch.randn(2, 3, 8, 8))
    with pytest.raises(
        InputError, match=r'^Conv2d does not run on images of shape \(2, 3, 8, 8\): RuntimeError: '
    ):
        check_runs(nn.Conv2d(1, 4, 3), workload)


def test_checking_a_network_leaves_no_gradients():
    model = nn.Conv2d(3, 4, 3)
    check_runs(model, image_workload(torch.randn(2, 3, 8, 8)))
    assert model.weight.grad is None
