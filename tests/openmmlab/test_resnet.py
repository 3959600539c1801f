"""The registered ResNets, ASRBackbone and the plugins, built by mmdet and mmpretrain."""

import copy
import pickle

import pytest
import torch
import torchvision
from helpers import assert_folds_to, classifier, plugin, randomize_scales
from mmdet.models.backbones import ResNet, ResNetV1d, ResNeXt
from mmdet.utils import register_all_modules
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import save_checkpoint
from torch import nn

import mmasr
from mmasr.attention import asr_attentions
from mmasr.core.host import Host
from mmasr.errors import InputError

SE = {'type': 'SE'}
KAPPAS = asr_attentions()
STOCK = {'ASRResNet': ResNet, 'ASRResNetV1d': ResNetV1d, 'ASRResNeXt': ResNeXt}


@pytest.fixture(autouse=True)
def _mmdet():
    register_all_modules()


def build(**config):
    return MODELS.build(
        {'type': 'mmasr.ASRResNet', 'depth': 18, 'base_channels': 16, 'norm_eval': False, **config}
    )


def hosts(model):
    return [name for name, m in model.named_modules() if isinstance(m, Host)]


@pytest.mark.parametrize(
    ('name', 'depth', 'last', 'count'),
    [
        ('ASRResNet', 18, 'bn2', 8),
        ('ASRResNet', 50, 'bn3', 16),
        ('ASRResNetV1d', 18, 'bn2', 8),
        ('ASRResNetV1d', 50, 'bn3', 16),
        ('ASRResNeXt', 50, 'bn3', 16),
        ('ASRResNeXt', 101, 'bn3', 33),
    ],
)
def test_backbones_have_asr_at_the_last_normalization_and_fold_to_the_stock_class(name, depth, last, count):
    extra = {'groups': 4, 'base_width': 4} if name == 'ASRResNeXt' else {}
    model = build(type=f'mmasr.{name}', depth=depth, asr={'attention': SE}, **extra)
    assert isinstance(model, STOCK[name])
    assert len(hosts(model)) == count
    assert all(host.endswith(last) for host in hosts(model))
    stock = STOCK[name](depth=depth, base_channels=16, **extra)
    assert [k for k in model.state_dict() if '.asr.' not in k] == list(stock.state_dict())
    assert_folds_to(model, STOCK[name])


def test_without_asr_the_state_dict_is_the_stock_one():
    model = build(asr=None)
    assert model.state_dict().keys() == ResNet(depth=18, base_channels=16).state_dict().keys()
    assert not hosts(model)


@pytest.mark.parametrize(
    ('options', 'stock_type'),
    [
        ({'norm_cfg': {'type': 'SyncBN'}}, nn.SyncBatchNorm),
        ({'norm_cfg': {'type': 'GN', 'num_groups': 4}}, nn.GroupNorm),
        ({'norm_cfg': {'type': 'BN', 'requires_grad': False}, 'depth': 50, 'style': 'caffe'}, nn.BatchNorm2d),
        (
            {
                'depth': 50,
                'dcn': {'type': 'DCNv2', 'deform_groups': 1},
                'stage_with_dcn': (False, True, True, True),
            },
            ResNet,
        ),
        ({'zero_init_residual': False, 'depth': 50, 'deep_stem': True, 'avg_down': True}, ResNet),
    ],
    ids=['SyncBN', 'GN', 'frozen BN, caffe', 'DCNv2', 'deep stem'],
)
def test_options_of_the_stock_backbone_work(options, stock_type):
    model = build(asr={'attention': SE}, **copy.deepcopy(options))
    model.init_weights()
    assert_folds_to(model, stock_type)


@pytest.mark.parametrize('train', [False, True], ids=['before train()', 'after train()'])
def test_frozen_stages_freeze_their_asr(train):
    model = build(asr={'attention': SE}, frozen_stages=2)
    if train:
        model.train()
    learning = {n.split('.')[0] for n, p in model.named_parameters() if '.asr.' in n and p.requires_grad}
    assert learning == {'layer3', 'layer4'}


def test_train_keeps_frozen_stages_in_eval_mode():
    model = build(asr={'attention': SE}, frozen_stages=2)
    model.train()
    assert not model.layer1[0].bn2.training
    assert model.layer3[0].bn2.training


def test_frozen_affine_parameters_do_not_freeze_asr():
    model = build(asr={'attention': SE}, norm_cfg={'type': 'BN', 'requires_grad': False})
    model(torch.randn(2, 3, 64, 64))[-1].square().sum().backward()
    assert model.layer4[1].bn2.weight.grad is None
    assert model.layer4[1].bn2.asr.psi.grad.abs().sum() > 0


