"""Tests of hosts against the paper's form: the output of the stock layer times the scale per channel."""

import copy
import functools
import threading

import mmcv.ops
import pytest
import torch
import torch.nn.utils.prune
import torchvision
from helpers import randomize, randomize_scales
from mmengine.model import convert_sync_batchnorm, revert_sync_batchnorm
from mmpretrain.models.backbones.repvgg import RepVGGBlock
from timm.models.byobnet import RepVggBlock
from torch import nn
from torch.ao import quantization
from torch.ao.quantization import quantize_fx
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.models.feature_extraction import create_feature_extractor
from versions import FULL_GRAPH

import mmasr
from mmasr.attention import asr_attentions
from mmasr.core.compat import FUSED_PATH_RESPECTS_HOOKS
from mmasr.core.host import Host, find_reparameterizations, write_parameters
from mmasr.errors import InputError
from mmasr.experiments.benchmark.memory import saved_for_backward
from mmasr.experiments.benchmark.workload import image_workload

C = 8
IMAGES = (4, 6, 10, 10)


def without_relu(block):
    """Remove the ReLU of a block that adds up branches, since the scale comes before it."""
    block.act = nn.Identity()
    return block


# name -> layer with C output channels, shape of its input, channel dimension of its output
LAYERS = {
    'BatchNorm1d': (lambda: nn.BatchNorm1d(C), (4, C, 10), 1),
    'BatchNorm2d': (lambda: nn.BatchNorm2d(C), (4, C, 10, 10), 1),
    'BatchNorm3d': (lambda: nn.BatchNorm3d(C), (4, C, 4, 4, 4), 1),
    'SyncBatchNorm': (lambda: nn.SyncBatchNorm(C), (4, C, 10, 10), 1),
    'GroupNorm': (lambda: nn.GroupNorm(2, C), (4, C, 10, 10), 1),
    'InstanceNorm2d': (
        lambda: nn.InstanceNorm2d(C, affine=True, track_running_stats=True),
        (4, C, 10, 10),
        1,
    ),
    'LayerNorm': (lambda: nn.LayerNorm(C), (4, 5, C), 2),
    'LayerNorm over two dimensions': (lambda: nn.LayerNorm((5, C)), (4, 5, C), 2),
    'LayerNorm without bias': (lambda: nn.LayerNorm(C, bias=False), (4, 5, C), 2),
    'Conv1d': (lambda: nn.Conv1d(6, C, 3), (4, 6, 10), 1),
    'Conv2d': (lambda: nn.Conv2d(6, C, 3, stride=2, padding=1), IMAGES, 1),
    'Conv2d without bias': (lambda: nn.Conv2d(6, C, 3, bias=False), IMAGES, 1),
    'Conv2d with groups': (lambda: nn.Conv2d(6, C, 3, groups=2), IMAGES, 1),
    'Conv2d with reflection': (lambda: nn.Conv2d(6, C, 3, padding=1, padding_mode='reflect'), IMAGES, 1),
    'Conv3d': (lambda: nn.Conv3d(2, C, 3), (2, 2, 5, 5, 5), 1),
    'ConvTranspose2d': (lambda: nn.ConvTranspose2d(6, C, 3, stride=2), IMAGES, 1),
    'ConvTranspose2d with groups': (lambda: nn.ConvTranspose2d(6, C, 3, groups=2), IMAGES, 1),
    'Linear': (lambda: nn.Linear(6, C), (4, 5, 6), 2),
    'RepVGGBlock of mmpretrain': (lambda: without_relu(RepVGGBlock(C, C)), (4, C, 10, 10), 1),
    'RepVGGBlock without identity': (lambda: without_relu(RepVGGBlock(6, C, stride=2)), IMAGES, 1),
    'RepVGGBlock, merged': (lambda: without_relu(RepVGGBlock(C, C, deploy=True)), (4, C, 10, 10), 1),
    'RepVggBlock of timm': (lambda: without_relu(RepVggBlock(C, C)), (4, C, 10, 10), 1),
    'MultiheadAttention': (lambda: nn.MultiheadAttention(C, 2, batch_first=True), (4, 5, C), 2),
}


