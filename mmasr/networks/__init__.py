"""Plain networks of the paper that MMPretrain does not have. What is folded becomes one of these."""

from .mobilenet import MobileNet
from .resnet_cifar import ResNetCIFAR

__all__ = ['MobileNet', 'ResNetCIFAR']
