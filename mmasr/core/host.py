"""Layers that carry an ASR. Needs torch only.

A layer followed by a constant scale per channel is one layer, B_P(x) ⊙ v = B_{P ⊙ v}(x), P being its parameters
per output channel. A host therefore never multiplies a feature map: it runs with its parameters already multiplied,
in training as well, and folding writes those same products back (:func:`scaled` serves both).
"""

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from .asr import ASR
from .kept import forget, reuse
from .known import find_sites

#: Blocks that add up branches, and where the last layer of each branch is. A scale distributes over the sum, so such a block is
#: one host; afterwards its branches can still be merged into one convolution.
SUMS = {
    'mmpretrain.RepVGGBlock': ('branch_3x3.norm', 'branch_1x1.norm', 'branch_norm', 'branch_reparam'),
    'mmasr.ACNet': ('square.1', 'vertical.1', 'horizontal.1'),
    'timm.RepVggBlock': ('conv_kxk.bn', 'conv_1x1.bn', 'identity', 'reparam_conv'),
}

_CHANNELS: dict[type[nn.Module], Callable[[nn.Module], int]] = {
    _NormBase: lambda layer: layer.num_features,  # BatchNorm, SyncBatchNorm, InstanceNorm
    nn.GroupNorm: lambda layer: layer.num_channels,
    nn.LayerNorm: lambda layer: layer.normalized_shape[-1],
    _ConvNd: lambda layer: layer.out_channels,
    nn.Linear: lambda layer: layer.out_features,
    nn.MultiheadAttention: lambda layer: layer.embed_dim,
}


def stock_class(cls: type) -> type:
    """The class that a class of this package extends; the plain networks here and other packages' classes are their own."""
    for base in cls.__mro__:
        package, _, module = base.__module__.partition('.')
        if (package != 'mmasr' or module.startswith(('openmmlab.networks.', 'convolutions.'))) and not issubclass(base, Mixed):
            return base
    raise TypeError(f'{cls.__name__} extends no class of another package')


def output_channels(layer: nn.Module) -> int | None:
    """Number of output channels of a layer that can be a host.

    Args:
        layer (nn.Module): Any module.

    Returns:
        int | None: The number C, None of a module that can't be a host.
    """
    if branches := _branches(layer):
        return output_channels(next(iter(branches.values())))
    for kind, count in _CHANNELS.items():
        if isinstance(layer, kind):
            return count(layer)
    return layer.num_features if _is_batch_norm(layer) else None


def _branches(layer: nn.Module) -> dict[str, nn.Module]:
    """The last layers of the branches of a block of :data:`SUMS`, by name; empty for another module."""
    names = by_class(SUMS, layer)
    if names is None:
        return {}
    modules = dict(layer.named_modules())  # a branch may be missing, or merged with the others already
    return {name: modules[name] for name in names if name in modules}


def by_class(table: Mapping[str, Any], module: nn.Module) -> Any:
    """What a table has for a module by the package and name of its class, or of the nearest base; None if it has nothing."""
    names = (f'{cls.__module__.split(".")[0]}.{cls.__name__}' for cls in type(module).__mro__)
    return next((table[name] for name in names if name in table), None)


def _is_batch_norm(layer: nn.Module) -> bool:
    # mmcv's SyncBatchNorm, which mmengine converts to as well, is not one of torch's.
    return isinstance(layer, _NormBase) or any(base.__name__ == 'SyncBatchNorm' for base in type(layer).__mro__)


def _output_layers(host: nn.Module) -> dict[str, nn.Module]:
    """The layers whose rows are the host's output channels, by their names' prefix in the host."""
    if isinstance(host, nn.MultiheadAttention):
        return {'out_proj.': host.out_proj}
    return {f'{name}.': layer for name, layer in _branches(host).items()} or {'': host}