def test_norm_eval_applies_to_hosts():
    model = build(asr={'attention': SE}, norm_eval=True)
    model.train()
    assert not any(m.training for m in model.modules() if isinstance(m, nn.BatchNorm2d))


@pytest.mark.parametrize(
    'options',
    [{'depth': 18, 'plugins': [plugin('SE', 'after_conv2')]}, {'depth': 50}],
    ids=['ResNet18 with SE', 'ResNet50'],
)
def test_activation_checkpointing_gives_the_same_gradients(options):
    plain, checkpointed = (
        build(asr={'attention': SE}, with_cp=cp, **options).double() for cp in (False, True)
    )
    checkpointed.load_state_dict(plain.state_dict())
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64, requires_grad=True)
    grads = []
    for model in (plain, checkpointed):
        model.zero_grad()
        model(x)[-1].square().mean().backward()
        grads.append([p.grad for p in model.parameters() if p.grad is not None])
    assert len(grads[0]) == len(list(plain.parameters()))
    torch.testing.assert_close(grads[0], grads[1])


INIT_CFGS = {
    'default': {},
    'without zero_init_residual': {'zero_init_residual': False},
    'Kaiming of everything': {'init_cfg': [{'type': 'Kaiming', 'layer': ['Conv2d', 'Conv1d', 'Linear']}]},
    'Constant of everything': {
        'init_cfg': {
            'type': 'Constant',
            'val': 0,
            'bias': 0,
            'layer': ['Conv2d', 'Linear', 'Conv1d', '_BatchNorm', 'GroupNorm'],
        }
    },
    'override': {
        'init_cfg': {'type': 'Normal', 'std': 9.0, 'layer': 'Conv2d', 'override': {'name': 'layer1'}}
    },
}


def initial_values(module):
    """Check that an attention module or an ASR has its own initial values."""
    for name, parameter in module.named_parameters():
        kind, fan_in = name.rpartition('.')[2], parameter[0].numel()
        if kind == 'psi':
            assert parameter.eq(0.1).all(), name
        elif ('fc' in name and kind == 'weight') or name.endswith('conv.weight'):
            # torch's default: uniform in ±1/√fan_in
            assert 0 < parameter.abs().max() <= fan_in**-0.5, name
        elif kind == 'bias' and 'fc' in name:
            assert parameter.abs().max() > 0, name
        elif 'bn.' in name:
            assert parameter.eq(1 if kind == 'weight' else 0).all(), name
        elif kind == 'cfc' or kind == 'weight':
            assert parameter.eq(0).all(), name
        elif kind == 'bias':
            assert parameter.eq(-1).all(), name
        else:
            raise AssertionError(f'unknown parameter {name}')


def build_with_everything(depth, kappa, init, width=64):
    """Build a network with attention and ASR at all positions, and call init_weights."""
    last = 'after_conv2' if depth == 18 else 'after_conv3'
    plugins = [
        plugin(kappa, 'after_conv1'),
        plugin('ASR', last, attention={'type': kappa}),
        plugin(kappa, last, postfix=2),
    ]
    model = build(
        depth=depth,
        asr={'attention': {'type': kappa}},
        plugins=plugins,
        base_channels=width,
        **INIT_CFGS[init],
    )
    nn.init.constant_(model.layer1[0].conv1.weight, 7)
    model.init_weights()
    return model


@pytest.mark.parametrize('init', INIT_CFGS)
@pytest.mark.parametrize('kappa', KAPPAS)
@pytest.mark.parametrize('depth', [18, 50])
def test_init_weights_keeps_the_initial_values_of_psi_and_kappa(depth, kappa, init):
    checked = 0
    for module in build_with_everything(depth, kappa, init).modules():
        if isinstance(module, mmasr.ASR | mmasr.SE | mmasr.ECA | mmasr.SRM | mmasr.IE | mmasr.SPA):
            initial_values(module)
            checked += 1
    blocks = {18: 8, 50: 16}[depth]
    assert checked == blocks * (2 * 2 + 2)  # two ASRs with their κ, two plain κ


@pytest.mark.parametrize('kappa', KAPPAS)
@pytest.mark.parametrize('depth', [18, 50])
def test_init_weights_initializes_the_stock_layers(depth, kappa):
    """It applies ``zero_init_residual`` and the Kaiming initialization."""
    block = build_with_everything(depth, kappa, 'default', width=16).layer1[0]
    norm = block.norm2 if depth == 18 else block.norm3
    assert norm.weight.eq(0).all()
    assert not block.conv1.weight.eq(7).any()


