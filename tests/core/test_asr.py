"""Tests of ASR: its scale, its initial values, its gradients, and the defaults of vision transformers."""

import pytest
import timm
import torch
import torchvision
from helpers import randomize
from mmengine.runner.checkpoint import load_state_dict
from torch import nn

import mmasr
from mmasr import ASR
from mmasr.attention import ATTENTIONS, SE, asr_attentions
from mmasr.errors import InputError

C = 32
KAPPAS = asr_attentions()


@pytest.mark.parametrize('training', [True, False], ids=['train', 'eval'])
@pytest.mark.parametrize('delta', [1, 2, 4, 6])
@pytest.mark.parametrize('kappa', KAPPAS)
def test_scale_is_the_product_of_the_attentions_of_psi(kappa, delta, training):
    asr = randomize(ASR({'type': kappa}, C, delta=delta))
    # Ordinary attention gives the same for a map of any size that is ψ at every position.
    asr.eval()
    expected = torch.ones(C)
    for psi, attention in zip(asr.psi, asr.attention, strict=True):
        expected = expected * attention.weights(psi.view(1, C, 1, 1).expand(2, C, 4, 4))[0].flatten()
    torch.testing.assert_close(asr.train(training).scale(), expected)


def test_srm_uses_its_initial_statistics_in_train_and_eval_mode():
    asr = ASR({'type': 'SRM'}, C).train()
    nn.init.normal_(asr.attention[0].cfc)
    training = asr.scale()
    for _ in range(5):
        asr.scale()
    assert torch.equal(training, asr.eval().scale())
    assert asr.attention[0].bn.running_mean.eq(0).all()
    assert asr.attention[0].bn.running_var.eq(1).all()


