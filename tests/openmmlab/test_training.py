"""Training as OpenMMLab does it: several processes, mixed precision, EMA, accumulation, torch.compile."""

import copy

import pytest
import torch
from forked import run_ranks
from mmdet.models.backbones import ResNet
from mmengine.model import ExponentialMovingAverage
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from versions import FULL_GRAPH

import mmasr
from mmasr.core.host import Host

DEPTH18 = {'type': 'mmasr.ASRResNet', 'depth': 18, 'base_channels': 8, 'zero_init_residual': False}
OREPA = {'convs': {'type': 'OREPA', 'init_identity': True}}
#: For the fixture ``model``: ASR alone, and with OREPA in the convolutions.
with_orepa_too = pytest.mark.parametrize('model', [{}, OREPA], ids=['ASR', 'OREPA'], indirect=True)


@pytest.fixture
def model(request):
    return build(**getattr(request, 'param', {}))


def build(**options):
    torch.manual_seed(0)
    # With fewer hidden units all of an SE's ReLUs can be dead.
    model = MODELS.build({**DEPTH18, 'asr': {'attention': {'type': 'SE', 'ratio': 1}}, **options})
    model.train()
    return model


def loss_of(model, x):
    return sum(out.square().mean() for out in model(x))


def train_a_rank(rank, folder, x, options):
    torch.distributed.init_process_group(
        'gloo', init_method=f'file://{folder}/store', rank=rank, world_size=2
    )
    model = build(**options)
    # No parameter may be unused by default: a ψ, κ or branch without gradient makes the second step fail.
    parallel = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(parallel.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        loss_of(parallel, x[rank::2].clone().requires_grad_()).backward()
        optimizer.step()
    torch.save(model.state_dict(), f'{folder}/{rank}.pt')
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    'options',
    [{}, {'with_cp': True}, {**OREPA, 'with_cp': True}, {'convs': {'type': 'XVolution'}}],
    ids=['plain', 'with_cp', 'OREPA and with_cp', 'X-volution'],
)
def test_two_processes_train_like_one(tmp_path, options):
    x = torch.randn(4, 3, 64, 64)
    run_ranks(train_a_rank, tmp_path, x, options)
    first, second = (torch.load(tmp_path / f'{rank}.pt') for rank in (0, 1))

    # BatchNorm is in eval mode (norm_eval), so the batch is the same whether it is split or not.
    model = build(**{**options, 'with_cp': False})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        loss_of(model, x).backward()
        optimizer.step()
    for name, expected in model.state_dict().items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], expected, rtol=1e-4, atol=1e-6)
    start = build(**options).state_dict()
    for name in start:
        if name.endswith(('.asr.psi', '.orepa.scale', '.dynamic.norm.weight')):
            assert not torch.equal(first[name], start[name]), name


@with_orepa_too
def test_autocast_trains_in_bfloat16_with_float32_scales(model):
    x = torch.randn(2, 3, 64, 64)
    expected = model(x)[-1]
    with torch.autocast('cpu', dtype=torch.bfloat16):
        out = model(x)[-1]
    # bfloat16 has 8 bits: a few percent after 17 layers, where a scale left out would double the output.
    assert (out - expected).abs().max() < 0.1 * expected.abs().max()
    out.float().square().mean().backward()
    for host in (m for m in model.modules() if isinstance(m, Host)):
        assert all(
            p.grad.dtype == torch.float32 and p.grad.isfinite().all()
            for p in host.reparameterization().parameters()
        )


@with_orepa_too
def test_ema_averages_psi_and_kappa_and_shares_nothing(model):
    average = ExponentialMovingAverage(model, momentum=0.25)
    psi = model.layer1[0].bn2.asr.psi
    first = psi.detach().clone()
    average.update_parameters(model)
    with torch.no_grad():
        psi.fill_(0.5)
    average.update_parameters(model)
    host = average.module.layer1[0].bn2
    torch.testing.assert_close(host.asr.psi, 0.75 * first + 0.25 * psi)
    x = torch.randn(1, 3, 64, 64)
    expected = average.module(x)[-1]
    torch.testing.assert_close(mmasr.fold(copy.deepcopy(average.module))(x)[-1], expected)


@with_orepa_too
def test_gradients_accumulate(model):
    reference = copy.deepcopy(model)
    x = torch.randn(4, 3, 64, 64)
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1), accumulative_counts=2)
    wrapper.initialize_count_status(model, 0, 2)
    for half in x.chunk(2):
        with wrapper.optim_context(model):
            wrapper.update_params(loss_of(model, half))
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.1)
    loss_of(reference, x).backward()
    optimizer.step()
    torch.testing.assert_close(dict(model.named_parameters()), dict(reference.named_parameters()))


#: Not all stages, since every layer takes its time to be compiled.
HALF = {'num_stages': 2, 'strides': (1, 2), 'dilations': (1, 1), 'out_indices': (0, 1)}
QUARTER = {'num_stages': 1, 'strides': (1,), 'dilations': (1,), 'out_indices': (0,)}


ONE_OREPA = {'convs': {'type': 'OREPA', 'init_identity': True, 'sites': ['layer1.0.conv1']}}


@pytest.mark.parametrize('model', [HALF, {**QUARTER, **ONE_OREPA}], ids=['ASR', 'OREPA'], indirect=True)
@pytest.mark.parametrize('training', [True, False], ids=['train', 'eval'])
def test_compiles_without_a_graph_break(model, training):
    x = torch.randn(2, 3, 64, 64)
    model.train(training)
    compiled = torch.compile(model, fullgraph=FULL_GRAPH, backend='aot_eager')
    torch.testing.assert_close(compiled(x), model(x))
    loss_of(compiled, x).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_the_training_form_gives_the_stock_networks_gradients_times_the_scale(model):
    """Through a whole network: γ's gradient is v times that of the folded network's γ."""
    stock = mmasr.fold(copy.deepcopy(model))
    assert type(stock) is ResNet
    x = torch.randn(2, 3, 64, 64)
    loss_of(model, x).backward()
    loss_of(stock, x).backward()
    for name, host in model.named_modules():
        if isinstance(host, Host):
            folded = stock.get_submodule(name).weight.grad
            torch.testing.assert_close(host.weight.grad, folded * host.asr.scale(), rtol=1e-4, atol=1e-6)
            # and ψ's gradient is what the chain rule makes of it
            assert host.asr.psi.grad.abs().sum() > 0
    assert isinstance(model.layer1[0].bn2, nn.BatchNorm2d)
