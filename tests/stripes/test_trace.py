"""A trace records which functions and modules read and write which values."""

import torch
from torch import nn

from mmasr.stripes.trace import Trace


@torch.jit.script
def doubled(x: torch.Tensor) -> torch.Tensor:
    return x * 2


class Unseen(nn.Module):
    """Computes what torch's function mode does not see."""

    def forward(self, x):
        return doubled(x)


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.act, self.same, self.unseen = (
            nn.Conv2d(3, 4, 1),
            nn.ReLU(True),
            nn.Identity(),
            Unseen(),
        )
        self.scale = nn.Parameter(torch.ones(4, 1, 1))

    def forward(self, x):
        x = self.same(self.act(self.conv(x)))
        return self.unseen(x) + self.scale.exp()


def traced():
    network = Network()
    trace = Trace(network)
    with torch.no_grad(), trace:
        network(torch.ones(2, 3, 5, 5))
    return trace, {call.name: call for call in trace.calls}


def test_a_tensor_that_is_changed_in_place_becomes_a_new_value():
    _, calls = traced()
    assert calls['relu'].inputs == calls['conv'].outputs
    assert calls['relu'].outputs != calls['relu'].inputs
    assert calls['same'].inputs == calls['same'].outputs == calls['act'].outputs


def test_readers_are_functions_and_modules_in_which_no_function_is_seen():
    trace, calls = traced()
    readers = trace.readers()
    assert [call.name for call in readers[calls['conv'].outputs[0]]] == ['relu']
    assert [call.name for call in readers[calls['act'].outputs[0]]] == ['unseen']


def test_values_that_depend_on_the_input_are_told_from_parameters():
    trace, calls = traced()
    depends = trace.descendants()
    assert calls['unseen'].outputs[0] in depends
    assert calls['exp'].outputs[0] not in depends
    assert calls['add'].outputs[0] in depends


def test_calls_know_the_modules_around_them():
    _, calls = traced()
    assert [call.name for call in calls['conv2d'].owners()] == ['conv', '']


def test_all_hooks_are_removed():
    network = Network()
    with Trace(network):
        pass
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())
