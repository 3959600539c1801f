"""Comparison of a layer with branches with its formula, for the tests of several kinds."""

from collections.abc import Callable

import torch
from helpers import randomize
from torch import nn
from torch.nn.functional import batch_norm


class Tensors(dict):
    """Parameters and running statistics of a layer, by name, and whether it is in training mode."""

    training: bool

    def normalized(self, norm: str, y: torch.Tensor) -> torch.Tensor:
        """Return the output of a BatchNorm for a map; in training its running statistics change, too."""
        names = 'running_mean', 'running_var', 'weight', 'bias'
        return batch_norm(y, *(self[f'{norm}.{name}'] for name in names), self.training)


def assert_computes(
    layer: nn.Module, formula: Callable[[Tensors, torch.Tensor], torch.Tensor], x: torch.Tensor
) -> nn.Conv2d:
    """Check a layer in training and eval mode, and its merged form, in double precision.

    Args:
        layer (nn.Module): The layer. Its parameters are drawn.
        formula (callable): Tensors of the layer, input -> output. It shares no code with the layer.
        x (Tensor): Input, (N, C, H, W).

    Returns:
        nn.Conv2d: The merged layer.
    """
    bounds = {'rtol': 1e-10, 'atol': 1e-10}
    layer, x = randomize(layer).double(), x.double().requires_grad_()
    for training in (True, False):
        layer.train(training)
        tensors = Tensors({name: tensor.detach().clone() for name, tensor in layer.state_dict().items()})
        tensors.training = training
        leaves = [x, *(tensors[name].requires_grad_() for name, _ in layer.named_parameters())]
        expected, found = formula(tensors, x), layer(x)
        torch.testing.assert_close(found, expected, **bounds)
        direction = torch.randn_like(expected)
        gradients = torch.autograd.grad(found, [x, *layer.parameters()], direction)
        torch.testing.assert_close(gradients, torch.autograd.grad(expected, leaves, direction), **bounds)
        for name, buffer in layer.named_buffers():
            if 'running' in name:
                torch.testing.assert_close(buffer, tensors[name], **bounds)
    with torch.no_grad():
        merged = layer.merged()
        assert type(merged) is nn.Conv2d
        torch.testing.assert_close(merged(x), expected, **bounds)
    return merged
