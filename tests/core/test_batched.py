"""Tests of batched effective parameters against those that every host computes alone."""

import copy
import os
import pickle
import subprocess
import sys
import threading
import types
import weakref

import pytest
import torch
import torchvision
from helpers import randomize
from torch import nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from versions import FULL_GRAPH

import mmasr
from mmasr.attention import asr_attentions
from mmasr.attention.se import SE
from mmasr.core.batched import disable_batching
from mmasr.core.compat import CAN_BATCH
from mmasr.core.host import active_passes
from mmasr.experiments.benchmark.memory import saved_for_backward
from mmasr.experiments.benchmark.workload import image_workload

needs_batching = pytest.mark.skipif(not CAN_BATCH, reason='torch 2.8 added the required API')

X = torch.randn(2, 3, 16, 16, dtype=torch.double)


class Block(nn.Module):
    def __init__(self, channels, with_cp=None):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(channels)
        self.with_cp = with_cp

    def inner(self, x):
        return x + self.bn(self.conv(x)).relu()

    def forward(self, x):
        return (
            self.inner(x) if self.with_cp is None else checkpoint(self.inner, x, use_reentrant=self.with_cp)
        )


def plain(**options):
    """Return blocks of two widths, with other convolutions and a linear layer that may become hosts too."""
    narrow, wide = (nn.Sequential(*[Block(channels, **options) for _ in range(3)]) for channels in (16, 32))
    stem, down, fc = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 32, 3), nn.Linear(32, 32)
    network = nn.Sequential(stem, narrow, down, wide, nn.AdaptiveAvgPool2d(1), nn.Flatten(), fc)
    return randomize(network).double().train()


def with_asr(network, kappa='SE', sites=r'.*\.bn', **options):
    mmasr.attach(network, {'type': kappa} if isinstance(kappa, str) else kappa, sites=sites, **options)
    for host in network.modules():
        if hasattr(host, 'asr'):
            randomize(host.asr)
    return network


def unbatched(network):
    """Return a copy in which every host computes its own effective parameters."""
    network = copy.deepcopy(network)
    disable_batching(network)
    return network


def gradients(network, x=X, run=None):
    network.zero_grad()
    output = (run or network)(x)
    output.square().sum().backward()
    return {'': output, **{name: p.grad for name, p in network.named_parameters()}}


def check(network, run=None):
    """Compare output and gradients; in double precision the bound is far from rounding and any real error."""
    expected = gradients(unbatched(network))
    torch.testing.assert_close(gradients(network, run=run), expected, rtol=1e-9, atol=1e-9)
    assert not active_passes.passes


