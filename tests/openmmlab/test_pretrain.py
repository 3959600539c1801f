"""MMPretrain's backbones with ASR: they train, fold to their stock class, and deploy as classifiers."""

import pickle

import pytest
import torch
from helpers import classifier, randomize, save_network
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmpretrain.models import VGG, MobileNetV2, RepVGG, ShuffleNetV2, VisionTransformer
from torch import nn

import mmasr
from mmasr.attention import asr_attentions
from mmasr.core.host import Host
from mmasr.deploy.reparameterize import reparameterize
from mmasr.errors import InputError
from mmasr.openmmlab.networks.mobilenet import MobileNet
from mmasr.openmmlab.networks.shufflenet_cifar import ShuffleNetV2CIFAR
from mmasr.stripes import attention_modules

SMALL_REPVGG = {
    'num_blocks': [1, 2, 2, 1],
    'width_factor': [0.25] * 4,
    'group_layer_map': None,
    'se_cfg': None,
}
SMALL_VIT = {'embed_dims': 32, 'num_layers': 2, 'num_heads': 2, 'feedforward_channels': 64}
# Family -> mmpretrain's class, its options, channels of its last feature map.
FAMILIES = {
    'VGG': (VGG, {'depth': 11, 'norm_cfg': {'type': 'BN'}}, 512),
    'ShuffleNetV2': (ShuffleNetV2, {'widen_factor': 0.5}, 1024),
    'ShuffleNetV2CIFAR': (ShuffleNetV2CIFAR, {'widen_factor': 0.5}, 1024),
    'MobileNet': (MobileNet, {'widen_factor': 0.25, 'stem_stride': 1}, 256),
    'MobileNetV2': (MobileNetV2, {'widen_factor': 0.25}, 1280),
    'RepVGG': (RepVGG, {'arch': SMALL_REPVGG}, 128),
    'RepVGG with pooling': (RepVGG, {'arch': SMALL_REPVGG, 'add_ppf': True}, 128),
    'VisionTransformer': (VisionTransformer, {'arch': SMALL_VIT, 'img_size': 64}, 32),
}
KAPPAS = asr_attentions()


def build(family, **config):
    return MODELS.build({'type': f'mmasr.ASR{FAMILIES[family][0].__name__}', **FAMILIES[family][1], **config})


def randomized(network):
    """Give every ASR and every running statistic values that reveal a wrong fold."""
    for module in network.modules():
        if isinstance(module, mmasr.ASR):
            randomize(module)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return network


@pytest.mark.parametrize('family', FAMILIES)
@pytest.mark.parametrize('kappa', KAPPAS)
def test_trains_a_step_and_folds_to_its_stock_class(family, kappa):
    stock, options, channels = FAMILIES[family]
    backbone = {
        'type': f'mmasr.ASR{FAMILIES[family][0].__name__}',
        **options,
        'asr': {'attention': {'type': kappa}},
    }
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        network = MODELS.build(classifier(backbone, channels, neck=family != 'VisionTransformer').model)
    network.init_weights()
    hosts = [module for module in network.modules() if isinstance(module, Host)]
    psi = 1e-3 if family == 'VisionTransformer' else 0.1
    assert all(host.asr.psi.eq(psi).all() for host in hosts)  # not the values of the network's init_cfg
    x = torch.randn(2, 3, 64, 64)
    network.train()
    network(x).square().mean().backward()
    assert all(p.grad is not None for host in hosts for p in host.asr.parameters())
    torch.optim.SGD(network.parameters(), lr=0.01).step()

    randomized(network).eval()
    with torch.no_grad():
        features, scores = *network.backbone(x), network(x)
        mmasr.fold(network)
        assert type(network.backbone) is stock
        for expected, found in ((features, *network.backbone(x)), (scores, network(x))):
            assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    plain = stock(**options, **({'deploy': True} if family.startswith('RepVGG') else {}))
    plain.load_state_dict(network.backbone.state_dict(), strict=True)
    classes = [{name: type(module) for name, module in m.named_modules()} for m in (plain, network.backbone)]
    assert classes[0] == classes[1]


