"""Tests of merging blocks of other libraries by their own methods, and of refusing what these get wrong."""

import copy
import warnings

import pytest
import torch
from helpers import randomize_norms
from mmpretrain.models.backbones import levit, mobileone, replknet, repmlp, repvgg, riformer
from timm.models import byobnet, fastvit, ghostnet, iformer, nextvit, repghost, repvit
from timm.models import levit as timm_levit
from timm.utils import reparameterize_model
from torch import nn
from torch.nn.functional import pad
from torch.nn.utils.fusion import fuse_conv_bn_eval

import mmasr
from mmasr.core.merge import merges_itself, own_methods, structure
from mmasr.errors import InputError

C = 8


def conv_bn(kernel, groups=1, dilation=1):
    conv = nn.Conv2d(
        C, C, kernel, padding=dilation * (kernel // 2), groups=groups, dilation=dilation, bias=False
    )
    return nn.Sequential(conv, nn.BatchNorm2d(C))


class Branches(nn.Module):
    """Sum of a 3 x 3 and a 1 x 1 convolution and an activation: the base of the doubles below."""

    def __init__(self, groups=1):
        super().__init__()
        self.rbr_dense, self.rbr_1x1 = conv_bn(3, groups), conv_bn(1, groups)
        self.nonlinearity = nn.ReLU()

    def forward(self, x):
        if hasattr(self, 'rbr_reparam'):
            return self.nonlinearity(self.rbr_reparam(x))
        return self.nonlinearity(self.rbr_dense(x) + self.rbr_1x1(x))

    @torch.no_grad()
    def _merged(self):
        dense = fuse_conv_bn_eval(self.rbr_dense[0].eval(), self.rbr_dense[1].eval())
        point = fuse_conv_bn_eval(self.rbr_1x1[0].eval(), self.rbr_1x1[1].eval())
        dense.weight += pad(point.weight, [1] * 4)
        dense.bias += point.bias
        return dense

    def _replace(self):
        self.rbr_reparam = self._merged()
        del self.rbr_dense, self.rbr_1x1


class RepVGGOfItsAuthors(Branches):
    def get_equivalent_kernel_bias(self):
        merged = self._merged()
        return merged.weight, merged.bias

    def switch_to_deploy(self):
        if not hasattr(self, 'rbr_reparam'):
            self._replace()


class MobileOneOfItsAuthors(Branches):
    def reparameterize(self):
        self._replace()  # a second call fails


class OnlyKernel(Branches):
    def get_equivalent_kernel_bias(self):
        merged = self._merged()
        return merged.weight, merged.bias


class DilatedOfItsAuthors(nn.Module):
    def __init__(self):
        super().__init__()
        self.lk_origin, self.dil = conv_bn(7, C), conv_bn(3, C, dilation=2)

    def forward(self, x):
        return self.lk_origin(x) + self.dil(x) if hasattr(self, 'dil') else self.lk_origin(x)

    @torch.no_grad()
    def merge_dilated_branches(self):
        origin, dil = (fuse_conv_bn_eval(b[0].eval(), b[1].eval()) for b in (self.lk_origin, self.dil))
        origin.weight[:, :, 1:6:2, 1:6:2] += dil.weight
        origin.bias += dil.bias
        self.lk_origin = origin
        del self.dil


class UniRepLKNetBlock(nn.Module):
    """Its method calls that of the block inside, and fuses the normalization after it."""

    def __init__(self):
        super().__init__()
        self.dwconv, self.norm = DilatedOfItsAuthors(), nn.BatchNorm2d(C)

    def forward(self, x):
        return x + self.norm(self.dwconv(x))

    def reparameterize(self):
        self.dwconv.merge_dilated_branches()
        self.dwconv.lk_origin = fuse_conv_bn_eval(self.dwconv.lk_origin.eval(), self.norm.eval())
        self.norm = nn.Identity()


class ConvOfYOLO(nn.Module):
    """Has no method that merges, but a forward for the time after."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.act = nn.Conv2d(C, C, 3, padding=1, bias=False), nn.BatchNorm2d(C), nn.SiLU()

    def forward(self, x):
        return self.act(self.bn(self.conv(x)))

    def forward_fuse(self, x):
        return self.act(self.conv(x))


class RepConvOfYOLO(Branches):
    """Its forward still needs the branches after merging; the library sets the other one."""

    def forward(self, x):
        return self.nonlinearity(self.rbr_dense(x) + self.rbr_1x1(x))

    def forward_fuse(self, x):
        return self.nonlinearity(self.rbr_reparam(x))

    def fuse_repvgg_block(self):
        self._replace()


class ConvNorm(nn.Sequential):
    """Returns what takes its place."""

    def __init__(self):
        super().__init__(*conv_bn(3))

    def fuse(self):
        return fuse_conv_bn_eval(self[0].eval(), self[1].eval())


DOUBLES = [
    RepVGGOfItsAuthors,
    MobileOneOfItsAuthors,
    OnlyKernel,
    DilatedOfItsAuthors,
    UniRepLKNetBlock,
    ConvOfYOLO,
    RepConvOfYOLO,
    ConvNorm,
]


class Tokens(nn.Module):
    """Runs a layer for sequences (N, L, C) on a feature map."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(x.shape)


BLOCKS = {
    **{double.__name__: double for double in DOUBLES},
    'timm RepVggBlock': lambda: byobnet.RepVggBlock(C, C),
    'timm MobileOneBlock': lambda: byobnet.MobileOneBlock(C, C, num_conv_branches=2),
    'timm FastViT MobileOneBlock': lambda: fastvit.MobileOneBlock(C, C, 3, num_conv_branches=2, use_se=True),
    'timm RepMixer': lambda: fastvit.RepMixer(C, 3, layer_scale_init_value=0.5),
    'timm ReparamLargeKernelConv': lambda: fastvit.ReparamLargeKernelConv(C, C, 7, 1, 1, 3),
    'timm RepVggDw': lambda: repvit.RepVggDw(C, 3),
    'timm RepGhostModule': lambda: repghost.RepGhostModule(C, C),
    'timm GhostModuleV3': lambda: ghostnet.GhostModuleV3(C, C, mode='shortcut'),
    'timm LinearNorm': lambda: Tokens(timm_levit.LinearNorm(C, C)),
    'timm RepCPE': lambda: iformer.RepCPE(C),
    'timm NextConvBlock': lambda: nextvit.NextConvBlock(C, C, head_dim=C),
    'mmpretrain RepVGGBlock': lambda: repvgg.RepVGGBlock(C, C),
    'mmpretrain MobileOneBlock': lambda: mobileone.MobileOneBlock(C, C, 3, 2, se_cfg={'ratio': 2}),
    'mmpretrain ReparamLargeKernelConv': lambda: replknet.ReparamLargeKernelConv(C, C, 7, 1, C, 3),
    'mmpretrain RepMLPBlock': lambda: repmlp.RepMLPBlock(C, 7, 7, (1, 3), num_sharesets=2),
    'mmpretrain ConvolutionBatchNorm': lambda: levit.ConvolutionBatchNorm(C, C, 3, 1, 1),
    'mmpretrain LinearBatchNorm': lambda: Tokens(levit.LinearBatchNorm(C, C)),
    'mmpretrain RIFormerBlock': lambda: riformer.RIFormerBlock(C, layer_scale_init_value=1.0),
}
each_block = pytest.mark.parametrize('name', BLOCKS)


def network_with(name):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, C, 1), BLOCKS[name](), nn.Conv2d(C, C, 1))
    return randomize_norms(network)