class Operators(TorchDispatchMode):
    """Counts the operations that compute something, so no views."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += not func.is_view and func.name() != 'aten::detach'
        return func(*args, **(kwargs or {}))


def operators(network, x=X):
    with Operators() as found:
        gradients(network, x)
    return found.count


@needs_batching
@pytest.mark.parametrize('kappa', asr_attentions())
@pytest.mark.parametrize(
    'options', [{}, {'delta': 3}, {'init_identity': True}, {'psi': {'std': 1.0}, 'learnable': False}]
)
def test_outputs_and_gradients_equal_those_of_hosts_that_compute_alone(kappa, options):
    network = with_asr(plain(), kappa, **options)
    check(network)
    assert operators(network) < operators(unbatched(network))


@needs_batching
@pytest.mark.parametrize(('delta', 'bound'), [(1, 70), (4, 160)])
def test_the_number_of_operations_in_resnet50(delta, bound):
    """Batched, ASR adds 63 and 152 operations per step; hosts that compute alone add 352 and 1072."""
    network, x = torchvision.models.resnet50(), torch.randn(2, 3, 32, 32)
    count = operators(network, x)
    assert count > 400
    assert operators(mmasr.attach(network, {'type': 'SE'}, delta=delta), x) - count <= bound


def with_orepa():
    """Return a network with three groups of equal convolutions with OREPA: 3 x 3, with groups, and 1 x 1."""
    network = plain()
    for blocks, groups in ((network[1], 1), (network[3], 8)):
        for block in blocks:
            channels = block.conv.in_channels
            block.conv = nn.Conv2d(channels, channels, 3, padding=1, groups=groups, bias=False).double()
    network[2] = nn.Sequential(nn.Conv2d(16, 32, 1), *[nn.Conv2d(32, 32, 1) for _ in range(2)]).double()
    return randomize(mmasr.attach(network, {'type': 'OREPA'}, sites=r'.*conv|2\.\d'))


@needs_batching
def test_small_kernels_of_equal_shape_are_squeezed_together():
    network = with_orepa()
    check(network)
    assert len(network._batches.computations) == 2  # 3 x 3 and 1 x 1
    assert operators(network) < operators(unbatched(network))
    for copied in (copy.deepcopy(network), with_asr(network)):
        check(copied)


@needs_batching
def test_large_kernels_are_squeezed_one_by_one(monkeypatch):
    together = operators(with_orepa())
    monkeypatch.setattr(mmasr.convolutions.orepa, '_LARGEST_IN_BATCH', 16 * 16 * 9 - 1)
    network = with_orepa()
    check(network)
    assert operators(network) > together


@needs_batching
def test_buckets(monkeypatch):
    """Kernels of equal shape in different buckets are squeezed separately."""
    network = with_orepa()
    together = operators(network)
    monkeypatch.setattr(mmasr.convolutions.orepa, '_BUCKET', 2 * 32 * 4 * 9)
    network = copy.deepcopy(network)
    check(network)
    assert operators(network) > together


@needs_batching
def test_convolutions_that_share_a_weight():
    network = with_orepa()
    network[1][1].conv.weight = network[1][0].conv.weight
    check(network)

    def penalty(network):
        parameters = tuple(network.parameters())
        slopes = torch.autograd.grad(network(X).square().sum(), parameters, create_graph=True)
        loss = sum(slope.square().sum() for slope in slopes)
        return slopes, torch.autograd.grad(loss, parameters)

    torch.testing.assert_close(penalty(network), penalty(unbatched(network)), rtol=1e-9, atol=1e-9)


class OtherSE(SE):
    """Computes something else than its base class, so its base class must not batch it."""

    def logits(self, x):
        return super().logits(x) + 1


def adapter(asr):
    asr.attention[0].fc1 = nn.Sequential(asr.attention[0].fc1, nn.Tanh())


def patched(asr):
    layer = asr.attention[0].fc1
    layer.forward = types.MethodType(lambda self, x: nn.Linear.forward(self, 2 * x), layer)


# Each changes one ASR of a network so that it differs from the others.
ODD = {
    'a hook': lambda asr: asr.attention[0].fc2.register_forward_hook(lambda module, args, output: 2 * output),
    'an adapter': adapter,
    'an overridden forward': patched,
    'a parametrization': lambda asr: nn.utils.parametrizations.spectral_norm(asr.attention[0].fc1),
    'another ratio': lambda asr: asr.attention.__setitem__(0, SE(16, ratio=4).double()),
    'another gate': lambda asr: asr.attention.__setitem__(0, SE(16, gate='tanh').double()),
    'a subclass': lambda asr: asr.attention.__setitem__(0, OtherSE(16).double()),
    'no bias': lambda asr: setattr(asr.attention[0].fc1, 'bias', None),
    'frozen': lambda asr: asr.requires_grad_(False),
    'shared': lambda asr: None,
}


@pytest.mark.parametrize('odd', ODD)
@pytest.mark.parametrize('delta', [1, 2])
def test_hosts_that_differ(odd, delta):
    network = with_asr(plain(), delta=delta)
    ODD[odd](network[1][1].bn.asr)
    if odd == 'shared':
        network[1][1].bn.asr.attention = network[1][0].bn.asr.attention
        network[1][2] = network[1][0]
    check(network)


# Each changes a network after its first pass.
CHANGES = {
    **{name: lambda network, change=change: change(network[1][1].bn.asr) for name, change in ODD.items()},
    'a parameter': lambda network: setattr(
        network[1][1].bn, 'weight', nn.Parameter(2 * network[1][1].bn.weight)
    ),
    'a module': lambda network: setattr(
        network[1][1].bn.asr.attention[0], 'fc2', randomize(nn.Linear(1, 16)).double()
    ),
    'a block': lambda network: network[1].__setitem__(0, copy.deepcopy(network[1][2])),
    'one block less': lambda network: network[1].__delitem__(0),
    'a block at two places': lambda network: network[1].__setitem__(0, network[1][2]),
    'a new host': lambda network: with_asr(network, sites=['1.0.conv']),
    'a folded host': lambda network: mmasr.fold(network[1][1].bn),
    'a frozen host': lambda network: network[1][1].bn.requires_grad_(False),
    'values': randomize,
    'the mode': lambda network: network[1].eval(),
}


@needs_batching
@pytest.mark.parametrize('change', CHANGES)
def test_changes_after_the_first_pass(change):
    network = with_asr(plain())
    gradients(network)
    CHANGES[change](network)
    check(network)
    check(network)


@needs_batching
def test_groups_are_kept_while_nothing_changes():
    network = with_asr(plain())
    gradients(network)
    found = network._batches
    torch.optim.SGD(network.parameters(), lr=0.1).step()
    network.eval()(X)
    network.train()
    gradients(network)
    assert network._batches is found
    network.float()
    gradients(network, X.float())
    assert network._batches is not found
    assert copy.deepcopy(network)._batches is pickle.loads(pickle.dumps(network))._batches is None
    disable_batching(network)
    assert '_batches' not in vars(network)


@needs_batching
def test_a_new_host_joins_in_the_pass_after_the_first():
    network = with_asr(plain(), sites=r'1.*\.bn')
    gradients(network)
    with_asr(network, sites=r'3.*\.bn')
    alone = operators(network)
    assert operators(network) < alone
    found = network._batches
    gradients(network)
    assert network._batches is found


def test_tensors_of_a_functional_call_are_not_kept():
    network = with_asr(plain())
    values = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    functional_call(network, values, X)
    gone = [weakref.ref(value) for value in values.values()]
    values.clear()
    assert [ref() for ref in gone] == [None] * len(gone)
    check(network)


def test_frozen_hosts_stay_without_gradients():
    network = with_asr(plain())
    network[0].requires_grad_(False)
    network[1].requires_grad_(False)
    assert not network[:2](X).requires_grad
    outputs = []
    network[1].register_forward_hook(lambda module, args, output: outputs.append(output))
    check(network)
    assert not any(output.requires_grad for output in outputs)


def test_kernels_of_different_sizes_for_the_same_number_of_channels():
    network = with_asr(plain(), 'ECA')
    network[1][1].bn.asr.attention[0].conv = randomize(nn.Conv1d(1, 1, 5, padding=2, bias=False)).double()
    check(network)


def test_hosts_of_many_kinds_in_one_network():
    network = with_asr(plain(), 'SE', sites=['0', '2', '6', '1.0.bn', '3.0.bn'])
    with_asr(network, 'ECA', sites=['1.1.bn', '3.1.bn'], delta=2)
    with_asr(network, lambda channels: Custom(), sites=['1.2.bn'])
    with_asr(network[3], 'SE', sites=['2.bn'])  # a network in the network; both find this host
    check(network)


class Custom(nn.Module):
    """A custom attention module."""

    def __init__(self):
        super().__init__()
        self.slope = nn.Parameter(torch.ones((), dtype=torch.double))

    def weights(self, x):
        return (self.slope * x).tanh()


@pytest.mark.parametrize('reentrant', [False, True])
def test_activation_checkpointing(reentrant):
    network = with_asr(plain(with_cp=reentrant))
    without = unbatched(network)
    for block in without.modules():
        block.with_cp = None
    torch.testing.assert_close(gradients(network), gradients(without), rtol=1e-9, atol=1e-9)
    check(network, lambda x: checkpoint(network, x.requires_grad_(), use_reentrant=reentrant))


def test_parts_of_a_network_may_run_alone_or_twice():
    network = with_asr(plain())
    network(X)
    check(network, lambda x: network[3:](network[2](network[1](network[0](x)))))
    networks = network, unbatched(network)
    twice = [gradients(each, run=lambda x, each=each: each(x) + each(2 * x)) for each in networks]
    torch.testing.assert_close(*twice, rtol=1e-9, atol=1e-9)


def test_an_error_in_a_forward_pass_leaves_no_active_pass():
    network = with_asr(plain())
    outer = nn.Sequential(network)
    mmasr.attach(outer, {'type': 'SE'}, sites=['0.6'])
    with pytest.raises(RuntimeError):
        outer(X[:, :2])
    assert not active_passes.passes
    randomize(network)
    x = torch.randn(2, 16, 8, 8, dtype=torch.double)
    torch.testing.assert_close(network[1](x), unbatched(network)[1](x), rtol=1e-9, atol=1e-9)


def test_an_interrupted_pass_does_not_keep_its_network_alive():
    network = with_asr(plain())

    def interrupt(*_):
        raise KeyboardInterrupt

    hook = network[4].register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        network(X)
    hook.remove()
    check(network)
    network[4].register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        network(X)
    gone = weakref.ref(network)
    del network
    assert gone() is None
    other = with_asr(plain(), sites=['1.0.bn'])
    other[1][0](X.new_ones(2, 16, 8, 8))  # a host that runs alone meets the interrupted pass
    check(other)  # and this removes it


@needs_batching
@pytest.mark.parametrize('network', [lambda: with_asr(plain()), with_orepa], ids=['ASR', 'OREPA'])
def test_a_batch_keeps_no_copies_of_parameters(network):
    """A host that computes alone keeps its scale or kernel, and what the layer itself keeps."""
    network, workload = network(), image_workload(X)
    alone = saved_for_backward(unbatched(network), workload)
    assert saved_for_backward(network, workload) <= 1.01 * alone


def test_threads_can_share_a_network():
    network = with_asr(plain())
    inputs = [torch.randn_like(X) for _ in range(4)]
    reference = unbatched(network)
    expected = [
        torch.autograd.grad(reference(x).square().sum(), tuple(reference.parameters())) for x in inputs
    ]
    found = {}

    def run(number):
        for _ in range(5):
            loss = network(inputs[number]).square().sum()
            found[number] = torch.autograd.grad(loss, tuple(network.parameters()))

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, gradient in enumerate(expected):
        torch.testing.assert_close(found[number], gradient, rtol=1e-9, atol=1e-9)


def test_copies_compute_their_own_parameters():
    network = with_asr(plain())
    for copied in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert operators(copied) == operators(network)
        randomize(copied)
        check(copied)


def test_scales_are_float32_under_autocast():
    network = with_asr(plain()).float()
    with torch.autocast('cpu', torch.bfloat16):
        found, expected = network(X.float()), unbatched(network)(X.float())
    # The scales differ by rounding in float32, which may change an output by one step of bfloat16.
    torch.testing.assert_close(found, expected, rtol=2**-6, atol=2**-6)
    assert found.dtype == torch.bfloat16


@pytest.mark.parametrize('network', [lambda: with_asr(plain()), with_orepa], ids=['ASR', 'OREPA'])
def test_second_derivatives(network):
    network = network()

    def penalty(network):
        x = X.clone().requires_grad_()
        (slope,) = torch.autograd.grad(network(x).square().sum(), x, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), tuple(network.parameters()))

    torch.testing.assert_close(penalty(network), penalty(unbatched(network)), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('network', [lambda: with_asr(plain()), with_orepa], ids=['ASR', 'OREPA'])
def test_gradients_with_torch_func(network):
    network = network()
    for block in (*network[1], *network[3]):
        block.bn.eval()  # torch.func does not allow in-place updates of running statistics
    parameters = {name: p.detach() for name, p in network.named_parameters()}
    found = torch.func.grad(lambda values: functional_call(network, values, X).square().sum())(parameters)
    expected = gradients(unbatched(network))
    del expected['']
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_a_compiled_or_traced_graph_does_not_contain_the_parameters_of_one_pass():
    network = with_asr(plain())
    compiled = torch.compile(network, fullgraph=FULL_GRAPH, backend='aot_eager')
    traced = torch.jit.trace(network, X, check_trace=False)
    compiled(X), traced(X)
    randomize(network)
    for graph in (compiled, traced):
        torch.testing.assert_close(graph(X), unbatched(network)(X), rtol=1e-9, atol=1e-9)


def test_folding_removes_all_hooks():
    network = with_asr(plain())
    network(X)
    mmasr.fold(network)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
    assert not network._forward_hooks_always_called


SHARDED = """
import os, sys
import torch
import torch.distributed as dist
from helpers import randomize_scales
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
import mmasr


