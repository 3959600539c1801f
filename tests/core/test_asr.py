import pytest
import timm
import torch
import torchvision
from helpers import randomize
from torch import nn

import mmasr
from mmasr import ASR
from mmasr.attention import ATTENTIONS, SE, asr_attentions

C = 32
KAPPAS = asr_attentions()


@pytest.mark.parametrize('training', [True, False], ids=['train', 'eval'])
@pytest.mark.parametrize('delta', [1, 2, 4, 6])
@pytest.mark.parametrize('kappa', KAPPAS)
def test_scale_is_the_product_of_the_attentions_of_psi(kappa, delta, training):
    asr = randomize(ASR({'type': kappa}, C, delta=delta))
    # To an attention in its ordinary form, a map that is ψ everywhere is the same, whatever its size.
    asr.eval()
    expected = torch.ones(C)
    for psi, attention in zip(asr.psi, asr.attention, strict=True):
        expected = expected * attention.weights(psi.view(1, C, 1, 1).expand(2, C, 4, 4))[0].flatten()
    torch.testing.assert_close(asr.train(training).scale(), expected)


def test_srm_has_its_initial_statistics_in_train_and_eval():
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


def test_psi_is_a_constant_or_drawn_learnable_or_not():
    assert ASR({'type': 'SE'}, C).psi.eq(0.1).all()
    assert ASR({'type': 'SE'}, C, psi=0.5).psi.eq(0.5).all()
    drawn = ASR({'type': 'SE'}, 4096, psi={'std': 0.3}).psi
    # Five standard errors of the mean and of the deviation of 4096 normal values.
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
    # 256 channels: SPA has no biases, and with a few hidden units all of its ReLUs can be dead.
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
def test_a_checkpoint_means_the_same_whatever_init_identity_says_where_it_is_loaded(options):
    saved = ASR({'type': 'SE'}, C, init_identity=options[0])
    nn.init.normal_(saved.psi)
    loaded = ASR({'type': 'SE'}, C, init_identity=options[1])
    loaded.load_state_dict(saved.state_dict())
    assert torch.equal(loaded.scale(), saved.scale())


class Tanh(nn.Module):
    """An attention with values around 0, as in the paper's ViT."""

    def weights(self, x):
        return x.tanh()


def test_init_identity_is_refused_where_there_is_nothing_to_divide_by():
    with pytest.raises(ValueError, match='almost 0'):
        ASR(lambda channels: Tanh(), C, psi=1e-3, init_identity=True)


def test_init_weights_restores_a_callable_kappa_without_init_weights():
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


def test_refusals():
    with pytest.raises(ValueError, match='spatial map differs for every image'):
        ASR({'type': 'CBAM'}, C)
    with pytest.raises(ValueError, match='at least 1, not 0'):
        ASR({'type': 'SE'}, C, delta=0)
    with pytest.raises(ValueError, match='Identity has no method weights'):
        ASR(lambda channels: nn.Identity(), C)
    with pytest.raises(ValueError, match='one value per channel'):
        ASR(lambda channels: Half(channels), C)


class Half(SE):
    def weights(self, x):
        return super().weights(x)[:, ::2]


@pytest.mark.parametrize('name', KAPPAS)
def test_initial_value_of_kappa(name):
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
def test_a_vision_transformer_gets_the_gate_and_initial_values_of_the_paper(library, kappa):
    found = asrs(mmasr.attach(VITS[library](), {'type': kappa}))
    assert len(found) == 2
    assert {asr.attention[0].gate for asr in found} == {'tanh'}
    assert all(parameter.eq(1e-3).all() for asr in found for parameter in asr.parameters())


@pytest.mark.parametrize('sites', [['norm', *TIMM_SITES], r'.*\.(proj|fc2)'], ids=['by name', 'by expression'])
def test_they_come_with_the_sites_also_where_these_are_named(sites):
    found = asrs(mmasr.attach(VITS['timm'](), {'type': 'SE'}, sites=sites))
    # The normalization at the end and the patch embedding are no sites of the paper.
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
def test_what_is_said_for_a_vision_transformer_comes_first(attention, options, gate, psi, init):
    for asr in asrs(mmasr.attach(VITS['timm'](), attention, **options)):
        assert (asr.attention[0].gate, asr.psi_init, asr.init) == (gate, psi, init)


def test_a_registered_attention_without_a_gate_is_taken_as_it_is(monkeypatch):
    class NoGate(nn.Module):
        def __init__(self, channels):
            super().__init__()

        def weights(self, x):
            return x.sigmoid()

    monkeypatch.setitem(ATTENTIONS, 'Mine', NoGate)
    assert {asr.psi_init for asr in asrs(mmasr.attach(VITS['timm'](), {'type': 'Mine'}))} == {0.1}
