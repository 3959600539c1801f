"""Check by running a layer that its output scales with its parameters. Needs torch only.

For torch's own layers this is known. A layer of another library may do anything with its weight: normalize it
(weight standardization), so that the scale cancels and an ASR has no effect, or add something that is not
scaled.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from ..errors import InputError
from .class_lookup import lookup_by_class
from .class_surgery import Mixin, with_parameters
from .merge import branch_ends
from .scaling import inner_activation, output_channels, scaled

#: How to run a layer that takes another input than its base class, by package and class: layer -> arguments
#: of its ``forward``, on the CPU, and the channel dimension of its output. Add a custom layer with
#: ``INPUTS['package.Class'] = lambda layer: ((torch.randn(2, layer.in_channels, 64, 64),), 1)``.
INPUTS: dict[str, Callable[[nn.Module], tuple[tuple[torch.Tensor, ...], int]]] = {}

_TOLERANCE = (
    1e-2  # of the largest value, for layers that compute in half precision; a canceled scale misses it by far
)


def check_output_scales(name: str, layer: nn.Module) -> None:
    """Check that B_P(x) ⊙ v = B_{P ⊙ v}(x) holds for a layer, by a small run.

    Layers of torch's own classes need no run. For others it runs a copy with random parameters, in eval mode
    and float32. So the result does not depend on what the layer has learned, and neither the layer nor the
    random number generators change. An activation inside, a child ``act`` as in timm's BatchNormAct2d, is
    left out: the scale comes before it; see :func:`mmasr.core.scaling.inner_activation`.

    Args:
        name (str): Name of the layer, for the error.
        layer (nn.Module): A layer that :func:`mmasr.core.scaling.check_scalable` accepts.

    Raises:
        InputError: If the output does not scale; or if the layer takes none of the inputs of its base class
            and has no entry in :data:`INPUTS`.
    """
    for part in (branch_ends(layer) or {'': layer}).values():
        if type(part).__module__.startswith('torch.nn.modules.') or isinstance(part, Mixin):
            continue  # a host was checked when it became one
        device = _device(part)
        with torch.no_grad(), torch.random.fork_rng([device] if device.type == 'cuda' else []):
            torch.default_generator.manual_seed(0)
            problem = _problem(part, device)
        if problem:
            raise InputError(f"{name} ({type(part).__name__}) can't carry an ASR: {problem}")


def _device(layer: nn.Module) -> torch.device:
    """Return where a layer can run: its own device, or the CPU if it has no values yet."""
    device = next(layer.parameters()).device
    return torch.device('cpu') if device.type == 'meta' else device


def _problem(layer: nn.Module, device: torch.device) -> str | None:
    """Return why the output of a layer does not scale; None if it does."""
    v, error = 0.5 + 1.5 * torch.rand(output_channels(layer), device='cpu').to(device), None
    for args, dim in _inputs(layer):
        args = [arg.to(device) for arg in args]
        try:
            copied = _random_copy(layer, device)
            if inner_activation(copied) is not None:
                copied.act = nn.Identity()
            before = _run(copied, args)
            after = _run(with_parameters(copied, type(copied), scaled(copied, v)), args)
            expected = before * v.view([-1 if i == dim % before.dim() else 1 for i in range(before.dim())])
        except Exception as raised:  # a layer may fail in any way on an input that is not meant for it
            error = error or raised
        else:
            if (after - expected).abs().max() < _TOLERANCE * expected.abs().max():
                return None
            return (
                'its output does not scale with its weight and bias, for example because it normalizes its '
                'own weight; name a normalization after it'
            )
    entry = f'{type(layer).__module__.split(".")[0]}.{type(layer).__name__}'
    why = str(error).partition('\n')[0] or type(error).__name__
    return (
        f'a test run that checks whether its output scales failed ({why}); describe its input in '
        f'mmasr.core.scale_check.INPUTS[{entry!r}]'
    )


def _random_copy(module: nn.Module, device: torch.device) -> nn.Module:
    """Copy a layer without hooks, in eval mode and float32, with random parameters."""
    # deepcopy would follow every reference of the layer, and a process group cannot be copied.
    copied = with_parameters(module, type(module), {})
    tables = {name: OrderedDict() for name in vars(copied) if name.endswith('_hooks')}
    tables['_modules'] = {
        name: None if child is None else _random_copy(child, device)
        for name, child in module._modules.items()
    }
    for kind, make in (('_parameters', _random), ('_buffers', _same)):
        tensors = getattr(module, kind).items()
        tables[kind] = {name: tensor if tensor is None else make(tensor, device) for name, tensor in tensors}
    vars(copied).update(tables, training=False)
    return copied


def _random(parameter: nn.Parameter, device: torch.device) -> nn.Parameter:
    if not parameter.is_floating_point():
        return nn.Parameter(_same(parameter, device), requires_grad=False)
    # The sums are about 1, so that no part of the output dominates the others.
    spread = (parameter.shape[:1].numel() / parameter.numel()) ** 0.5
    return nn.Parameter(spread * torch.randn(parameter.shape, device='cpu').to(device))


def _same(buffer: torch.Tensor, device: torch.device) -> torch.Tensor:
    if buffer.is_meta:
        return torch.ones_like(buffer, device=device)
    return buffer.detach().clone().to(torch.float32 if buffer.is_floating_point() else buffer.dtype)


def _inputs(layer: nn.Module) -> Iterator[tuple[tuple[torch.Tensor, ...], int]]:
    """Yield inputs that a layer may take, and the channel dimension of its output; the most likely first."""
    if make := lookup_by_class(INPUTS, layer):
        yield make(layer)
        return
    channels = output_channels(layer)
    if isinstance(layer, _ConvNd):
        sizes = zip(layer.kernel_size, layer.dilation, strict=True)
        shapes = [((2, layer.in_channels, *(8 + dilation * (kernel - 1) for kernel, dilation in sizes)), 1)]
    elif isinstance(layer, nn.Linear):
        shapes = [((2, 5, layer.in_features), -1), ((2, layer.in_features), -1)]
    elif isinstance(layer, nn.MultiheadAttention):
        shapes = [((2, 5, channels), -1)]
    elif isinstance(layer, nn.LayerNorm):  # ConvNeXt's normalizes over the channels of a map
        shapes = [((2, 5, *layer.normalized_shape), -1), ((2, channels, 5, 7), 1)]
    else:
        shapes = [((2, channels, *size), 1) for size in ((5, 7), (7,), (5, 7, 3), ())]
    for shape, dim in shapes:
        yield (
            (torch.randn(shape, device='cpu'),) * (3 if isinstance(layer, nn.MultiheadAttention) else 1),
            dim,
        )


def _run(layer: nn.Module, args: list[torch.Tensor]) -> torch.Tensor:
    torch.default_generator.manual_seed(0)  # for a layer that draws random numbers
    if args[0].is_cuda:
        torch.cuda.manual_seed(0)
    result = layer.forward(*args)
    return result[0] if isinstance(result, tuple | list) else result
