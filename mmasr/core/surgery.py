"""Giving a module another class, and taking it away again. Needs torch only.

A class that is mixed into the class of an existing module adds to what it does and leaves everything else as it is: type,
parameters and their names. Nothing is registered anywhere, so copies, pickles and threads need no care.
"""

import functools
from typing import Any

import torch
from torch import nn


def stock_class(cls: type[nn.Module]) -> type[nn.Module]:
    """The class that takes the place of another when everything is folded.

    Args:
        cls (type): Any class of modules.

    Returns:
        type: What its own attribute ``stock`` says, so that a subclass of a user's own is not taken for what it extends; the
        class itself if it has none.
    """
    return vars(cls).get('stock', cls)


class Mixed:
    """Base of classes that are mixed into the class of a module, and leave it when it is folded.

    A class that is written down says what takes its place with an attribute ``stock``; :func:`mixed_class` makes the others.
    """

    def restore_class(self) -> None:
        """Become the stock class again."""
        self.__class__ = stock_class(type(self))

    @classmethod
    def overrides(cls, stock: type[nn.Module]) -> dict[str, Any]:
        """Attributes that the class has only where it is mixed into a certain class."""
        return {}

    def __reduce_ex__(self, protocol: int) -> tuple[Any, ...]:
        made_of = vars(type(self)).get('made_of')
        if made_of is None:
            return super().__reduce_ex__(protocol)
        # The class is made at run time, so pickle and deepcopy are told how to make it again.
        return _new_mixed, made_of, self.__getstate__()


def restore_classes(model: nn.Module) -> None:
    """Have everything in a model become its stock class again that has nothing left to be something else for, in place."""
    for module in list(model.modules()):
        if isinstance(module, Mixed):
            module.restore_class()


@functools.cache
def mixed_class(mixin: type[Mixed], cls: type[nn.Module]) -> type[nn.Module]:
    """Make a class's subclass with a mixin.

    Args:
        mixin (type): The mixin.
        cls (type): A class of modules.

    Returns:
        type: The subclass, always the same one; its ``stock`` is the class that both stand for.
    """
    namespace = {'__module__': __name__, 'stock': stock_class(cls), 'made_of': (mixin, cls)}
    return type(f'{mixin.__name__}{cls.__name__}', (mixin, cls), {**namespace, **mixin.overrides(cls)})


def _new_mixed(mixin: type[Mixed], cls: type[nn.Module]) -> nn.Module:
    made = mixed_class(mixin, cls)
    return made.__new__(made)


def twin(module: nn.Module, cls: type[nn.Module], tensors: dict[str, torch.Tensor]) -> nn.Module:
    """Make a shallow copy of a module in another class, with tensors in place of the parameters they name.

    It shares everything else, so in-place updates (running statistics) reach the module; and as the module itself is
    not touched, threads do not meet and ``torch.compile`` traces it.

    Args:
        module (nn.Module): The module.
        cls (type): Class of the copy, which the module's own extends.
        tensors (dict[str, Tensor]): Name of a parameter of the module or of a module in it -> tensor of its shape.

    Returns:
        nn.Module: The copy, to be called and dropped.
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
        twins = {name: twin(child, type(child), inner[name]) for name, child in children.items()}
        copied.__dict__['_modules'] = {**module._modules, **twins}
    return copied


def replace(model: nn.Module, name: str, module: nn.Module) -> nn.Module:
    """Put a module in the place of one of a network's, in place.

    Args:
        model (nn.Module): The network.
        name (str): Name of the module to be replaced; ``''`` is the network itself.
        module (nn.Module): What takes its place.

    Returns:
        nn.Module: The network, or ``module`` if that took its place.

    Raises:
        AttributeError: If there is no such module.
    """
    if not name:
        return module
    model.get_submodule(name)  # or a new one would be made
    parent, _, child = name.rpartition('.')
    setattr(model.get_submodule(parent), child, module)
    return model
