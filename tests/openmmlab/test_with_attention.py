"""``mmasr.WithAttention``: attention in blocks of timm that have a place for it."""

import pytest
import timm
import torch
from helpers import randomize
from mmengine.registry import MODELS
from torch import nn

from mmasr.attention import ECA, SE
from mmasr.errors import InputError

NETWORK = {'type': 'mmpretrain.TIMMBackbone', 'model_name': 'mobilenetv2_035'}


def build(**options):
    config = {'type': 'mmasr.WithAttention', 'network': NETWORK, 'attention': {'type': 'SE'}, **options}
    return MODELS.build(config)


def test_every_block_gets_attention_of_its_width():
    timm_model = build().timm_model
    blocks = [block for stage in timm_model.blocks[:-1] for block in stage]
    assert len(blocks) == 16
    for block in [*blocks, *timm_model.blocks[-1]]:
        assert type(block.se) is SE
        # after the depthwise convolution, as in timm's own networks with SE
        assert block.se.fc2.out_features == block.conv_dw.out_channels


def test_named_modules_only():
    name = 'timm_model.blocks.1.0.se'
    model = build(modules=[name], attention={'type': 'ECA'})
    assert [n for n, module in model.named_modules() if isinstance(module, ECA)] == [name]


def test_with_init_identity_outputs_and_weights_stay():
    model = build(attention={'type': 'SE', 'init_identity': True})
    plain = timm.create_model('mobilenetv2_035', num_classes=0)
    randomize(plain)
    missing, unexpected = model.timm_model.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected
    assert all('.se.' in name for name in missing)
    image = torch.randn(2, 3, 64, 64)
    model.eval()
    plain.eval()
    torch.testing.assert_close(model(image)[-1], plain.forward_features(image))


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (
            {'modules': ['timm_model.conv_stem', 'fc']},
            r'has no nn\.Identity named timm_model\.conv_stem, fc$',
        ),
        ({'modules': 'se'}, "modules must be a list of names, not 'se'"),
        ({'network': 'mmdet.ResNet'}, "network must be the config of a network, not 'mmdet.ResNet'"),
        ({'network': {**NETWORK, 'model_name': 'resnet18'}}, 'TIMMBackbone has no empty modules named se$'),
        ({'attention': {'type': 'SEE'}}, "unknown attention type 'SEE'"),
    ],
)
def test_wrong_arguments_are_input_errors(options, message):
    with pytest.raises(InputError, match=message):
        build(**options)


def test_a_module_without_a_feature_map_is_refused():
    class Vectors(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(8, 4)
            self.se = nn.Identity()

        def forward(self, x):
            return self.se(self.linear(x))

    with pytest.raises(InputError, match=r'se received no feature map \(N, C, H, W\)$'):
        build(network={'type': Vectors})
