"""Hosts against the plain formula: the layer's output, multiplied by the scale on its channels."""

import copy
import functools
import pickle
import threading

import mmcv.ops
import pytest
import timm
import torch
import torch.nn.utils.prune
import torchvision
from helpers import randomize
from mmengine.model import convert_sync_batchnorm, revert_sync_batchnorm
from mmpretrain.models.backbones.repvgg import RepVGGBlock
from timm.models.byobnet import RepVggBlock
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from versions import FULL_GRAPH

import mmasr
from mmasr.attention import asr_attentions
from mmasr.core.host import Host
from mmasr.core.versions import MINDS_HOOKS
from mmasr.experiments.benchmark.measure import saved_for_backward
from mmasr.experiments.benchmark.workload import images

C = 8
IMAGES = (4, 6, 10, 10)


def branches(block):
    """A block that adds up branches, without its ReLU, which comes after the scale."""
    block.act = nn.Identity()
    return block


# kind -> layer with C output channels, shape of its input, dimension of the channels in its output
LAYERS = {
    'BatchNorm1d': (lambda: nn.BatchNorm1d(C), (4, C, 10), 1),
    'BatchNorm2d': (lambda: nn.BatchNorm2d(C), (4, C, 10, 10), 1),
    'BatchNorm3d': (lambda: nn.BatchNorm3d(C), (4, C, 4, 4, 4), 1),
    'SyncBatchNorm': (lambda: nn.SyncBatchNorm(C), (4, C, 10, 10), 1),
    'GroupNorm': (lambda: nn.GroupNorm(2, C), (4, C, 10, 10), 1),
    'InstanceNorm2d': (lambda: nn.InstanceNorm2d(C, affine=True, track_running_stats=True), (4, C, 10, 10), 1),
    'LayerNorm': (lambda: nn.LayerNorm(C), (4, 5, C), 2),
    'LayerNorm of two dimensions': (lambda: nn.LayerNorm((5, C)), (4, 5, C), 2),
    'LayerNorm without bias': (lambda: nn.LayerNorm(C, bias=False), (4, 5, C), 2),
    'Conv1d': (lambda: nn.Conv1d(6, C, 3), (4, 6, 10), 1),
    'Conv2d': (lambda: nn.Conv2d(6, C, 3, stride=2, padding=1), IMAGES, 1),
    'Conv2d without bias': (lambda: nn.Conv2d(6, C, 3, bias=False), IMAGES, 1),
    'Conv2d in groups': (lambda: nn.Conv2d(6, C, 3, groups=2), IMAGES, 1),
    'Conv2d, reflecting': (lambda: nn.Conv2d(6, C, 3, padding=1, padding_mode='reflect'), IMAGES, 1),
    'Conv3d': (lambda: nn.Conv3d(2, C, 3), (2, 2, 5, 5, 5), 1),
    'ConvTranspose2d': (lambda: nn.ConvTranspose2d(6, C, 3, stride=2), IMAGES, 1),
    'ConvTranspose2d in groups': (lambda: nn.ConvTranspose2d(6, C, 3, groups=2), IMAGES, 1),
    'Linear': (lambda: nn.Linear(6, C), (4, 5, 6), 2),
    'RepVGGBlock of mmpretrain': (lambda: branches(RepVGGBlock(C, C)), (4, C, 10, 10), 1),
    'RepVGGBlock without identity': (lambda: branches(RepVGGBlock(6, C, stride=2)), IMAGES, 1),
    'RepVGGBlock, merged': (lambda: branches(RepVGGBlock(C, C, deploy=True)), (4, C, 10, 10), 1),
    'RepVggBlock of timm': (lambda: branches(RepVggBlock(C, C)), (4, C, 10, 10), 1),
    'MultiheadAttention': (lambda: nn.MultiheadAttention(C, 2, batch_first=True), (4, 5, C), 2),
}


def run(layer, x):
    is_attention = isinstance(getattr(layer, '_orig_mod', layer), nn.MultiheadAttention)
    return layer(x, x, x, need_weights=False)[0] if is_attention else layer(x)


def plain_formula(layer, v, x, dim):
    """The paper's form: the stock layer, and its output times the scale."""
    out = run(layer, x)
    return out * v.view([-1 if i == dim else 1 for i in range(out.dim())])


