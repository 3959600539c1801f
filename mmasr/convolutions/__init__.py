"""Convolutions that train with several branches and fold into one layer. Needs torch only.

Each kind is one file and one registration here.
"""

from ..core.reparameterization import REPARAMETERIZATIONS
from . import blocks  # noqa: F401  registers the blocks of other libraries
from .acnet import ACNet
from .dbb import DBB, OfflineOREPA
from .orepa import OREPA
from .xvolution import XVolution

__all__ = ['DBB', 'OREPA', 'ACNet', 'OfflineOREPA', 'XVolution']

REPARAMETERIZATIONS.update(ACNet=ACNet, DBB=DBB, OfflineOREPA=OfflineOREPA, OREPA=OREPA, XVolution=XVolution)
