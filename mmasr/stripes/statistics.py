"""Statistics over images for each channel, in memory that does not grow with the images. Needs torch only."""

import dataclasses

import torch


@dataclasses.dataclass
class ChannelStatistics:
    """Statistics over N images for each of C channels, in double precision.

    Attributes:
        count (int): Number of images N.
        mean (Tensor): Means, shape (C,).
        squares (Tensor): Sums of the squared differences from the mean, shape (C,).
        minimum (Tensor): Smallest values, shape (C,).
        maximum (Tensor): Largest values, shape (C,).
    """

    count: int
    mean: torch.Tensor
    squares: torch.Tensor
    minimum: torch.Tensor
    maximum: torch.Tensor

    @classmethod
    def of(cls, values: torch.Tensor) -> 'ChannelStatistics':
        """Return the statistics of values of shape (N, C), with N at least 1."""
        values = values.double()
        mean = values.mean(dim=0)
        return cls(
            len(values), mean, (values - mean).square().sum(dim=0), values.amin(dim=0), values.amax(dim=0)
        )

    def combined(self, other: 'ChannelStatistics') -> 'ChannelStatistics':
        """Return the statistics of both sets of images together.

        The formula is from Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm for computing
        sample variances", 1979. Unlike sums of squares, it does not suffer from cancellation.
        """
        count = self.count + other.count
        delta = other.mean - self.mean
        return ChannelStatistics(
            count,
            self.mean + delta * (other.count / count),
            self.squares + other.squares + delta.square() * (self.count * other.count / count),
            self.minimum.minimum(other.minimum),
            self.maximum.maximum(other.maximum),
        )

    @property
    def std(self) -> torch.Tensor:
        """Standard deviations over the images, shape (C,). They are divided by N, so one image gives 0."""
        return (self.squares / self.count).sqrt()

    @property
    def between_channels(self) -> float:
        """Share of the variance over images and channels that lies between the channels' means, in [0, 1].

        A share of 1 means perfect stripes: a value depends on its channel only. It is also 1 if all values
        are equal.
        """
        between = self.mean.var(correction=0)
        within = (self.squares / self.count).mean()
        total = between + within
        return (between / total).item() if total else 1.0
