"""Modules whose branches merge into one layer: those of mmasr and of other libraries. Needs torch only.

A block of another library merges by a method of its own, one of :data:`MERGE_METHODS`. A class with another
interface, or one that an ASR can scale as a whole, needs an entry in :data:`ADAPTERS`, such as those in
:mod:`mmasr.convolutions.blocks`. All classes of mmasr share the entry of their base class
(:class:`mmasr.core.reparameterization.BranchReparameterization`).
"""

import contextlib
import copy
import dataclasses
import functools
import inspect
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Sequence

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ..errors import InputError
from .class_lookup import lookup_by_class
from .class_surgery import move_hooks, replace_module, stock_class
from .differences import check_differences, coarsest, compare, tensors
from .example_inputs import example_inputs, run

#: Methods by which blocks of other libraries merge their layers, without arguments: in place, or by returning
#: the merged layer. A block uses the first one that changes it.
MERGE_METHODS = (
    'switch_to_deploy',  # RepVGG, DBB, ACNet and OREPA of their authors, MMPretrain, MMYOLO, YOLOv6
    'reparameterize',  # MobileOne, FastViT and UniRepLKNet of their authors, timm
    'merge_kernel',  # RepLKNet
    'merge_dilated_branches',  # UniRepLKNet
    'local_inject',  # RepMLP
    'fuse_convs',  # ultralytics, YOLOv9
    'fuse_repvgg_block',  # YOLOv7
    'fuse',  # LeViT, RepViT, timm, ultralytics
    'convert_to_deploy',  # GhostNet
)
#: Method that returns the kernel and the bias of the merged convolution, and changes nothing.
KERNEL_METHOD = 'get_equivalent_kernel_bias'
#: Method that runs a block in place of ``forward`` once it is merged, in ultralytics and the YOLOs before it.
FUSED_FORWARD = 'forward_fuse'
#: Most modules with such methods that a block has inside; a network has more, and not as direct children.
_MOST_INNER = 2


@dataclasses.dataclass(frozen=True)
class Adapter:
    """Description of how modules of one class merge their branches.

    Attributes:
        branch_ends (callable): ``module -> names``: the last layers of the branches that it adds up, and the
            layer that the branches become. One ASR scales all of them together.
        can_merge (callable): ``module -> bool``: whether branches are left, and merging keeps what it
            computes.
        method (str, optional): Name of the module's own method that merges the branches in place. None for
            modules of mmasr.
        merge (callable, optional): ``module -> module``: merges the branches and returns the merged layer.
            Default: call ``method``.
    """

    branch_ends: Callable[[nn.Module], Sequence[str]]
    can_merge: Callable[[nn.Module], bool]
    method: str | None = None
    merge: Callable[[nn.Module], nn.Module] | None = None


#: ``'package.Class'`` -> adapter.
ADAPTERS: dict[str, Adapter] = {}


def has_branches(module: nn.Module) -> bool:
    """Return whether a module is of a class that merges branches, even if it has merged them already."""
    return lookup_by_class(ADAPTERS, module) is not None


def merge_method(module: nn.Module | type[nn.Module]) -> str | None:
    """Return the method by which a block of another library merges its branches; None for others."""
    adapter = lookup_by_class(ADAPTERS, module)
    return adapter.method if adapter else None


def own_methods(module: nn.Module | type[nn.Module]) -> list[str]:
    """Return the methods by which a module of another library can merge its layers, by name.

    Args:
        module (nn.Module | type): A module, or its class.

    Returns:
        list[str]: Those of :data:`MERGE_METHODS` that need no arguments; or else :data:`KERNEL_METHOD`.
    """
    if isinstance(module, type):
        return list(_methods_of(stock_class(module)))
    merged = vars(module)  # what :func:`merge` has disarmed
    return [name for name in _methods_of(stock_class(type(module))) if name not in merged]


@functools.cache
def _methods_of(cls: type[nn.Module]) -> tuple[str, ...]:
    if lookup_by_class({'mmasr.Reparameterization': True}, cls):
        return ()
    methods = {name: getattr(cls, name, None) for name in (*MERGE_METHODS, KERNEL_METHOD)}
    names = [name for name, method in methods.items() if inspect.isfunction(method)]
    names = [name for name in names if not _needs_arguments(methods[name])]
    return tuple(name for name in names if name != KERNEL_METHOD) or tuple(names)


def _needs_arguments(method: Callable) -> bool:
    parameters = list(inspect.signature(method).parameters.values())[1:]
    optional = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
    return any(p.default is p.empty and p.kind not in optional for p in parameters)


def merges_itself(module: nn.Module) -> bool:
    """Return whether a module is a block that merges layers inside, so that these cannot have branches.

    Merging a convolution with branches gives a bias, which the block does not expect. A network with such a
    method, which calls those of its many blocks, is not a block itself.
    """
    if has_branches(module):
        return True
    if not own_methods(module):
        return False
    children = {*module.children()}
    inner = [p for p in module.modules() if p is not module and (own_methods(p) or _fuses_norm(p))]
    return len(inner) <= _MOST_INNER or all(part in children for part in inner)


