"""Convolutions that train with branches and become one. Needs torch only.

Each is one file and one line here.
"""

from ..core.attach import CONVOLUTIONS
from . import repvgg  # noqa: F401  the blocks of other libraries
from .acnet import ACNet

__all__ = ['ACNet']

CONVOLUTIONS['ACNet'] = ACNet
