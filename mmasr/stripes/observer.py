"""Watches the attention of a network while it runs. Needs torch only."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from ..errors import InputError
from .modules import ValueReader, attention_modules
from .statistics import ChannelStatistics

#: A channel whose values deviate by less than this over images is steady.
STEADY = 0.05
#: Images whose values are kept for the pictures.
ROWS = 64


@dataclasses.dataclass
class Stripes:
    """What one attention module did.

    Attributes:
        name (str): Its name in the network.
        kind (str): Its class.
        v (ChannelStatistics): Of its attention values.
        pooled (ChannelStatistics): Of its input, averaged over positions.
        rows (Tensor): For the first images, at most :data:`ROWS`, the pooled input and the values: (2, images, C).
        spatial (bool): Whether it also has a spatial map, which is not in ``v``.
    """

    name: str
    kind: str
    v: ChannelStatistics
    pooled: ChannelStatistics
    rows: torch.Tensor
    spatial: bool

    def merged(self, other: 'Stripes') -> 'Stripes':
        """Both sets of images together."""
        return dataclasses.replace(
            self,
            v=self.v.merged(other.v),
            pooled=self.pooled.merged(other.pooled),
            rows=torch.cat([self.rows, other.rows], dim=1)[:, :ROWS],
        )

    def summary(self) -> dict[str, float]:
        """The module's figures: ``median_std``, the median over channels of the standard deviation of v over images;
        ``steady_share``, the share of channels where it is under :data:`STEADY`; ``between_channels``, see
        :class:`ChannelStatistics`."""
        std = self.v.std
        return {
            'median_std': std.quantile(0.5).item(),
            'steady_share': (std < STEADY).double().mean().item(),
            'between_channels': self.v.between_channels,
        }

    def to_dict(self) -> dict[str, Any]:
        """All figures, as numbers and lists."""
        parts = {
            part: {
                'mean': statistics.mean.tolist(),
                'std': statistics.std.tolist(),
                'min': statistics.minimum.tolist(),
                'max': statistics.maximum.tolist(),
            }
            for part, statistics in (('v', self.v), ('pooled_input', self.pooled))
        }
        shape = {'images': self.v.count, 'channels': len(self.v.mean), 'spatial_map': self.spatial}
        return {'name': self.name, 'kind': self.kind, **shape, **self.summary(), **parts}


class Observer:
    """Collects the stripes of every attention module of a network between entering and leaving it.

    A module that a network calls several times an image, or once for every region, counts each of them as an image.

    Args:
        model (nn.Module): The network.

    Raises:
        InputError: If it has no attention that depends on its input.

    Attributes:
        stripes (dict[str, Stripes]): By name of the module; those that have not run are missing.

    Example:
        >>> import torch, mmasr
        >>> from mmasr.stripes import Observer
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), mmasr.SE(8))
        >>> with Observer(model) as observer:
        ...     output = model(torch.randn(4, 3, 16, 16))
        >>> sorted(observer.stripes['1'].summary())
        ['between_channels', 'median_std', 'steady_share']
    """

    def __init__(self, model: nn.Module) -> None:
        self.modules = attention_modules(model)
        if not self.modules:
            raise InputError(
                f'{type(model).__name__} has no attention that depends on its input; known are the attention modules of mmasr, '
                'the SELayer of OpenMMLab, SE and ECA of timm, and what mmasr.stripes.VALUES lists'
            )
        self.stripes: dict[str, Stripes] = {}

    def __enter__(self) -> 'Observer':
        self._readers = [
            ValueReader(module, lambda *seen, name=name: self._see(name, *seen), name) for name, module in self.modules.items()
        ]
        return self

    def __exit__(self, *error) -> None:
        for reader in self._readers:
            reader.remove()

    def _see(self, name: str, x: torch.Tensor, v: torch.Tensor, output: torch.Tensor) -> None:
        if not len(v):  # a head without regions
            return
        module = self.modules[name]
        pooled = x.flatten(2).double().mean(dim=2) if x.dim() > 2 else x.double()
        if not v.isfinite().all() or not pooled.isfinite().all():
            where = 'the values v' if pooled.isfinite().all() else 'the input'
            raise InputError(f'{name} ({type(module).__name__}): NaN or Inf in {where}; take an earlier checkpoint')
        self._add(
            Stripes(
                name,
                type(module).__name__.removesuffix('Plugin'),
                ChannelStatistics.of(v.cpu()),
                ChannelStatistics.of(pooled.cpu()),
                torch.stack([pooled, v.double()])[:, :ROWS].cpu(),
                getattr(module, 'spatial', False),
            )
        )

    def _add(self, seen: Stripes) -> None:
        before = self.stripes.get(seen.name)
        self.stripes[seen.name] = before.merged(seen) if before else seen

    def merge(self, others: Iterable[dict[str, Stripes]]) -> None:
        """Add what other processes have seen of the same network."""
        for stripes in others:
            for seen in stripes.values():
                self._add(seen)

    def check(self) -> list[str]:
        """Check that there are deviations to speak of.

        Returns:
            list[str]: Names of the modules that have not run.

        Raises:
            InputError: If no module ran, or on one image only.
        """
        if not self.stripes:
            raise InputError(f'none of the attention modules ran: {", ".join(self.modules)}')
        if all(stripes.v.count < 2 for stripes in self.stripes.values()):
            raise InputError('one image has no deviation; give two at least, better some hundred')
        # In the network's order, whatever order the processes saw them in.
        self.stripes = {name: self.stripes[name] for name in self.modules if name in self.stripes}
        return [name for name in self.modules if name not in self.stripes]
