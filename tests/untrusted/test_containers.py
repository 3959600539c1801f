"""The weights are found in files of any code, under the names that the network itself gives them."""

import pytest
import torch

from mmasr.untrusted.containers import find_weights, without_wrappers

WEIGHTS = {'conv.weight': torch.ones(2, 3), 'conv.bias': torch.zeros(2)}


def prefixed(prefix):
    return {prefix + name: tensor for name, tensor in WEIGHTS.items()}


@pytest.mark.parametrize(
    'content',
    [WEIGHTS, {'model': WEIGHTS}, {'ema': {'module': WEIGHTS}}, {'state_dict': {}, 'net': WEIGHTS}],
    ids=['bare', 'model', 'module in ema', 'an empty container first'],
)
def test_weights_are_found_in_containers(content):
    assert find_weights(content) is WEIGHTS


@pytest.mark.parametrize(
    'content',
    [None, [WEIGHTS], {}, {'weights': WEIGHTS}, {'model': {'a': 1}}, {'ema': {'module': {'net': WEIGHTS}}}],
    ids=['nothing', 'list', 'empty', 'unknown name', 'a number', 'too deep'],
)
def test_anything_else_is_not_taken_for_weights(content):
    assert find_weights(content) is None


@pytest.mark.parametrize(
    ('prefix', 'others'),
    [
        ('module.', {}),
        ('_orig_mod.', {}),
        ('module._orig_mod.', {}),
        ('model.', {'pytorch-lightning_version': '2'}),
    ],
)
def test_prefixes_of_wrappers_are_removed(prefix, others):
    assert without_wrappers(prefixed(prefix), others) == WEIGHTS


def test_the_counter_of_an_averaged_model_does_not_hide_the_prefix():
    averaged = {'n_averaged': torch.tensor(3), **prefixed('module.')}
    assert without_wrappers(averaged, {}) == WEIGHTS


@pytest.mark.parametrize(
    ('weights', 'others'),
    [
        (prefixed('model.'), {}),
        ({**prefixed('model.'), 'loss': torch.ones(1)}, {'pytorch-lightning_version': '2'}),
        ({**prefixed('module.'), 'head': torch.ones(1)}, {}),
        ({'steps': torch.ones(1), 'n_averaged': torch.ones(1)}, {}),
        ({'a': torch.ones(1), '_orig_mod.a': torch.zeros(1)}, {}),
    ],
    ids=['not Lightning', 'Lightning with a loss', 'module and more', 'counters', 'twice'],
)
def test_names_of_the_network_itself_stay(weights, others):
    assert without_wrappers(weights, others).keys() == weights.keys()
