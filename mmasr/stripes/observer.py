"""Observe the attention of a network while it runs. Needs torch only."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from ..errors import InputError
from .modules import ValueReader, attention_modules
from .statistics import ChannelStatistics

#: A channel is steady if the standard deviation of its values over images is below this.
STEADY = 0.05
#: Maximum number of images whose values are stored for the pictures.
ROWS = 64


@dataclasses.dataclass
class Stripes:
    """Statistics of one attention module.

    Attributes:
        name (str): Name of the module in its network.
        kind (str): Name of its class.
        v (ChannelStatistics): Statistics of its attention values.
        pooled (ChannelStatistics): Statistics of its input, averaged over positions.
        rows (Tensor): Pooled input and attention values of the first images, at most :data:`ROWS`; shape
            (2, images, C).
        spatial (bool): Whether the module also has a spatial map, which is not included in ``v``.
    """

    name: str
    kind: str
    v: ChannelStatistics
    pooled: ChannelStatistics
    rows: torch.Tensor
    spatial: bool

    def combined(self, other: 'Stripes') -> 'Stripes':
        """Return the statistics of both sets of images together."""
        return dataclasses.replace(
            self,
            v=self.v.combined(other.v),
            pooled=self.pooled.combined(other.pooled),
            rows=torch.cat([self.rows, other.rows], dim=1)[:, :ROWS],
        )

    def summary(self) -> dict[str, float]:
        """Return three numbers that summarize the module.

        Returns:
            dict[str, float]: ``median_std``, the median over channels of the standard deviation of v over
            images; ``steady_share``, the share of channels where this deviation is below :data:`STEADY`; and
            ``between_channels``, see :attr:`ChannelStatistics.between_channels`.
        """
        std = self.v.std
        return {
            'median_std': std.quantile(0.5).item(),
            'steady_share': (std < STEADY).double().mean().item(),
            'between_channels': self.v.between_channels,
        }

    def to_dict(self) -> dict[str, Any]:
        """Return all statistics as numbers and lists."""
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
    """Context manager that collects the stripes of all attention modules while a network runs.

    If a network calls a module several times per image, or once per region, each call counts as an image.

    Args:
        model (nn.Module): The network.

    Raises:
        InputError: If the network has no attention that depends on its input. During a forward pass, if the
            input or the values of a module contain NaN or Inf.

    Attributes:
        stripes (dict[str, Stripes]): Name of a module -> its statistics. Modules that have not run are
            missing.

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
                f'{type(model).__name__} has no attention that depends on its input; known are the attention '
                "modules of mmasr, OpenMMLab's SELayer, timm's SE and ECA, and the entries of "
                'mmasr.stripes.VALUES'
            )
        self.stripes: dict[str, Stripes] = {}

    def __enter__(self) -> 'Observer':
        self._readers = [
            ValueReader(module, lambda *values, name=name: self._observe(name, *values), name)
            for name, module in self.modules.items()
        ]
        return self

    def __exit__(self, *error) -> None:
        for reader in self._readers:
            reader.remove()

    def _observe(self, name: str, x: torch.Tensor, v: torch.Tensor, output: torch.Tensor) -> None:
        if not len(v):  # a head without regions
            return
        module = self.modules[name]
        pooled = x.flatten(2).double().mean(dim=2) if x.dim() > 2 else x.double()
        if not v.isfinite().all() or not pooled.isfinite().all():
            where = 'the values v' if pooled.isfinite().all() else 'the input'
            raise InputError(
                f'{name} ({type(module).__name__}): NaN or Inf in {where}; use an earlier checkpoint'
            )
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

    def _add(self, stripes: Stripes) -> None:
        earlier = self.stripes.get(stripes.name)
        self.stripes[stripes.name] = earlier.combined(stripes) if earlier else stripes

    def combine(self, others: Iterable[dict[str, Stripes]]) -> None:
        """Add the stripes that other processes have collected from the same network."""
        for other in others:
            for stripes in other.values():
                self._add(stripes)

    def check(self) -> list[str]:
        """Check that the modules have run on enough images, and sort :attr:`stripes` in the network's order.

        Returns:
            list[str]: Names of the modules that have not run.

        Raises:
            InputError: If no module has run, or all have run on one image only.
        """
        if not self.stripes:
            raise InputError(f'none of the attention modules ran: {", ".join(self.modules)}')
        if all(stripes.v.count < 2 for stripes in self.stripes.values()):
            raise InputError('a standard deviation needs at least two images; use a few hundred')
        # Several processes may have seen the modules in different orders.
        self.stripes = {name: self.stripes[name] for name in self.modules if name in self.stripes}
        return [name for name in self.modules if name not in self.stripes]