def train(network):
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    network.train()
    for _ in range(2):
        optimizer.zero_grad()
        network(torch.randn(2, 3, 14, 14)).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize(
    ('spec', 'verified'),
    [(None, False), ('SE', True), ('OREPA', False)],
    ids=['guessed input', 'SE, verified', 'OREPA, guessed input'],
)
@each_block
def test_a_block_merges_and_computes_what_it_computed(name, spec, verified):
    network = network_with(name)
    norms = (nn.BatchNorm2d, nn.BatchNorm1d, nn.GroupNorm)
    if spec == 'SE':
        sites = [site for site, module in network.named_modules() if isinstance(module, norms)]
        mmasr.attach(network, {'type': 'SE'}, sites=sites, psi={'std': 1.0})
    elif spec:
        mmasr.attach(network, {'type': 'OREPA'})
    train(network)
    network.eval()
    x = torch.randn(2, 3, 14, 14)
    with torch.no_grad():
        expected = network(x)
        before = structure(network)
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            folded = mmasr.fold(network, verify=x if verified else None)
        assert (folded(x) - expected).abs().max() <= 1e-5 * expected.abs().max()
        assert structure(folded) != before
        again = mmasr.fold(copy.deepcopy(folded))
        assert torch.equal(again(x), folded(x))
        if 'mmpretrain' not in name:  # whose blocks merge by another method than those that timm calls
            merged = reparameterize_model(folded)
            assert (merged(x) - expected).abs().max() <= 1e-5 * expected.abs().max()


