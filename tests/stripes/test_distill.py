"""Networks are compared without labels, and constants are trained to agree with a teacher."""

import pytest
import torch
from torch import nn

from mmasr.errors import InputError
from mmasr.stripes.distill import Runs, change, distill, last_shared_map, loss
from mmasr.stripes.gates import Switch


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


def disturbed(epochs):
    """Distill constants that are far from those which reproduce the teacher; return them and the losses."""
    torch.manual_seed(0)
    switch = Switch(-3, nn.Identity())
    network = nn.Sequential(nn.Conv2d(3, 8, 3), switch, nn.Flatten(), nn.Linear(8 * 36, 5)).eval()
    images = [torch.randn(8, 3, 8, 8) for _ in range(12)]
    v = torch.rand(8) + 0.5
    runs = Runs(network, lambda model, batch: model(batch))

    def teacher(batch):
        switch.v = v
        return runs.outputs(batch)[0]

    start = v * torch.linspace(0.7, 1.3, 8)
    losses = distill(
        runs, teacher, {switch: start}, images[1:], images[:1], epochs, lambda items, description: items
    )
    return v, switch.v, losses, network


def test_distillation_finds_the_constants_that_agree_with_the_teacher():
    v, found, (start, end), network = disturbed(epochs=20)
    assert end < 0.1 * start
    assert (found / v - 1).abs().mean() < 0.5 * (torch.linspace(0.7, 1.3, 8) - 1).abs().mean()
    assert all(parameter.grad is None and parameter.requires_grad for parameter in network.parameters())


def test_distillation_is_deterministic_and_without_epochs_changes_nothing():
    assert torch.equal(disturbed(epochs=2)[1], disturbed(epochs=2)[1])
    v, found, (start, end), _ = disturbed(epochs=0)
    assert start == end
    assert torch.equal(found, v * torch.linspace(0.7, 1.3, 8))
