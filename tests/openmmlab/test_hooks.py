"""Hooks and optimizer wrappers: non-finite losses, channels_last, bfloat16."""

import copy
import re
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from helpers import run_tool, train, write_image_config
from mmcv.ops import RoIAlign
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, MODELS, OPTIM_WRAPPERS
from torch import nn

import mmasr
from mmasr.core.reparameterization import REPARAMETERIZATIONS
from mmasr.errors import InputError
from mmasr.openmmlab.building import build_model
from mmasr.openmmlab.hooks import ChannelsLastHook, MatchingFormHook


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Change to a folder with a small classification dataset and a config."""
    monkeypatch.chdir(tmp_path)
    write_image_config(tmp_path)
    return tmp_path


#: A learning rate with which the loss becomes NaN in the second epoch at the latest.
DIVERGE = ['optim_wrapper.optimizer.lr=1e30', 'train_cfg.max_epochs=3']


def test_a_nan_loss_stops_the_training(data, refusal):
    line = refusal('train.py', 'config.py', '--work-dir', 'work', '--cfg-options', *DIVERGE, cwd=data)
    assert 'the loss is nan in iteration' in line
    assert 'there is no good checkpoint yet' in line
    assert not list(Path('work').glob('*.pth'))


def test_the_error_names_the_last_good_checkpoint(data, refusal):
    Path('work').mkdir()
    state = {'meta': {'epoch': 1, 'iter': 2}, 'message_hub': {}}
    torch.save({**state, 'state_dict': {'weight': torch.zeros(1000)}}, 'work/epoch_1.pth')
    torch.save({**state, 'state_dict': {'weight': torch.full((1000,), torch.nan)}}, 'work/epoch_2.pth')
    line = refusal('train.py', 'config.py', '--work-dir', 'work', '--cfg-options', *DIVERGE, cwd=data)
    assert 'work/epoch_1.pth; ' in line


@HOOKS.register_module()
class Formats(Hook):
    """Records whether the input of every step, and the weight of a convolution then, are channels_last."""

    found: ClassVar = []

    def before_train(self, runner):
        runner.model.backbone.register_forward_pre_hook(lambda _, args: self.record(args[0]))
        runner.model.backbone.layer1[0].conv1.register_forward_pre_hook(
            lambda layer, args: self.record(layer.weight)
        )

    def record(self, tensor):
        self.found.append(
            tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous()
        )


@pytest.mark.usefixtures('data')
def test_channels_last_trains_the_same_network():
    # With a learning rate of 0, the order of summation changes only BatchNorm's statistics.
    constant = {'optim_wrapper.optimizer.lr': 0}
    plain = train('plain', **constant)
    with_hook = train(
        'hook', **constant, custom_hooks=[{'type': 'mmasr.ChannelsLastHook'}, {'type': 'Formats'}]
    )
    assert Formats.found == [True] * 4
    torch.testing.assert_close(with_hook, plain, rtol=1e-4, atol=1e-5)  # 17 layers of float32
    expected, weights = (
        torch.load(f'{name}/epoch_1.pth', weights_only=False)['state_dict'] for name in ('plain', 'hook')
    )
    assert all(weight.is_contiguous() for weight in weights.values())
    assert weights._metadata == expected._metadata


def test_channels_last_refuses_operators_of_mmcv_which_would_misread_it():
    features = torch.randn(1, 2, 8, 8)
    align, boxes = RoIAlign(2, sampling_ratio=1), torch.tensor([[0.0, 1, 1, 6, 6]])
    misread = align(features.contiguous(memory_format=torch.channels_last), boxes)
    assert not torch.allclose(misread, align(features, boxes))  # if equal, the hook need not refuse it
    with pytest.raises(InputError, match=r'^ChannelsLastHook: 0 \(RoIAlign\) would misread such tensors'):
        ChannelsLastHook().before_train(SimpleNamespace(model=nn.Sequential(align)))


def test_the_bfloat16_wrapper_casts_only_the_forward_pass():
    backbone = {'type': 'mmasr.ASRResNet', 'depth': 18, 'base_channels': 8, 'zero_init_residual': False}
    # With fewer hidden units all of an SE's ReLUs can be dead.
    model = MODELS.build({**backbone, 'asr': {'attention': {'type': 'SE', 'ratio': 1}}})
    model.train()
    wrapper = OPTIM_WRAPPERS.build(
        {'type': 'mmasr.BFloat16OptimWrapper', 'optimizer': torch.optim.SGD(model.parameters(), lr=0.1)}
    )
    start = copy.deepcopy(model.state_dict())
    x = torch.randn(2, 3, 64, 64)
    with wrapper.optim_context(model):
        out = model.conv1(x)
        loss = sum(out.square().mean() for out in model(x))
    assert out.dtype == torch.bfloat16
    wrapper.update_params(loss)
    assert model.conv1(x).dtype == torch.float32
    assert all(value.dtype == start[name].dtype for name, value in model.state_dict().items())
    assert not torch.equal(model.conv1.weight, start['conv1.weight'])


@pytest.fixture
def forms(data):
    """Write the config of a training, the deployed one, and a checkpoint of each."""
    config = Config.fromfile('config.py')
    torch.save(_checkpoint(config), 'trained.pth')
    config.model.backbone.pop('asr')
    config.model.backbone.type = 'mmpretrain.ResNet'
    config.dump('deployed.py')
    torch.save(_checkpoint(config), 'deployed.pth')
    return data


def _checkpoint(config):
    meta = {'epoch': 1, 'iter': 2}
    state = {'message_hub': {}, 'optimizer': {}, 'param_schedulers': []}
    return {'state_dict': build_model(config).state_dict(), 'meta': meta, **state}


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (
            ('test.py', 'config.py', 'deployed.pth'),
            'deployed.pth lacks weights of the re-parameterization in config.py',
        ),
        (
            ('test.py', 'deployed.py', 'trained.pth'),
            'trained.pth has weights of a re-parameterization that .*deployed.py lacks',
        ),
        (
            ('train.py', 'deployed.py', '--cfg-options', 'load_from=trained.pth'),
            'trained.pth has weights of a re-parameterization that .*deployed.py lacks',
        ),
        (
            ('train.py', 'config.py', '--resume', 'deployed.pth'),
            'deployed.pth lacks weights of .*without --resume: --cfg-options load_from=deployed.pth',
        ),
        (
            ('train.py', 'deployed.py', '--resume', 'trained.pth'),
            'trained.pth has weights of a re-parameterization that .*deployed.py lacks',
        ),
    ],
)
def test_a_checkpoint_of_the_other_form_is_refused(forms, refusal, arguments, message):
    line = refusal(*arguments, '--work-dir', 'work', cwd=forms)
    assert re.search(message, line)
    assert '\n' not in line


def test_a_training_may_start_from_plain_weights(forms):
    run_tool('train.py', 'config.py', '--cfg-options', 'load_from=deployed.pth', cwd=forms)
    assert list(forms.glob('work_dirs/config/epoch_*.pth'))


@pytest.mark.parametrize('kind', [*sorted({*REPARAMETERIZATIONS} - {'ASR'}), 'SE'])
def test_the_names_of_every_kind_tell_the_forms_apart(kind):
    shape = (7, 1, 3, 1, 8) if kind == 'DilatedReparam' else (3, 1, 1)
    plain = nn.Sequential(nn.Conv2d(8, 8, *shape, bias=False), nn.BatchNorm2d(8))
    trained = mmasr.attach(copy.deepcopy(plain), {'type': kind}, ['1' if kind == 'SE' else '0'])

    def check(model, weights, trains):
        runner = SimpleNamespace(model=model, cfg=Config(), _load_from='x.pth', _resume=False)
        MatchingFormHook(trains).after_load_checkpoint(runner, {'state_dict': weights.state_dict()})

    for trains in (False, True):
        check(trained, trained, trains)
        check(plain, plain, trains)
        with pytest.raises(
            InputError, match=r'x\.pth has weights of a re-parameterization that the config lacks'
        ):
            check(plain, trained, trains)
    check(trained, plain, trains=True)
    with pytest.raises(InputError, match=r'x\.pth lacks weights of the re-parameterization in the config'):
        check(trained, plain, trains=False)


def test_other_weights_are_left_to_mmengine():
    old, new = (nn.ModuleDict({'head': nn.Linear(2, size), 'body': nn.Module()}) for size in (2, 3))
    old.extra = nn.Linear(1, 1)
    old.body.old, new.body.new = nn.Linear(1, 1), nn.Linear(1, 1)
    new.body.token = nn.Parameter(torch.zeros(1))
    runner = SimpleNamespace(model=new, cfg=Config(), _load_from='x.pth', _resume=False)
    MatchingFormHook(trains=False).after_load_checkpoint(runner, {'state_dict': old.state_dict()})
