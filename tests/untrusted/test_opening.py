"""Opening a checkpoint: its content as data, and its network, built and run within limits."""

import copy
import dataclasses
import sys

import pytest
import torch
from helpers import TWO_STAGES, Touch, classifier, randomize_norms, save_network
from mmengine.config import Config
from mmengine.registry import MODELS
from mmengine.runner import CheckpointLoader
from torch import nn

from mmasr.errors import InputError, with_source
from mmasr.openmmlab.backbones.resnet import ASRResNet
from mmasr.untrusted import open_checkpoint, write_config

LOADER = {'batch_size': 1, 'num_workers': 0, 'dataset': {'type': 'CustomDataset', 'data_root': 'data'}}


@pytest.fixture
def path(tmp_path):
    """Return a checkpoint with its config, and with training data, test data and a hook in that."""
    config = classifier(TWO_STAGES, 16)
    config.update(
        {
            'train_dataloader': LOADER,
            'test_dataloader': LOADER,
            'test_evaluator': {'type': 'Accuracy'},
            'custom_hooks': [{'type': 'mmasr.StripeHook'}],
        }
    )
    save_network(tmp_path / 'a.pth', config, randomize_norms)
    return tmp_path / 'a.pth'


def change(path, edit):
    """Change the content of a checkpoint; return its path."""
    checkpoint = torch.load(path, weights_only=False)
    edit(checkpoint)
    torch.save(checkpoint, path)
    return path


def set_config(**parts):
    """Return an edit that sets parts of the embedded config."""

    def edit(checkpoint):
        config = {**Config.fromstring(checkpoint['meta']['cfg'], '.py').to_dict(), **parts}
        checkpoint['meta']['cfg'] = write_config(config)

    return edit


def set_weight(name, change):
    return lambda checkpoint: checkpoint['state_dict'].update({name: change(checkpoint['state_dict'][name])})


def test_a_checkpoint_is_opened_as_data(path):
    change(path, lambda checkpoint: checkpoint['meta'].update(epoch=3, config='raise SystemExit'))
    opened = open_checkpoint(str(path))
    assert opened.source == path
    assert set(opened.content) == {'meta', 'state_dict'}
    assert set(opened.content['meta']) == {'cfg', 'epoch'}
    expected = torch.load(path, weights_only=False)['state_dict']
    assert all(torch.equal(opened.content['state_dict'][name], tensor) for name, tensor in expected.items())


def test_nothing_in_a_checkpoint_runs(path, tmp_path):
    change(path, lambda checkpoint: checkpoint['meta'].update(x=Touch(tmp_path / 'proof')))
    with pytest.raises(InputError, match=r'a\.pth: refused, since loading it would use posix\.mknod'):
        open_checkpoint(path)
    assert not (tmp_path / 'proof').exists()


def test_the_network_of_the_embedded_config_has_the_weights(path):
    change(path, set_weight('backbone.conv1.weight', torch.Tensor.half))
    expected = torch.load(path, weights_only=False)
    network = open_checkpoint(path).network()
    assert isinstance(network.model.backbone, ASRResNet)
    weights = network.model.state_dict()
    assert weights.keys() == expected['state_dict'].keys() == network.weights.keys()
    for name, tensor in expected['state_dict'].items():
        assert network.weights[name].dtype == tensor.dtype
        assert torch.equal(network.weights[name], tensor)
        assert weights[name].dtype == (torch.float32 if tensor.is_floating_point() else tensor.dtype)
        assert torch.equal(weights[name], tensor.to(weights[name].dtype))
    assert network.meta == expected['meta']
    assert network.origin.source == path
    assert network.origin.sizes == {name: tensor.numel() for name, tensor in weights.items()}


def test_an_embedded_config_is_reduced_to_what_deploying_needs(path):
    network = open_checkpoint(path).network()
    assert set(network.origin.left_out) == {'train_dataloader', 'custom_hooks'}
    assert 'test_dataloader' in network.config
    assert 'train_dataloader' not in network.config


def test_a_deployed_config_has_the_images_for_calibration_but_not_the_main_metric(path):
    network = open_checkpoint(path).network(calibrates=True)
    deployed = network.origin.deployed(network.config.to_dict())
    assert deployed['calibration_dataset']['data_root'] == 'data'
    assert set(network.config) - set(deployed) == {'default_hooks'}


