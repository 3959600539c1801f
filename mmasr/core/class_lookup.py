"""Look up classes of other libraries without importing these. Needs torch only."""

from collections.abc import Mapping
from typing import Any

from torch import nn


def lookup_by_class(table: Mapping[str, Any], module: nn.Module | type[nn.Module]) -> Any:
    """Look up a module in a table by the package and name of its class.

    Args:
        table (Mapping[str, Any]): ``'package.Class'`` -> any value, such as ``'timm.SqueezeExcite'``.
        module (nn.Module | type): A module, or its class.

    Returns:
        Any: The value for its class or the nearest base class; None if there is none.
    """
    cls = module if isinstance(module, type) else type(module)
    names = (f'{base.__module__.split(".")[0]}.{base.__name__}' for base in cls.__mro__)
    return next((table[name] for name in names if name in table), None)
