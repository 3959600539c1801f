"""ASR as a plugin of OpenMMLab's residual blocks, where it scales the output of a normalization. Needs torch only."""

import dataclasses

import torch
from torch import nn

from .asr import ASR
from .host import write
from .scaling import scaled

_POSITIONS = (1, 2, 3)  # a block calls its plugins after its convolutions


@dataclasses.dataclass
class Plugin:
    """An ASR that a block calls after one of its convolutions.

    Attributes:
        block (nn.Module): The block; it has the lists ``after_conv{i}_plugin_names`` that it calls its plugins from.
        position (int): The convolution that the ASR comes after, from 1 on.
        name (str): Name of the ASR in the block.
    """

    block: nn.Module
    position: int
    name: str

    @property
    def asr(self) -> ASR:
        """The ASR itself."""
        return getattr(self.block, self.name)

    @torch.no_grad()
    def fold(self) -> None:
        """Multiply the scale into the normalization before the plugin, and take the plugin out."""
        norm = getattr(self.block, f'norm{self.position}')
        write(norm, scaled(norm, self.asr.scale()))
        delattr(self.block, self.name)
        getattr(self.block, f'after_conv{self.position}_plugin_names').remove(self.name)
        self.block.with_plugins = any(getattr(self.block, f'after_conv{i}_plugin_names', []) for i in _POSITIONS)


def find_plugins(model: nn.Module) -> dict[str, Plugin]:
    """Find the ASRs of a network that are plugins.

    Args:
        model (nn.Module): Any network.

    Returns:
        dict[str, Plugin]: By the name of the ASR in the network.

    Raises:
        ValueError: If one can't be folded: it comes after attention that depends on the image, has a negative scale after a
            ReLU, or there is no normalization before it to take the scale.
    """
    found = {}
    for path, block in model.named_modules():
        for position in _POSITIONS:
            ahead = None
            for name in getattr(block, f'after_conv{position}_plugin_names', []):
                if not isinstance(getattr(block, name), ASR):
                    ahead = name
                    continue
                plugin = Plugin(block, position, name)
                _check(path, plugin, ahead)
                found[f'{path}.{name}'.lstrip('.')] = plugin
    return found


def _check(path: str, plugin: Plugin, ahead: str | None) -> None:
    block, position = plugin.block, plugin.position
    cannot = f"{path}.{plugin.name} can't be folded: ".lstrip('.')
    if ahead:
        raise ValueError(f'{cannot}it comes after {ahead}, which depends on the image; put ASR first')
    if hasattr(block, f'norm{position + 1}') and (plugin.asr.scale() < 0).any():
        raise ValueError(f'{cannot}it has a negative scale and comes after a ReLU, which no layer can give')
    if not hasattr(block, f'norm{position}'):
        raise ValueError(f'{cannot}its block has no normalization after convolution {position}')
    ASR.check(f'{path}.norm{position}'.lstrip('.'), getattr(block, f'norm{position}'))
