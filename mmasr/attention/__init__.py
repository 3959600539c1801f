"""Channel attention modules κ. Needs torch only."""

import inspect
from collections.abc import Callable

from torch import nn

from ..errors import InputError, as_input_error
from .base import ChannelAttention
from .cbam import CBAM
from .eca import ECA
from .ie import IE
from .se import SE
from .spa import SPA
from .srm import SRM

__all__ = [
    'ATTENTIONS',
    'CBAM',
    'ECA',
    'IE',
    'SE',
    'SPA',
    'SRM',
    'ChannelAttention',
    'asr_attentions',
    'build_attention',
    'registered_name',
]

#: Attention modules by their names in configs. Add a custom one with ``ATTENTIONS['Mine'] = Mine``.
ATTENTIONS: dict[str, Callable[..., nn.Module]] = {cls.__name__: cls for cls in (SE, ECA, SRM, IE, SPA, CBAM)}


def asr_attentions() -> list[str]:
    """Return the names of the :data:`ATTENTIONS` that an ASR can use: all without a spatial map."""
    return [name for name, attention in ATTENTIONS.items() if not getattr(attention, 'spatial', False)]


def registered_name(config: object) -> str:
    """Return the type that a config names, without the scope ``mmasr.``; an empty string if there is none.

    New-style configs name a class of mmasr by its path, or have the class itself.
    """
    name = config.get('type') if isinstance(config, dict) else None
    if isinstance(name, type):
        name = f'{name.__module__}.{name.__qualname__}'
    if not isinstance(name, str):
        return ''
    return name.rpartition('.')[2] if name.startswith('mmasr.') else name


def build_attention(attention: dict | Callable[[int], nn.Module], channels: int) -> nn.Module:
    """Build an attention module κ.

    Args:
        attention (dict | callable): A config such as ``dict(type='SE', ratio=16)``, whose type is a key of
            :data:`ATTENTIONS` with or without the scope ``mmasr.``; or a callable ``channels -> module``.
        channels (int): Number of channels C.

    Returns:
        nn.Module: The module. Its ``weights`` map (N, C, H, W) to (N, C, 1, 1).

    Raises:
        InputError: If the type is missing or unknown, or does not take the options.
    """
    if callable(attention):
        return attention(channels)
    name = registered_name(attention)
    if name not in ATTENTIONS:
        raise InputError(f'unknown attention type {name!r}; known are {", ".join(sorted(ATTENTIONS))}')
    options = {key: value for key, value in attention.items() if key != 'type'}
    try:
        inspect.signature(ATTENTIONS[name]).bind(channels, **options)
    except TypeError as error:
        raise InputError(f'{name}: {error}') from error
    with as_input_error(name):
        return ATTENTIONS[name](channels, **options)
