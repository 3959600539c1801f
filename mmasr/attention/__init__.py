"""Channel attention modules κ. Needs torch only."""

from collections.abc import Callable

from torch import nn

from .base import ChannelAttention
from .cbam import CBAM
from .eca import ECA
from .ie import IE
from .se import SE
from .spa import SPA
from .srm import SRM

__all__ = ['ATTENTIONS', 'CBAM', 'ECA', 'IE', 'SE', 'SPA', 'SRM', 'ChannelAttention', 'asr_attentions', 'build_attention']

#: Attention modules that a config can name. A module of one's own is added with
#: ``ATTENTIONS['Mine'] = Mine``.
ATTENTIONS: dict[str, Callable[..., nn.Module]] = {cls.__name__: cls for cls in (SE, ECA, SRM, IE, SPA, CBAM)}


def asr_attentions() -> list[str]:
    """Names of the :data:`ATTENTIONS` that an ASR can use: all whose values are a constant per channel."""
    return [name for name, attention in ATTENTIONS.items() if not getattr(attention, 'spatial', False)]


def build_attention(attention: dict | Callable[[int], nn.Module], channels: int) -> nn.Module:
    """Build an attention module κ.

    Args:
        attention (dict | callable): A config such as ``dict(type='SE', ratio=16)``, its type a key of
            :data:`ATTENTIONS` with or without the scope ``mmasr.``, or a callable ``channels -> module``.
        channels (int): Number of channels C.

    Returns:
        nn.Module: The module; its ``weights`` map (N, C, H, W) to (N, C, 1, 1).

    Raises:
        ValueError: If the type is missing or unknown.
    """
    if not isinstance(attention, dict):
        return attention(channels)
    options = dict(attention)
    name = str(options.pop('type', '')).removeprefix('mmasr.')
    if name not in ATTENTIONS:
        raise ValueError(f'unknown attention type {name!r}; known are {", ".join(sorted(ATTENTIONS))}')
    return ATTENTIONS[name](channels, **options)
