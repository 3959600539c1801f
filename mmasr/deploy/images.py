"""Fixed images to compare networks on: noise, and patterns of photographs. Needs torch only."""

import torch
from torch import nn


def comparison_images(
    model: nn.Module, channels: int, size: int, deviation: float, generator: torch.Generator
) -> torch.Tensor:
    """Draw images for a network: noise; edges beside blobs on a gradient; one with a photograph's spectrum.

    Channels that are silent on noise can be active on photographs. So the patterns have the values of pixels,
    from dark to bright, normalized as the network's data preprocessor does.

    Args:
        model (nn.Module): The network.
        channels (int): Number of channels of its images.
        size (int): Side of the images in pixels.
        deviation (float): Standard deviation of the noise; the contrast of the patterns is multiplied by it.
        generator (torch.Generator): Source of random numbers.

    Returns:
        Tensor: Three images (3, C, H, W), normalized.
    """
    noise = deviation * torch.randn(channels, size, size, generator=generator)
    shape = channels, 1, 1
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, size)] * 2, indexing='ij')

    def drawn(low: float, high: float) -> torch.Tensor:
        return low + (high - low) * torch.rand(shape, generator=generator)

    edges = (drawn(-20, 20) * x + drawn(-20, 20) * y + drawn(-3, 3)).sin().sign()
    blobs = drawn(-1, 1) * x + drawn(-1, 1) * y
    for _ in range(8):
        distance = (x - drawn(-1, 1)) ** 2 + (y - drawn(-1, 1)) ** 2
        blobs += drawn(-1, 1) * (-distance / drawn(0.01, 0.2)).exp()
    contrast = 60 * deviation
    drawing = torch.where(x < 0, 60 + contrast * edges, 190 + contrast * blobs)  # dark, and bright
    natural = 110 + contrast * _natural(channels, size, generator)
    pixels = torch.stack([drawing, natural]).clamp(0, 255)
    return torch.cat([noise[None], _normalized(model, pixels)])


def _natural(channels: int, size: int, generator: torch.Generator) -> torch.Tensor:
    """Draw a map (C, H, W) of deviation 1, whose amplitudes fall with the frequency as a photograph's do."""
    spectrum = torch.fft.rfft2(torch.randn(channels, size, size, generator=generator))
    frequency = torch.hypot(torch.fft.fftfreq(size)[:, None], torch.fft.rfftfreq(size)[None])
    values = torch.fft.irfft2(spectrum / frequency.clamp_min(1 / size), s=(size, size))
    return values / values.std()


def _normalized(model: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    """Normalize pixels as the data preprocessor of a network does, if it has one."""
    preprocessor = getattr(model, 'data_preprocessor', None)
    mean, std = getattr(preprocessor, 'mean', None), getattr(preprocessor, 'std', None)
    if mean is None or std is None:  # the pipeline may normalize; large values would be far from its images
        mean, std = 127.5, 60
    return (pixels - mean) / std