def test_init_identity_holds_after_init_weights():
    model = build(
        depth=50,
        asr={'attention': SE, 'init_identity': True},
        plugins=[plugin('SE', 'after_conv3', init_identity=True)],
    )
    model.init_weights()
    stock = ResNet(depth=50, base_channels=16)
    stock.load_state_dict({k: v for k, v in model.state_dict().items() if k in stock.state_dict()})
    x = torch.randn(2, 3, 64, 64)
    model.eval(), stock.eval()
    for actual, expected in zip(model(x), stock(x), strict=True):
        assert torch.equal(actual, expected)


def test_pretrained_stock_weights_lack_only_asr_and_keep_its_initial_values(tmp_path):
    stock = ResNet(depth=18, base_channels=16)
    nn.init.normal_(stock.conv1.weight)
    # torchvision's files are plain state dicts that include a classifier.
    torch.save(
        {**stock.state_dict(), 'fc.weight': torch.zeros(10, 128), 'fc.bias': torch.zeros(10)},
        tmp_path / 'resnet.pth',
    )
    model = build(
        asr={'attention': SE}, init_cfg={'type': 'Pretrained', 'checkpoint': str(tmp_path / 'resnet.pth')}
    )
    model.init_weights()
    assert torch.equal(model.conv1.weight, stock.conv1.weight)
    for host in hosts(model):
        initial_values(model.get_submodule(host).asr)


@pytest.mark.parametrize('depth', [18, 50])
def test_torchvisions_weights_load_except_for_the_classifier(depth):
    model = build(depth=depth, base_channels=64, asr={'attention': SE})
    result = model.load_state_dict(getattr(torchvision.models, f'resnet{depth}')().state_dict(), strict=False)
    assert result.unexpected_keys == ['fc.weight', 'fc.bias']
    assert all('.asr.' in key for key in result.missing_keys)


@pytest.mark.parametrize('init_identity', [False, True])
def test_a_classifiers_checkpoint_initializes_a_detectors_backbone(tmp_path, init_identity):
    backbone = {'type': 'mmasr.ASRResNet', 'depth': 18, 'base_channels': 16, 'asr': {'attention': SE}}
    config = classifier({**backbone, 'out_indices': (3,), 'norm_eval': False}, 128)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        network = MODELS.build(config.model)
    network.init_weights()
    assert network(torch.randn(2, 3, 64, 64)).shape == (2, 10)
    randomize_scales(network)
    path = str(tmp_path / 'classifier.pth')
    save_checkpoint({'meta': {}, 'state_dict': network.state_dict()}, path)
    # The detection configs set init_identity. The ASR of the checkpoint must compute the same nevertheless.
    detector = build(
        asr={'attention': SE, 'init_identity': init_identity},
        init_cfg={'type': 'Pretrained', 'checkpoint': path, 'prefix': 'backbone.'},
    )
    detector.init_weights()
    x = torch.randn(2, 3, 64, 64)
    detector.eval(), network.eval()
    assert torch.equal(detector(x)[-1], network.backbone(x)[-1])


@pytest.mark.parametrize(
    'backbone',
    [{'type': 'mmdet.ResNet'}, {'type': 'mmdet.ResNeXt', 'groups': 4, 'base_width': 4}],
    ids=['ResNet', 'ResNeXt'],
)
@pytest.mark.parametrize('name', ['ASR', *KAPPAS, 'CBAM'])
def test_plugins_work_at_all_positions_of_the_stock_backbones(name, backbone):
    options = {'attention': SE} if name == 'ASR' else {}
    plugins = [plugin(name, f'after_conv{i}', postfix=f'_{i}', **options) for i in (1, 2, 3)]
    model = MODELS.build({**backbone, 'depth': 50, 'base_channels': 16, 'plugins': plugins})
    model.init_weights()
    block = model.layer2[0]
    modules = [getattr(block, f'{name.lower()}_{i}') for i in (1, 2, 3)]
    assert all(isinstance(m, getattr(mmasr, name)) for m in modules)
    calls = []
    for module in modules:
        module.register_forward_hook(lambda m, args, out: calls.append((m, *args, out)))
    model(torch.randn(2, 3, 64, 64))[-1].sum().backward()
    assert [m for m, *_ in calls] == modules
    assert [x.shape[1] for _, x, _ in calls] == [
        conv.out_channels for conv in (block.conv1, block.conv2, block.conv3)
    ]


def test_plugins_can_be_limited_to_some_stages():
    model = build(depth=50, plugins=[{**plugin('SE', 'after_conv3'), 'stages': (False, True, False, True)}])
    assert [hasattr(getattr(model, f'layer{i}')[0], 'se') for i in (1, 2, 3, 4)] == [False, True, False, True]