def test_forward_multiplies_maps_and_vectors_in_their_own_dtype():
    asr = randomize(ASR({'type': 'SE'}, C))
    for x in (torch.randn(2, C, 5, 5), torch.randn(2, C, 7), torch.randn(2, C)):
        expected = x * asr.scale().view(1, C, *[1] * (x.dim() - 2))
        torch.testing.assert_close(asr(x), expected)
    assert asr(torch.randn(2, C, 5, 5, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_psi_starts_constant_or_drawn_and_may_be_fixed():
    assert ASR({'type': 'SE'}, C).psi.eq(0.1).all()
    assert ASR({'type': 'SE'}, C, psi=0.5).psi.eq(0.5).all()
    drawn = ASR({'type': 'SE'}, 4096, psi={'std': 0.3}).psi
    # Five standard errors of the mean and of the standard deviation of 4096 normal values.
    assert abs(drawn.mean()) < 5 * 0.3 / 64
    assert abs(drawn.std() - 0.3) < 5 * 0.3 / 90
    assert drawn.requires_grad
    fixed = ASR({'type': 'SE'}, C, learnable=False)
    assert 'psi' not in dict(fixed.named_parameters())
    assert 'psi' in fixed.state_dict()


def test_scale_is_float32_under_autocast():
    asr = randomize(ASR({'type': 'SE'}, C))
    expected = asr.scale()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert torch.equal(asr.scale(), expected)


@pytest.mark.parametrize('delta', [1, 4])
@pytest.mark.parametrize('kappa', KAPPAS)
def test_init_identity_starts_at_exactly_one_and_learns(kappa, delta):
    # SPA has no biases, so all ReLUs of a few hidden units may be dead; 256 channels give enough of them.
    asr = ASR({'type': kappa}, 256, delta=delta, init_identity=True)
    assert asr.scale().eq(1).all()
    asr.scale().square().sum().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in asr.parameters())


def test_init_identity_divides_by_the_initial_scale():
    asr = ASR({'type': 'SE'}, C, init_identity=True)
    initial = asr.attention[0].weights(asr.psi[0].view(1, C, 1, 1)).flatten().detach()
    randomize(asr)
    now = asr.attention[0].weights(asr.psi[0].view(1, C, 1, 1)).flatten()
    torch.testing.assert_close(asr.scale(), now / initial)


@pytest.mark.parametrize('options', [(False, True), (True, False)])
def test_a_checkpoint_gives_the_same_scale_with_and_without_init_identity(options):
    saved = ASR({'type': 'SE'}, C, init_identity=options[0])
    nn.init.normal_(saved.psi)
    loaded = ASR({'type': 'SE'}, C, init_identity=options[1])
    loaded.load_state_dict(saved.state_dict())
    assert torch.equal(loaded.scale(), saved.scale())


def test_an_asr_of_other_attention_is_not_loaded_in_part():
    saved = ASR({'type': 'SE'}, C, init_identity=True)
    nn.init.normal_(saved.psi)
    for other in (
        ASR({'type': 'ECA'}, C, init_identity=True),
        ASR({'type': 'SE', 'ratio': 2}, C, init_identity=True),
    ):
        missing, _ = other.load_state_dict(saved.state_dict(), strict=False)
        assert other.scale().eq(1).all()
        assert set(missing) == set(other.state_dict())
        network = nn.Sequential(other)
        load_state_dict(network, nn.Sequential(saved).state_dict())  # mmengine's, which loads what fits
        assert other.scale().eq(1).all()


class Tanh(nn.Module):
    """Attention with values around 0, as in the paper's ViT."""

    def weights(self, x):
        return x.tanh()


def test_init_identity_is_rejected_if_it_would_divide_by_almost_0():
    with pytest.raises(InputError, match='almost 0'):
        ASR(lambda channels: Tanh(), C, psi=1e-3, init_identity=True)


def test_init_weights_resets_a_custom_kappa_that_has_no_init_weights():
    class Plain(nn.Module):
        def __init__(self, channels):
            super().__init__()
            self.fc = nn.Linear(channels, channels)

        def weights(self, x):
            return self.fc(x.flatten(1)).sigmoid()[..., None, None]

    asr = ASR(Plain, C)
    nn.init.zeros_(asr.attention[0].fc.weight)
    asr.init_weights()
    assert asr.attention[0].fc.weight.std() > 0


class Half(SE):
    """Attention with values for half of the channels only."""

    def weights(self, x):
        return super().weights(x)[:, ::2]


@pytest.mark.parametrize(
    ('attention', 'options', 'message'),
    [
        ({'type': 'CBAM'}, {}, 'spatial map differs for every image'),
        ({'type': 'SE'}, {'delta': 0}, 'at least 1, not 0'),
        (lambda channels: nn.Identity(), {}, 'Identity has no method weights'),
        (Half, {}, 'one value per channel'),
    ],
    ids=['CBAM', 'delta', 'no weights', 'half of the channels'],
)
def test_what_gives_no_constant_per_channel_is_rejected(attention, options, message):
    with pytest.raises(InputError, match=message):
        ASR(attention, C, **options)


def test_an_asr_has_the_dtype_of_its_layer():
    host = mmasr.attach(nn.Conv2d(3, C, 3).to(torch.bfloat16), {'type': 'SE'}, sites='')
    x = torch.randn(1, 3, 8, 8, dtype=torch.bfloat16)
    assert host(x).dtype == torch.bfloat16
    assert mmasr.fold(host).weight.dtype == torch.bfloat16


def test_its_description_names_every_attention_module():
    assert ASR({'type': 'SE'}, C, delta=2).describe() == 'SE x SE'


@pytest.mark.parametrize('name', KAPPAS)
def test_all_parameters_of_kappa_can_start_at_one_value(name):
    asr = ASR({'type': name, 'gate': 'tanh'}, 16, psi=1e-3, init=1e-3)
    assert all(parameter.eq(1e-3).all() for parameter in asr.parameters())
    nn.init.ones_(asr.psi)
    asr.init_weights()
    assert asr.psi.eq(1e-3).all()


VITS = {
    'torchvision': lambda: torchvision.models.VisionTransformer(32, 16, 1, 2, 8, 16),
    'timm': lambda: timm.create_model('vit_tiny_patch16_224', img_size=32, depth=1, embed_dim=8, num_heads=2),
}
TIMM_SITES = ['blocks.0.attn.proj', 'blocks.0.mlp.fc2']


def asrs(model):
    return [module for module in model.modules() if isinstance(module, ASR)]


@pytest.mark.parametrize('kappa', KAPPAS)
@pytest.mark.parametrize('library', VITS)
def test_a_vision_transformer_gets_the_gate_and_the_initial_values_of_the_paper(library, kappa):
    found = asrs(mmasr.attach(VITS[library](), {'type': kappa}))
    assert len(found) == 2
    assert {asr.attention[0].gate for asr in found} == {'tanh'}
    assert all(parameter.eq(1e-3).all() for asr in found for parameter in asr.parameters())


@pytest.mark.parametrize(
    'sites', [['norm', *TIMM_SITES], r'.*\.(proj|fc2)'], ids=['by name', 'by expression']
)
def test_the_defaults_of_a_vision_transformer_also_hold_if_its_sites_are_passed(sites):
    found = asrs(mmasr.attach(VITS['timm'](), {'type': 'SE'}, sites=sites))
    # The final normalization and the patch embedding are not sites of the paper.
    assert sorted(asr.attention[0].gate for asr in found) == ['sigmoid', 'tanh', 'tanh']


class Plain(SE):
    def __init__(self, channels):
        super().__init__(channels)


@pytest.mark.parametrize(
    ('attention', 'options', 'gate', 'psi', 'init'),
    [
        ({'type': 'SE', 'gate': 'sigmoid'}, {}, 'sigmoid', 1e-3, 1e-3),
        ({'type': 'SE'}, {'psi': 0.5}, 'tanh', 0.5, 1e-3),
        ({'type': 'SE'}, {'init': 0.5}, 'tanh', 1e-3, 0.5),
        ({'type': 'SE'}, {'init_identity': True}, 'sigmoid', 0.1, None),
        (Plain, {}, 'sigmoid', 0.1, None),
    ],
)
def test_options_override_the_defaults_of_a_vision_transformer(attention, options, gate, psi, init):
    for asr in asrs(mmasr.attach(VITS['timm'](), attention, **options)):
        assert (asr.attention[0].gate, asr.psi_init, asr.init) == (gate, psi, init)


def test_a_registered_attention_without_a_gate_does_not_get_those_defaults(monkeypatch):
    class NoGate(nn.Module):
        def __init__(self, channels):
            super().__init__()

        def weights(self, x):
            return x.sigmoid()

    monkeypatch.setitem(ATTENTIONS, 'Mine', NoGate)
    assert {asr.psi_init for asr in asrs(mmasr.attach(VITS['timm'](), {'type': 'Mine'}))} == {0.1}