# SyncBatchNorm trains on GPUs only.
@pytest.mark.parametrize(
    ('kind', 'training'),
    [(kind, training) for kind in LAYERS for training in (False, True) if kind != 'SyncBatchNorm' or not training],
)
@pytest.mark.parametrize('kappa', asr_attentions())
def test_value_gradient_and_fold_match_the_plain_formula(kind, training, kappa):
    make, shape, dim = LAYERS[kind]
    # In double precision, so that the bound of 1e-10 is far from rounding (1e-16) and far below any mistake.
    stock = randomize(make()).double().train(training)
    host = mmasr.attach(copy.deepcopy(stock), {'type': kappa}, sites='', delta=2)
    asr = randomize(host.asr)
    reference = copy.deepcopy(asr)
    x = torch.randn(shape, dtype=torch.double)
    x_host, x_plain = x.clone().requires_grad_(), x.clone().requires_grad_()

    out = run(host, x_host)
    expected = plain_formula(stock, reference.scale(), x_plain, dim)
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)

    weight = torch.randn_like(out)
    (out * weight).sum().backward()
    (expected * weight).sum().backward()
    pairs = [(x_host.grad, x_plain.grad)]
    pairs += [(p.grad, reference.get_parameter(name).grad) for name, p in asr.named_parameters()]
    pairs += [(host.get_parameter(name).grad, p.grad) for name, p in stock.named_parameters()]
    for actual, plain in pairs:
        torch.testing.assert_close(actual, plain, rtol=1e-10, atol=1e-10)
    for name, buffer in stock.named_buffers():
        torch.testing.assert_close(host.get_buffer(name), buffer)

    assert type(host) is not type(stock)
    assert isinstance(host, type(stock))
    folded = mmasr.fold(host)
    assert type(folded) is type(stock)
    # Of a block that adds up branches the one convolution is left.
    assert folded.state_dict().keys() == mmasr.fold(copy.deepcopy(stock)).state_dict().keys()
    stock.eval(), folded.eval()
    torch.testing.assert_close(run(folded, x), plain_formula(stock, reference.scale(), x, dim), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    'make',
    [
        lambda: nn.InstanceNorm2d(C),
        lambda: nn.BatchNorm2d(C, affine=False),
        lambda: nn.LayerNorm(C, elementwise_affine=False),
        lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(3, C, 3)),
    ],
)
def test_a_layer_with_nothing_to_scale_is_refused_by_name(make):
    model = nn.Sequential(nn.Conv2d(3, C, 1), make())
    with pytest.raises(ValueError, match=r"^1 \(.*can't carry an ASR: it has no weight to scale"):
        mmasr.attach(model, {'type': 'SE'}, sites=['0', '1'])
    assert not any(isinstance(m, Host) for m in model.modules())


def test_a_stock_checkpoint_lacks_only_the_asr_keys():
    model = mmasr.attach(torchvision.models.resnet18(), {'type': 'SE'})
    result = model.load_state_dict(torchvision.models.resnet18().state_dict(), strict=False)
    assert not result.unexpected_keys
    assert result.missing_keys
    assert all('.asr.' in key for key in result.missing_keys)


@pytest.mark.parametrize(
    'make',
    [
        torchvision.models.resnet18,
        torchvision.models.resnext50_32x4d,
        lambda: timm.create_model('resnet26'),
        lambda: timm.create_model('seresnet50'),
        lambda: timm.create_model('resnet18d', norm_layer=lambda c, **kw: nn.GroupNorm(4, c, **kw)),
    ],
)
def test_known_networks_fold_to_what_they_were(make):
    stock = make()
    types = [type(m) for m in stock.modules()]
    model = randomize_scales(mmasr.attach(copy.deepcopy(stock), {'type': 'SE'})).eval()
    assert sum(isinstance(m, Host) for m in model.modules()) == sum(
        type(m).__name__ in ('BasicBlock', 'Bottleneck') for m in model.modules()
    )
    x = torch.randn(2, 3, 64, 64)
    before = model(x)
    assert mmasr.fold(model) is model
    # Float32, a product rounded once a layer: 1e-5 of the largest value, against 0.5 and more if a fold were missing.
    assert (model(x) - before).abs().max() < 1e-5 * before.abs().max()
    assert [type(m) for m in model.modules()] == types
    assert model.state_dict().keys() == stock.state_dict().keys()


def randomize_scales(model):
    for module in model.modules():
        if isinstance(module, Host):
            nn.init.normal_(module.asr.psi)
    return model


