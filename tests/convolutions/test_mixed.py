"""Several kinds of re-parameterization in one network: sites, errors, and deploying."""

import copy
from types import SimpleNamespace

import pytest
import torch
import torchvision
from helpers import ROOT, built, classifier, randomize_norms, save_network
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import nn

import mmasr
from mmasr.convolutions.branches import Branches
from mmasr.core.attach import attach_in_order
from mmasr.core.host import Host
from mmasr.core.reparameterization import REPARAMETERIZATIONS, BranchReparameterization
from mmasr.deploy.config_check import check_deployed_config
from mmasr.deploy.deployed_config import deployed_config
from mmasr.deploy.reparameterize import reparameterize
from mmasr.errors import InputError
from mmasr.openmmlab.hooks import MatchingFormHook
from mmasr.untrusted.config_text import write_config
from mmasr.untrusted.embedded_config import read_config

RESNET = {'depth': 18, 'base_channels': 8, 'out_indices': (3,), 'norm_eval': False}
OURS = {'type': 'mmasr.ASRResNet', **RESNET}
SE = {'attention': {'type': 'SE'}}


def kinds_at(network):
    """Return the kind of every layer with a re-parameterization, by name."""
    found = {}
    for name, module in network.named_modules():
        if isinstance(module, BranchReparameterization):
            found[name] = type(module).__name__
        elif isinstance(module, Host):
            found[name] = module.reparameterization().title
    return found


def convolutions(*stages):
    """Return the names of the 3 x 3 convolutions of some stages of a ResNet-18."""
    return [f'layer{s}.{block}.conv{conv}' for s in stages for block in (0, 1) for conv in (1, 2)]


DBB_AND_OREPA = [{'type': 'DBB', 'sites': r'layer4\.\d\.conv\d'}, {'type': 'OREPA'}]


@pytest.mark.parametrize('wrapped', [False, True], ids=['registered', 'ASRBackbone'])
@pytest.mark.parametrize('sequence', [list, tuple])
def test_an_entry_without_sites_gets_the_default_sites_that_are_left(sequence, wrapped):
    config = OURS
    if wrapped:
        config = {'type': 'mmasr.ASRBackbone', 'backbone': {'type': 'mmdet.ResNet', **RESNET}}
    network = MODELS.build({**config, 'convs': sequence(DBB_AND_OREPA)})
    assert kinds_at(network) == {
        **dict.fromkeys(['conv1', *convolutions(1, 2, 3)], 'OREPA'),
        **dict.fromkeys(convolutions(4), 'DBB'),
    }


@pytest.mark.parametrize('first', sorted(REPARAMETERIZATIONS.keys() - {'ASR', 'DilatedReparam'}))
@pytest.mark.parametrize('second', sorted(REPARAMETERIZATIONS.keys() - {'DilatedReparam'}))
def test_default_sites_of_a_second_call_are_none_of_the_first_or_inside_it(first, second):
    plain = torchvision.models.resnet18()
    names = {name for name, _ in plain.named_modules()}
    network = mmasr.attach(plain, {'type': first}, sites=convolutions(3)[:2])
    before = kinds_at(network)
    options = SE if second == 'ASR' else {}
    after = kinds_at(mmasr.attach(network, {'type': second, **options}))
    assert len(after) > len(before)
    assert {name: after[name] for name in before} == before
    assert after.keys() <= names


def test_layers_inside_a_merged_xvolution_are_not_sites():
    network = mmasr.attach(torchvision.models.resnet18(), {'type': 'XVolution', 'branch': 'sa'})
    mmasr.fold(network)
    assert set(kinds_at(mmasr.attach(network, {'type': 'OREPA'}))) == {'conv1', *convolutions(1, 2, 4)}


def test_a_network_whose_default_sites_are_all_taken_is_rejected():
    network = mmasr.attach(torchvision.models.resnet18(), {'type': 'OREPA'})
    with pytest.raises(
        InputError, match='ResNet has a re-parameterization at all default sites; pass sites='
    ):
        mmasr.attach(network, {'type': 'OREPA'})
    message = 'ResNet has no 3 x 3 convolution, apart from layers with a re-parameterization; pass sites='
    with pytest.raises(InputError, match=message):
        mmasr.attach(network, {'type': 'DBB'})


