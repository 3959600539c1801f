"""Evaluation after changes of weights that bypass autograd.

These are the real flows of mmengine and mmdet. Afterwards a host must compute with the new weights.
"""

import copy
from unittest import mock

import pytest
import torch
from helpers import randomize
from mmdet.engine.hooks import MeanTeacherHook
from mmdet.models.detectors import SemiBaseDetector
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.hooks import EMAHook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn
from versions import need_fused_steps

import mmasr

X = torch.randn(4, 8, 5, 5, generator=torch.Generator().manual_seed(0))


class Network(BaseModel):
    def __init__(self):
        super().__init__()
        layers = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8))
        self.layers = randomize(mmasr.attach(layers, {'type': 'SE', 'ratio': 1}, sites=['1']))

    def forward(self, x, mode='predict'):
        out = self.layers(x)
        return {'loss': out.square().mean()} if mode == 'loss' else [out]


class AsFolded(BaseMetric):
    """Metric that compares a network with its folded form, which has no cache, and counts the batches."""

    network = None
    seen = 0

    def process(self, data_batch, data_samples):
        folded = mmasr.fold(copy.deepcopy(self.network))
        with torch.no_grad():
            torch.testing.assert_close(data_samples[0], folded(data_batch['x'])[0])
        AsFolded.seen += 1
        self.results.append(data_samples[0].mean().item())

    def compute_metrics(self, results):
        return {'mean': sum(results)}


@pytest.fixture
def runner(tmp_path, monkeypatch):
    network = Network()
    monkeypatch.setattr(AsFolded, 'network', network)
    monkeypatch.setattr(AsFolded, 'seen', 0)
    data = {
        'batch_size': 2,
        'num_workers': 0,
        'collate_fn': {'type': 'default_collate'},
        'sampler': {'type': 'DefaultSampler', 'shuffle': False},
        'dataset': [{'x': x} for x in X],
    }
    need_fused_steps()
    return Runner(
        network,
        str(tmp_path),
        train_dataloader=data,
        val_dataloader=data,
        train_cfg={'by_epoch': True, 'max_epochs': 3, 'val_interval': 1},
        val_cfg={},
        val_evaluator=Evaluator(AsFolded()),
        # Its steps are one of the two kinds of change that the cache cannot detect.
        optim_wrapper={'optimizer': {'type': 'SGD', 'lr': 0.1, 'fused': True}},
        custom_hooks=[EMAHook(momentum=0.3)],  # its swaps are the other kind
        experiment_name=tmp_path.name,
    )


def test_validation_uses_the_current_weights_with_ema_and_a_fused_optimizer(runner):
    runner.train()
    assert AsFolded.seen == 6
    history = runner.message_hub.get_scalar('val/mean').data[0]
    assert len(set(history)) == 3  # each epoch has different weights


class Teacher(nn.Module):
    def __init__(self):
        super().__init__()
        self.student, self.teacher = Network(), Network()


def test_a_teacher_predicts_with_its_current_weights():
    model = Teacher()
    hook = MeanTeacherHook(skip_buffer=True)
    outputs = []
    for _ in range(3):
        model.train()
        model.teacher.eval()  # as SemiBaseDetector does before it predicts
        with torch.no_grad():
            outputs.append(model.teacher(X)[0])
            torch.testing.assert_close(outputs[-1], mmasr.fold(copy.deepcopy(model.teacher))(X)[0])
        hook.momentum_update(model, 0.5)
    assert not torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[1], outputs[2])


def test_mmdet_sets_the_teacher_to_eval_mode_before_it_predicts():
    """The test above relies on this."""
    detector = mock.MagicMock()
    SemiBaseDetector.get_pseudo_instances(detector, X, [])
    assert [name for name, *_ in detector.teacher.method_calls] == ['eval', 'predict']
