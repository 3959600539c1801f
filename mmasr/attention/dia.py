"""DIANet: Dense-and-Implicit Attention Network, Huang et al., AAAI 2020, https://arxiv.org/abs/1905.10671. Details are those of
its authors' code, https://github.com/gbup-group/DIANet. Needs torch only.

The attention of a block depends on that of the blocks before it, so it is none of :data:`mmasr.attention.ATTENTIONS`: whoever
runs the blocks passes a :class:`DIAState` from one to the next.
"""

import torch
from torch import nn

from .base import squeeze


class DIACell(nn.Module):
    """The LSTM cell that all blocks of a stage share.

    Its gates are each two linear layers with a ReLU between, of the pooled features and of the last attention, and its output
    is σ(o) ⊙ σ(c).

    Args:
        channels (int): Number of channels C.
        ratio (int): Reduction; the layers between have C // ratio units, at least 1. Default: 4.
        init_identity (bool): Start with gates of 0, whose output is 1/4 everywhere. Default: False.
    """

    def __init__(self, channels: int, ratio: int = 4, init_identity: bool = False) -> None:
        super().__init__()
        hidden = max(1, channels // ratio)
        self.features, self.attention = (
            nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, 4 * channels)) for _ in range(2)
        )
        if init_identity:
            for layers in (self.features, self.attention):
                nn.init.zeros_(layers[2].weight)
                nn.init.zeros_(layers[2].bias)

    def forward(self, x: torch.Tensor, attention: torch.Tensor, cell: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Map pooled features, the last attention and the state of the cell, (N, C) each, to the next two of them."""
        i, f, g, o = (self.features(x) + self.attention(attention)).chunk(4, dim=1)
        cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
        return o.sigmoid() * cell.sigmoid(), cell


class DIAState:
    """What goes from block to block in one forward pass of a stage.

    Args:
        cell (DIACell): The cell of the stage.
    """

    def __init__(self, cell: DIACell) -> None:
        self.step = cell
        self.state: tuple[torch.Tensor, torch.Tensor] | None = None

    def attention(self, x: torch.Tensor) -> torch.Tensor:
        """The attention values (N, C) of the next block, whose pooled features are x, (N, C)."""
        self.state = self.step(x, *(self.state or (torch.zeros_like(x), torch.zeros_like(x))))
        return self.state[0]


class DIA(nn.Module):
    """The attention of one block: multiplies by what the cell of its stage puts out.

    Args:
        channels (int): Number of channels C.
        ratio (int): Of the cell, see :class:`DIACell`. Default: 4.
        init_identity (bool): Start as the identity, so that it can be put into a pretrained network: the gates of the cell
            start at 0, and what it puts out is multiplied by 4. Default: False.
    """

    def __init__(self, channels: int, ratio: int = 4, init_identity: bool = False) -> None:
        super().__init__()
        self.channels, self.ratio, self.init_identity = channels, ratio, init_identity
        self.gate = nn.Identity()  # puts out the values, for whoever wants to see them

    def cell(self) -> DIACell:
        """A cell for the stage."""
        return DIACell(self.channels, self.ratio, self.init_identity)

    def forward(self, x: torch.Tensor, state: DIAState | None = None) -> torch.Tensor:
        """Multiply features (N, C, H, W) by their attention values.

        Raises:
            ValueError: If there is no state.
        """
        if state is None:
            raise ValueError(
                'DIA gets no state of the block before, which no stock backbone passes on; take mmasr.ASRResNet, ASRResNetV1d, '
                'ASRResNeXt or ASRResNetCIFAR, with asr or without'
            )
        v = state.attention(squeeze(x))
        return x * self.gate(4 * v if self.init_identity else v).view(*x.shape[:2], 1, 1)