BASIC_PLUGINS = [
    plugin('SE', 'after_conv1', postfix=1),
    {**plugin('ECA', 'after_conv2'), 'stages': (True, False, True, True)},
]


def test_plugins_in_basic_blocks_follow_the_first_relu_and_the_last_normalization():
    model = build(plugins=BASIC_PLUGINS)
    reference = build()
    reference.load_state_dict({k: v for k, v in model.state_dict().items() if k in reference.state_dict()})
    block, x = model.layer1[0].eval(), torch.randn(2, 16, 8, 8)
    inside = block.conv2(block.se1(block.relu(block.bn1(block.conv1(x)))))
    torch.testing.assert_close(block(x), torch.relu(block.eca(block.bn2(inside)) + x))


def test_plugins_in_basic_blocks_can_be_limited_to_some_stages():
    assert not hasattr(build(plugins=BASIC_PLUGINS).layer2[0], 'eca')


def test_zero_init_residual_applies_to_basic_blocks_with_plugins():
    model = build(plugins=BASIC_PLUGINS)
    model.init_weights()
    assert model.layer1[0].bn2.weight.eq(0).all()


def test_basic_blocks_have_no_position_after_a_third_convolution():
    with pytest.raises(InputError, match='no position after_conv3'):
        build(plugins=[plugin('SE', 'after_conv3')])


def test_plugins_can_be_pickled():
    model = build(depth=50, plugins=[plugin('SE', 'after_conv3')], asr={'attention': SE})
    other = pickle.loads(pickle.dumps(model))
    assert type(other.layer1[0].se) is type(model.layer1[0].se)
    assert len(hosts(other)) == 16


def wrap(inner, sites=None, **asr):
    return MODELS.build(
        {'type': 'mmasr.ASRBackbone', 'backbone': inner, 'asr': {'attention': SE, **asr}, 'sites': sites}
    )


@pytest.mark.parametrize('init_identity', [False, True], ids=['default', 'init_identity'])
@pytest.mark.parametrize(
    ('inner', 'sites'),
    [
        ({'type': 'mmdet.SwinTransformer', 'depths': (1, 1, 1, 1)}, r'.*ffn\.layers\.1'),
        (
            {
                'type': 'mmpretrain.ResNet',
                'depth': 18,
                'init_cfg': [{'type': 'Constant', 'val': 0, 'layer': 'Linear'}],
            },
            None,
        ),
        (
            {
                'type': 'mmpretrain.MobileNetV2',
                'init_cfg': [{'type': 'Constant', 'val': 0, 'layer': ['Linear', 'Conv2d']}],
            },
            r'layer\d\.\d\.conv\.2\.bn',
        ),
    ],
    ids=['SwinTransformer', 'ResNet', 'MobileNetV2'],
)
def test_init_weights_of_a_wrapped_backbone_keeps_the_values_of_asr(inner, sites, init_identity):
    model = wrap(inner, sites, init_identity=init_identity)
    model.init_weights()
    for name in hosts(model):
        host = model.get_submodule(name)
        initial_values(host.asr)
        if init_identity:
            assert host.asr.scale().eq(1).all()


def test_a_wrapped_backbone_freezes_nothing_by_itself():
    vit = wrap({'type': 'mmpretrain.VisionTransformer', 'arch': 'deit-t'}, 'ln1')
    assert all(p.requires_grad for p in vit.parameters())


@pytest.mark.parametrize(
    ('options', 'frozen'),
    [
        ({'frozen_stages': 1}, 1),
        ({'frozen_stages': 2, 'norm_cfg': {'type': 'BN', 'requires_grad': False}}, 2),
    ],
    ids=['one stage', 'two stages and every BN'],
)
def test_a_wrapped_backbone_freezes_the_asr_in_frozen_stages(options, frozen):
    model = wrap({'type': 'mmdet.ResNet', 'depth': 18, **options})
    learning = [model.get_submodule(name).asr.psi.requires_grad for name in hosts(model)]
    assert learning == [False] * 2 * frozen + [True] * 2 * (4 - frozen)