def run(layer, x):
    is_attention = isinstance(getattr(layer, '_orig_mod', layer), nn.MultiheadAttention)
    return layer(x, x, x, need_weights=False)[0] if is_attention else layer(x)


def papers_form(layer, v, x, dim):
    """Return the output of the stock layer times the scale: the paper's form."""
    out = run(layer, x)
    return out * v.view([-1 if i == dim else 1 for i in range(out.dim())])


# SyncBatchNorm can be trained on GPUs only.
@pytest.mark.parametrize(
    ('kind', 'training'),
    [
        (kind, training)
        for kind in LAYERS
        for training in (False, True)
        if kind != 'SyncBatchNorm' or not training
    ],
)
@pytest.mark.parametrize('kappa', asr_attentions())
def test_values_gradients_and_folded_layer_match_the_papers_form(kind, training, kappa):
    make, shape, dim = LAYERS[kind]
    # In double precision the bound of 1e-10 is far above rounding (1e-16) and far below the effect of a bug.
    stock = randomize(make()).double().train(training)
    host = mmasr.attach(copy.deepcopy(stock), {'type': kappa}, sites='', delta=2)
    asr = randomize(host.asr)
    reference = copy.deepcopy(asr)
    x = torch.randn(shape, dtype=torch.double)
    x_host, x_paper = x.clone().requires_grad_(), x.clone().requires_grad_()

    out = run(host, x_host)
    expected = papers_form(stock, reference.scale(), x_paper, dim)
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)

    weight = torch.randn_like(out)
    (out * weight).sum().backward()
    (expected * weight).sum().backward()
    pairs = [(x_host.grad, x_paper.grad)]
    pairs += [(p.grad, reference.get_parameter(name).grad) for name, p in asr.named_parameters()]
    pairs += [(host.get_parameter(name).grad, p.grad) for name, p in stock.named_parameters()]
    for actual, paper in pairs:
        torch.testing.assert_close(actual, paper, rtol=1e-10, atol=1e-10)
    for name, buffer in stock.named_buffers():
        torch.testing.assert_close(host.get_buffer(name), buffer)

    assert type(host) is not type(stock)
    assert isinstance(host, type(stock))
    folded = mmasr.fold(host)
    assert type(folded) is type(stock)
    # A block that adds up branches becomes one convolution.
    assert folded.state_dict().keys() == mmasr.fold(copy.deepcopy(stock)).state_dict().keys()
    stock.eval(), folded.eval()
    torch.testing.assert_close(
        run(folded, x), papers_form(stock, reference.scale(), x, dim), rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize(
    'convert',
    [
        nn.SyncBatchNorm.convert_sync_batchnorm,
        convert_sync_batchnorm,
        functools.partial(convert_sync_batchnorm, implementation='mmcv'),
    ],
    ids=['torch', 'mmengine', 'mmengine to mmcv'],
)
def test_conversions_to_and_from_sync_batch_norm_keep_the_asr(convert, process_group):
    model = randomize_scales(mmasr.attach(torchvision.models.resnet18(), {'type': 'SE'})).eval()
    hosts = sum(isinstance(m, Host) for m in model.modules())
    x = torch.randn(2, 3, 64, 64)
    expected = model(x)
    plain = mmasr.fold(copy.deepcopy(model))
    synced = convert(model)
    kinds = nn.SyncBatchNorm | mmcv.ops.SyncBatchNorm
    assert sum(isinstance(m, Host) and isinstance(m, kinds) for m in synced.modules()) == hosts
    reverted = revert_sync_batchnorm(synced).eval()
    assert sum(isinstance(m, Host) and not isinstance(m, kinds) for m in reverted.modules()) == hosts
    torch.testing.assert_close(reverted(x), expected)
    mmasr.fold(reverted)
    assert not any(isinstance(m, Host | mmasr.ASR) for m in reverted.modules())
    assert reverted.state_dict().keys() == plain.state_dict().keys()
    torch.testing.assert_close(reverted(x), expected, rtol=1e-4, atol=1e-4)


# torch 2.1 cannot compile its branches.
REPVGG = pytest.param(
    'RepVGGBlock of mmpretrain', marks=pytest.mark.skipif(torch.__version__ < (2, 2), reason='torch 2.1')
)


@pytest.mark.parametrize(
    'kind',
    ['BatchNorm2d', 'Conv2d', 'ConvTranspose2d with groups', 'LayerNorm', REPVGG, 'MultiheadAttention'],
)
def test_compiles_without_a_graph_break(kind):
    make, shape, _ = LAYERS[kind]
    torch.compiler.reset()  # torch limits how often one function is recompiled
    model = mmasr.attach(make(), {'type': 'SE', 'ratio': 1}, sites='')
    x = torch.randn(shape)
    for training in (True, False):
        model.train(training)
        compiled = torch.compile(model, fullgraph=FULL_GRAPH, backend='aot_eager')
        torch.testing.assert_close(run(compiled, x), run(model, x))
    run(compiled, x).sum().backward()
    assert model.asr.psi.grad.abs().sum() > 0


@pytest.mark.skipif(not FUSED_PATH_RESPECTS_HOOKS, reason='attach refuses it before torch 2.5')
@pytest.mark.parametrize('site', ['self_attn', 'linear2', 'norm1'])
def test_a_transformer_layer_with_a_host_does_not_take_its_fused_path(site):
    stock = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    model = mmasr.attach(copy.deepcopy(stock), {'type': 'SE'}, sites=[site])
    x = torch.randn(2, 5, 16)
    expected = model(x)
    assert not torch.allclose(stock(x), expected)
    with torch.no_grad():  # otherwise it would take the fused path here
        torch.testing.assert_close(model(x), expected)
        mmasr.fold(model)
        torch.testing.assert_close(model(x), expected)
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_a_weight_that_is_not_a_parameter_is_scaled():
    """DataParallel replicas and pruned layers have tensors in place of parameters."""
    model = mmasr.attach(nn.Linear(6, C), {'type': 'SE'}, sites='')
    x = torch.randn(4, 6)
    expected = model(x)
    nn.utils.prune.identity(model, 'weight')
    torch.testing.assert_close(model(x), expected)
    with pytest.raises(InputError, match='has no weight of its own'):
        mmasr.fold(model)
    nn.utils.prune.remove(model, 'weight')
    torch.testing.assert_close(mmasr.fold(model)(x), expected)


def test_a_host_that_is_parametrized_later_is_still_scaled():
    model = mmasr.attach(nn.Linear(6, C), {'type': 'SE'}, sites='')
    x = torch.randn(4, 6)
    expected = model(x)
    nn.utils.parametrizations.weight_norm(model)
    torch.testing.assert_close(model(x), expected)


def test_a_custom_layer_with_an_asr_of_its_own_does_not_become_a_host():
    class Scaled(nn.Linear):
        def __init__(self):
            super().__init__(6, C)
            self.asr = mmasr.ASR({'type': 'SE'}, C)

    assert type(Scaled()) is Scaled


def test_two_threads_can_run_one_host_at_the_same_time():
    """Neither of them may ever see the unscaled parameters."""
    host = mmasr.attach(nn.Conv2d(8, C, 3), {'type': 'SE'}, sites='').eval()
    x = torch.randn(1, 8, 64, 64)
    expected = host(x)
    results = []
    with torch.no_grad():
        threads = [
            threading.Thread(
                target=lambda: results.extend(torch.equal(host(x), expected) for _ in range(200))
            )
            for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert results == [True] * 400


def test_find_reparameterizations_finds_hosts_and_branches_but_no_plugins():
    class Block(nn.Sequential):
        def __init__(self):
            super().__init__(nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3))
            self.plugin = mmasr.ASR({'type': 'SE'}, 3)

    model = Block()
    mmasr.attach(model, {'type': 'ACNet'}, sites=['0'])
    mmasr.attach(model, {'type': 'OREPA'}, sites=['1'])
    mmasr.attach(model, {'type': 'SE'}, sites=['0', '2'])
    expected = [
        ('0', model[0], model[0].asr),  # branches that carry an ASR
        ('0', model[0], model[0]),
        ('1', model[1], model[1].orepa),
        ('2', model[2], model[2].asr),
    ]
    assert [*find_reparameterizations(model)] == expected
    del model.plugin
    assert [*find_reparameterizations(mmasr.fold(model))] == []


@pytest.mark.parametrize('trainable', [True, False])
def test_write_parameters_changes_the_values_of_parameters_and_nothing_else(trainable):
    layer = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm2d(2)).requires_grad_(trainable)
    before = layer[0].weight
    write_parameters(layer, {'0.weight': torch.full((2, 2), 3.0), '1.bias': torch.full((2,), 4.0)})
    assert layer[0].weight.eq(3).all()
    assert layer[1].bias.eq(4).all()
    assert isinstance(layer[0].weight, nn.Parameter)
    assert layer[0].weight.requires_grad == trainable
    assert layer[0].weight is before  # an optimizer may have it


