import torch
from torch import nn

from mmasr.benchmark import inference, ratio, saved_for_backward, time_in_turns, training_step


def test_saved_for_backward_counts_what_autograd_keeps():
    x = torch.randn(4, 8)
    # A linear layer keeps its input, 4 x 8 floats; a sigmoid its output, 4 x 16. The weights are parameters.
    assert saved_for_backward(nn.Linear(8, 16), x) == 4 * 8 * 4
    assert saved_for_backward(nn.Sequential(nn.Linear(8, 16), nn.Sigmoid()), x) == 4 * 8 * 4 + 4 * 16 * 4
    # Kept twice, stored once.
    assert saved_for_backward(nn.Sequential(nn.Linear(8, 16), nn.Sigmoid(), nn.Sigmoid()), x) == 4 * 8 * 4 + 2 * 4 * 16 * 4


def test_everything_runs_in_every_round():
    calls = []
    functions = {name: lambda name=name: calls.append(name) for name in 'ab'}
    seconds = time_in_turns(functions, range(3))
    assert calls == [*'aabb', *'ababab']
    assert {name: len(times) for name, times in seconds.items()} == {'a': 3, 'b': 3}


def test_ratio_is_taken_within_a_round():
    reference = torch.tensor([1.0, 10.0, 2.0, 5.0], dtype=torch.double)
    torch.testing.assert_close(ratio(3 * reference, reference), torch.full((3,), 3.0, dtype=torch.double))


def test_a_training_step_trains_and_an_inference_does_not():
    model, x = nn.Linear(3, 2), torch.randn(4, 3)
    before = model.weight.clone()
    inference(model, x)()
    assert torch.equal(model.weight, before)
    training_step(model, x)()
    assert not torch.equal(model.weight, before)