@pytest.mark.parametrize('family', FAMILIES)
@pytest.mark.parametrize('kappa', KAPPAS)
def test_can_be_pickled(family, kappa):
    network = randomized(build(family, asr={'attention': {'type': kappa}}))
    network.eval()
    copied = pickle.loads(pickle.dumps(network))
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(*copied(x), *network(x))


@pytest.mark.parametrize('family', FAMILIES)
def test_takes_a_custom_attention(family):
    network = build(family, asr={'attention': mmasr.SE})
    hosts = [module for module in network.modules() if isinstance(module, Host)]
    assert hosts
    assert {host.asr.attention[0].gate for host in hosts} == {'sigmoid'}
    assert all(host.asr.psi.eq(0.1).all() for host in hosts)


@pytest.mark.parametrize(
    'sites', [None, r'layers\.0\..*(proj|layers\.1)'], ids=['default sites', 'given sites']
)
@pytest.mark.parametrize('wrapped', [False, True], ids=['registered', 'ASRBackbone'])
def test_sites_of_a_vision_transformer_get_the_tanh_gate(wrapped, sites):
    asr = {'attention': {'type': 'SE'}, 'sites': sites}
    vit = {'type': 'mmpretrain.VisionTransformer', **FAMILIES['VisionTransformer'][1]}
    if wrapped:
        network = MODELS.build({'type': 'mmasr.ASRBackbone', 'backbone': vit, 'asr': asr})
    else:
        network = build('VisionTransformer', asr=asr)
    asrs = [module for module in network.modules() if isinstance(module, mmasr.ASR)]
    assert len(asrs) == (2 if sites else 4)
    assert {asr.attention[0].gate for asr in asrs} == {'tanh'}
    assert all(parameter.eq(1e-3).all() for asr in asrs for parameter in asr.parameters())


def test_a_vgg_without_normalization_needs_sites():
    with pytest.raises(
        InputError, match=r"no normalization to carry an ASR; pass norm_cfg=dict\(type='BN'\)$"
    ):
        build('VGG', norm_cfg=None, asr={'attention': {'type': 'SE'}})
    assert isinstance(
        build('VGG', norm_cfg=None, asr={'attention': {'type': 'SE'}, 'sites': ['features.0.conv']}), VGG
    )
    build('VGG', norm_cfg=None)


@pytest.mark.parametrize('family', FAMILIES)
def test_without_asr_the_state_dict_is_the_stock_one(family):
    stock, options, _ = FAMILIES[family]
    assert build(family).state_dict().keys() == stock(**options).state_dict().keys()


@pytest.mark.parametrize('family', FAMILIES)
def test_stock_weights_lack_only_the_asr(family):
    stock, options, _ = FAMILIES[family]
    network = build(family, asr={'attention': {'type': 'SE'}})
    result = network.load_state_dict(stock(**options).state_dict(), strict=False)
    assert not result.unexpected_keys
    assert all('.asr.' in key for key in result.missing_keys)


def test_frozen_stages_freeze_their_asr():
    network = build('MobileNetV2', asr={'attention': {'type': 'SE'}}, frozen_stages=2)
    network.train()
    assert not any(p.requires_grad for p in network.layer1.parameters())
    assert all(p.requires_grad for p in network.layer4[0].conv[1].bn.asr.parameters())


def test_switch_to_deploy_folds_the_asr():
    network = randomized(build('RepVGG', asr={'attention': {'type': 'SE'}}))
    network.eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        (expected,) = network(x)
        network.switch_to_deploy()
        (found,) = network(x)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert not any(isinstance(module, mmasr.ASR | nn.BatchNorm2d) for module in network.modules())


