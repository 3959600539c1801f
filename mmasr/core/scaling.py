"""Multiply a layer's parameters per output channel by a constant scale. Needs torch only.

A layer followed by a constant scale per channel is one layer, B_P(x) ⊙ v = B_{P ⊙ v}(x), where P are its
parameters per output channel (the paper's section 4). Training and folding both use :func:`scaled`.
"""

from collections.abc import Callable, Hashable, Sequence

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.parameter import is_lazy

from ..errors import InputError
from .merge import branch_ends

_CHANNELS: dict[type[nn.Module], Callable[[nn.Module], int]] = {
    _NormBase: lambda layer: layer.num_features,  # BatchNorm, SyncBatchNorm, InstanceNorm
    nn.GroupNorm: lambda layer: layer.num_channels,
    nn.LayerNorm: lambda layer: layer.normalized_shape[-1],
    _ConvNd: lambda layer: layer.out_channels,
    nn.Linear: lambda layer: layer.out_features,
    nn.MultiheadAttention: lambda layer: layer.embed_dim,
}


def is_batch_norm(layer: nn.Module) -> bool:
    """Return whether a layer is a BatchNorm, SyncBatchNorm or InstanceNorm of torch or mmcv."""
    # mmcv's SyncBatchNorm, which mmengine also converts to, does not extend torch's.
    return isinstance(layer, _NormBase) or any(
        base.__name__ == 'SyncBatchNorm' for base in type(layer).__mro__
    )


def output_channels(layer: nn.Module) -> int | None:
    """Return the number C of output channels of a layer, None if the module cannot be scaled."""
    if branches := branch_ends(layer):
        return output_channels(next(iter(branches.values())))
    for kind, count in _CHANNELS.items():
        if isinstance(layer, kind):
            return count(layer)
    return layer.num_features if is_batch_norm(layer) else None


def inner_activation(layer: nn.Module) -> nn.Module | None:
    """Return the activation inside a layer, such as timm's BatchNormAct2d; None if it has none.

    An ASR scales what the activation receives, as it does with an activation after the layer.
    """
    return layer._modules.get('act')


def channel_dim(layer: nn.Module, output: torch.Tensor, *args: torch.Tensor) -> int:
    """Return the dimension of the channels of a layer's output.

    Args:
        layer (nn.Module): A layer that can be scaled.
        output (Tensor): Its output with its own parameters.
        *args (Tensor): Its inputs.

    Returns:
        int: 1 for (N, C, ...), the last one for (..., C).
    """
    first, last = min(1, output.dim() - 1), output.dim() - 1
    if isinstance(layer, nn.Linear | nn.MultiheadAttention):
        return last
    if not isinstance(layer, nn.LayerNorm):
        return first
    if getattr(layer, 'stock', type(layer)).forward is nn.LayerNorm.forward:
        return last
    # ConvNeXt's LayerNorm2d takes both (N, C, H, W) and (N, H, W, C).
    channels = layer.normalized_shape[-1]
    if output.shape[first] == output.shape[last] == channels:
        return last if torch.allclose(nn.LayerNorm.forward(layer, *args[:1]), output) else first
    return last if output.shape[last] == channels else first


def output_layers(layer: nn.Module) -> dict[str, nn.Module]:
    """Find the layers whose rows are the output channels of a layer.

    Args:
        layer (nn.Module): A layer that can be scaled.

    Returns:
        dict[str, nn.Module]: By name in the layer: the last layers of branches that are added up, or the
        output projection of MultiheadAttention; otherwise the layer itself as ``''``.
    """
    if isinstance(layer, _NormBase):  # most layers, without a search through the classes of other libraries
        return {'': layer}
    if isinstance(layer, nn.MultiheadAttention):
        return {'out_proj': layer.out_proj}
    return branch_ends(layer) or {'': layer}


def scaled(layer: nn.Module, v: torch.Tensor) -> dict[str, torch.Tensor]:
    """Multiply a layer's parameters per output channel by v: the paper's identity B_P(x) ⊙ v = B_{P ⊙ v}(x).

    Args:
        layer (nn.Module): BatchNorm, SyncBatchNorm, GroupNorm, InstanceNorm, LayerNorm, Conv, ConvTranspose,
            Linear, MultiheadAttention (its output projection), or a module that adds up branches (the last
            layer of each), with C output channels. A LayerNorm's channels are its last dimension.
        v (Tensor): Scale of shape (C,).

    Returns:
        dict[str, Tensor]: ``weight`` and ``bias``, if they exist, in their own shape and dtype, by name in
            the layer.
    """
    return {
        name: _product(part, parameter, v) for name, (part, parameter) in _output_parameters(layer).items()
    }


