"""The sandbox in which an untrusted network is built and run."""

import re
import resource
import sys

import pytest
import torch
from mmcv.ops import DeformConv2d, ModulatedDeformConv2d
from mmengine.registry import MODELS
from mmengine.runner import CheckpointLoader, load_checkpoint
from torch import nn

from mmasr.errors import InputError
from mmasr.untrusted.sandbox import SandboxError, check_numbers, sandbox

SMALL = {'weight': 8}


@pytest.mark.parametrize(
    ('build', 'culprit'),
    [
        (lambda: nn.Linear(10**4, 10**4), r'Linear\.weight has 100,000,000 elements'),
        (
            lambda: nn.Module().register_buffer('a', torch.zeros(1).expand(10**9)),
            r'Module\.a has 1,000,000,000 elements',
        ),
        (
            lambda: nn.Sequential(*(nn.Identity() for _ in range(10_100))),
            'more than 10,016 modules, the last in a Sequential',
        ),
    ],
    ids=['parameters', 'a buffer', 'modules'],
)
def test_a_network_out_of_proportion_to_its_weights_is_not_built(build, culprit):
    with pytest.raises(SandboxError, match=f'many times larger than its weights: {culprit}'), sandbox(SMALL):
        build()


def test_a_wide_network_is_not_built():
    backbone = {'type': 'mmdet.ResNet', 'depth': 50, 'base_channels': 10**6}
    with pytest.raises(SandboxError, match=r'Conv2d\.weight has \d+,\d{3},000 elements'), sandbox(SMALL):
        MODELS.build(backbone)


def test_a_network_in_proportion_to_its_weights_is_built():
    with sandbox({'weight': 10**8}), torch.device('meta'):
        nn.Linear(10**4, 10**4)


@pytest.mark.skipif(sys.platform != 'linux', reason='only Linux has /proc/self/statm')
def test_memory_is_limited():
    with pytest.raises(RuntimeError), sandbox(SMALL):
        torch.zeros(2**34)


def test_memory_is_not_limited_on_a_gpu():
    limits = resource.getrlimit(resource.RLIMIT_AS)
    with sandbox(SMALL, limit_memory=False):
        assert resource.getrlimit(resource.RLIMIT_AS) == limits


def test_a_type_that_no_registry_has_is_not_imported(proof):
    with pytest.raises(KeyError), sandbox(SMALL):
        MODELS.build({'type': 'attacker_module'})
    assert not proof.exists()
    with pytest.raises(TypeError):  # outside the sandbox, mmengine imports it
        MODELS.build({'type': 'attacker_module'})
    assert proof.exists()


def test_a_forbidden_type_is_not_looked_up():
    with (
        pytest.raises(
            SandboxError, match=r"builds 'StochasticWeightAverage', which is not allowed: .*allow-list"
        ),
        sandbox(SMALL),
    ):
        MODELS.get('StochasticWeightAverage')


def test_a_forbidden_argument_is_refused():
    config = {'type': 'mmpretrain.TIMMBackbone', 'model_name': 'resnet18', 'checkpoint_path': 'weights.pth'}
    message = r"builds 'mmpretrain\.TIMMBackbone' with checkpoint_path='weights\.pth', which is not allowed"
    with pytest.raises(SandboxError, match=message), sandbox(SMALL):
        MODELS.build(config)


class LoadsFile(nn.Module):
    """A layer that loads a file, as if it were a reviewed one."""

    def __init__(self, load):
        super().__init__()
        load()


LoadsFile.__module__ = 'mmcv.cnn.bricks.of_this_test'
LOADS = {
    'torch': lambda: torch.load('vocab.json'),
    'torch, by keyword': lambda: torch.load(f='vocab.json', weights_only=False),
    "mmengine's loader": lambda: CheckpointLoader.load_checkpoint('vocab.json'),
    "mmengine's loader, by keyword": lambda: CheckpointLoader.load_checkpoint(filename='vocab.json'),
    'mmengine': lambda: load_checkpoint(nn.Linear(1, 1), 'vocab.json'),
}


