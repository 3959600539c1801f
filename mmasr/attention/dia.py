"""DIANet: Dense-and-Implicit Attention Network, Huang et al., AAAI 2020, https://arxiv.org/abs/1905.10671.

The details follow the authors' code, https://github.com/gbup-group/DIANet. Needs torch only.

The attention of a block depends on the attention of the blocks before it. So DIA is not one of
:data:`mmasr.attention.ATTENTIONS`: the code that runs the blocks passes a :class:`DIAState` from each
block to the next.
"""

import torch
from torch import nn

from ..errors import InputError
from .base import squeeze


class DIACell(nn.Module):
    """LSTM cell that all blocks of a stage share.

    The input of each gate is the sum of two small networks: one of the pooled features, one of the last
    attention. Each has two linear layers with a ReLU in between. The output of the cell is σ(o) ⊙ σ(c).

    Args:
        channels (int): Number of channels C.
        ratio (int): Reduction; the hidden layers have max(1, C // ratio) units. Default: 4.
        init_identity (bool): Start with 0 as the input of all gates, so that the output is 1/4 everywhere.
            Default: False.
    """

    def __init__(self, channels: int, ratio: int = 4, init_identity: bool = False) -> None:
        super().__init__()
        hidden = max(1, channels // ratio)
        self.features, self.attention = (
            nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, 4 * channels))
            for _ in range(2)
        )
        if init_identity:
            for layers in (self.features, self.attention):
                nn.init.zeros_(layers[2].weight)
                nn.init.zeros_(layers[2].bias)

    def forward(
        self, x: torch.Tensor, attention: torch.Tensor, cell: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Run the cell for one block.

        Args:
            x (Tensor): Pooled features of the block, (N, C).
            attention (Tensor): Attention values of the block before, (N, C).
            cell (Tensor): State of the cell, (N, C).

        Returns:
            tuple[Tensor, Tensor]: Attention values of the block, and the new state of the cell, (N, C) each.
        """
        i, f, g, o = (self.features(x) + self.attention(attention)).chunk(4, dim=1)
        cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
        return o.sigmoid() * cell.sigmoid(), cell


class DIAState:
    """State that is passed from block to block in one forward pass of a stage.

    Args:
        cell (DIACell): The cell of the stage.
    """

    def __init__(self, cell: DIACell) -> None:
        self.step = cell
        self.state: tuple[torch.Tensor, torch.Tensor] | None = None

    def attention(self, x: torch.Tensor) -> torch.Tensor:
        """Return the attention values (N, C) of the next block from its pooled features (N, C)."""
        self.state = self.step(x, *(self.state or (torch.zeros_like(x), torch.zeros_like(x))))
        return self.state[0]


class DIA(nn.Module):
    """Attention of one block: multiplies the features by the output of the stage's cell.

    Args:
        channels (int): Number of channels C.
        ratio (int): Reduction of the cell; see :class:`DIACell`. Default: 4.
        init_identity (bool): Start as the identity, so that DIA can be inserted into a pretrained network.
            The inputs of the cell's gates start at 0, and the output of the cell is multiplied by 4.
            Default: False.
    """

    def __init__(self, channels: int, ratio: int = 4, init_identity: bool = False) -> None:
        super().__init__()
        self.channels, self.ratio, self.init_identity = channels, ratio, init_identity
        self.gate = nn.Identity()  # outputs the attention values, so that hooks can read them

    def cell(self) -> DIACell:
        """Return a new cell for the stage."""
        return DIACell(self.channels, self.ratio, self.init_identity)

    def forward(self, x: torch.Tensor, state: DIAState | None = None) -> torch.Tensor:
        """Multiply features by their attention values.

        Args:
            x (Tensor): Features, (N, C, H, W).
            state (DIAState, optional): The state from the block before.

        Returns:
            Tensor: Weighted features, (N, C, H, W).

        Raises:
            InputError: If there is no state.
        """
        if state is None:
            raise InputError(
                'DIA received no state from the block before, as stock backbones do not pass it on; use '
                'mmasr.ASRResNet, ASRResNetV1d, ASRResNeXt or ASRResNetCIFAR, with or without asr'
            )
        v = state.attention(squeeze(x))
        return x * self.gate(4 * v if self.init_identity else v).view(*x.shape[:2], 1, 1)