@pytest.mark.parametrize(
    ('inner', 'sites', 'expected'),
    [
        ({'type': 'mmdet.ResNet', 'depth': 18, 'frozen_stages': 1}, None, 'layer1.0.bn2'),
        ({'type': 'mmpretrain.ResNet', 'depth': 50, 'out_indices': (3,)}, None, 'layer4.2.bn3'),
        ({'type': 'mmpretrain.MobileNetV2'}, r'layer\d\.\d\.conv\.2\.bn', 'layer7.0.conv.2.bn'),
        (
            {'type': 'mmdet.SwinTransformer', 'depths': (1, 1, 1, 1)},
            r'.*\.ffn\.layers\.1',
            'stages.0.blocks.0.ffn.layers.1',
        ),
    ],
    ids=['ResNet', "mmpretrain's ResNet", 'MobileNetV2', 'SwinTransformer'],
)
def test_a_wrapped_backbone_keeps_its_names_and_folds_to_its_class(inner, sites, expected):
    model = wrap(inner, sites)
    stock = MODELS.build(inner)
    assert isinstance(model, type(stock))
    assert expected in hosts(model)
    assert [k for k in model.state_dict() if '.asr.' not in k] == list(stock.state_dict())
    model.init_weights()
    assert_folds_to(model, type(stock))


RESNET = {'type': 'mmdet.ResNet', 'depth': 18, 'base_channels': 16}
BAD_OPTIONS = {
    'asr is a text': (
        {'asr': 'SE'},
        r"asr must be a dict such as dict\(attention=dict\(type='SE'\)\), not 'SE'",
    ),
    'asr is a list': ({'asr': [SE]}, 'asr must be a dict'),
    'asr without attention': ({'asr': {'delta': 2}}, r"asr must be a dict .*, not {.*'delta': 2}"),
    'convs is a text': (
        {'convs': 'OREPA'},
        r"convs must be a dict such as dict\(type='OREPA'\), or a list of such dicts, not 'OREPA'",
    ),
    'convs without type': ({'convs': {}}, "unknown type ''"),
}


@pytest.mark.parametrize('wrapped', [False, True], ids=['registered', 'ASRBackbone'])
@pytest.mark.parametrize('name', BAD_OPTIONS)
def test_bad_asr_and_convs_are_input_errors(name, wrapped):
    options, message = BAD_OPTIONS[name]
    config = (
        {'type': 'mmasr.ASRBackbone', 'backbone': RESNET}
        if wrapped
        else {'type': 'mmasr.ASRResNet', 'depth': 18}
    )
    with pytest.raises(InputError, match=message):
        MODELS.build({**config, **options})


@pytest.mark.parametrize('pretrained', [None, 'weights.pth'])
def test_asrbackbone_needs_the_config_of_a_backbone(pretrained):
    config = {'type': 'mmasr.ASRBackbone', 'backbone': 'mmdet.ResNet', 'asr': {'attention': SE}}
    with pytest.raises(InputError, match=r"must be the config of a backbone, not 'mmdet\.ResNet'"):
        MODELS.build({**config, 'pretrained': pretrained})


def test_asrbackbone_needs_something_to_insert():
    with pytest.raises(InputError, match='nothing to insert: pass asr, convs or both'):
        MODELS.build({'type': 'mmasr.ASRBackbone', 'backbone': RESNET})


@pytest.mark.parametrize('depth', [18, 50])
@pytest.mark.parametrize(
    'plugins',
    [
        [{'position': 'after_conv1'}],
        [{'cfg': {'type': 'mmasr.SE'}}],
        [{'cfg': {}, 'position': 'after_conv1'}],
        [{'cfg': 'mmasr.SE', 'position': 'after_conv1'}],
        ['mmasr.SE'],
        plugin('SE', 'after_conv1'),
    ],
    ids=['no cfg', 'no position', 'no type', 'cfg is a text', 'a text', 'not a list'],
)
def test_incomplete_plugins_are_input_errors(plugins, depth):
    with pytest.raises(InputError, match='plugins must be a list of dicts such as'):
        build(depth=depth, plugins=plugins)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'modules': ['layer1.0.bn1', 'layer1.0.se']}, r'ResNet has no module layer1\.0\.se$'),
        ({'modules': [3]}, 'has no module 3'),
        ({'modules': 'layer1'}, "modules must be a list of names, not 'layer1'"),
        ({'network': 'mmdet.ResNet'}, "network must be the config of a network, not 'mmdet.ResNet'"),
    ],
)
def test_withoutattention_rejects_wrong_arguments(options, message):
    with pytest.raises(InputError, match=message):
        MODELS.build({'type': 'mmasr.WithoutAttention', 'network': RESNET, 'modules': [], **options})


def test_withoutattention_removes_modules():
    model = MODELS.build({'type': 'mmasr.WithoutAttention', 'network': RESNET, 'modules': ['layer1.0.relu']})
    assert type(model) is ResNet
    assert type(model.layer1[0].relu) is nn.Identity