def network():
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Conv2d(3 if i == 0 else 8, 8, 3), nn.BatchNorm2d(8)) for i in range(3)]
    model = nn.Sequential(*blocks, nn.Flatten(), nn.LazyLinear(4))
    model(torch.randn(2, 3, 9, 9))
    mmasr.attach(model, {'type': 'SE'}, sites=r'[012]\\.1')
    return randomize_scales(mmasr.attach(model, {'type': 'OREPA'}, sites=r'[012]\\.0'))


def shard(model, how):
    if how == 'fully_shard':
        mesh = init_device_mesh('cpu', (2,))
        for block in list(model)[:3]:
            fully_shard(block, mesh=mesh)
        return fully_shard(model, mesh=mesh)
    options = {'device_id': torch.device('cpu'), 'use_orig_params': how == 'FSDP1, own parameters'}
    for i in range(3):
        model[i] = FullyShardedDataParallel(model[i], **options)
    return FullyShardedDataParallel(model, **options)


def train(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        model(x).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        return model.eval()(x)


rank, folder = int(sys.argv[1]), sys.argv[2]
store = dist.FileStore(folder + '/store', 2)
dist.init_process_group('gloo', store=store, rank=rank, world_size=2)
x = torch.randn(4, 3, 9, 9, generator=torch.Generator().manual_seed(1))
expected = train(network())
for how in ('fully_shard', 'FSDP1, own parameters', 'FSDP1, flat parameters'):
    torch.testing.assert_close(train(shard(network(), how)), expected, rtol=1e-5, atol=1e-6)
store.set(f'rank {rank}', 'done')
store.wait(['rank 0', 'rank 1'])  # gloo aborts a process that still communicates when the other one ends
dist.destroy_process_group()
"""


@needs_batching
def test_units_of_fsdp_compute_their_own_parameters(tmp_path):
    """Their parameters are sharded until they run, after the batch is computed."""
    arguments = [sys.executable, '-c', SHARDED]
    environment = {**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path), 'OMP_NUM_THREADS': '1'}
    ranks = [subprocess.Popen([*arguments, str(rank), tmp_path], env=environment) for rank in (0, 1)]
    assert [process.wait(timeout=120) for process in ranks] == [0, 0]


@needs_batching
def test_without_a_computation_of_its_own_a_batch_computes_each_layer_alone(monkeypatch):
    monkeypatch.delattr(mmasr.ASR, 'prepare_batch')
    network = with_asr(plain())
    check(network)
    assert network._batches.computations
    assert operators(network) == operators(unbatched(network))
