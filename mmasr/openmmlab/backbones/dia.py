"""Mixins for the stages of MMDetection's ResNets whose blocks share a DIA cell."""

import torch
from torch import nn

from ...attention.dia import DIA, DIAState
from ...core.class_surgery import Mixin, mixed_class, with_parameters
from ...errors import InputError


class DIABlock(Mixin):
    """Mixin for a residual block that has a DIA among its plugins."""

    def forward(self, x: torch.Tensor, state: DIAState | None = None) -> torch.Tensor:
        """Run the block on a feature map with the state of its stage.

        Args:
            x (Tensor): Feature map (N, C, H, W).
            state (DIAState, optional): State of the stage in this forward pass. DIA requires it.

        Returns:
            Tensor: Output of the block.
        """
        run = with_parameters(self, type(self), {})  # a copy, since threads may share the network
        vars(run)['state'] = state
        return super(DIABlock, run).forward(x)

    def forward_plugin(self, x: torch.Tensor, plugin_names: list[str]) -> torch.Tensor:
        """Run plugins in order; a DIA also receives the state.

        Args:
            x (Tensor): Feature map (N, C, H, W).
            plugin_names (list[str]): Names of the plugins in the block.

        Returns:
            Tensor: Feature map of the same shape.
        """
        for name in plugin_names:
            plugin = getattr(self, name)
            is_dia = isinstance(getattr(plugin, 'attention', plugin), DIA)  # a Switch of stripes around it
            x = plugin(x, self.state) if is_dia else plugin(x)
        return x

    def restore_class(self) -> None:
        """Restore the stock block if its DIA was removed."""
        if not has_dia(self):
            super().restore_class()


class DIAStage(Mixin):
    """Mixin for a stage, a sequence of such blocks. Its child ``dia`` is the cell that they share."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run the blocks with one state, which each of them updates."""
        state = DIAState(self.dia)
        for block in self:
            if block is not self.dia:
                x = block(x, state)
        return x

    def restore_class(self) -> None:
        """Restore the stock sequence and remove the cell if no block has a DIA."""
        if not has_dia(self):
            del self.dia
            super().restore_class()


def has_dia(module: nn.Module) -> bool:
    """Return whether a module contains a DIA."""
    return any(isinstance(part, DIA) for part in module.modules())


def with_shared_cell(stage: nn.Module) -> nn.Module:
    """Make the blocks of a stage share one DIA cell, in place; do nothing if they have no DIA.

    Args:
        stage (nn.Module): A sequence of blocks with plugins.

    Returns:
        nn.Module: ``stage``.

    Raises:
        InputError: If the blocks use activation checkpointing, which runs them a second time in the backward
            pass.
    """
    if not has_dia(stage):
        return stage
    cell = next(part for part in stage.modules() if isinstance(part, DIA)).cell()
    for block in stage:
        if block.with_cp:
            raise InputError(
                'DIA passes a state from block to block, and activation checkpointing would pass it twice; '
                'leave with_cp out'
            )
        block.__class__ = mixed_class(DIABlock, type(block))
    stage.__class__ = mixed_class(DIAStage, type(stage))
    stage.dia = cell
    return stage