def test_patterns_refer_to_the_layers_of_the_plain_network():
    """The convolutions inside the branches of the first entry match the second pattern too."""
    convs = [{'type': 'DBB', 'sites': 'layer1.0.conv1'}, {'type': 'OREPA', 'sites': r'(?!layer1\.0).*conv1?'}]
    found = kinds_at(MODELS.build({**OURS, 'convs': convs}))
    expected = [name for name in ('conv1', *convolutions(1, 2, 3, 4)) if name.endswith('conv1')]
    assert found == {**dict.fromkeys(expected, 'OREPA'), 'layer1.0.conv1': 'DBB'}


BAD = {
    'a site of two': (
        [{'type': 'DBB', 'sites': r'layer1\..*conv1'}, {'type': 'OREPA', 'sites': ['layer1.1.conv1']}],
        r'^layer1\.1\.conv1 is a site of both DBB and OREPA; name it once$',
    ),
    'a site of one kind twice': (
        [{'type': 'DBB', 'sites': ['layer1.1.conv1']}, {'type': 'DBB', 'sites': ['layer1.1.conv1']}],
        r'^layer1\.1\.conv1 is a site of both DBB and DBB; name it once$',
    ),
    'a default site': (
        [{'type': 'OREPA'}, {'type': 'DBB', 'sites': ['layer1.1.conv1']}],
        r'^layer1\.1\.conv1 is a default site of OREPA and also a site of DBB; put DBB, which names its '
        '`sites`, first$',
    ),
    'one that is no dict': (
        [{'type': 'DBB'}, 'OREPA'],
        r"^convs must be a dict such as dict\(type='OREPA'\), or a list of such dicts, not \[",
    ),
    'an empty list': ([], r'^convs must be a dict .*, or a list of such dicts, not \[\]$'),
    'an unknown type': ([{'type': 'DBB', 'sites': ['conv1']}, {'type': 'X'}], "^unknown type 'X'"),
}


@pytest.mark.parametrize('name', BAD)
def test_bad_lists_are_input_errors_in_one_line(name):
    convs, message = BAD[name]
    with pytest.raises(InputError, match=message) as error:
        MODELS.build({**OURS, 'convs': convs})
    assert '\n' not in str(error.value)


def test_a_network_stays_as_it_is_if_two_entries_name_a_site():
    network = torchvision.models.resnet18()
    before = [type(module) for module in network.modules()]
    with pytest.raises(InputError, match='is a site of both'):
        attach_in_order(network, BAD['a site of two'][0])
    assert [type(module) for module in network.modules()] == before


#: Kinds that have the same marker in a state dict, and OREPA.
ALL = [
    {'type': 'RepVGG', 'sites': r'layer1\.0\.conv\d'},
    {'type': 'QARepVGG', 'sites': r'layer1\.1\.conv\d'},
    {'type': 'MobileOne', 'sites': r'layer2\..*conv\d', 'copies': 2},
    {'type': 'OfflineOREPA', 'sites': r'layer2\.0\.downsample\.0|layer3\.0\.conv1'},
    {'type': 'DBB', 'sites': r'layer3\.0\.conv2'},
    {'type': 'ACNet', 'sites': r'layer3\.1\.conv\d'},
    {'type': 'OREPA'},
]
DYNAMIC = [
    {'type': 'XVolution', 'branch': 'sa', 'sites': ['layer3.0.conv1', 'layer3.1.conv1']},
    {'type': 'OREPA', 'sites': r'layer[12]\..*\.conv\d'},
    {'type': 'XVolution', 'sites': ['layer3.1.conv2']},
    {'type': 'DBB'},
]
MIXED = {'DBB and OREPA': DBB_AND_OREPA, 'all': ALL, 'dynamic': DYNAMIC}


def mixed(convs, wrapped=False, **options):
    """Return the config of a classifier with several kinds."""
    convs = copy.deepcopy(convs)
    backbone = {**OURS, 'convs': convs, **options}
    if wrapped:
        inner = {'type': 'mmdet.ResNet', **RESNET}
        backbone = {'type': 'mmasr.ASRBackbone', 'backbone': inner, 'convs': convs, **options}
    return classifier(backbone, 64)