def scaled(host: nn.Module, v: torch.Tensor) -> dict[str, torch.Tensor]:
    """A layer's parameters per output channel, multiplied by v: the paper's re-parameterization, B_P(x) ⊙ v = B_{P ⊙ v}(x).

    Args:
        host (nn.Module): BatchNorm, SyncBatchNorm, GroupNorm, InstanceNorm, LayerNorm, Conv, ConvTranspose, Linear,
            MultiheadAttention (its output projection), or a block of :data:`SUMS` (all its branches), with C output channels;
            LayerNorm's are its last dimension.
        v (Tensor): Scale of shape (C,).

    Returns:
        dict[str, Tensor]: ``weight`` and ``bias``, those that there are, in their own shape and dtype, by name in the host.
    """
    result = {}
    for prefix, layer in _output_layers(host).items():
        result.update({prefix + name: tensor for name, tensor in _scaled(layer, v).items()})
    return result


def _scaled(layer: nn.Module, v: torch.Tensor) -> dict[str, torch.Tensor]:
    result = {}
    for name in ('weight', 'bias'):
        parameter = getattr(layer, name, None)  # a replica of DataParallel has tensors in place of parameters
        if parameter is None:
            continue
        if parameter.dim() == 1 or isinstance(layer, nn.LayerNorm):
            product = parameter * v
        elif isinstance(layer, _ConvTransposeNd):  # (in, out / groups, ...), the groups stacked along the inputs
            groups = parameter.unflatten(0, (layer.groups, -1))
            product = (groups * v.view(layer.groups, 1, -1, *[1] * (parameter.dim() - 2))).flatten(0, 1)
        else:
            product = parameter * v.view(-1, *[1] * (parameter.dim() - 1))
        result[name] = product.to(parameter.dtype)
    return result


@torch.no_grad()
def _multiply(layer: nn.Module, v: torch.Tensor) -> None:
    for name, tensor in scaled(layer, v).items():
        owner, _, parameter = name.rpartition('.')
        # A new Parameter, as the old one may be shared with a layer that has no ASR.
        old = layer.get_parameter(name)
        setattr(layer.get_submodule(owner), parameter, nn.Parameter(tensor, old.requires_grad))


def _twin(module: nn.Module, cls: type, tensors: dict[str, torch.Tensor]) -> nn.Module:
    """A shallow copy in another class, its stock class, with tensors in place of the parameters they name.

    It shares everything else, so in-place updates (running statistics) reach the module; and as the module itself is
    not touched, threads do not meet and ``torch.compile`` traces it.
    """
    twin = cls.__new__(cls)
    twin.__dict__.update(module.__dict__)
    inner: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        child, _, rest = name.partition('.')
        if rest:
            inner.setdefault(child, {})[rest] = tensor
        else:
            twin.__dict__[name] = tensor
    if inner:  # a block that adds up branches, or MultiheadAttention
        children = {name: getattr(module, name) for name in inner}
        twins = {name: _twin(child, type(child), inner[name]) for name, child in children.items()}
        twin.__dict__['_modules'] = {**module._modules, **twins}
    return twin


class Mixed:
    """Base of classes that are mixed into the class of an existing module, and leave it when ASR is folded."""

    def fold_asr(self) -> None:
        """Become the stock class again."""
        self.__class__ = stock_class(type(self))

    def __reduce_ex__(self, protocol):
        # The class is made at run time, so pickle and deepcopy are told how to make it again.
        mixin = next(base for base in type(self).__mro__[1:] if issubclass(base, Mixed))
        return _new_mixed, (mixin, stock_class(type(self))), self.__dict__


@functools.cache
def mixed_class(mixin: type[Mixed], cls: type[nn.Module]) -> type[nn.Module]:
    """A class's subclass with a mixin; its ``stock`` is the class that both stand for."""
    return type(f'ASR{cls.__name__}', (mixin, cls), {'__module__': __name__, 'stock': stock_class(cls)})


def _new_mixed(mixin: type[Mixed], cls: type[nn.Module]) -> nn.Module:
    made = mixed_class(mixin, cls)
    return made.__new__(made)