class LargeMaps(TorchDispatchMode):
    """Counts results of operations that have four dimensions and a minimum number of elements."""

    def __init__(self, elements):
        super().__init__()
        self.elements, self.count = elements, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        results = result if isinstance(result, tuple | list) else [result]
        self.count += sum(
            isinstance(r, torch.Tensor) and r.dim() == 4 and r.numel() >= self.elements for r in results
        )
        return result


@pytest.mark.parametrize('delta', [1, 4])
def test_asr_neither_creates_nor_saves_a_feature_map(delta):
    plain = torchvision.models.resnet50()
    model = mmasr.attach(copy.deepcopy(plain), {'type': 'SE'}, delta=delta)
    x = torch.randn(8, 3, 160, 160)
    # ASR saves vectors at 16 sites; the feature maps take 335 MiB.
    workload = image_workload(x)
    assert saved_for_backward(model, workload) <= 1.005 * saved_for_backward(plain, workload)
    counts = []
    for network in (plain, model):
        with LargeMaps(8 * 2048 * 5 * 5) as large:  # the smallest feature map
            network(x).sum().backward()
        counts.append(large.count)
    assert counts[0] > 100
    assert counts[1] == counts[0]


def quantize_dynamic(model):
    quantization.quantize_dynamic(model, {nn.Linear}, inplace=True)


