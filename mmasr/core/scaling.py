"""A layer's parameters per output channel, and what a constant scale makes of them. Needs torch only.

A layer followed by a constant scale per channel is one layer, B_P(x) ⊙ v = B_{P ⊙ v}(x), P being its parameters per output
channel (the paper's section 4). Training and folding both take :func:`scaled`.
"""

from collections.abc import Callable, Hashable, Sequence

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.parameter import is_lazy

from .merge import branch_outputs

_CHANNELS: dict[type[nn.Module], Callable[[nn.Module], int]] = {
    _NormBase: lambda layer: layer.num_features,  # BatchNorm, SyncBatchNorm, InstanceNorm
    nn.GroupNorm: lambda layer: layer.num_channels,
    nn.LayerNorm: lambda layer: layer.normalized_shape[-1],
    _ConvNd: lambda layer: layer.out_channels,
    nn.Linear: lambda layer: layer.out_features,
    nn.MultiheadAttention: lambda layer: layer.embed_dim,
}


def is_batch_norm(layer: nn.Module) -> bool:
    """Whether a layer is a BatchNorm, SyncBatchNorm or InstanceNorm, of torch or of mmcv."""
    # mmcv's SyncBatchNorm, which mmengine converts to as well, is not one of torch's.
    return isinstance(layer, _NormBase) or any(base.__name__ == 'SyncBatchNorm' for base in type(layer).__mro__)


def output_channels(layer: nn.Module) -> int | None:
    """Number of output channels of a layer that can be scaled.

    Args:
        layer (nn.Module): Any module.

    Returns:
        int | None: The number C, None of a module that can't be scaled.
    """
    if branches := branch_outputs(layer):
        return output_channels(next(iter(branches.values())))
    for kind, count in _CHANNELS.items():
        if isinstance(layer, kind):
            return count(layer)
    return layer.num_features if is_batch_norm(layer) else None


def output_layers(layer: nn.Module) -> dict[str, nn.Module]:
    """The layers whose rows are a layer's output channels.

    Args:
        layer (nn.Module): A layer that can be scaled.

    Returns:
        dict[str, nn.Module]: By their names in the layer: the last layers of branches that are added up, the output projection
        of MultiheadAttention, otherwise the layer itself as ``''``.
    """
    if isinstance(layer, _NormBase):  # most layers, without the search through what libraries add up
        return {'': layer}
    if isinstance(layer, nn.MultiheadAttention):
        return {'out_proj': layer.out_proj}
    return branch_outputs(layer) or {'': layer}


def scaled(layer: nn.Module, v: torch.Tensor) -> dict[str, torch.Tensor]:
    """A layer's parameters per output channel, multiplied by v: the paper's re-parameterization, B_P(x) ⊙ v = B_{P ⊙ v}(x).

    Args:
        layer (nn.Module): BatchNorm, SyncBatchNorm, GroupNorm, InstanceNorm, LayerNorm, Conv, ConvTranspose, Linear,
            MultiheadAttention (its output projection), or a module that adds up branches (the last layer of each), with C
            output channels; LayerNorm's are its last dimension.
        v (Tensor): Scale of shape (C,).

    Returns:
        dict[str, Tensor]: ``weight`` and ``bias``, those that there are, in their own shape and dtype, by name in the layer.
    """
    return {name: _product(part, parameter, v) for name, (part, parameter) in _outputs(layer).items()}


def scaled_together(layers: Sequence[nn.Module], v: torch.Tensor) -> list[dict[str, torch.Tensor]]:
    """What :func:`scaled` gives for several layers, their vectors multiplied as one.

    Args:
        layers (Sequence[nn.Module]): Layers that are alike, see :func:`alike`.
        v (Tensor): Scales of shape (ΣC,), those of a layer after those of the one before it.

    Returns:
        list[dict[str, Tensor]]: For each layer what :func:`scaled` gives.
    """
    outputs = [_outputs(layer) for layer in layers]
    vectors = [name for name, (_, parameter) in outputs[0].items() if parameter.dim() == 1]
    result = [{} for _ in layers]
    if vectors:
        parameters = [output[name][1] for name in vectors for output in outputs]
        products = torch.cat(parameters).view(len(vectors), -1) * v
        parts = products.to(parameters[0].dtype).flatten().split([len(parameter) for parameter in parameters])
        for number, part in enumerate(parts):
            result[number % len(layers)][vectors[number // len(layers)]] = part
    if len(vectors) < len(outputs[0]):
        rows = v.split([output_channels(layer) for layer in layers])
        for tensors, output, row in zip(result, outputs, rows, strict=True):
            tensors.update({name: _product(*pair, row) for name, pair in output.items() if name not in vectors})
    return result


def alike(layer: nn.Module) -> Hashable:
    """What layers have in common that :func:`scaled_together` takes together."""
    return tuple(found for name, (_, p) in _outputs(layer).items() for found in (name, p.dim() == 1, p.dtype, p.device))


def _outputs(layer: nn.Module) -> dict[str, tuple[nn.Module, torch.Tensor]]:
    """The parameters per output channel, by name, and what they are in."""
    result = {}
    for prefix, part in output_layers(layer).items():
        for name in ('weight', 'bias'):
            parameter = getattr(part, name, None)  # a replica of DataParallel has tensors in place of parameters
            if parameter is not None:
                result[f'{prefix}.{name}' if prefix else name] = part, parameter
    return result


def _product(layer: nn.Module, parameter: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    if parameter.dim() == 1 or isinstance(layer, nn.LayerNorm):
        product = parameter * v
    elif isinstance(layer, _ConvTransposeNd):  # (in, out / groups, ...), the groups stacked along the inputs
        groups = parameter.unflatten(0, (layer.groups, -1))
        product = (groups * v.view(layer.groups, 1, -1, *[1] * (parameter.dim() - 2))).flatten(0, 1)
    else:
        product = parameter * v.view(-1, *[1] * (parameter.dim() - 1))
    return product.to(parameter.dtype)


def check_scalable(name: str, layer: nn.Module) -> None:
    """Check that a layer can carry an ASR.

    Args:
        name (str): Its name, for the error.
        layer (nn.Module): Any module.

    Raises:
        ValueError: If it has no output channels that are known, no weight of its own to scale (yet), or is never called.
    """
    kind = type(layer).__name__
    if output_channels(layer) is None:
        raise ValueError(
            f"{name} ({kind}) can't carry an ASR; a host is a BatchNorm, SyncBatchNorm, GroupNorm, InstanceNorm, "
            'LayerNorm, Conv, ConvTranspose, Linear, MultiheadAttention or a module that adds up branches'
        )
    if isinstance(layer, NonDynamicallyQuantizableLinear):
        raise ValueError(f'{name} is read by its MultiheadAttention, never called; name the MultiheadAttention itself')
    if any(part._parameters.get('weight') is None for part in output_layers(layer).values()):
        raise ValueError(f"{name} ({kind}) can't carry an ASR: it has no weight to scale (affine=False, or parametrized)")
    if any(map(is_lazy, layer.parameters())):
        raise ValueError(f'{name} ({kind}) has no weight yet; run the network once, or say how many channels it has')