@pytest.mark.parametrize(
    ('name', 'options'),
    [
        ('DBB and OREPA', {}),
        ('DBB and OREPA', {'wrapped': True, 'asr': SE}),
        ('all', {}),
        ('dynamic', {}),
        ('dynamic', {'wrapped': True}),
    ],
    ids=str,
)
def test_a_mixed_network_trains_and_deploys_with_its_embedded_config(tmp_path, name, options):
    config = mixed(MIXED[name], **options)

    def trained(network):
        network.train()
        network(torch.randn(4, 3, 64, 64)).square().mean().backward()
        torch.optim.SGD(network.parameters(), lr=0.01).step()
        return randomize_norms(network)

    network = save_network(tmp_path / 'a.pth', config, trained)
    kinds = set(kinds_at(network).values()) - {'ASR'}
    assert kinds == {entry['type'] for entry in MIXED[name]}
    report = reparameterize(tmp_path / 'a.pth')
    assert max(difference.relative for difference in report.differences) <= 1e-5
    deployed = Config.fromfile(report.config)
    if name != 'dynamic':
        assert deployed.model.backbone.type == 'mmdet.ResNet'
        assert not {'convs', 'asr'} & deployed.model.backbone.keys()
        assert 'custom_imports' not in deployed
        return
    assert deployed.model.backbone.convs == [
        {'type': 'XVolution', 'branch': 'sa', 'deploy': True, 'sites': ['layer3.0.conv1', 'layer3.1.conv1']},
        {'type': 'XVolution', 'deploy': True, 'sites': ['layer3.1.conv2']},
    ]
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = network.eval()(x)
        found = built(deployed, report.checkpoint).eval()(x)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize('name', ['resnet20_dbb_orepa', 'convnext_dilated'])
def test_a_config_of_the_digits_deploys_as_its_plain_network(tmp_path, name):
    config = Config.fromfile(ROOT / f'configs/digits/{name}.py', format_python_code=False)
    plain = Config.fromfile(ROOT / f'configs/digits/{name.split("_")[0]}.py', format_python_code=False)
    save_network(tmp_path / 'a.pth', config, randomize_norms)
    report = reparameterize(tmp_path / 'a.pth')
    assert max(difference.relative for difference in report.differences) <= 1e-5
    deployed = built(Config.fromfile(report.config), report.checkpoint)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        assert deployed.state_dict().keys() == MODELS.build(plain.model).state_dict().keys()


def test_entries_of_which_nothing_remains_are_left_out():
    convs = [
        {'type': 'XVolution', 'sites': r'layer3\.0\..*'},
        {'type': 'XVolution', 'branch': 'sa'},
        {'type': 'DBB'},
    ]
    network = mmasr.attach(torchvision.models.resnet18(), {'type': 'XVolution', 'branch': 'sa'})
    mmasr.fold(network)
    found = mmasr_deployed({**OURS, 'convs': convs}, network)
    assert found['convs'] == [
        {'type': 'XVolution', 'deploy': True, 'sites': convolutions(3)[:2]},
        {'type': 'XVolution', 'branch': 'sa', 'deploy': True, 'sites': convolutions(3)[2:]},
    ]
    network.layer3[0] = nn.Identity()
    assert mmasr_deployed({**OURS, 'convs': convs}, network)['convs'] == found['convs'][1:]
    assert 'convs' not in mmasr_deployed({**OURS, 'convs': convs}, nn.Identity())


def mmasr_deployed(backbone, network):
    return MODELS.get('mmasr.ASRResNet').deployed_config(backbone, network)


@pytest.mark.parametrize('name', MIXED)
def test_the_check_of_deployed_configs_accepts_lists(name):
    config = mixed(MIXED[name], wrapped=True)
    changes = check_deployed_config(config.to_dict(), deployed_config(config).to_dict())
    assert 'model.backbone.type' in changes or changes == ['model.backbone.convs']


def test_weights_of_a_mixed_network_fit_only_the_mixed_network():
    networks = {
        form: MODELS.build({**OURS, 'convs': convs}) for form, convs in (('mixed', ALL), ('plain', None))
    }

    def check(model, weights, trains=True):
        runner = SimpleNamespace(model=networks[model], cfg=Config(), _load_from='x.pth', _resume=False)
        MatchingFormHook(trains).after_load_checkpoint(runner, {'state_dict': networks[weights].state_dict()})

    check('mixed', 'mixed')
    check('mixed', 'plain')  # a training may start from plain weights
    with pytest.raises(
        InputError, match=r'x\.pth has weights of a re-parameterization that the config lacks'
    ):
        check('plain', 'mixed')
    with pytest.raises(InputError, match=r'x\.pth lacks weights of the re-parameterization in the config'):
        check('mixed', 'plain', trains=False)


