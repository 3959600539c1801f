"""Tests of deploying MMPretrain's networks whose blocks merge: the files load with its own merged form."""

import copy
from contextlib import contextmanager

import pytest
import torch
from helpers import agrees, built, classifier, randomize_norms, retinanet, save_network, segmentor
from mmengine.config import Config
from torch import nn

from mmasr.deploy import reparameterize as reparam
from mmasr.deploy.reparameterize import reparameterize
from mmasr.errors import InputError
from mmasr.openmmlab.adapters import MERGED_OPTIONS

REPVGG = {
    'num_blocks': [1, 1, 1, 1],
    'width_factor': [0.25] * 4,
    'group_layer_map': None,
    'stem_channels': 16,
}
MOBILEONE = {
    'num_blocks': [1, 1, 1, 1],
    'width_factor': [0.25] * 4,
    'num_conv_branches': [2, 1, 1, 2],
    'num_se_blocks': [0, 0, 1, 1],
}
REPLKNET = {
    'large_kernel_sizes': [13, 13, 9, 7],
    'layers': [1, 1, 1, 1],
    'channels': [8, 16, 16, 32],
    'small_kernel': 5,
    'dw_ratio': 1,
}
REPMLP = {'channels': [8, 16], 'depths': [1, 1], 'sharesets_nums': [1, 2]}
BACKBONES = {
    'RepVGG': ({'arch': {**REPVGG, 'se_cfg': None}}, 128),
    'MobileOne': ({'arch': MOBILEONE}, 128),
    'RepLKNet': ({'arch': REPLKNET}, 32),
    'RepMLPNet': (
        {'arch': REPMLP, 'patch_size': 16, 'out_indices': (1,), 'reparam_conv_kernels': (1, 3)},
        16,
    ),
    'LeViT': ({'arch': '128s', 'out_indices': (2,)}, 384),
    'RIFormer': (
        {
            'arch': {
                'layers': [1, 1, 1, 1],
                'embed_dims': [8, 16, 24, 32],
                'mlp_ratios': [2] * 4,
                'layer_scale_init_value': 1.0,
            }
        },
        32,
    ),
}
REPVGG_BACKBONE = {
    'type': 'mmpretrain.RepVGG',
    'arch': {**REPVGG, 'se_cfg': None},
    'out_indices': (0, 1, 2, 3),
}
MOBILEONE_BACKBONE = {'type': 'mmpretrain.MobileOne', 'arch': MOBILEONE}
WITH_ASR = {
    'type': 'mmasr.ASRBackbone',
    'backbone': MOBILEONE_BACKBONE,
    'asr': {'attention': {'type': 'SE'}, 'sites': r'.*\.branch_conv_list\.0\.norm'},
}
OTHERS = {
    'detector': retinanet(REPVGG_BACKBONE),
    'segmentor': segmentor(MOBILEONE_BACKBONE, 128),
    'with an ASR': classifier(WITH_ASR, 128),
}
OTHERS['detector'].model.neck.in_channels = [16, 32, 64, 128]


def config_of(name):
    if name in OTHERS:
        return copy.deepcopy(OTHERS[name])
    options, channels = BACKBONES[name]
    return classifier({'type': name, **options}, channels)


@pytest.mark.parametrize('name', [*BACKBONES, *OTHERS])
def test_a_stock_checkpoint_becomes_the_merged_form_of_its_library(name, tmp_path):
    config = config_of(name)
    trained = save_network(tmp_path / 'a.pth', config, randomize_norms)
    report = reparameterize(tmp_path / 'a.pth')
    deployed = Config.fromfile(report.config)
    backbone = deployed.model.backbone
    option = MERGED_OPTIONS[f'mmpretrain.{backbone.type.rpartition(".")[2]}']
    assert backbone[option] is True
    assert 'mmasr' not in deployed.pretty_text
    assert report.merged
    assert not report.stays
    merged = built(deployed, report.checkpoint)
    pair = [nn.Sequential(network.backbone, Last()) for network in (merged, trained)]
    assert agrees(*pair, torch.randn(1, 3, 224, 224))


class Last(nn.Module):
    def forward(self, maps):
        return maps[-1]


def test_a_network_with_a_block_that_cannot_be_merged_keeps_all_branches_and_says_why(tmp_path):
    se = {'ratio': 4, 'divisor': 1}
    config = classifier({'type': 'RepVGG', 'arch': {**REPVGG, 'se_cfg': se}}, 128)
    save_network(tmp_path / 'a.pth', config)
    with pytest.raises(InputError, match='has no re-parameterization to fold'):
        reparameterize(tmp_path / 'a.pth')


def test_blocks_of_an_untrusted_network_run_within_its_limits(tmp_path, monkeypatch):
    limits, check_merges, active = reparam.Origin.limits, reparam.check_merges, []

    @contextmanager
    def recorded(origin):
        with limits(origin):
            active.append(origin)
            yield
            active.pop()

    def checked(*args):
        checks.append(len(active))
        return check_merges(*args)

    checks = []
    monkeypatch.setattr(reparam.Origin, 'limits', recorded)
    monkeypatch.setattr(reparam, 'check_merges', checked)
    save_network(tmp_path / 'a.pth', config_of('RepVGG'), randomize_norms)
    reparameterize(tmp_path / 'a.pth')
    assert checks == [1]
