"""Networks are compared without labels, and constants are trained to agree with a teacher."""

import copy

import pytest
import torch
from torch import nn

from mmasr.errors import InputError
from mmasr.stripes.distill import Runs, change, distill, last_shared_map, loss, only_training


def one(tensor):
    return {'output': tensor}


def test_one_decision_is_compared_by_the_divergence_of_its_classes():
    teacher, student = torch.randn(6, 5), torch.randn(6, 5)
    p, q = teacher.softmax(1), student.softmax(1)
    expected = (p * (p / q).log()).sum(1).mean()
    torch.testing.assert_close(loss(one(teacher), one(student)), expected)
    torch.testing.assert_close(loss(one(p), one(q)), expected)  # probabilities, as exported networks return
    assert change(one(teacher), one(student)) == (p.argmax(1) != q.argmax(1)).double().mean()


def test_other_outputs_are_compared_relative_to_the_variance_of_the_teachers():
    teacher = {'a': torch.randn(2, 3, 4, 4), 'b': 100 * torch.randn(2, 7, 5)}
    student = {name: tensor + tensor.std(correction=0) for name, tensor in teacher.items()}
    torch.testing.assert_close(loss(teacher, student), torch.tensor(1.0))
    assert change(teacher, student) == pytest.approx(1, rel=1e-5)


class Detector(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
        self.neck = nn.Conv2d(4, 4, 1)
        self.boxes, self.scores = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x):
        x = self.neck(self.backbone(x))
        return {'boxes': [self.boxes(x)], 'scores': self.scores(x.relu()), 'image': 'a.jpg'}


def test_the_last_shared_map_is_the_last_one_that_all_outputs_need():
    runs = Runs(Detector().eval(), lambda model, batch: model(batch))
    assert last_shared_map(runs, torch.randn(1, 3, 8, 8)) == ['neck']
    runs.maps = ['neck']
    with torch.no_grad():
        outputs, result = runs.outputs(torch.randn(1, 3, 8, 8))
    assert list(outputs) == ['neck', 'boxes.0', 'scores']
    assert result['image'] == 'a.jpg'


def test_outputs_without_tensors_and_with_nan_are_errors():
    with pytest.raises(InputError, match=r'returns str, without tensors to compare; pass a `forward`'):
        Runs(nn.Identity(), lambda model, batch: 'text').outputs(None)
    with pytest.raises(InputError, match='output of the network has NaN'):
        Runs(nn.Identity(), lambda model, batch: model(batch)).outputs(torch.full((1, 2), torch.nan))


class Scale(nn.Module):
    """A network with one vector to train."""

    def __init__(self, v):
        super().__init__()
        self.v = nn.Parameter(v)
        self.layer = nn.Linear(8, 5)

    def forward(self, x):
        return self.layer(x * self.v)


def disturbed(epochs):
    """Distill a vector that is far from the teacher's; return both, and the losses on held-out inputs."""
    torch.manual_seed(0)
    teacher = Scale(torch.rand(8) + 0.5)
    student = copy.deepcopy(teacher)
    with torch.no_grad():
        student.v *= torch.linspace(0.7, 1.3, 8)
    inputs = [torch.randn(8, 8) for _ in range(12)]
    start = loss(one(teacher(inputs[0])), one(student(inputs[0]))).item()
    with only_training(student, [student.v]):
        distill(
            lambda x: one(teacher(x)),
            lambda x: one(student(x)),
            *([student.v], 1e-2, inputs[1:], inputs[:1], epochs, lambda items, description: items),
        )
    end = loss(one(teacher(inputs[0])), one(student(inputs[0]))).item()
    return teacher, student, start, end


def test_distillation_finds_what_agrees_with_the_teacher():
    teacher, student, start, end = disturbed(epochs=20)
    assert end < 0.1 * start
    assert (student.v / teacher.v - 1).abs().mean() < 0.5 * (torch.linspace(0.7, 1.3, 8) - 1).abs().mean()
    assert torch.equal(student.layer.weight, teacher.layer.weight)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in student.parameters())


def test_distillation_is_deterministic():
    assert torch.equal(disturbed(epochs=2)[1].v, disturbed(epochs=2)[1].v)


def test_the_result_is_never_worse_than_the_start_on_held_out_inputs():
    network = Scale(torch.ones(8))
    inputs = [torch.randn(8, 8) for _ in range(12)]
    held_out = network(inputs[0]).detach()  # perfect at the start, and training leads elsewhere
    distill(
        lambda x: one(held_out if x is inputs[0] else torch.randn(8, 5)),
        lambda x: one(network(x)),
        *([network.v], 1e-2, inputs[1:], inputs[:1], 3, lambda items, description: items),
    )
    assert torch.equal(network.v, torch.ones(8))


def test_after_an_interruption_the_parameters_are_those_of_the_start():
    network = Scale(torch.ones(8))
    start, calls = copy.deepcopy(network.state_dict()), []

    def student(x):
        calls.append(x)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return one(network(x))

    inputs = [torch.randn(8, 8) for _ in range(12)]
    teacher = Scale(torch.ones(8))
    with pytest.raises(KeyboardInterrupt):
        distill(
            lambda x: one(teacher(x)),
            student,
            *(list(network.parameters()), 1e-2, inputs[1:], inputs[:1], 2, lambda items, description: items),
        )
    assert all(torch.equal(tensor, start[name]) for name, tensor in network.state_dict().items())