def read(convs, weights):
    config = {'default_scope': 'mmdet', 'model': {'type': 'FasterRCNN', 'backbone': {**OURS, 'convs': convs}}}
    weights = dict.fromkeys((f'backbone.{name}' for name in weights), torch.zeros(1))
    return read_config(write_config(config), weights)[0]['model']['backbone']['convs']


PATTERN = '((.|.)*)*!'


def test_the_weights_tell_which_entry_has_a_layer():
    """The patterns of an untrusted config are not evaluated."""
    weights = MODELS.build({**OURS, 'convs': ALL}).state_dict()
    entries = [{**entry, 'sites': PATTERN} if 'sites' in entry else entry for entry in ALL]
    rebuilt = MODELS.build({**OURS, 'convs': read(entries, weights)})
    assert rebuilt.state_dict().keys() == weights.keys()


def test_the_weights_tell_it_with_an_asr_at_the_same_layers():
    convs = [{'type': 'RepVGG', 'sites': ['layer1.0.conv1']}, {'type': 'DBB', 'sites': ['layer1.1.conv1']}]
    asr = {**SE, 'sites': [entry['sites'][0] for entry in convs]}
    network = MODELS.build({**OURS, 'convs': convs})
    weights = mmasr.attach(network, {'type': 'ASR', **SE}, sites=asr['sites']).state_dict()
    assert read([{**entry, 'sites': PATTERN} for entry in convs], weights) == convs


@pytest.mark.parametrize('second', [{'sites': ['layer3.1.conv1']}, {}], ids=['named', 'default'])
def test_names_are_kept_where_the_weights_do_not_tell(second):
    first = {'type': 'XVolution', 'branch': 'sa', 'sites': ['layer3.0.conv1', 'layer3.0.x']}
    convs = [first, {'type': 'XVolution', **second}]
    weights = ['layer3.0.conv1.dynamic.norm.weight', 'layer3.1.conv1.dynamic.norm.weight']
    assert read(convs, weights) == [{**first, 'sites': ['layer3.0.conv1']}, convs[1]]


@pytest.mark.parametrize('second', [{'sites': PATTERN}, {}], ids=['named', 'default'])
def test_patterns_are_refused_where_the_weights_do_not_tell(second):
    message = 'the weights do not tell which layers are XVolution and which are XVolution of another entry'
    with pytest.raises(InputError, match=message):
        read([{'type': 'XVolution', 'sites': PATTERN}, {'type': 'XVolution', **second}], [])


def test_a_kind_of_a_user_is_told_apart_by_its_marker_alone(monkeypatch):
    class Mine(REPARAMETERIZATIONS['DBB']):
        """Kind with other branches."""

    monkeypatch.setitem(REPARAMETERIZATIONS, 'Mine', Mine)
    weights = ['layer1.0.conv1.origin.conv.weight', 'layer1.0.conv1.more.weight']
    convs = read([{'type': 'Mine', 'sites': PATTERN}, {'type': 'OREPA'}], weights)
    assert convs[0]['sites'] == ['layer1.0.conv1']


@pytest.mark.parametrize(
    'kind', [name for name, kind in REPARAMETERIZATIONS.items() if issubclass(kind, Branches)]
)
@pytest.mark.parametrize(
    'options', [{}, {'stride': 2}, {'groups': 8}, {'kernel_size': 1}, {'kernel_size': 7}]
)
def test_every_kind_is_recognized_in_a_state_dict(kind, options):
    size = options.get('kernel_size', 3)
    layer = nn.Conv2d(8, 8, **{'kernel_size': size, 'padding': size // 2, **options})
    if kind == 'DilatedReparam':
        layer = nn.Conv2d(8, 8, 7, padding=3, groups=8)
    if not REPARAMETERIZATIONS[kind].supports('x', layer):
        pytest.skip('not supported')
    weights = mmasr.attach(nn.Sequential(layer), {'type': kind}, sites=['0']).state_dict()
    names = [f'layer1.{name}' for name in weights]
    others = [k for k, other in REPARAMETERIZATIONS.items() if issubclass(other, Branches) and k != kind]
    entries = [{'type': name, 'sites': PATTERN} for name in (kind, *others)]
    found = {entry['type']: entry['sites'] for entry in read(entries, names)}
    assert found == {kind: ['layer1.0'], **{name: [] for name in others}}