@each_block
def test_a_block_keeps_its_branches_if_only_what_was_attached_is_folded(name):
    network = network_with(name).eval()
    before = [type(module) for module in network.modules()]
    mmasr.attach(network, {'type': 'SE'}, sites=['0'], psi={'std': 1.0})
    mmasr.fold(network, blocks=False)
    assert [type(module) for module in network.modules()] == before


class Wrong(RepVGGOfItsAuthors):
    def switch_to_deploy(self):
        super().switch_to_deploy()
        self.rbr_reparam.weight.data[0] *= 1.001


class Failing(RepVGGOfItsAuthors):
    def switch_to_deploy(self):
        raise RuntimeError('only on Tuesdays')


class WithInput(Branches):
    """Runs on two arguments, which cannot be guessed."""

    def forward(self, x, scale):
        return super().forward(x * scale)

    def switch_to_deploy(self):
        self._replace()


def kept(network, message, **options):
    network.eval()
    before = copy.deepcopy(network.state_dict())
    types = [type(module) for module in network.modules()]
    with pytest.warns(UserWarning, match=message):
        mmasr.fold(network, **options)
    assert [type(module) for module in network.modules()] == types
    torch.testing.assert_close(network.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize('verify', [None, torch.randn(1, C, 9, 9)], ids=['guessed', 'verified'])
@pytest.mark.parametrize(
    ('block', 'message'),
    [
        (
            Wrong,
            r'^0 \(Wrong\) is not merged: the merged block differs from the block: output by .*, more than',
        ),
        (Failing, r'^0 \(Failing\) is not merged: its own method failed: RuntimeError: only on Tuesdays'),
    ],
)
def test_a_block_whose_method_is_wrong_or_fails_stays_as_it_was(block, message, verify):
    kept(nn.Sequential(randomize_norms(block())), message, verify=verify)


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = WithInput()

    def forward(self, x):
        return self.block(x, 0.5)


def test_a_block_with_other_arguments_needs_inputs_of_the_network():
    network = randomize_norms(TwoInputs())
    kept(network, r'^block \(WithInput\) is not merged: no input is known on which it runs; .*`verify`')
    x = torch.randn(2, C, 9, 9)
    with torch.no_grad():
        expected = network.eval()(x)
        mmasr.fold(network, verify=x)
        torch.testing.assert_close(network(x), expected, rtol=1e-5, atol=1e-5)
    assert hasattr(network.block, 'rbr_reparam')


class Around(nn.Module):
    """A block whose own method always fails, as that of an abstract base class, around one that merges."""

    def __init__(self):
        super().__init__()
        self.inner = RepVGGOfItsAuthors()

    def forward(self, x):
        return self.inner(x)

    def reparameterize(self):
        raise NotImplementedError


def test_a_block_inside_one_that_fails_is_merged():
    network = nn.Sequential(randomize_norms(Around())).eval()
    x = torch.randn(2, C, 9, 9)
    with torch.no_grad():
        expected = network(x)
        with pytest.warns(UserWarning, match=r'^0 \(Around\) is not merged: .* NotImplementedError'):
            mmasr.fold(network)
        torch.testing.assert_close(network(x), expected, rtol=1e-5, atol=1e-5)
    assert hasattr(network[0].inner, 'rbr_reparam')


def test_a_named_block_stays_with_all_blocks_inside():
    network = nn.Sequential(randomize_norms(UniRepLKNetBlock()), randomize_norms(ConvNorm())).eval()
    mmasr.fold(network, stay=['0'])
    assert hasattr(network[0].dwconv, 'dil')
    assert type(network[1]) is nn.Conv2d


@pytest.mark.parametrize('dtype', [torch.float64, torch.float16, torch.bfloat16])
def test_a_block_of_another_type_keeps_it(dtype):
    network = nn.Sequential(randomize_norms(RepVGGOfItsAuthors())).to(dtype)
    mmasr.fold(network)
    assert {tensor.dtype for tensor in network.state_dict().values()} == {dtype}
    assert hasattr(network[0], 'rbr_reparam')


def test_a_block_in_training_mode_stays_in_it():
    network = nn.Sequential(RepVGGOfItsAuthors(), ConvNorm()).train()
    mmasr.fold(network)
    assert all(module.training for module in network.modules())


class Fuses(nn.Sequential):
    """Has a method with the name of one that merges, but it takes arguments."""

    def fuse(self, maps):
        return sum(maps)


def test_a_method_with_arguments_does_not_count():
    network = Fuses(nn.Conv2d(C, C, 3))
    assert own_methods(network) == []
    assert not merges_itself(network)


class Network(nn.Sequential):
    def switch_to_deploy(self):
        for block in self.modules():
            if isinstance(block, RepVGGOfItsAuthors):
                block.switch_to_deploy()


def test_a_network_that_calls_the_methods_of_its_blocks_is_not_a_block():
    stages = [nn.Sequential(RepVGGOfItsAuthors(), RepVGGOfItsAuthors()) for _ in range(3)]
    network = Network(*stages, nn.Conv2d(C, C, 3, padding=1), nn.BatchNorm2d(C)).eval()
    assert not merges_itself(network)
    mmasr.attach(network, {'type': 'DBB'})
    assert type(network[3]).__name__ == 'DBB'
    x = torch.randn(2, C, 9, 9)
    with torch.no_grad():
        expected = network(x)
        network.switch_to_deploy()
        torch.testing.assert_close(network(x), expected, rtol=1e-4, atol=1e-4)


@each_block
def test_a_block_folds_what_is_inside_before_its_own_method_merges_it(name):
    network = network_with(name)
    mmasr.attach(network, {'type': 'OREPA'})
    network.eval()
    x = torch.randn(2, 3, 14, 14)
    with torch.no_grad():
        expected = network(x)
        merged = reparameterize_model(network)
        assert (mmasr.fold(merged)(x) - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_a_convolution_that_a_block_merges_gets_no_branches():
    network = nn.Sequential(RepVGGOfItsAuthors(), nn.Conv2d(C, C, 3, padding=1))
    mmasr.attach(network, {'type': 'DBB'})
    assert [name for name, m in network.named_modules() if type(m).__name__ == 'DBB'] == ['1']
    with pytest.raises(InputError, match=r'is in 0 \(.*RepVGGOfItsAuthors\), which merges its own layers'):
        mmasr.attach(network, {'type': 'ACNet'}, sites=['0.rbr_dense.0'])


@pytest.mark.parametrize('spec', [None, 'SE', 'OREPA', 'DBB'])
def test_blocks_of_ultralytics(spec):
    conv = pytest.importorskip('ultralytics.nn.modules.conv', reason='ultralytics is not a dependency')
    block = pytest.importorskip('ultralytics.nn.modules.block')
    network = nn.Sequential(
        conv.Conv(3, C, 3), conv.RepConv(C, C, bn=True), block.RepVGGDW(C), conv.DWConv(C, C, 3)
    )
    randomize_norms(network)
    if spec == 'SE':
        sites = [name for name, m in network.named_modules() if isinstance(m, nn.BatchNorm2d)]
        mmasr.attach(network, {'type': 'SE'}, sites=sites, psi={'std': 1.0})
    elif spec:
        mmasr.attach(network, {'type': spec})
    network.eval()
    x = torch.randn(2, 3, 14, 14)
    with torch.no_grad():
        expected = network(x)
        mmasr.fold(network, verify=x)
        torch.testing.assert_close(network(x), expected, rtol=1e-4, atol=1e-5)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in network.modules())


class RunsItsBranches(Branches):
    """Finds the merged convolution by running its branches, and needs eval mode for that."""

    @torch.no_grad()
    def reparameterize(self):
        def branches(x):
            return self.rbr_dense(x) + self.rbr_1x1(x)

        bias = branches(torch.zeros(1, C, 3, 3))[0, :, 1, 1]
        impulses = torch.zeros(C, C, 3, 3)
        impulses[range(C), range(C), 1, 1] = 1
        kernel = (branches(impulses) - bias[:, None, None]).transpose(0, 1).flip(2, 3)
        self.rbr_reparam = nn.Conv2d(C, C, 3, padding=1)
        self.rbr_reparam.weight.data, self.rbr_reparam.bias.data = kernel, bias
        del self.rbr_dense, self.rbr_1x1


@pytest.mark.parametrize('block', [OnlyKernel, RunsItsBranches])
def test_a_block_in_training_mode_merges_as_in_eval_mode(block):
    network = nn.Sequential(randomize_norms(block())).train()
    expected = copy.deepcopy(network).eval()
    x = 20 * torch.randn(2, C, 9, 9)
    with torch.no_grad():
        mmasr.fold(network)
        torch.testing.assert_close(network.eval()(x), expected(x), rtol=1e-4, atol=1e-4)


class Scales(nn.Module):
    """Multiplies the weights of its convolution in place."""

    def __init__(self, conv):
        super().__init__()
        self.conv, self.scale = conv, nn.Parameter(torch.rand(C, 1, 1) + 0.5)

    def forward(self, x):
        return self.conv(x) * self.scale if hasattr(self, 'scale') else self.conv(x)

    def reparameterize(self):
        self.conv.weight.data.mul_(self.scale.data[..., None])
        self.conv.bias.data.mul_(self.scale.data.flatten())
        del self.scale


def test_blocks_that_share_a_layer_or_a_weight_stay():
    conv, other = nn.Conv2d(C, C, 3), nn.Conv2d(C, C, 3)
    kept(nn.Sequential(Scales(conv), Scales(conv)), 'other parts of the network share its layers or weights')
    other.weight = conv.weight
    kept(nn.Sequential(Scales(conv), other), 'other parts of the network share its layers or weights')


def test_a_method_that_would_change_a_merged_block_again_does_nothing():
    network = nn.Sequential(Scales(nn.Conv2d(C, C, 3)))
    mmasr.fold(network)
    before = copy.deepcopy(network.state_dict())
    assert network[0].reparameterize() is network[0]
    torch.testing.assert_close(network.state_dict(), before, rtol=0, atol=0)


class LosesReLU6(RepVGGOfItsAuthors):
    def __init__(self):
        super().__init__()
        self.nonlinearity = nn.ReLU6()

    def switch_to_deploy(self):
        super().switch_to_deploy()
        self.nonlinearity = nn.ReLU()


def test_large_values_are_compared_too():
    kept(nn.Sequential(randomize_norms(LosesReLU6())), 'the merged block differs from the block')


def test_a_block_whose_forward_was_replaced_stays():
    block = randomize_norms(RepVGGOfItsAuthors())
    forward = block.forward
    block.forward = lambda x: forward(x) + 1
    kept(nn.Sequential(block), 'it has an overridden forward')


def test_frozen_blocks_stay_frozen():
    network = nn.Sequential(randomize_norms(RepVGGOfItsAuthors())).requires_grad_(False)
    mmasr.fold(network)
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_a_block_inside_others_stays_if_it_is_named_and_so_do_they():
    network = nn.Sequential(randomize_norms(UniRepLKNetBlock())).eval()
    mmasr.fold(network, stay=['0.dwconv'])
    assert hasattr(network[0].dwconv, 'dil')
    assert isinstance(network[0].norm, nn.BatchNorm2d)


class Several(Branches):
    """Takes a list and a keyword, changes its input and returns a dict."""

    def forward(self, maps, scale=None):
        return {'y': super().forward(nn.functional.silu(maps[0], inplace=True) * scale)}

    def switch_to_deploy(self):
        self._replace()


class AroundSeveral(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = Several()

    def forward(self, x):
        return self.block([x.clone()], scale=torch.ones(C, 1, 1))['y']


def test_a_block_with_any_inputs_and_outputs_is_verified():
    network = randomize_norms(AroundSeveral()).eval()
    x = torch.randn(2, C, 9, 9)
    with torch.no_grad():
        expected = network(x)
        mmasr.fold(network, verify=x)
        torch.testing.assert_close(network(x), expected, rtol=1e-4, atol=1e-4)
    assert hasattr(network.block, 'rbr_reparam')


def test_the_kernel_of_a_block_has_its_asr():
    network = nn.Sequential(randomize_norms(RepVGGOfItsAuthors()))
    sites = ['0.rbr_dense.1', '0.rbr_1x1.1']
    mmasr.attach(network, {'type': 'SE'}, sites=sites, psi={'std': 1.0}).eval()
    x = torch.randn(2, C, 9, 9)
    with torch.no_grad():
        kernel, bias = network[0].get_equivalent_kernel_bias()
        found = nn.functional.conv2d(x, kernel, bias, padding=1).relu()
        torch.testing.assert_close(found, network(x), rtol=1e-4, atol=1e-4)
    assert hasattr(network[0].rbr_dense[1], 'asr')


def test_a_static_method_with_such_a_name_is_no_problem():
    class Static(nn.Sequential):
        @staticmethod
        def fuse():
            pass

    network = Static(nn.Conv2d(C, C, 3)).eval()
    mmasr.fold(network)
    assert type(network) is Static
