"""Attention modules, compared with their formulas written out here."""

import pytest
import torch
from helpers import randomize
from torch.nn.functional import conv2d, pad

from mmasr.attention import ATTENTIONS, asr_attentions, build_attention

C = 32


def se(m, x):
    squeezed = x.mean((2, 3))
    hidden = torch.relu(squeezed @ m.fc1.weight.T + m.fc1.bias)
    return torch.sigmoid(hidden @ m.fc2.weight.T + m.fc2.bias)


def eca(m, x):
    taps = m.conv.weight[0, 0]
    half = len(taps) // 2
    padded = pad(x.mean((2, 3)), (half, half))
    return torch.sigmoid(sum(tap * padded[:, i : i + C] for i, tap in enumerate(taps)))


def srm(m, x):
    mean = x.mean((2, 3))
    std = ((x - mean[..., None, None]).square().mean((2, 3)) + 1e-5).sqrt()
    z = m.cfc[:, 0] * mean + m.cfc[:, 1] * std
    center, spread = (
        (z.mean(0), z.var(0, correction=0)) if m.training else (m.bn.running_mean, m.bn.running_var)
    )
    return torch.sigmoid((z - center) / (spread + m.bn.eps).sqrt() * m.bn.weight + m.bn.bias)


def ie(m, x):
    return torch.sigmoid(m.weight * x.mean((2, 3)) + m.bias)


def spa(m, x):
    n, _, h, w = x.shape
    pyramid = []
    for cells in (1, 2, 4):
        blocks = x.reshape(n, C, cells, h // cells, cells, w // cells)
        pyramid.append(blocks.mean((3, 5)).reshape(n, -1))
    return torch.sigmoid(torch.relu(torch.cat(pyramid, 1) @ m.fc1.weight.T) @ m.fc2.weight.T)


def cbam(m, x):
    def mlp(v):
        return torch.relu(v @ m.fc1.weight.T) @ m.fc2.weight.T

    return torch.sigmoid(mlp(x.mean((2, 3))) + mlp(x.amax((2, 3))))


FORMULAS = {'SE': se, 'ECA': eca, 'SRM': srm, 'IE': ie, 'SPA': spa, 'CBAM': cbam}


def test_every_attention_has_a_formula():
    assert set(FORMULAS) == set(ATTENTIONS)


def test_asr_can_use_every_attention_without_a_spatial_map(monkeypatch):
    monkeypatch.setitem(ATTENTIONS, 'Mine', torch.nn.Identity)  # a custom one need not define `spatial`
    assert set(asr_attentions()) == {*FORMULAS, 'Mine'} - {'CBAM'}


@pytest.mark.parametrize('training', [True, False], ids=['train', 'eval'])
@pytest.mark.parametrize('name', FORMULAS)
def test_attention_matches_its_formula(name, training):
    module = randomize(build_attention({'type': name}, C)).train(training)
    x = torch.randn(4, C, 8, 12)
    expected = FORMULAS[name](module, x)[..., None, None]
    weights = module.weights(x)
    assert weights.shape == (4, C, 1, 1)
    torch.testing.assert_close(weights, expected)
    if name == 'CBAM':
        channel = x * expected
        maps = torch.cat([channel.mean(1, keepdim=True), channel.amax(1, keepdim=True)], 1)
        expected = expected * torch.sigmoid(conv2d(maps, module.conv.weight, padding=3))
    torch.testing.assert_close(module(x), x * expected)


@pytest.mark.parametrize('name', FORMULAS)
def test_init_identity_starts_as_the_identity_and_learns(name):
    module = build_attention({'type': name, 'init_identity': True}, C)
    x = torch.randn(4, C, 8, 8)
    assert torch.equal(module(x), x)
    module(x).square().sum().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())


@pytest.mark.parametrize(
    ('name', 'shapes'),
    [
        ('SE', {'fc1.weight': (2, C), 'fc1.bias': (2,), 'fc2.weight': (C, 2), 'fc2.bias': (C,)}),
        ('SPA', {'fc1.weight': (2, 21 * C), 'fc2.weight': (C, 2)}),
        ('CBAM', {'fc1.weight': (2, C), 'fc2.weight': (C, 2), 'conv.weight': (1, 2, 7, 7)}),
        ('SRM', {'cfc': (C, 2), 'bn.weight': (C,), 'bn.bias': (C,)}),
        ('IE', {'weight': (C,), 'bias': (C,)}),
    ],
)
def test_parameter_names_and_shapes(name, shapes):
    assert {n: tuple(p.shape) for n, p in build_attention({'type': name}, C).named_parameters()} == shapes


def test_ie_starts_with_the_same_value_for_every_image():
    ie = build_attention({'type': 'IE'}, C)
    assert ie.weight.eq(0).all()
    assert ie.bias.eq(-1).all()


def test_srm_starts_with_zero_weights():
    assert build_attention({'type': 'SRM'}, C).cfc.eq(0).all()


# log₂C / 2 + 1/2 is 2, 3.5, 4.5, 5, 6 and 9. It is truncated, and even numbers are raised by one.
@pytest.mark.parametrize(('channels', 'taps'), [(8, 3), (64, 3), (256, 5), (512, 5), (2048, 7), (2**17, 9)])
def test_eca_kernel_size(channels, taps):
    assert build_attention({'type': 'ECA'}, channels).conv.kernel_size == (taps,)


@pytest.mark.parametrize(('channels', 'hidden'), [(24, 2), (3, 1)], ids=['rounded', 'never empty'])
def test_width_of_the_hidden_layer(channels, hidden):
    assert build_attention({'type': 'SE', 'ratio': 16}, channels).fc1.out_features == hidden


def test_srm_on_one_position_of_one_image_is_finite_and_does_not_update_statistics():
    module = randomize(build_attention({'type': 'SRM'}, C)).train()
    statistics = [module.bn.running_mean.clone(), module.bn.running_var.clone()]
    weights = module.weights(torch.randn(1, C, 1, 1))
    weights.sum().backward()
    assert weights.isfinite().all()
    assert all(p.grad.isfinite().all() for p in module.parameters())
    assert torch.equal(statistics[0], module.bn.running_mean)
    assert torch.equal(statistics[1], module.bn.running_var)


def test_error_for_an_unknown_type_lists_the_known_types():
    with pytest.raises(ValueError, match=f"'Se'; known are {', '.join(sorted(ATTENTIONS))}$"):
        build_attention({'type': 'Se'}, C)


@pytest.mark.parametrize('name', asr_attentions())
def test_tanh_gate_replaces_the_sigmoid(name):
    sigmoid, tanh = (randomize(ATTENTIONS[name](16, gate=gate)).eval() for gate in ('sigmoid', 'tanh'))
    tanh.load_state_dict(sigmoid.state_dict())
    x = torch.randn(2, 16, 5, 5)
    torch.testing.assert_close(tanh.weights(x), sigmoid.weights(x).logit().tanh(), rtol=1e-4, atol=1e-5)


def test_error_for_an_unknown_gate_lists_the_known_gates():
    with pytest.raises(ValueError, match="unknown gate 'relu'; known are sigmoid and tanh"):
        ATTENTIONS['SE'](16, gate='relu')


def test_init_identity_with_tanh_is_rejected():
    with pytest.raises(ValueError, match='init_identity divides by the gate at 0'):
        ATTENTIONS['SE'](16, gate='tanh', init_identity=True)