@pytest.mark.parametrize('kind', ['a file', 'a path', 'a config'])
def test_a_config_of_the_user_is_used_as_it_is(path, tmp_path, kind):
    config = Config.fromstring(torch.load(path, weights_only=False)['meta']['cfg'], '.py')
    config.dump(tmp_path / 'own.py')
    change(path, lambda checkpoint: checkpoint['meta'].update(cfg='not read'))
    given = {'a file': str(tmp_path / 'own.py'), 'a path': tmp_path / 'own.py', 'a config': config}[kind]
    network = open_checkpoint(path).network(given)
    assert network.config.to_dict() == config.to_dict()
    assert network.origin.left_out is None
    assert network.origin.deployed({'train_dataloader': 1}) == {'train_dataloader': 1}


def test_a_checkpoint_without_a_config_needs_one(path):
    change(path, lambda checkpoint: checkpoint['meta'].clear())
    with pytest.raises(InputError, match=r'a\.pth has no config in it; pass the one .* as `config`'):
        open_checkpoint(path).network()


def test_a_refused_embedded_config_names_the_file_the_reason_and_the_option(path):
    change(path, set_config(model={'type': 'os.system'}))
    message = (
        r"a\.pth: the embedded config is not used: model builds 'os\.system', .*; pass .* with `config`$"
    )
    with pytest.raises(InputError, match=message):
        open_checkpoint(path).network()


