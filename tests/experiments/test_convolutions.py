"""Convolutions with branches in every form that the benchmark measures."""

import copy

import pytest
import torch
import torchvision
from torch import nn

import mmasr
from mmasr.experiments.benchmark.convolutions import by_autograd, convolutions
from mmasr.experiments.benchmark.memory import saved_for_backward
from mmasr.experiments.benchmark.workload import images


@pytest.mark.parametrize('make', [torchvision.models.resnet18, torchvision.models.resnext50_32x4d])
def test_every_variant_computes_the_same_at_the_start(make):
    plain = make().eval()
    x = torch.randn(2, 3, 64, 64)
    found = convolutions(plain, ['OREPA', 'OfflineOREPA', 'DBB'])
    assert list(found) == [
        'plain',
        'OREPA',
        "OREPA, the authors' form",
        'OREPA, deployed',
        'OfflineOREPA',
        'OfflineOREPA, deployed',
        'DBB',
        'DBB, deployed',
    ]
    with torch.no_grad():
        expected = plain(x)
        for name, model in found.items():
            torch.testing.assert_close(model.eval()(x), expected, msg=name, rtol=1e-4, atol=1e-5)


def test_a_kind_that_has_no_identity_to_start_from():
    assert list(convolutions(torchvision.models.resnet18(), ['ACNet'])) == ['plain', 'ACNet', 'ACNet, deployed']


@pytest.mark.parametrize(
    'options', [{'kernel_size': 1}, {'kernel_size': 3}, {'kernel_size': 7}, {'kernel_size': 3, 'groups': 8}]
)
def test_the_authors_form_has_the_kernel_and_the_gradients_of_ours(options):
    ours = mmasr.attach(nn.Sequential(nn.Conv2d(16, 32, **options)), {'type': 'OREPA'}).double()
    for parameter in ours.parameters():
        nn.init.normal_(parameter)
    theirs = by_autograd(copy.deepcopy(ours))
    x = torch.randn(2, 16, 9, 9, dtype=torch.double)
    direction = torch.randn_like(ours(x))
    found, expected = (
        (y, *torch.autograd.grad((y * direction).sum(), [*model.parameters()])) for model in (ours, theirs) for y in [model(x)]
    )
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_the_authors_form_keeps_every_branch():
    network = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1))
    mmasr.attach(network, {'type': 'OREPA'})
    work = images(torch.randn(1, 16, 4, 4))
    kernel = 16 * 16 * 9 * 4
    more = saved_for_backward(by_autograd(copy.deepcopy(network)), work) - saved_for_backward(network, work)
    assert more >= 5 * kernel  # before each is scaled; the sixth is the layer's own weight