def test_repvgg_keeps_its_own_attention(tmp_path):
    """ASR(SE) + SE: the ASR is in the branches, and the block's SE follows their sum."""
    arch = {**SMALL_REPVGG, 'se_cfg': {'ratio': 4, 'divisor': 1}}
    config = classifier({'type': 'mmasr.ASRRepVGG', 'arch': arch, 'asr': {'attention': {'type': 'SE'}}}, 128)
    model = save_network(tmp_path / 'a.pth', config, randomized)
    report = reparameterize(tmp_path / 'a.pth')
    assert max(difference.relative for difference in report.differences) <= 1e-5
    deployed = Config.fromfile(report.config).model.backbone
    assert deployed.pop('type') == 'mmpretrain.RepVGG'
    plain = RepVGG(**deployed)
    assert len(attention_modules(plain)) == len(attention_modules(model)) == 7
    weights = torch.load(report.checkpoint, weights_only=True)['state_dict']
    assert {name.removeprefix('backbone.') for name in weights if name.startswith('backbone.')} == set(
        plain.state_dict()
    )


@pytest.fixture
def merged(tmp_path):
    """Deploy a RepVGG without ASR."""
    save_network(tmp_path / 'a.pth', classifier({'type': 'RepVGG', 'arch': SMALL_REPVGG}, 128), randomized)
    return reparameterize(tmp_path / 'a.pth')


def test_deployment_merges_the_branches_of_a_repvgg_without_asr(merged):
    assert max(difference.relative for difference in merged.differences) <= 1e-5
    assert merged.folded == {}
    assert Config.fromfile(merged.config).model.backbone == {
        'type': 'RepVGG',
        'arch': SMALL_REPVGG,
        'deploy': True,
    }


def test_a_merged_repvgg_cannot_be_deployed_again(merged, tmp_path):
    weights = torch.load(merged.checkpoint, weights_only=True)['state_dict']
    torch.save(weights, tmp_path / 'b.pth')
    with pytest.raises(InputError, match='has no re-parameterization to fold'):
        reparameterize(tmp_path / 'b.pth', config=merged.config)


WRAPPED = pytest.mark.parametrize('wrapped', [False, True], ids=['registered', 'ASRBackbone'])


def deploy(folder, family, wrapped):
    """Deploy a classifier with ASR; return the report, its config, and a plain backbone of the config."""
    stock, options, channels = FAMILIES[family]
    asr = {'attention': {'type': 'SE'}}
    backbone = {'type': f'mmasr.ASR{FAMILIES[family][0].__name__}', **options, 'asr': asr}
    if wrapped:
        inner = {'type': f'{stock.__module__.split(".")[0]}.{stock.__name__}', **options}
        backbone = {'type': 'mmasr.ASRBackbone', 'backbone': inner, 'asr': asr}
    save_network(
        folder / 'a.pth', classifier(backbone, channels, neck=family != 'VisionTransformer'), randomized
    )
    report = reparameterize(folder / 'a.pth')
    deployed = Config.fromfile(report.config)
    return (
        report,
        deployed,
        stock(**{key: value for key, value in deployed.model.backbone.items() if key != 'type'}),
    )


@WRAPPED
@pytest.mark.parametrize('family', FAMILIES)
def test_a_classifier_deploys_with_a_stock_backbone(tmp_path, family, wrapped):
    package = FAMILIES[family][0].__module__.split('.')[0]
    report, deployed, plain = deploy(tmp_path, family, wrapped)
    assert max(difference.relative for difference in report.differences) <= 1e-5
    assert deployed.model.backbone.type == f'{package}.{FAMILIES[family][0].__name__}'
    assert ('custom_imports' in deployed) == (package == 'mmasr')
    weights = torch.load(report.checkpoint, weights_only=True)['state_dict']
    names = {name.removeprefix('backbone.') for name in weights if name.startswith('backbone.')}
    assert names == set(plain.state_dict())


@WRAPPED
def test_a_repvgg_with_asr_deploys_to_one_convolution_per_block(tmp_path, wrapped):
    """The ASR is folded and the branches are merged."""
    _, deployed, plain = deploy(tmp_path, 'RepVGG', wrapped)
    assert deployed.model.backbone.deploy
    assert not any(isinstance(module, nn.BatchNorm2d) for module in plain.modules())