def test_sites_by_name_and_by_expression():
    def hosts(sites):
        model = mmasr.attach(torchvision.models.vgg11_bn(init_weights=False), {'type': 'SE'}, sites=sites)
        return [name for name, m in model.named_modules() if isinstance(m, Host)]

    assert hosts(['features.1', 'features.5']) == ['features.1', 'features.5']
    assert hosts(r'features\.[15]') == ['features.1', 'features.5']
    assert hosts('features.25') == ['features.25']


def test_attach_says_what_is_wrong_and_changes_nothing():
    model = torchvision.models.vgg11_bn(init_weights=False)
    before = [type(m) for m in model.modules()]
    for sites, message in [
        ('bn3', "no module whose whole name matches 'bn3'"),
        (['features.1', 'bn3'], 'no module named bn3'),
        (['features.1', 'features.2'], r"features\.2 \(ReLU\) can't carry an ASR; a host is a BatchNorm"),
    ]:
        with pytest.raises(ValueError, match=message):
            mmasr.attach(model, {'type': 'SE'}, sites=sites)
    assert [type(m) for m in model.modules()] == before
    with pytest.raises(ValueError, match=r'AlexNet is no network whose sites are known; pass sites=.*features\.0, features\.3'):
        mmasr.attach(torchvision.models.AlexNet(), {'type': 'SE'})
    mmasr.attach(model, {'type': 'SE'}, sites=['features.1'])
    with pytest.raises(ValueError, match=r'features\.1 .* carries an ASR already'):
        mmasr.attach(model, {'type': 'SE'}, sites=['features.1'])


def test_an_asr_without_a_host_is_not_folded_silently():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn = mmasr.attach(nn.BatchNorm2d(C), {'type': 'SE'}, sites='')
            self.scale = mmasr.ASR({'type': 'SE'}, C)

    block = Block()
    with pytest.raises(ValueError, match="scale can't be folded"):
        mmasr.fold(block)
    assert isinstance(block.bn, Host)


def test_fold_leaves_a_shared_weight_to_the_other_layer():
    first, second = nn.Linear(C, C), nn.Linear(C, C)
    second.weight = first.weight
    model = mmasr.attach(nn.Sequential(first, second), {'type': 'SE'}, sites=['1'])
    before = first.weight.clone()
    x = torch.randn(3, C)
    expected = model(x)
    torch.testing.assert_close(mmasr.fold(model)(x), expected)
    assert torch.equal(first.weight, before)


@pytest.mark.parametrize(
    'convert',
    [
        nn.SyncBatchNorm.convert_sync_batchnorm,
        convert_sync_batchnorm,
        functools.partial(convert_sync_batchnorm, implementation='mmcv'),
    ],
    ids=['torch', 'mmengine', 'mmengine to mmcv'],
)
def test_conversion_to_and_from_sync_batchnorm_keeps_asr_working(convert, process_group):
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


