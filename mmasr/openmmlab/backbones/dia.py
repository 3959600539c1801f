"""Stages of MMDetection's ResNets whose blocks share a DIA."""

from torch import nn

from ...attention.dia import DIA, DIAState
from ...core.surgery import Mixed, mixed_class, twin


class DIABlock(Mixed):
    """Mixed into a residual block that has a DIA among its plugins."""

    def forward(self, x, state: DIAState | None = None):
        run = twin(self, type(self), {})  # threads that share the network must not meet
        vars(run)['state'] = state
        return super(DIABlock, run).forward(x)

    def forward_plugin(self, x, plugin_names: list[str]):
        for name in plugin_names:
            plugin = getattr(self, name)
            x = plugin(x, self.state) if isinstance(plugin, DIA) else plugin(x)
        return x

    def restore_class(self) -> None:
        """Become the stock block again once its DIA is gone."""
        if not has_dia(self):
            super().restore_class()


class DIAStage(Mixed):
    """Mixed into the sequence of such blocks; its child ``dia`` is the cell that they share."""

    def forward(self, x):
        state = DIAState(self.dia)
        for block in self:
            if block is not self.dia:
                x = block(x, state)
        return x

    def restore_class(self) -> None:
        """Become the stock sequence again, without the cell, once no block has a DIA."""
        if not has_dia(self):
            del self.dia
            super().restore_class()


def has_dia(module: nn.Module) -> bool:
    """Whether there is a DIA in a module."""
    return any(isinstance(part, DIA) for part in module.modules())


def with_shared_cell(stage: nn.Module) -> nn.Module:
    """Have the blocks of a stage share a cell if they have DIAs, in place.

    Args:
        stage (nn.Module): A sequence of blocks with plugins.

    Returns:
        nn.Module: ``stage``.

    Raises:
        ValueError: If its blocks are computed again in the backward pass.
    """
    if not has_dia(stage):
        return stage
    cell = next(part for part in stage.modules() if isinstance(part, DIA)).cell()
    for block in stage:
        if block.with_cp:
            raise ValueError('DIA passes a state from block to block, which with_cp would pass twice: leave with_cp out')
        block.__class__ = mixed_class(DIABlock, type(block))
    stage.__class__ = mixed_class(DIAStage, type(stage))
    stage.dia = cell
    return stage
