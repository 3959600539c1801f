"""Change the class of an existing module, and restore it. Needs torch only.

A mixin in the class of a module adds behavior and leaves everything else unchanged: type, parameters and
their names. Nothing is registered anywhere, so copies, pickles and threads need no special care.
"""

import copy
import functools
from typing import Any

import torch
from torch import nn


def stock_class(cls: type[nn.Module]) -> type[nn.Module]:
    """Return the class that replaces another once everything is folded.

    Args:
        cls (type): Any class of modules.

    Returns:
        type: Its own attribute ``stock``, or the class itself if it has none. An inherited attribute does not
            count, so that a user's subclass is not mistaken for its base class.
    """
    return vars(cls).get('stock', cls)


class Mixin:
    """Base of the mixins that :func:`mixed_class` adds to the class of a module, and that folding removes.

    A written-down class with a mixin names the class to restore in an attribute ``stock``.
    """

    def restore_class(self) -> None:
        """Restore the stock class."""
        self.__class__ = stock_class(type(self))

    @classmethod
    def overrides(cls, stock: type[nn.Module]) -> dict[str, Any]:
        """Return attributes to add when the mixin is added to a certain class."""
        return {}

    def __reduce_ex__(self, protocol: int) -> tuple[Any, ...]:
        made_of = vars(type(self)).get('made_of')
        if made_of is None:
            return super().__reduce_ex__(protocol)
        # The class exists only at run time, so pickle and deepcopy need to know how to make it again.
        return _new_mixed, made_of, self.__getstate__()


def eval_copy(module: nn.Module) -> nn.Module:
    """Return a copy of a module, in eval mode; the ``train`` of some backbones of OpenMMLab returns None."""
    copied = copy.deepcopy(module)
    copied.eval()
    return copied


def restore_classes(model: nn.Module) -> None:
    """Restore the stock class of every module that no longer needs its mixin, in place."""
    for module in list(model.modules()):
        if isinstance(module, Mixin):
            module.restore_class()


@functools.cache
def mixed_class(mixin: type[Mixin], cls: type[nn.Module]) -> type[nn.Module]:
    """Make the subclass of a class with a mixin.

    Args:
        mixin (type): The mixin.
        cls (type): A class of modules, which may be the result of an earlier call.

    Returns:
        type: The subclass, always the same one. Its ``stock`` is the class without any mixin.
    """
    made_of = mixin, *vars(cls).get('made_of', (cls,))
    # With the module of its stock class it stays a leaf for torch.fx, if that is one.
    namespace = {'__module__': cls.__module__, 'stock': stock_class(cls), 'made_of': made_of}
    return type(cls)(f'{mixin.__name__}{cls.__name__}', (mixin, cls), {**namespace, **mixin.overrides(cls)})


def _new_mixed(*made_of: type) -> nn.Module:
    *mixins, cls = made_of
    for mixin in reversed(mixins):
        cls = mixed_class(mixin, cls)
    return cls.__new__(cls)


def with_parameters(module: nn.Module, cls: type[nn.Module], tensors: dict[str, torch.Tensor]) -> nn.Module:
    """Make a shallow copy of a module that has another class and uses tensors in place of some parameters.

    The copy shares everything else, so in-place updates (running statistics) reach the module. The module
    itself is not touched, so threads do not collide and ``torch.compile`` can trace it.

    Args:
        module (nn.Module): The module.
        cls (type): Class of the copy, a base class of the module's own.
        tensors (dict[str, Tensor]): Name of a parameter of the module or of a module inside -> tensor of its
            shape.

    Returns:
        nn.Module: The copy, to be called once and discarded.
    """
    copied = cls.__new__(cls)
    copied.__dict__.update(module.__dict__)
    inner: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        child, _, rest = name.partition('.')
        if rest:
            inner.setdefault(child, {})[rest] = tensor
        else:
            copied.__dict__[name] = tensor
    if inner:  # a module that adds up branches, or MultiheadAttention
        children = {name: getattr(module, name) for name in inner}
        copies = {name: with_parameters(child, type(child), inner[name]) for name, child in children.items()}
        copied.__dict__['_modules'] = {**module._modules, **copies}
    return copied


#: Hooks that mean the same for a module that replaces another. The others deal with names in its state dict.
_HOOKS = (
    *('_forward_hooks', '_forward_hooks_with_kwargs', '_forward_hooks_always_called', '_forward_pre_hooks'),
    *('_forward_pre_hooks_with_kwargs', '_backward_hooks', '_backward_pre_hooks', '_is_full_backward_hook'),
)


def move_hooks(old: nn.Module, new: nn.Module) -> None:
    """Give a module the hooks of the module that it replaces; their handles stay valid.

    Args:
        old (nn.Module): The module that is replaced.
        new (nn.Module): The module that replaces it.
    """
    new.__dict__.update({name: vars(old)[name] for name in _HOOKS if name in vars(old)})


def replace_module(model: nn.Module, name: str, module: nn.Module) -> nn.Module:
    """Replace a module in a network, in place.

    Args:
        model (nn.Module): The network.
        name (str): Name of the module to replace; ``''`` is the network itself.
        module (nn.Module): Its replacement.

    Returns:
        nn.Module: The network, or ``module`` if it replaces the network.

    Raises:
        AttributeError: If there is no such module.
    """
    if not name:
        return module
    model.get_submodule(name)  # without this, an unknown name would add a module
    parent, _, child = name.rpartition('.')
    setattr(model.get_submodule(parent), child, module)
    return model
