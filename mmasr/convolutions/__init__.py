"""Convolutions that train with branches and become one. Needs torch only.

Each is one file and one line here.
"""

from ..core.attach import CONVOLUTIONS
from . import repvgg  # noqa: F401  the blocks of other libraries
from .acnet import ACNet
from .dbb import DBB, OfflineOREPA
from .orepa import OREPA
from .xvolution import XVolution

__all__ = ['DBB', 'OREPA', 'ACNet', 'OfflineOREPA', 'XVolution']

CONVOLUTIONS.update(ACNet=ACNet, DBB=DBB, OfflineOREPA=OfflineOREPA, OREPA=OREPA, XVolution=XVolution)
