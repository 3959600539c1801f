"""Tests of the cache of effective parameters in eval mode.

A host must never use outdated parameters, whatever changes: at once if autograd sees the change, and
otherwise after the next call of ``train()`` or ``eval()``.
"""

import copy
import threading
import weakref

import pytest
import torch
from helpers import randomize
from mmengine.hooks import EMAHook
from mmengine.model import ExponentialMovingAverage
from torch import nn
from versions import FULL_GRAPH, need_fused_steps

import mmasr

X = torch.randn(2, 8, 3, 3, generator=torch.Generator().manual_seed(0))


class Counted(mmasr.SE):
    """Counts how often its values are computed."""

    def weights(self, x):
        self.calls = getattr(self, 'calls', 0) + 1
        return super().weights(x)


def network(layer=None, **options) -> nn.Module:
    layer = layer or nn.BatchNorm2d(8)
    net = nn.Sequential(nn.Conv2d(8, 8, 1), layer)
    return randomize(mmasr.attach(net, Counted, sites=['1'], **options)).eval()


def count_computations(net: nn.Module, action) -> int:
    """Count how often the scale of the ASR is computed during an action."""
    attention = net[1].asr.attention[0]
    before = attention.calls
    action()
    return attention.calls - before


def expected(net: nn.Module, x: torch.Tensor = X) -> torch.Tensor:
    """Return the output of a folded copy, which computes every scale."""
    return mmasr.fold(copy.deepcopy(net))(x).detach()


@pytest.mark.parametrize('mode', [torch.no_grad, torch.inference_mode])
def test_the_scale_is_computed_once_while_nothing_changes(mode):
    net = network()
    with mode():
        net(X)
        assert count_computations(net, lambda: [net(X) for _ in range(5)]) == 0
        torch.testing.assert_close(net(X), expected(net))


def test_the_scale_is_computed_every_time_with_gradients():
    net = network()
    assert count_computations(net, lambda: [net(X) for _ in range(5)]) == 5
    net(X).sum().backward()
    assert net[1].asr.psi.grad.abs().sum() > 0


def take_step(optimizer, **options):
    def change(net):
        if 'fused' in options:
            need_fused_steps()
        parameters = list(net.parameters())
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter)
        optimizer(parameters, lr=0.1, **options).step()

    return change


def load(**options):
    def change(net):
        other = randomize(copy.deepcopy(net))
        net.load_state_dict(other.state_dict(), **options)

    return change


def swap_ema(net):
    hook = EMAHook()
    hook.src_model, hook.ema_model = (
        net,
        ExponentialMovingAverage(randomize(copy.deepcopy(net)), update_buffers=True),
    )
    hook._swap_ema_parameters()


@torch.no_grad()
def replace_child(net):
    net[1].asr.attention[0].fc1 = randomize(nn.Linear(8, 1))


@torch.no_grad()
def edit(net):
    net[1].asr.psi.mul_(3)


@torch.inference_mode()
def edit_in_inference_mode(net):
    net[1].asr.attention[0].fc2.bias.add_(1)


def edit_through_data(net):
    net[1].asr.psi.data.mul_(3)


def edit_the_layer_through_data(net):
    net[1].weight.data.mul_(3)


def edit_a_buffer(net):
    net[1].asr.initial.mul_(3)


def set_data(net):
    net[1].asr.psi.data = 3 * net[1].asr.psi.detach()


def set_data_of_a_buffer(net):
    net[1].asr.initial.data = 3 * net[1].asr.initial


def set_parameter(net):
    net[1].weight = nn.Parameter(3 * net[1].weight.detach())


def to_half_and_back(net):
    net.half().float()


def initialize(net):
    net[1].asr.init_weights()


SEEN = {
    'SGD': take_step(torch.optim.SGD),
    'SGD foreach': take_step(torch.optim.SGD, foreach=True),
    'load_state_dict': load(),
    'load_state_dict assign': load(assign=True),
    **{f.__name__: f for f in (edit, edit_in_inference_mode, edit_a_buffer)},
    **{
        f.__name__: f
        for f in (set_data, set_data_of_a_buffer, set_parameter, to_half_and_back, replace_child, initialize)
    },
    'double': lambda net: net.double(),
}
# These bypass autograd's version counter; docs/method.md lists them.
UNSEEN = {
    'SGD fused': take_step(torch.optim.SGD, fused=True),
    'AdamW fused': take_step(torch.optim.AdamW, fused=True),
    'EMA': swap_ema,
    **{f.__name__: f for f in (edit_through_data, edit_the_layer_through_data)},
}