def prepare(model):
    model.qconfig = quantization.default_qconfig
    quantization.prepare(model, inplace=True)


def prepare_qat(model):
    model.train().qconfig = quantization.get_default_qat_qconfig('x86')
    quantization.prepare_qat(model, inplace=True)


def prepare_fx(model):
    quantize_fx.prepare_fx(model, quantization.get_default_qconfig_mapping('x86'), torch.randn(1, 3, 8, 8))


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('how', [quantize_dynamic, prepare, prepare_qat, prepare_fx])
@pytest.mark.parametrize('kind', ['OREPA', 'SE'])
def test_quantization_would_leave_a_host_in_float_so_it_says_to_fold_first(how, kind):
    stock = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU())
    model = mmasr.attach(stock, {'type': kind}, sites=['0']).eval()
    with pytest.raises(InputError, match=r'^a Conv2d with (OREPA|ASR) cannot be quantized; call mmasr\.fold'):
        how(copy.deepcopy(model))
    how(mmasr.fold(model))


@pytest.mark.parametrize('kind', ['OREPA', 'SE'])
def test_a_host_is_a_leaf_for_torch_fx_like_its_stock_layer(kind):
    network = mmasr.attach(torchvision.models.resnet18(), {'type': kind}).eval()
    x = torch.randn(1, 3, 64, 64)
    traced = torch.fx.symbolic_trace(network)
    leaves = {node.target for node in traced.graph.nodes if node.op == 'call_module'}
    assert {name for name, module in network.named_modules() if isinstance(module, Host)} <= leaves
    assert torch.equal(traced(x), network(x))
    features = create_feature_extractor(network, ['layer2'])
    assert features(x)['layer2'].shape == (1, 128, 8, 8)