def can_merge(module: nn.Module) -> bool:
    """Return whether a module has branches left to merge, or may have: a block that merges itself."""
    if adapter := lookup_by_class(ADAPTERS, module):
        return adapter.can_merge(module)
    if next(module.parameters(), None) is None or getattr(module, 'deploy', False) is True:
        return False
    return _fuses_norm(module) or merges_itself(module)


def is_foreign(module: nn.Module) -> bool:
    """Return whether a module of another library has branches left to merge, or may have."""
    return can_merge(module) and not lookup_by_class({'mmasr.Reparameterization': True}, module)


def _fuses_norm(module: nn.Module) -> bool:
    """Return whether a module is a convolution with a BatchNorm and has a forward without the BatchNorm."""
    conv, norm = getattr(module, 'conv', None), getattr(module, 'bn', None)
    is_conv = isinstance(conv, nn.Conv2d) or lookup_by_class({'mmasr.BranchReparameterization': True}, conv)
    return bool(is_conv) and isinstance(norm, nn.BatchNorm2d) and hasattr(module, FUSED_FORWARD)


def foreign_blocks(model: nn.Module, around: Collection[str] | None = None) -> list[str]:
    """Return the names of the modules of a network that other libraries merge, also those inside others.

    Args:
        model (nn.Module): Any network.
        around (Collection[str], optional): Only those that have one of these names, or are inside one that
            has. Default: all.
    """
    names = [name for name, module in model.named_modules() if is_foreign(module)]
    if around is None:
        return names
    return [name for name in names if any(name == a or not a or name.startswith(f'{a}.') for a in around)]


#: Class -> the method that merges its blocks, once one has been merged.
_WORKING: dict[type[nn.Module], str] = {}


def merge(module: nn.Module) -> nn.Module:
    """Merge the branches of a module, unverified; see :mod:`mmasr.core.merge_check`.

    Args:
        module (nn.Module): A module that :func:`can_merge`, with nothing left to fold inside.

    Returns:
        nn.Module: The merged layer, in the same mode; the module itself if another library merges in place,
        or if none of its methods changes it.

    Raises:
        Exception: If a method of another library fails, and none of the others works.
    """
    adapter = lookup_by_class(ADAPTERS, module)
    if adapter and adapter.merge:
        return adapter.merge(module)
    kind, failure = stock_class(type(module)), None
    methods = [adapter.method] if adapter else own_methods(module) or [FUSED_FORWARD]
    if kind in _WORKING:
        return _merge_inside(_call(module, _WORKING[kind]))
    for method in methods:
        try:
            merged = _call(copy.deepcopy(module), method)
        except Exception as error:  # a method of another library can raise anything
            failure = failure or error
            continue
        if structure(merged) != structure(module):
            _WORKING[kind] = method
            return _merge_inside(_call(module, method))
    if failure:
        raise failure
    return module


def _merge_inside(module: nn.Module) -> nn.Module:
    """Merge the blocks that are left inside a merged one, in place."""
    for name, part in list(module.named_modules()):
        if part is module or not is_foreign(part) or part not in module.modules():
            continue
        try:
            merge(copy.deepcopy(part))
        except Exception:  # the method around it has merged it already
            for method in own_methods(part):
                setattr(part, method, part.to)
        else:
            replace_module(module, name, merge(part))
    return module


def _call(module: nn.Module, method: str) -> nn.Module:
    """Call a method that merges, in float32 if the module has half precision; return the merged module."""
    kind, mode = coarsest(p.dtype for p in module.parameters()), module.training
    modes = {part: part.training for part in module.modules()}
    is_frozen = not any(parameter.requires_grad for parameter in module.parameters())
    if is_half := torch.finfo(kind).bits < 32:
        module.float()
    module.eval()  # some methods run the module, or need this
    with _new_layers_like(module):
        if method == KERNEL_METHOD:
            merged = _convolution(module)
        elif method == FUSED_FORWARD:
            merged = _fuse_norm(module)
        else:
            result = getattr(module, method)()
            merged = result if isinstance(result, nn.Module) else module
    if merged is module and hasattr(module, FUSED_FORWARD):  # ultralytics sets it after calling the method
        module.forward = getattr(module, FUSED_FORWARD)
    if merged is not module:
        move_hooks(module, merged)
    elif method != FUSED_FORWARD:
        _disarm(module, method)
    for part in merged.modules():
        part.training = modes.get(part, mode)
    if is_frozen:
        merged.requires_grad_(False)
    return merged.to(kind) if is_half else merged


#: Class and method -> whether it fails for a merged block, or changes it again.
_UNSAFE_AGAIN: dict[tuple[type[nn.Module], str], bool] = {}