@pytest.mark.parametrize('load', LOADS.values(), ids=LOADS)
def test_a_layer_that_loads_a_file_is_refused(monkeypatch, load):
    monkeypatch.setitem(MODELS.module_dict, 'LoadsFile', LoadsFile)
    message = (
        r"^LoadsFile loads the file 'vocab\.json', which a checkpoint's config may not do; pass the config "
        'with `config`$'
    )
    with pytest.raises(SandboxError, match=message), sandbox(SMALL):
        MODELS.build({'type': 'LoadsFile', 'load': load})


def test_the_innermost_layer_that_loads_a_file_is_named(monkeypatch):
    class Outer(LoadsFile):
        pass

    Outer.__module__ = LoadsFile.__module__
    monkeypatch.setitem(MODELS.module_dict, 'LoadsFile', LoadsFile)
    monkeypatch.setitem(MODELS.module_dict, 'Outer', Outer)
    inner = {'type': 'LoadsFile', 'load': LOADS['torch']}
    with pytest.raises(SandboxError, match=r'^LoadsFile loads'), sandbox(SMALL):
        MODELS.build({'type': 'Outer', 'load': lambda: MODELS.build(inner)})
    with pytest.raises(SandboxError, match=r'^Outer loads'), sandbox(SMALL):
        MODELS.build({'type': 'Outer', 'load': LOADS['torch']})


@pytest.mark.parametrize('load', LOADS.values(), ids=LOADS)
def test_a_network_that_loads_a_file_while_it_runs_is_refused(load):
    with (
        pytest.raises(SandboxError, match=r"^the network loads the file 'vocab\.json', which"),
        sandbox(SMALL),
    ):
        load()


def test_an_open_file_is_not_loaded(tmp_path):
    (tmp_path / 'a').touch()
    with (
        open(tmp_path / 'a', 'rb') as file,
        pytest.raises(SandboxError, match=r"the network loads the file 'a BufferedReader'"),
        sandbox(SMALL),
    ):
        torch.load(file)


@pytest.mark.parametrize('name', ['stride', 'dilation', 'groups', 'deform_groups'])
@pytest.mark.parametrize('value', [0, -1, (1, 0)], ids=str)
def test_numbers_that_native_code_divides_by_must_be_positive(name, value):
    layer = DeformConv2d(4, 4, 3)
    check_numbers(layer)
    setattr(layer, name, value)
    with pytest.raises(SandboxError, match=re.escape(f'DeformConv2d has a {name} of {value}')):
        check_numbers(layer)


def test_deform_groups_must_divide_the_channels():
    layer = ModulatedDeformConv2d(4, 4, 3, deform_groups=2)
    check_numbers(layer)
    layer.deform_groups = 3
    with pytest.raises(
        SandboxError, match=r'^ModulatedDeformConv2d has 4 channels, which 3 deform_groups do not divide$'
    ):
        check_numbers(layer)


def test_layers_are_checked_when_they_become_part_of_a_network():
    layer = DeformConv2d(4, 4, 3)
    layer.stride = (0, 1)
    with pytest.raises(SandboxError, match=r'DeformConv2d has a stride of \(0, 1\)'), sandbox(SMALL):
        nn.Sequential(layer)


def test_a_sandbox_error_is_an_input_error():
    assert issubclass(SandboxError, InputError)
    assert issubclass(SandboxError, RuntimeError)  # like torch's own errors about a network that does not run


def test_everything_is_restored_afterwards():
    limits = resource.getrlimit(resource.RLIMIT_AS)
    before = (type(MODELS).get, type(MODELS).build, torch.load, CheckpointLoader.load_checkpoint)
    with sandbox(SMALL):
        pass
    assert resource.getrlimit(resource.RLIMIT_AS) == limits
    assert (type(MODELS).get, type(MODELS).build, torch.load, CheckpointLoader.load_checkpoint) == before
    nn.Linear(4000, 4000)