def prepare_scaled(
    layers: Sequence[nn.Module],
) -> Callable[[torch.Tensor], list[dict[str, torch.Tensor]]]:
    """Prepare to compute :func:`scaled` for several layers, with one product for all their vectors.

    Args:
        layers (Sequence[nn.Module]): Layers with the same :func:`batch_key`.

    Returns:
        callable: Takes their scales in the same order, concatenated, of shape (ΣC,), and returns for each
        layer the result of :func:`scaled`. It keeps the layers' parameters.
    """
    outputs = [_output_parameters(layer) for layer in layers]
    vectors = [name for name, (_, parameter) in outputs[0].items() if parameter.dim() == 1]
    others = [name for name in outputs[0] if name not in vectors]
    parameters = [output[name][1] for name in vectors for output in outputs]
    lengths = [len(parameter) for parameter in parameters]
    channels = [output_channels(layer) for layer in layers]

    def compute(v: torch.Tensor) -> list[dict[str, torch.Tensor]]:
        parts = ()
        if vectors:
            products = torch.cat(parameters).view(len(vectors), -1) * v
            parts = products.to(parameters[0].dtype).flatten().split(lengths)
        result = [
            dict(zip(vectors, parts[number :: len(layers)], strict=True)) for number in range(len(layers))
        ]
        if others:
            for tensors, output, row in zip(result, outputs, v.split(channels), strict=True):
                tensors.update({name: _product(*output[name], row) for name in others})
        return result

    return compute


def batch_key(layer: nn.Module) -> Hashable:
    """Return a key that is equal for layers that :func:`prepare_scaled` takes together."""
    parameters = _output_parameters(layer).items()
    return tuple(part for name, (_, p) in parameters for part in (name, p.dim() == 1, p.dtype, p.device))


def _output_parameters(layer: nn.Module) -> dict[str, tuple[nn.Module, torch.Tensor]]:
    """Return the parameters per output channel by name, each with the module that it is in."""
    result = {}
    for prefix, part in output_layers(layer).items():
        for name in ('weight', 'bias'):
            parameter = getattr(part, name, None)  # a DataParallel replica has tensors in place of parameters
            if parameter is not None:
                result[f'{prefix}.{name}' if prefix else name] = part, parameter
    return result


def _product(layer: nn.Module, parameter: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    if parameter.dim() == 1 or isinstance(layer, nn.LayerNorm):
        product = parameter * v
    elif isinstance(
        layer, _ConvTransposeNd
    ):  # (in, out / groups, ...), with the groups stacked along the inputs
        groups = parameter.unflatten(0, (layer.groups, -1))
        product = (groups * v.view(layer.groups, 1, -1, *[1] * (parameter.dim() - 2))).flatten(0, 1)
    else:
        product = parameter * v.view(-1, *[1] * (parameter.dim() - 1))
    return product.to(parameter.dtype)


def check_scalable(name: str, layer: nn.Module) -> None:
    """Check that a layer has parameters per output channel, as a host of an ASR needs.

    Args:
        name (str): Name of the layer, for the error.
        layer (nn.Module): Any module.

    Raises:
        InputError: If its output channels are unknown, it has no weight of its own to scale (yet), or it is
            never called.
    """
    kind = type(layer).__name__
    if output_channels(layer) is None:
        raise InputError(
            f"{name} ({kind}) can't carry an ASR; a host is a BatchNorm, SyncBatchNorm, GroupNorm, "
            'InstanceNorm, '
            'LayerNorm, Conv, ConvTranspose, Linear, MultiheadAttention or a module that adds up branches'
        )
    if isinstance(layer, NonDynamicallyQuantizableLinear):
        raise InputError(
            f'{name} is read by its MultiheadAttention and never called; name the MultiheadAttention'
        )
    check_weight(name, layer)


def check_weight(name: str, layer: nn.Module) -> None:
    """Check that a layer has a weight that is a parameter, as every re-parameterization needs.

    Args:
        name (str): Name of the layer, for the error.
        layer (nn.Module): Any module.

    Raises:
        InputError: If it does not. Weight norm, spectral norm and pruning compute it in every forward pass,
            and a lazy layer has none yet.
    """
    kind = type(layer).__name__
    if any(part._parameters.get('weight') is None for part in output_layers(layer).values()):
        raise InputError(
            f'{name} ({kind}) has no weight of its own: affine=False, or the weight is computed, as by '
            'weight norm, spectral norm or pruning; remove that first'
        )
    if any(map(is_lazy, layer.parameters())):
        raise InputError(
            f'{name} ({kind}) has no weight yet; run the network once, or give the number of channels'
        )