def test_trust_imports_allows_the_classes_of_a_module(path, tmp_path, monkeypatch):
    (tmp_path / 'user_module.py').write_text(
        'from mmengine.registry import MODELS\n'
        'from mmdet.models import ResNet\n'
        'import mmasr.openmmlab.backbones.resnet as resnet\n'
        '@MODELS.register_module(force=True)\n'
        'class UserBackbone(resnet.ASRResNet): pass\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    imports = {'imports': ['user_module'], 'allow_failed_imports': False}
    model = {**classifier({**TWO_STAGES, 'type': 'mmengine.UserBackbone'}, 16).model.to_dict()}
    change(path, set_config(custom_imports=imports, model=model))
    with pytest.raises(InputError, match='imports user_module, which was not run'):
        open_checkpoint(path).network()
    assert 'user_module' not in sys.modules
    network = open_checkpoint(path).network(trust_imports=True)
    assert type(network.model.backbone).__name__ == 'UserBackbone'
    assert network.origin.trusted == ['user_module']
    sys.modules.pop('user_module')
    MODELS.module_dict.pop('UserBackbone')


@pytest.mark.parametrize(
    'dtype', [torch.complex64, getattr(torch, 'float8_e4m3fn', torch.complex128)], ids=['complex', 'float8']
)
def test_weights_of_other_types_are_refused(path, dtype):
    opened = open_checkpoint(path)
    weights = opened.content['state_dict']
    weights['head.fc.bias'] = weights['head.fc.bias'].to(dtype)
    with pytest.raises(
        InputError, match=rf'a\.pth: weights are {dtype} in head\.fc\.bias; only float and integer'
    ):
        opened.network()


@pytest.mark.parametrize('value', [torch.nan, torch.inf], ids=str)
def test_weights_that_are_not_finite_are_refused(path, value):
    def damage(weight):
        weight[0] = value
        return weight

    change(path, set_weight('head.fc.weight', damage))
    with pytest.raises(
        InputError, match=r'a\.pth: NaN or Inf in head\.fc\.weight; use an earlier checkpoint'
    ):
        open_checkpoint(path).network()


def test_weights_of_another_network_are_refused(path):
    change(path, lambda checkpoint: checkpoint['state_dict'].pop('head.fc.bias'))
    with pytest.raises(InputError, match=r"a\.pth: config and weights don't match: missing: head\.fc\.bias"):
        open_checkpoint(path).network()


def load_a_file():
    torch.load('weights.pth')


def build_a_large_layer():
    nn.Linear(10**5, 10**5, device='meta')


def look_up_a_forbidden_class():
    MODELS.get('StochasticWeightAverage')


VIOLATIONS = [load_a_file, build_a_large_layer, look_up_a_forbidden_class]


@pytest.mark.parametrize('violate', VIOLATIONS)
def test_the_network_of_an_embedded_config_runs_in_the_sandbox(path, violate):
    origin = open_checkpoint(path).network().origin
    with (
        pytest.raises(InputError, match=r'a\.pth: .*(loads the file|larger than its weights|not allowed)'),
        origin.limits(),
    ):
        violate()


def test_a_violation_names_the_checkpoint_once(path):
    origin = open_checkpoint(path).network().origin
    for source in ('layer1', path):
        with pytest.raises(InputError) as caught, origin.limits(), with_source(source):
            load_a_file()
        assert str(caught.value).startswith(f'{path}: ')
        assert str(caught.value).count('a.pth') == 1


def test_other_errors_within_the_limits_are_unchanged(path):
    origin = open_checkpoint(path).network().origin
    with pytest.raises(InputError, match=r'^an image is missing$'), origin.limits():
        raise InputError('an image is missing')


def test_importing_mmengine_does_not_allow_all_its_classes(path):
    change(path, set_config(custom_imports={'imports': ['mmasr', 'mmengine'], 'allow_failed_imports': False}))
    origin = open_checkpoint(path).network().origin
    with pytest.raises(InputError, match='not allowed'), origin.limits():
        look_up_a_forbidden_class()


def test_the_network_of_a_users_config_runs_without_the_sandbox(path, tmp_path):
    config = Config.fromstring(torch.load(path, weights_only=False)['meta']['cfg'], '.py')
    origin = open_checkpoint(path).network(config).origin
    torch.save({'x': slice(3)}, tmp_path / 'weights.pth')
    with origin.limits():
        assert torch.load(tmp_path / 'weights.pth', weights_only=False) == {'x': slice(3)}
        build_a_large_layer()
        look_up_a_forbidden_class()


def test_mmengine_loads_only_data_within_the_limits_of_a_users_config(path, tmp_path):
    config = Config.fromstring(torch.load(path, weights_only=False)['meta']['cfg'], '.py')
    origin = open_checkpoint(path).network(config).origin
    torch.save({'state_dict': {'x': Touch(tmp_path / 'proof')}}, tmp_path / 'bad.pth')
    with pytest.raises(InputError, match=r'posix\.mknod'), origin.limits():
        CheckpointLoader.load_checkpoint(str(tmp_path / 'bad.pth'))
    assert not (tmp_path / 'proof').exists()


def test_a_config_made_from_weights_builds_within_their_limits(path):
    opened = open_checkpoint(path)
    small = classifier(TWO_STAGES, 16)
    assert isinstance(opened.build(small).backbone, ASRResNet)
    large = classifier({**TWO_STAGES, 'base_channels': 2000}, 16)
    with pytest.raises(InputError, match=r'a\.pth: the network is many times larger than its weights'):
        opened.build(large)


@pytest.fixture
def pair(path, tmp_path):
    """Return the origin of a network, a pair of files with its weights and its config, and the config."""
    network = open_checkpoint(path).network()
    config = network.config.to_dict()
    files = tmp_path / 'deployed.pth', tmp_path / 'deployed.py'
    torch.save({'state_dict': network.model.state_dict(), 'meta': {}}, files[0])
    files[1].write_text(write_config(config))
    return network.origin, files, config


def test_a_pair_of_files_is_rebuilt(pair):
    origin, files, config = pair
    rebuilt = origin.rebuild(*files, config)
    expected = torch.load(files[0])['state_dict']
    for name, tensor in rebuilt.model.state_dict().items():
        assert torch.equal(tensor, expected[name])


def test_a_config_that_reads_back_differently_is_refused(pair):
    origin, files, config = pair
    other = copy.deepcopy(config)
    other['model']['head']['topk'] = True  # equal to 1, but not the same
    config['model']['head']['topk'] = 1
    files[1].write_text(write_config(other))
    with pytest.raises(InputError, match=r'a\.pth: the deployed config does not read back as it was written'):
        origin.rebuild(*files, config)


def test_a_written_config_is_parsed_and_not_executed(pair, tmp_path):
    origin, files, config = pair
    files[1].write_text(f"open({str(tmp_path / 'proof')!r}, 'w')")
    with pytest.raises(InputError, match='not executed'):
        origin.rebuild(*files, config)
    assert not (tmp_path / 'proof').exists()


def test_written_weights_that_do_not_match_the_config_are_refused(pair):
    origin, files, config = pair
    config['model']['head']['num_classes'] = 3
    files[1].write_text(write_config(config))
    with pytest.raises(
        InputError, match=r"deployed\.pth: config and weights don't match: of another shape: head"
    ):
        origin.rebuild(*files, config)


def test_a_pair_of_files_is_rebuilt_within_the_limits(pair):
    origin, files, config = pair
    tiny = dataclasses.replace(origin, sizes={'weight': 0})
    config['model']['backbone']['base_channels'] = 1000
    files[1].write_text(write_config(config))
    with pytest.raises(InputError, match=r'a\.pth: the network is many times larger than its weights'):
        tiny.rebuild(*files, config)
