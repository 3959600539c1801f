"""Outputs of two networks are compared one by one, and a difference names the output."""

import math

import pytest
import torch

from mmasr.core.differences import Difference, check_differences, coarsest, compare, tensors
from mmasr.errors import InputError


def test_the_coarsest_type_of_the_weights_sets_the_bound():
    types = [torch.float32, torch.int64, torch.float16, torch.bfloat16]
    assert coarsest(types) == torch.bfloat16
    assert coarsest(types[:3]) == torch.float16
    assert coarsest([torch.int64]) == torch.float32


def test_tensors_in_nested_containers_are_found_by_name():
    a, b, c = torch.zeros(3).unbind()
    found = dict(tensors('out', {'x': [a, {'y': (b, None)}], 'z': 'text', 3: c}))
    assert {name: tensor.data_ptr() for name, tensor in found.items()} == {
        'out.x.0': a.data_ptr(),
        'out.x.1.y.0': b.data_ptr(),
        'out.3': c.data_ptr(),
    }
    assert list(dict(tensors('', [a]))) == ['0']


def test_differences_are_absolute_and_relative_to_the_largest_value():
    expected = {'a': torch.tensor([1.0, -4.0]), 'empty': torch.zeros(0), 'zero': torch.zeros(2)}
    actual = {'a': torch.tensor([1.5, -4.0]), 'empty': torch.zeros(0), 'zero': torch.tensor([0, 0.25])}
    assert compare(expected, actual) == [Difference('a', 0.5, 0.125), Difference('zero', 0.25, 0.25)]


@pytest.mark.parametrize('value', [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize('place', [0, 1], ids=['trained', 'folded'])
def test_an_output_that_is_not_finite_is_an_input_error_that_names_it(value, place):
    outputs = [{'a': torch.ones(2), 'b': torch.ones(2)}, {'a': torch.ones(2), 'b': torch.ones(2)}]
    outputs[place]['b'] = torch.tensor([1.0, value])
    network = ('trained', 'folded')[place]
    with pytest.raises(InputError, match=f'the output b of the {network} network contains NaN or Inf'):
        compare(*outputs)


def test_the_same_value_that_is_not_finite_in_both_networks_is_an_input_error():
    outputs = {'a': torch.tensor([1.0, math.inf])}
    with pytest.raises(InputError, match='the output a of the trained network'):
        compare(outputs, {'a': outputs['a'].clone()})


@pytest.mark.parametrize(
    'other', [{'b': torch.ones(2)}, {'a': torch.ones(3)}, {}], ids=['name', 'shape', 'none']
)
def test_other_names_or_shapes_are_an_input_error(other):
    with pytest.raises(InputError, match='the networks have different outputs'):
        compare({'a': torch.ones(2)}, other)


def test_integers_and_booleans_are_compared_too():
    expected = {'labels': torch.tensor([1, 4]), 'mask': torch.tensor([True, False])}
    actual = {'labels': torch.tensor([1, 2]), 'mask': torch.tensor([True, True])}
    assert compare(expected, actual) == [Difference('labels', 2, 0.5), Difference('mask', 1, 1)]


@pytest.mark.parametrize('relative', [2e-4, math.nan])
def test_every_difference_is_checked_not_only_the_first(relative):
    differences = [Difference('a', 0.1, 1e-5), Difference('b', 0.1, relative), Difference('c', 0.1, 1e-6)]
    check_differences(differences[::2], 1e-4)
    message = 'folded network differs from the trained network: b by .* of its largest value, more than 1e-04'
    with pytest.raises(InputError, match=message):
        check_differences(differences, 1e-4)
