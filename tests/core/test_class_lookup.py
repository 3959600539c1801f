"""Tests of looking up classes of other libraries by name."""

from torch import nn

from mmasr.core.class_lookup import lookup_by_class

TABLE = {'torch.Conv2d': 'convolution', 'torch.Module': 'any module'}


class Custom(nn.Conv2d):
    pass


def test_a_module_is_found_by_the_package_and_name_of_its_class():
    assert lookup_by_class(TABLE, nn.Conv2d(3, 4, 3)) == 'convolution'


def test_a_class_is_found_like_its_modules():
    assert lookup_by_class(TABLE, nn.Conv2d) == 'convolution'


def test_a_subclass_has_the_value_of_its_nearest_base_class():
    assert lookup_by_class(TABLE, Custom(3, 4, 3)) == 'convolution'
    assert lookup_by_class({**TABLE, f'{__name__}.Custom': 'custom'}, Custom) == 'custom'
    assert lookup_by_class(TABLE, nn.Linear) == 'any module'


def test_a_class_of_the_same_name_in_another_package_is_not_found():
    same_name = type('Conv2d', (), {'__module__': 'elsewhere.layers'})
    assert lookup_by_class({'torch.Conv2d': True}, same_name) is None
    assert lookup_by_class({'elsewhere.Conv2d': True}, same_name)


def test_a_module_without_an_entry_gives_none():
    assert lookup_by_class({'torch.Conv2d': True}, nn.Linear(3, 4)) is None