class Host(Mixed):
    """Mixed into the class of a layer that carries an ASR, the child ``asr``.

    The layer keeps its type, its parameters and their names; its state dict gains the ``asr.*`` keys.
    """

    def forward(self, *args, **kwargs):
        tensors = reuse(self, lambda: scaled(self, self.asr.scale()))
        return self.stock.forward(_twin(self, self.stock, tensors), *args, **kwargs)

    def train(self, mode: bool = True) -> nn.Module:
        """Set training or eval mode; what was kept in eval mode is computed again."""
        forget(self)
        return super().train(mode)

    def init_weights(self) -> None:
        """Give the ASR its initial state; OpenMMLab calls this once it has initialised what is around."""
        if 'asr' in self._modules:  # a backbone takes it out while it initialises itself
            self.asr.init_weights()

    def fold_asr(self) -> None:
        """Write the scale into the parameters, drop the ASR, and become the stock class again."""
        forget(self)
        _multiply(self, self.asr.scale())
        del self.asr
        for key, hook in list(self._forward_pre_hooks.items()):
            if hook is _call_me:
                del self._forward_pre_hooks[key]
        super().fold_asr()


class SumHost(Host):
    """A block that adds up branches and carries an ASR. Merging the branches folds the ASR first, which would be lost."""

    def switch_to_deploy(self) -> None:
        """Merge the branches, as MMPretrain names it."""
        self.fold_asr()
        self.switch_to_deploy()

    def reparameterize(self) -> None:
        """Merge the branches, as timm names it."""
        self.fold_asr()
        self.reparameterize()


def _become_host(layer: nn.Module) -> None:
    layer.__class__ = mixed_class(SumHost if _branches(layer) else Host, type(layer))
    if not _is_batch_norm(layer):  # never part of a transformer layer, and a call with a hook takes longer
        layer.register_forward_pre_hook(_call_me)


def _call_me(module: nn.Module, args: tuple) -> None:
    """A hook that does nothing. In eval mode ``nn.TransformerEncoderLayer`` reads the parameters of its layers instead of
    calling them, which would leave the ASR out, unless one of them has a hook."""


def _stay_host(parent: nn.Module, name: str, child: nn.Module | None) -> None:
    """Make a batch normalization a host when it receives an ASR as its ``asr``.

    The conversions to and from SyncBatchNorm (torch's and mmengine's) build a new layer and register the old one's
    children in it. Without this the ASR would still be there and no longer do anything.
    """
    if name == 'asr' and isinstance(child, ASR) and not isinstance(parent, Host) and _is_batch_norm(parent):
        _become_host(parent)


nn.modules.module.register_module_module_registration_hook(_stay_host)


def _check_scalable(name: str, layer: nn.Module) -> None:
    kind = type(layer).__name__
    if output_channels(layer) is None:
        raise ValueError(
            f"{name} ({kind}) can't carry an ASR; a host is a BatchNorm, SyncBatchNorm, GroupNorm, InstanceNorm, "
            'LayerNorm, Conv, ConvTranspose, Linear, MultiheadAttention or a block of RepVGG'
        )
    if isinstance(layer, NonDynamicallyQuantizableLinear):
        raise ValueError(f'{name} is read by its MultiheadAttention, never called; name the MultiheadAttention itself')
    if any(part._parameters.get('weight') is None for part in _output_layers(layer).values()):
        raise ValueError(f"{name} ({kind}) can't carry an ASR: it has no weight to scale (affine=False, or parametrized)")


def _new_asr(name: str, layer: nn.Module, attention: dict | Callable, options: dict) -> ASR:
    _check_scalable(name, layer)
    if isinstance(layer, Host):
        raise ValueError(f'{name} ({type(layer).__name__}) carries an ASR already')
    weight = next(iter(_output_layers(layer).values())).weight
    return ASR(attention, output_channels(layer), **options).to(weight)


