"""Fold an ASR that is a plugin of an OpenMMLab block into the normalization before it. Needs torch only."""

import dataclasses

import torch
from torch import nn

from ..errors import InputError
from .asr import ASR
from .host import write_parameters
from .scaling import scaled

_POSITIONS = (1, 2, 3)  # a block calls its plugins after its convolutions


@dataclasses.dataclass
class Plugin:
    """An ASR that a block calls after one of its convolutions.

    Attributes:
        block (nn.Module): The block, which lists its plugins in ``after_conv{i}_plugin_names``.
        position (int): Number of the convolution before the ASR, from 1.
        name (str): Name of the ASR in the block.
    """

    block: nn.Module
    position: int
    name: str

    @property
    def asr(self) -> ASR:
        """The ASR."""
        return getattr(self.block, self.name)

    @property
    def norm(self) -> nn.Module:
        """The normalization before the plugin."""
        return getattr(self.block, f'norm{self.position}')

    @torch.no_grad()
    def fold(self) -> None:
        """Multiply the normalization before the plugin by the scale, and remove the plugin."""
        write_parameters(self.norm, scaled(self.norm, self.asr.scale()))
        delattr(self.block, self.name)
        getattr(self.block, f'after_conv{self.position}_plugin_names').remove(self.name)
        self.block.with_plugins = any(
            getattr(self.block, f'after_conv{i}_plugin_names', []) for i in _POSITIONS
        )


def find_plugins(model: nn.Module) -> dict[str, Plugin]:
    """Find the ASRs of a network that are plugins.

    Args:
        model (nn.Module): Any network.

    Returns:
        dict[str, Plugin]: By the name of the ASR in the network.

    Raises:
        InputError: If one cannot be folded: it comes after attention that depends on the image, it has a
            negative scale after a ReLU, or there is no normalization before it.
    """
    found = {}
    for path, block in model.named_modules():
        for position in _POSITIONS:
            before = None
            for name in getattr(block, f'after_conv{position}_plugin_names', []):
                if not isinstance(getattr(block, name), ASR):
                    before = name
                    continue
                plugin = Plugin(block, position, name)
                _check(path, plugin, before)
                found[f'{path}.{name}'.lstrip('.')] = plugin
    return found


def _check(path: str, plugin: Plugin, before: str | None) -> None:
    block, position = plugin.block, plugin.position
    cannot = f"{path}.{plugin.name} can't be folded: ".lstrip('.')
    if before:
        raise InputError(f'{cannot}it comes after {before}, which depends on the image; put ASR first')
    if hasattr(block, f'norm{position + 1}') and (plugin.asr.scale() < 0).any():
        raise InputError(
            f'{cannot}its scale is negative and it comes after a ReLU, so no layer can take the scale'
        )
    if not hasattr(block, f'norm{position}'):
        raise InputError(f'{cannot}its block has no normalization after convolution {position}')
    ASR.check(f'{path}.norm{position}'.lstrip('.'), getattr(block, f'norm{position}'))
