"""RepVGG blocks of other libraries, which merge their own branches."""

import pytest
import timm
import torch
from helpers import classifier, randomize
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmpretrain.models import RepVGG
from mmpretrain.models.backbones.repvgg import RepVGGBlock
from torch import nn

import mmasr
from mmasr.core.class_surgery import Mixin
from mmasr.deploy.compare import tensors
from mmasr.deploy.reparameterize import reparameterize

NETWORKS = {'mmpretrain': lambda: RepVGG('A0'), 'timm': lambda: timm.create_model('repvgg_a0')}


def check_fold(network):
    """Check that folding a network with random variances keeps its output and removes all branches."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    network.eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        ((_, expected),) = tensors('', network(x))
        ((_, found),) = tensors('', mmasr.fold(network)(x))
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert not any(isinstance(module, Mixin | nn.BatchNorm2d) for module in network.modules())


@pytest.mark.parametrize('asr', [False, True], ids=['plain', 'ASR'])
@pytest.mark.parametrize('name', NETWORKS)
def test_fold_merges_the_branches(name, asr):
    network = NETWORKS[name]()
    if asr:
        mmasr.attach(network, {'type': 'SE'}, psi={'std': 1.0})
    check_fold(network)


def test_block_with_se_keeps_its_branches():
    """The deployed form of MMPretrain's block has no SE."""
    block = randomize(RepVGGBlock(8, 8, se_cfg={'ratio': 4, 'divisor': 1})).eval()
    x = torch.randn(2, 8, 6, 6)
    with torch.no_grad():
        expected = block(x)
        assert torch.equal(mmasr.fold(block)(x), expected)
    assert not block.deploy


def test_deployed_files_keep_branches_if_no_config_builds_the_merged_form(tmp_path):
    backbone = {'type': 'TIMMBackbone', 'model_name': 'repvgg_a0', 'features_only': True, 'out_indices': (3,)}
    config = classifier(
        {'type': 'mmasr.ASRBackbone', 'backbone': backbone, 'asr': {'attention': {'type': 'SE'}}}, 192
    )
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(config.model)
    torch.save({'meta': {'cfg': config.pretty_text}, 'state_dict': model.state_dict()}, tmp_path / 'a.pth')
    report = reparameterize(tmp_path / 'a.pth')
    assert report.folded
    assert not report.merged
    assert Config.fromfile(report.config).model.backbone == backbone


def test_blocks_with_branches_reject_other_branches_inside():
    with pytest.raises(
        ValueError,
        match=r'stem\.branch_3x3\.conv is in stem \(RepVGGBlock\), which merges its own layers',
    ):
        mmasr.attach(RepVGG('A0'), {'type': 'ACNet'}, sites=['stem.branch_3x3.conv'])
    with pytest.raises(ValueError, match='RepVGG has no 3 x 3 convolution'):
        mmasr.attach(RepVGG('A0'), {'type': 'ACNet'})


@pytest.mark.parametrize('name', NETWORKS)
def test_orepa_in_the_3x3_branch_has_the_options_of_the_authors(name):
    """In the authors' RepVGG blocks it has no 1 x 1 branch at the center."""
    network = NETWORKS[name]()
    mmasr.attach(network, {'type': 'OREPA'})
    mmasr.attach(network, {'type': 'SE'}, psi={'std': 1.0})  # folds together with OREPA
    found = [module.orepa for module in network.modules() if hasattr(module, 'orepa')]
    assert len(found) == 22
    for branches in found:
        assert [row.unique().tolist() for row in branches.scale] == [[0.25], [0.5], [0.25], [0.0], [0.5]]
        assert branches.outer.detach().abs().max() <= (3 / branches.outer[0].numel()) ** 0.5  # Kaiming, a = 1
    check_fold(network)


def test_repvgg_with_orepa_deploys_as_a_plain_repvgg(tmp_path):
    arch = {'num_blocks': [1, 1, 1, 1], 'width_factor': [0.25] * 4, 'group_layer_map': None, 'se_cfg': None}
    backbone = {'type': 'mmasr.ASRRepVGG', 'arch': {**arch, 'stem_channels': 16}, 'convs': {'type': 'OREPA'}}
    config = classifier(backbone, 128)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(config.model)
    torch.save({'meta': {'cfg': config.pretty_text}, 'state_dict': model.state_dict()}, tmp_path / 'a.pth')
    report = reparameterize(tmp_path / 'a.pth')
    assert set(report.folded.values()) == {'OREPA'}
    assert set(report.merged.values()) == {'RepVGGBlock'}
    deployed = Config.fromfile(report.config).model.backbone
    assert deployed.type == 'mmpretrain.RepVGG'
    assert deployed.deploy
    assert 'convs' not in deployed