def attach(
    model: nn.Module,
    attention: dict | Callable[[int], nn.Module],
    sites: str | Sequence[str] | None = None,
    **asr_options,
) -> nn.Module:
    """Give layers of a network an ASR each, in place.

    Every host runs with its parameters multiplied by its ASR's scale; no feature map is touched. The state dict keeps
    its names and gains ``<site>.asr.*``.

    Args:
        model (nn.Module): Any network.
        attention (dict | callable): κ, see :class:`mmasr.ASR`.
        sites (str | Sequence[str], optional): The layers: a regular expression that the whole name of a module must match,
            or a sequence of names. Default: the sites of the paper, which are known for ResNet, ResNeXt, VGG with batch
            normalization, RepVGG, ShuffleNetV2, MobileNet and ViT of torchvision, timm and OpenMMLab.
        **asr_options: ``delta``, ``psi``, ``init``, ``learnable``, ``init_identity`` of :class:`mmasr.ASR`.

    Returns:
        nn.Module: ``model``.

    Raises:
        ValueError: If no site is found, or a site does not exist, can't be scaled or has an ASR already. The model is then
            as it was.
    """
    modules = dict(model.named_modules())
    if sites is None:
        names = find_sites(model)
        problem = 'is no network whose sites are known'
    elif isinstance(sites, str):
        names = [name for name in modules if re.fullmatch(sites, name)]
        problem = f'has no module whose whole name matches {sites!r}'
    else:
        names = list(dict.fromkeys(sites))
        missing = [name for name in names if name not in modules]
        problem = f'has no module named {", ".join(missing)}'
        names = [] if missing else names
    if not names:
        candidates = [name for name, module in modules.items() if name and output_channels(module)]
        shown = ', '.join(candidates[:8]) + (f' and {len(candidates) - 8} more' if len(candidates) > 8 else '')
        raise ValueError(f'{type(model).__name__} {problem}; pass sites=, the layers that could be named are: {shown}')
    asrs = [_new_asr(name, modules[name], attention, asr_options) for name in names]
    for name, asr in zip(names, asrs, strict=True):
        _become_host(modules[name])
        modules[name].asr = asr
    return model


def _find_plugins(model: nn.Module) -> dict[str, tuple[nn.Module, int, ASR]]:
    """Find ASRs that are plugins of OpenMMLab's residual blocks: name -> block, the convolution they come after, ASR.

    The block is recognised by the lists ``after_conv{i}_plugin_names`` that it calls its plugins from.
    """
    found = {}
    for path, block in model.named_modules():
        for i in (1, 2, 3):
            ahead = None
            for name in getattr(block, f'after_conv{i}_plugin_names', []):
                asr = getattr(block, name)
                if not isinstance(asr, ASR):
                    ahead = name
                    continue
                full_name = f'{path}.{name}'.lstrip('.')
                cannot = f"{full_name} can't be folded: "
                if ahead:
                    raise ValueError(f'{cannot}it comes after {ahead}, which depends on the image; put ASR first')
                if hasattr(block, f'norm{i + 1}') and (asr.scale() < 0).any():
                    raise ValueError(f'{cannot}it has a negative scale and comes after a ReLU, which no layer can give')
                if not hasattr(block, f'norm{i}'):
                    raise ValueError(f'{cannot}its block has no normalization after convolution {i}')
                _check_scalable(f'{path}.norm{i}'.lstrip('.'), getattr(block, f'norm{i}'))
                found[full_name] = block, i, asr
    return found


@torch.no_grad()
def fold(model: nn.Module) -> nn.Module:
    """Multiply every ASR into its layer and give the layer its stock class back, in place.

    An ASR that is a plugin of an OpenMMLab block folds into the normalization before it. The network then computes what
    it did, up to rounding, and has no ASR; attention that depends on its input stays.

    Args:
        model (nn.Module): A network, or a single layer; one without ASR is left as it is.

    Returns:
        nn.Module: ``model``.

    Raises:
        ValueError: If an ASR can't be folded: it is neither in a host nor a plugin, comes after attention that depends on
            the image, has a negative scale after a ReLU, or its layer has no parameter to take the scale. The model is then
            as it was.
    """
    plugins = _find_plugins(model)
    used = [asr for *_, asr in plugins.values()] + [host.asr for host in model.modules() if isinstance(host, Host)]
    for name, module in model.named_modules():
        if isinstance(module, ASR) and not any(module is asr for asr in used):
            raise ValueError(f"{name or 'the model'} can't be folded: no layer has it as its ASR")
        if isinstance(module, Host):
            _check_scalable(name, module)
    for full_name, (block, i, asr) in plugins.items():
        name = full_name.rpartition('.')[2]
        _multiply(getattr(block, f'norm{i}'), asr.scale())
        delattr(block, name)
        getattr(block, f'after_conv{i}_plugin_names').remove(name)
        block.with_plugins = any(getattr(block, f'after_conv{j}_plugin_names', []) for j in (1, 2, 3))
    for module in list(model.modules()):
        if hasattr(module, 'fold_asr'):
            module.fold_asr()
    return model