@pytest.mark.parametrize('duplicate', [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=['deepcopy', 'pickle'])
def test_copies_are_independent(duplicate):
    model = mmasr.attach(torchvision.models.resnet18(), {'type': 'SE'}).eval()
    other = duplicate(model)
    x = torch.randn(1, 3, 32, 32)
    expected = model(x)
    assert torch.equal(other(x), expected)
    randomize_scales(other)
    assert not torch.allclose(other(x), expected)
    assert torch.equal(model(x), expected)


# torch 2.1 fails to compile its branches.
REPVGG = pytest.param('RepVGGBlock of mmpretrain', marks=pytest.mark.skipif(torch.__version__ < (2, 2), reason='torch 2.1'))


@pytest.mark.parametrize(
    'kind', ['BatchNorm2d', 'Conv2d', 'ConvTranspose2d in groups', 'LayerNorm', REPVGG, 'MultiheadAttention']
)
def test_compiles_without_a_graph_break(kind):
    make, shape, _ = LAYERS[kind]
    torch.compiler.reset()  # there is a limit to what one function is compiled for
    model = mmasr.attach(make(), {'type': 'SE', 'ratio': 1}, sites='')
    x = torch.randn(shape)
    for training in (True, False):
        model.train(training)
        compiled = torch.compile(model, fullgraph=FULL_GRAPH, backend='aot_eager')
        torch.testing.assert_close(run(compiled, x), run(model, x))
    run(compiled, x).sum().backward()
    assert model.asr.psi.grad.abs().sum() > 0


@pytest.mark.skipif(MINDS_HOOKS, reason='what older versions of torch refuse')
def test_in_a_transformer_layer_that_would_leave_it_out_it_is_refused():
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    with pytest.raises(ValueError, match=r'linear2 is in an nn\.TransformerEncoderLayer, whose fused path'):
        mmasr.attach(layer, {'type': 'SE'}, sites=['linear2'])


@pytest.mark.skipif(not MINDS_HOOKS, reason='before torch 2.5 it is refused')
@pytest.mark.parametrize('site', ['self_attn', 'linear2', 'norm1'])
def test_the_fused_path_of_a_transformer_layer_does_not_leave_asr_out(site):
    stock = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    model = mmasr.attach(copy.deepcopy(stock), {'type': 'SE'}, sites=[site])
    x = torch.randn(2, 5, 16)
    expected = model(x)
    assert not torch.allclose(stock(x), expected)
    with torch.no_grad():  # takes the fused path if it may
        torch.testing.assert_close(model(x), expected)
        mmasr.fold(model)
        torch.testing.assert_close(model(x), expected)
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_the_projection_inside_an_attention_is_refused():
    with pytest.raises(ValueError, match=r'out_proj is read by its MultiheadAttention, never called'):
        mmasr.attach(nn.MultiheadAttention(C, 2), {'type': 'SE'}, sites=['out_proj'])


def test_a_weight_that_is_not_a_parameter_is_scaled_all_the_same():
    """A replica of DataParallel and a pruned layer have tensors in place of parameters."""
    model = mmasr.attach(nn.Linear(6, C), {'type': 'SE'}, sites='')
    x = torch.randn(4, 6)
    expected = model(x)
    nn.utils.prune.identity(model, 'weight')
    torch.testing.assert_close(model(x), expected)
    with pytest.raises(ValueError, match="can't carry an ASR: it has no weight to scale"):
        mmasr.fold(model)
    nn.utils.prune.remove(model, 'weight')
    torch.testing.assert_close(mmasr.fold(model)(x), expected)


def test_a_layer_parametrized_afterwards_is_scaled_all_the_same():
    model = mmasr.attach(nn.Linear(6, C), {'type': 'SE'}, sites='')
    x = torch.randn(4, 6)
    expected = model(x)
    nn.utils.parametrizations.weight_norm(model)
    torch.testing.assert_close(model(x), expected)


def test_a_layer_of_ones_own_that_has_an_asr_is_not_made_a_host():
    class Scaled(nn.Linear):
        def __init__(self):
            super().__init__(6, C)
            self.asr = mmasr.ASR({'type': 'SE'}, C)

    assert type(Scaled()) is Scaled


def test_threads_do_not_meet():
    """Two threads run one host at once; each must see its scale, and none the bare parameters."""
    host = mmasr.attach(nn.Conv2d(8, C, 3), {'type': 'SE'}, sites='').eval()
    x = torch.randn(1, 8, 64, 64)
    expected = host(x)
    results = []
    with torch.no_grad():
        threads = [
            threading.Thread(target=lambda: results.extend(torch.equal(host(x), expected) for _ in range(200)))
            for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert results == [True] * 400


def test_asr_follows_the_layer_to_its_dtype():
    host = mmasr.attach(nn.Conv2d(3, C, 3).to(torch.bfloat16), {'type': 'SE'}, sites='')
    x = torch.randn(1, 3, 8, 8, dtype=torch.bfloat16)
    assert host(x).dtype == torch.bfloat16
    assert mmasr.fold(host).weight.dtype == torch.bfloat16


class LargeMaps(TorchDispatchMode):
    """Counts the results of all operations that have four dimensions and at least so many elements."""

    def __init__(self, elements):
        super().__init__()
        self.elements, self.count = elements, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        results = result if isinstance(result, tuple | list) else [result]
        self.count += sum(isinstance(r, torch.Tensor) and r.dim() == 4 and r.numel() >= self.elements for r in results)
        return result


@pytest.mark.parametrize('delta', [1, 4])
def test_no_feature_map_is_created_or_kept_for_asr(delta):
    plain = torchvision.models.resnet50()
    model = mmasr.attach(copy.deepcopy(plain), {'type': 'SE'}, delta=delta)
    x = torch.randn(8, 3, 160, 160)
    # Vectors for 16 sites, against 335 MiB of feature maps.
    assert saved_for_backward(model, images(x)) <= 1.005 * saved_for_backward(plain, images(x))
    counts = []
    for network in (plain, model):
        with LargeMaps(8 * 2048 * 5 * 5) as large:  # the smallest feature map
            network(x).sum().backward()
        counts.append(large.count)
    assert counts[0] > 100
    assert counts[1] == counts[0]