def _disarm(module: nn.Module, method: str) -> None:
    """Make a method do nothing that is unsafe for a merged block, because timm's own function calls it again.

    ``Module.to``, which without arguments does nothing and returns the module, takes its place, so that a
    pickled module does not need mmasr.
    """
    key = stock_class(type(module)), method
    if key not in _UNSAFE_AGAIN:
        again = copy.deepcopy(module)
        try:
            result = getattr(again, method)()
            _UNSAFE_AGAIN[key] = not _is_same(result if isinstance(result, nn.Module) else again, module)
        except Exception:  # a method of another library can raise anything
            _UNSAFE_AGAIN[key] = True
    if _UNSAFE_AGAIN[key]:
        setattr(module, method, module.to)


def _is_same(module: nn.Module, other: nn.Module) -> bool:
    """Return whether two modules have the same structure and values."""
    pairs = zip(module.state_dict().values(), other.state_dict().values(), strict=False)
    return structure(module) == structure(other) and all(torch.equal(*pair) for pair in pairs)


@contextlib.contextmanager
def _new_layers_like(module: nn.Module) -> Iterator[None]:
    """While active, new layers have the type and the device of a module's parameters; random numbers stay."""
    parameter, default = next(module.parameters()), torch.get_default_dtype()
    torch.set_default_dtype(parameter.dtype)
    try:
        with parameter.device, torch.random.fork_rng([]):
            yield
    finally:
        torch.set_default_dtype(default)


def _fuse_norm(module: nn.Module) -> nn.Module:
    if isinstance(module.conv, nn.Conv2d):
        module.conv = fuse_conv_bn_eval(module.conv.eval(), module.bn.eval())
        del module.bn
    return module


def structure(module: nn.Module) -> list:
    """Return everything but values by which a merged module differs from one with branches.

    Args:
        module (nn.Module): Any module.

    Returns:
        list: Equal for two modules with the same names, classes and shapes.
    """
    modules = [(name, stock_class(type(part))) for name, part in module.named_modules()]
    shapes = [(name, tensor.shape) for name, tensor in module.state_dict().items()]
    return [*modules, *shapes, 'forward' in vars(module)]


def outputs(module: nn.Module, args: tuple, kwargs: dict) -> dict[str, torch.Tensor]:
    """Run a block; see :func:`mmasr.core.example_inputs.run`.

    Args:
        module (nn.Module): The block.
        args (tuple): Its arguments.
        kwargs (dict): Its keyword arguments.

    Returns:
        dict[str, Tensor]: Its output tensors by name.
    """
    return {name: tensor.clone() for name, tensor in tensors('output', run(module, args, kwargs))}


#: Scales of random inputs; larger ones reach what an activation such as ReLU6 cuts off.
SCALES = 1, 30
#: Largest difference that a block's own method may make, relative to the largest value of an output.
MERGE_BOUND = 1e-4


def agrees(expected: dict[str, torch.Tensor], actual: dict[str, torch.Tensor]) -> bool:
    """Return whether the outputs of two modules agree within :data:`MERGE_BOUND`.

    Args:
        expected (dict[str, Tensor]): Outputs by name.
        actual (dict[str, Tensor]): Outputs of the other module.
    """
    try:
        check_differences(compare(expected, actual), MERGE_BOUND)
    except InputError:
        return False
    return True


def _convolution(module: nn.Module) -> nn.Module:
    """Make the convolution whose kernel and bias a module returns, with the activation after it, if any."""
    kernel, bias = getattr(module, KERNEL_METHOD)()
    alike = [part for part in module.modules() if isinstance(part, nn.Conv2d)]
    alike = [conv for conv in alike if conv.weight.shape == kernel.shape]
    if not alike:
        raise ValueError(f'none of its convolutions has a kernel of {tuple(kernel.shape)}')
    options = {name: getattr(alike[0], name) for name in ('stride', 'padding', 'dilation', 'groups')}
    conv = nn.Conv2d(alike[0].in_channels, alike[0].out_channels, alike[0].kernel_size, **options)
    with torch.no_grad():
        conv.weight.copy_(kernel)
        conv.bias.copy_(bias)
    if (args := example_inputs(module)) is None:
        return conv
    given = [tuple(scale * arg for arg in args) for scale in SCALES]
    expected = [outputs(module, inputs, {}) for inputs in given]
    activations = [child for child in module.children() if next(child.parameters(), None) is None]
    for after in activations:
        merged = nn.Sequential(OrderedDict(conv=conv, act=after))
        actual = [outputs(merged, inputs, {}) for inputs in given]
        if all(agrees(*pair) for pair in zip(expected, actual, strict=True)):
            return merged
    return conv


def branch_ends(module: nn.Module) -> dict[str, nn.Module]:
    """Return the last layers of the branches that a module adds up, by name; empty if it adds up none."""
    adapter = lookup_by_class(ADAPTERS, module)
    names = adapter.branch_ends(module) if adapter else ()
    if not names:
        return {}
    modules = dict(module.named_modules())  # a branch may be missing, or merged with the others already
    return {name: modules[name] for name in names if name in modules}