@pytest.mark.parametrize('mode', [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize('change', SEEN.values(), ids=SEEN.keys())
def test_a_change_that_autograd_sees_takes_effect_in_the_next_forward_pass(change, mode):
    net = network()
    with mode():
        before = net(X)
        net(X)
    change(net)
    with mode():
        x = X.to(net[0].weight)
        torch.testing.assert_close(net(x), expected(net, x))
        if change is not to_half_and_back and x.dtype == X.dtype:
            assert not torch.equal(net(x), before)


@pytest.mark.parametrize(
    'call', [lambda net: net.eval(), lambda net: net.train().eval()], ids=['eval', 'train, eval']
)
@pytest.mark.parametrize('mode', [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize('change', UNSEEN.values(), ids=UNSEEN.keys())
def test_a_change_that_bypasses_autograd_takes_effect_after_train_or_eval(change, mode, call):
    net = network()
    with mode():
        before = net(X)
    change(net)
    call(net)
    with mode():
        torch.testing.assert_close(net(X), expected(net))
        assert not torch.equal(net(X), before)


@pytest.mark.parametrize('change', [*SEEN.values(), *UNSEEN.values()], ids=[*SEEN, *UNSEEN])
def test_repeated_changes_take_effect(change):
    net = network()
    with torch.no_grad():
        for _ in range(3):
            change(net)
            if change in UNSEEN.values():
                net.eval()
            x = X.to(net[0].weight)
            torch.testing.assert_close(net(x), expected(net, x))


@pytest.mark.parametrize('change', [*SEEN.values(), *UNSEEN.values()], ids=[*SEEN, *UNSEEN])
def test_a_forward_pass_with_gradients_sees_every_change(change):
    net = network()
    with torch.no_grad():
        net(X)
    change(net)
    x = X.to(net[0].weight)
    torch.testing.assert_close(net(x), expected(net, x))
    with torch.no_grad():  # and it leaves nothing outdated in the cache
        torch.testing.assert_close(net(x), expected(net, x))


@pytest.mark.parametrize(
    'layer',
    [nn.GroupNorm(2, 8), nn.Conv2d(8, 8, 3, groups=2), nn.InstanceNorm2d(8, affine=True)],
    ids=lambda x: type(x).__name__,
)
def test_every_kind_of_host_caches_and_detects_changes(layer):
    net = network(copy.deepcopy(layer))
    with torch.no_grad():
        net(X)
        assert count_computations(net, lambda: net(X)) == 0
        net[1].asr.psi.mul_(3)
        assert count_computations(net, lambda: net(X)) == 1
        torch.testing.assert_close(net(X), mmasr.fold(copy.deepcopy(net))(X))


def test_all_hosts_detect_a_change_of_attention_that_they_share():
    attention = randomize(mmasr.SE(8, ratio=2))
    net = mmasr.attach(
        nn.Sequential(nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)), lambda channels: attention, sites=r'\d'
    ).eval()
    with torch.no_grad():
        net(X)
        attention.fc2.bias.add_(1)
        net[0](X)  # caches the new state; the other host has not run yet
        torch.testing.assert_close(net(X), mmasr.fold(copy.deepcopy(net))(X))


def test_a_forward_pass_without_gradients_between_forward_and_backward():
    need_fused_steps()
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, fused=True)
    loss = net(X).sum()
    with torch.no_grad():
        net(X)
    loss.backward()
    optimizer.step()
    net.eval()
    with torch.no_grad():
        torch.testing.assert_close(net(X), expected(net))


def test_six_threads_can_share_two_networks():
    nets = [network() for _ in range(2)]
    references = [expected(net) for net in nets]
    failures = []

    def work(net, reference):
        with torch.inference_mode():
            failures.extend(step for step in range(200) if not torch.allclose(net(X), reference))

    threads = [
        threading.Thread(target=work, args=pair) for pair in zip(nets * 3, references * 3, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_a_change_in_another_thread_takes_effect():
    net = network()
    with torch.no_grad():
        net(X)
        thread = threading.Thread(target=lambda: edit(net))
        thread.start()
        thread.join()
        torch.testing.assert_close(net(X), expected(net))


def test_a_change_after_copying_takes_effect():
    net = network()
    with torch.no_grad():
        net(X)
        copy.deepcopy(net)
        net(X)
        edit(net)
        found = net(X)
    torch.testing.assert_close(found, expected(net))


def test_eval_invalidates_the_cache():
    net = network()
    alias = net[1].asr.psi.data
    with torch.no_grad():
        net(X)
        alias.mul_(3)  # no version counter records this
        net.eval()
        torch.testing.assert_close(net(X), expected(net))


def test_copies_and_pickles_have_ordinary_parameters(tmp_path):
    net = network()
    with torch.no_grad():
        net(X)
    for made in (copy.deepcopy(net), torch.load(_saved(net, tmp_path), weights_only=False)):
        assert {type(parameter) for parameter in made.parameters()} == {nn.Parameter}
        torch.testing.assert_close(made(X), net(X))
    with torch.no_grad():
        net(X)
    assert {type(value) for value in net.state_dict().values()} == {torch.Tensor}
    folded = mmasr.fold(copy.deepcopy(net))
    assert {type(parameter) for parameter in folded.parameters()} == {nn.Parameter}


def _saved(net, folder):
    with torch.no_grad():
        net(X)
    torch.save(net, folder / 'net.pth')
    return folder / 'net.pth'


def test_fold_in_place_leaves_ordinary_parameters_in_attention():
    net = mmasr.attach(nn.ModuleList([nn.MultiheadAttention(8, 2)]), {'type': 'SE'}, sites=['0']).eval()
    x = torch.randn(3, 2, 8)
    with torch.no_grad():
        net[0](x, x, x)
    mmasr.fold(net)
    assert {type(parameter) for parameter in net.parameters()} == {nn.Parameter}


def test_fold_in_place_leaves_ordinary_parameters():
    net = network()
    with torch.no_grad():
        before = net(X)
        torch.testing.assert_close(mmasr.fold(net)(X), before)
    assert {type(parameter) for parameter in net.parameters()} == {nn.Parameter}


def test_copies_do_not_contain_the_cache():
    net = network()
    with torch.no_grad():
        net(X)
        copied = copy.deepcopy(net)
        assert '_eval_cache' not in vars(copied[1])
        edit(copied)
        torch.testing.assert_close(copied(X), expected(copied))


def test_a_trace_and_a_compiled_graph_contain_the_computation():
    net = network()
    with torch.no_grad():
        net(X)
        traced = torch.jit.trace(net, X)
        compiled = torch.compile(net, fullgraph=FULL_GRAPH, backend='aot_eager')
        compiled(X)
        for change in (edit, edit_through_data):
            change(net)
            torch.testing.assert_close(traced(X), expected(net))
            torch.testing.assert_close(compiled(X), expected(net))


def test_functional_call_uses_the_tensors_it_is_given():
    net = network()
    state = {name: torch.randn_like(value) for name, value in net.named_parameters()}
    with torch.no_grad():
        net(X)
        other = torch.func.functional_call(net, state, X)
        net.load_state_dict(state, strict=False)
        torch.testing.assert_close(other, net(X))


def test_parameters_without_a_version_are_not_cached():
    with torch.inference_mode():
        net = network()
        net(X)
        assert count_computations(net, lambda: net(X)) == 1
        net[1].asr.psi.mul_(3)
        torch.testing.assert_close(net(X), expected(net))


def test_training_with_reentrant_checkpointing_is_unchanged():
    need_fused_steps()
    trained = []
    for wrap in (False, True):
        torch.manual_seed(0)
        net = network().train()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, fused=True)
        for _ in range(3):
            x = X.clone().requires_grad_()
            out = torch.utils.checkpoint.checkpoint(net[1], net[0](x), use_reentrant=True) if wrap else net(x)
            optimizer.zero_grad()
            out.square().sum().backward()
            optimizer.step()
        trained.append(list(net.parameters()))
    torch.testing.assert_close(*trained)


def test_the_cache_does_not_keep_a_network_alive():
    net = network()
    with torch.no_grad():
        net(X)
    host = weakref.ref(net[1])
    del net
    assert host() is None  # immediately, without the garbage collector


def test_a_data_parallel_replica_computes_its_own_parameters():
    """A replica copies the attributes of its original, whose cache may be on another device."""
    net = network()
    with torch.no_grad():
        net(X)
        replica = net[1]._replicate_for_data_parallel()
        replica.weight, replica.bias, replica.asr = (
            net[1].weight.detach() * 3,
            net[1].bias.detach(),
            net[1].asr,
        )
        replica.__dict__.update(net[1]._buffers)
        x = net[0](X)
        assert not torch.allclose(replica(x), net[1](x))


def test_attention_in_training_mode_is_not_cached():
    class Dropped(mmasr.SE):
        def weights(self, x):
            return nn.functional.dropout(super().weights(x), 0.5, self.training)

    net = mmasr.attach(nn.Sequential(nn.GroupNorm(2, 8)), Dropped, sites=['0'])
    with torch.no_grad():
        assert not torch.equal(net(X), net(X))
        net.eval()
        torch.testing.assert_close(net(X), expected(net))
        net.train()
        assert not torch.equal(net(X), net(X))


def test_nothing_is_cached_with_gradients():
    net = network()
    with torch.no_grad():
        net(X)
    net(X)
    assert '_eval_cache' not in vars(net[1])
    assert {type(parameter) for parameter in net.parameters()} == {nn.Parameter}
