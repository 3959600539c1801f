"""Extension point: a new re-parameterization needs only one class and one registration."""

import pytest
import torch
from helpers import classifier
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import nn

import mmasr
from mmasr.core.reparameterization import REPARAMETERIZATIONS, BranchReparameterization
from mmasr.deploy.reparameterize import reparameterize


class Pair(BranchReparameterization):
    """Sum of two convolutions."""

    def __init__(self, in_channels, out_channels, kernel_size, **options):
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(in_channels, out_channels, kernel_size, **options) for _ in range(2)
        )

    def forward(self, x):
        return self.convs[0](x) + self.convs[1](x)

    def to_single_layer(self):
        self.convs[0].load_state_dict(
            {name: p + self.convs[1].get_parameter(name) for name, p in self.convs[0].named_parameters()}
        )
        return self.convs[0]


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    monkeypatch.setitem(REPARAMETERIZATIONS, 'Pair', Pair)


def build(backbone):
    config = classifier(backbone, 64)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return config, MODELS.build(config.model)


BACKBONES = {
    'registered': {
        'type': 'mmasr.ASRResNet',
        'depth': 18,
        'base_channels': 8,
        'out_indices': (3,),
        'norm_eval': False,
    },
    'wrapped': {
        'type': 'mmasr.ASRBackbone',
        'backbone': {
            'type': 'mmdet.ResNet',
            'depth': 18,
            'base_channels': 8,
            'out_indices': (3,),
            'norm_eval': False,
        },
    },
}


@pytest.mark.parametrize('asr', [None, {'attention': {'type': 'SE'}}], ids=['alone', 'with ASR'])
@pytest.mark.parametrize('name', BACKBONES)
def test_custom_reparameterization_trains_folds_and_deploys(tmp_path, name, asr):
    config, trained = build({**BACKBONES[name], 'convs': {'type': 'Pair'}, 'asr': asr})
    trained.init_weights()
    pairs = [module for module in trained.modules() if isinstance(module, Pair)]
    assert len(pairs) == 16
    trained.train()
    trained(torch.randn(4, 3, 64, 64)).square().mean().backward()
    assert all(p.grad is not None for pair in pairs for p in pair.parameters())
    torch.optim.SGD(trained.parameters(), lr=0.1).step()

    torch.save({'meta': {'cfg': config.pretty_text}, 'state_dict': trained.state_dict()}, tmp_path / 'a.pth')
    report = reparameterize(tmp_path / 'a.pth')
    assert max(difference.relative for difference in report.differences) <= 1e-5
    assert list(report.merged.values()) == ['Pair'] * 16
    assert len(report.folded) == (8 if asr else 0)
    deployed = Config.fromfile(report.config)
    assert deployed.model.backbone.type == 'mmdet.ResNet'
    assert 'custom_imports' not in deployed
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        stock = MODELS.build(deployed.model)
    stock.load_state_dict(torch.load(report.checkpoint, weights_only=True)['state_dict'], strict=True)


def test_attach_and_fold_handle_a_custom_reparameterization_in_any_network():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 1))
    mmasr.attach(network, {'type': 'Pair'})
    x = torch.randn(1, 3, 6, 6)
    expected = network(x)
    torch.testing.assert_close(mmasr.fold(network)(x), expected)
    assert [type(module) for module in network] == [nn.Conv2d, nn.ReLU, nn.Conv2d]
