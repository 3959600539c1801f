"""Tests of changing the class of a module, of its copies and pickles, and of replacing modules."""

import copy
import pickle

import pytest
import torch
import torchvision
from helpers import randomize, randomize_scales
from torch import nn

import mmasr
from mmasr.core.class_surgery import (
    Mixin,
    mixed_class,
    replace_module,
    restore_classes,
    stock_class,
    with_parameters,
)

DUPLICATE = {'deepcopy': copy.deepcopy, 'pickle': lambda module: pickle.loads(pickle.dumps(module))}


class Doubled(Mixin):
    def forward(self, x):
        return 2 * super().forward(x)


class Negated(Mixin):
    @classmethod
    def overrides(cls, stock):
        return {'of': stock}

    def forward(self, x):
        return -super().forward(x)


class Custom(nn.Linear):
    pass


def test_a_mixed_class_is_a_subclass_that_knows_its_stock_class():
    mixed = mixed_class(Doubled, nn.Linear)
    assert mixed.__name__ == 'DoubledLinear'
    assert issubclass(mixed, nn.Linear)
    assert stock_class(mixed) is nn.Linear


def test_a_mixed_class_is_made_once():
    assert mixed_class(Doubled, nn.Linear) is mixed_class(Doubled, nn.Linear)
    assert mixed_class(Doubled, nn.Linear) is not mixed_class(Negated, nn.Linear)


def test_the_stock_class_of_a_nested_mixed_class_has_no_mixin():
    assert stock_class(mixed_class(Negated, mixed_class(Doubled, nn.Linear))) is nn.Linear


def test_a_subclass_of_a_mixed_class_is_its_own_stock_class():
    class Users(mixed_class(Doubled, nn.Linear)):
        pass

    assert stock_class(Users) is Users
    assert stock_class(Custom) is Custom


def test_a_mixin_may_add_attributes_for_the_class_it_is_mixed_into():
    assert mixed_class(Negated, Custom).of is Custom


@pytest.mark.parametrize('duplicate', DUPLICATE.values(), ids=DUPLICATE.keys())
def test_a_module_of_a_nested_mixed_class_can_be_copied_and_pickled(duplicate):
    module = Custom(3, 4)
    x = torch.randn(2, 3)
    expected = -2 * module(x)
    module.__class__ = mixed_class(Negated, mixed_class(Doubled, Custom))
    copied = duplicate(module)
    assert type(copied) is type(module)
    torch.testing.assert_close(copied(x), expected)
    assert copied.weight is not module.weight
    restore_classes(nn.Sequential(copied))
    assert type(copied) is Custom


@pytest.mark.parametrize('duplicate', DUPLICATE.values(), ids=DUPLICATE.keys())
def test_copies_of_a_network_with_hosts_are_independent(duplicate):
    model = mmasr.attach(torchvision.models.resnet18(), {'type': 'SE'}).eval()
    other = duplicate(model)
    x = torch.randn(1, 3, 32, 32)
    expected = model(x)
    assert torch.equal(other(x), expected)
    randomize_scales(other)
    assert not torch.allclose(other(x), expected)
    assert torch.equal(model(x), expected)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.bn, self.inner = nn.BatchNorm1d(3), nn.Sequential(nn.Linear(3, 3))

    def forward(self, x):
        return self.inner(self.bn(x))


def test_a_copy_with_parameters_uses_these_and_shares_the_rest():
    block = randomize(Block())
    tensors = {'bn.weight': torch.randn(3), 'inner.0.bias': torch.randn(3)}
    before = copy.deepcopy(block.state_dict())
    x = torch.randn(4, 3)
    expected = torch.func.functional_call(copy.deepcopy(block), tensors, x)
    torch.testing.assert_close(with_parameters(block, Block, tensors)(x), expected)
    for name, parameter in block.named_parameters():
        assert torch.equal(parameter, before[name])
    assert block.bn.num_batches_tracked == 1  # the copy updates the statistics of the module itself
    assert not torch.equal(block.bn.running_mean, before['bn.running_mean'])


def test_a_copy_with_parameters_has_the_given_class():
    module = Custom(3, 4)
    module.__class__ = mixed_class(Doubled, Custom)
    copied = with_parameters(module, Custom, {'weight': torch.zeros(4, 3)})
    assert type(copied) is Custom
    torch.testing.assert_close(copied(torch.randn(2, 3)), module.bias.expand(2, 4))


def test_a_module_is_replaced_by_name():
    model, new = nn.Sequential(Block(), nn.ReLU()), nn.Identity()
    assert replace_module(model, '0.inner.0', new) is model
    assert model[0].inner[0] is new


def test_the_network_itself_is_replaced_by_the_empty_name():
    new = nn.Identity()
    assert replace_module(nn.ReLU(), '', new) is new


@pytest.mark.parametrize('name', ['1', '0.inner.1', '0.nothing.0'])
def test_an_unknown_name_is_an_error_and_adds_nothing(name):
    model = nn.Sequential(Block())
    names = [name for name, _ in model.named_modules()]
    with pytest.raises(AttributeError):
        replace_module(model, name, nn.Identity())
    assert [name for name, _ in model.named_modules()] == names
